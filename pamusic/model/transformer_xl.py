"""Compute next-token logits with segment recurrence: Transformer-XL (Dai et al. 2019, arXiv:1901.02860).

Knows tensors of ids; knows no music, no vocabulary, no files. A window is a chain of segments of `num_latents`
positions. In every block, a position attends to its own segment up to itself and to the whole segment before, whose
states are kept without a gradient. So information passes one segment further back with each block, and a window of `m`
positions costs `m` times a segment instead of `m` times itself.

Differences from the paper:
- Relative positions come from our rotary embedding. A query and a key are rotated by their positions, so their product
  depends on the two states and on the distance. The paper adds four terms instead: content and distance, each with the
  query and with a learned bias `u` or `v` in place of the query; a sinusoid, projected by a matrix of its own, stands
  for the distance. We have neither these biases nor this matrix.
- The cached states have the length of one segment in training, as in the paper, and also in sampling and evaluation,
  where the paper lengthens them.
- A training window begins with an empty cache and has the length of the context. The paper reads its corpus in order
  and keeps the cache from batch to batch. So our batches stay a pure function of corpus, seed and step, and a resumed
  run needs no cache. The price: the first segment of a window has nothing before it.
- Blocks, embedding and heads are those of our Perceiver AR (`model.transformer`).

As in the paper, keys and values of cached states are projected anew, so the projections learn from them, and only the
states have no gradient.

Shapes: as in `model.transformer`, with `s` segments of `n` positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pamusic.model.blocks import Block
from pamusic.model.caches import Caches
from pamusic.model.config import ModelConfig
from pamusic.model.rotary import Rotation
from pamusic.model.transformer import Transformer


class TransformerXL(Transformer):
    """A Transformer-XL: logits for the token after each position.

    In sampling and evaluation, the cache is carried along the piece. So a step costs the same at any length, nothing is
    recomputed, and the length of the context limits only what is read of a prime.
    """

    def num_held(self, config: ModelConfig) -> int | None:
        return None

    def states(self, latents: Tensor, caches: Caches, last_only: bool = False) -> Tensor:
        """Apply the layers to the last positions read, which may fill several segments; see `SequenceModel`."""
        n, segment = latents.shape[1], self._segment(caches)
        first, done, outputs = caches.position - n, 0, []
        while done < n:
            filled = (first + done) % segment
            if not filled:
                _begin_segment(caches, segment)
            part = latents[:, done : done + segment - filled]
            outputs.append(self._extended(part, first + done, caches))
            done += part.shape[1]
        normed: Tensor = self.norm(outputs[-1][:, -1:] if last_only else torch.cat(outputs, dim=1))
        return normed

    def block_logits(self, tokens: Tensor, start: int, caches: Caches, num_latents: int) -> Tensor:
        """Return the logits of the block as one segment after the cached ones; arguments as in `SequenceModel`."""
        if start and not caches.num_latents:  # positions that are only read have no states yet
            for first in range(0, start, num_latents):
                _begin_segment(caches, num_latents)
                self._extended(self._embedded(tokens[:, first : min(first + num_latents, start)]), first, caches)
        new = tokens[:, start:-1]
        self.read(new, caches)
        _begin_segment(caches, num_latents)
        states = self.norm(self._extended(self._embedded(new), start, caches))
        return self._head_logits(states, self._following(tokens, new.shape[1]))

    def _window(self, config: ModelConfig) -> int:
        return 2 * config.num_latents

    def _segment(self, caches: Caches) -> int:
        """Return the length of a segment, which may differ from the configuration's."""
        return caches.layers[0].window // 2

    def _parallel(self, x: Tensor) -> Tensor:
        """Apply all blocks to the embeddings of a window, `[batch, m, d]`.

        A block works on all segments at once: its input is known for the whole window before it begins.
        """
        m = x.shape[1]
        n = min(self.config.num_latents, m)
        segments = F.pad(x, (0, 0, 0, -m % n)).unflatten(1, (-1, n))
        rotary = self._rotation(torch.arange(2 * n, device=x.device))
        for block in self._blocks():
            segments = self._apply_to_segments(block, segments, rotary)
        return segments.flatten(1, 2)[:, :m]

    def _apply_to_segments(self, block: Block, x: Tensor, rotary: Rotation) -> Tensor:
        """Apply a block to segments `[batch, s, n, d]`; `rotary` rotates `2 n` positions."""
        n = x.shape[2]
        first = self._apply_block(block, x[:, 0], (rotary[0][n:], rotary[1][n:]))[:, None]
        if x.shape[1] == 1:
            return first
        before = x[:, :-1].detach().flatten(0, 1)
        later = self._apply_block(block, x[:, 1:].flatten(0, 1), rotary, before)
        return torch.cat([first, later.unflatten(0, (x.shape[0], -1))], dim=1)


def _begin_segment(caches: Caches, length: int) -> None:
    """Keep the states of the last segment only."""
    for cache in caches.layers:
        cache.keep_last(length)
