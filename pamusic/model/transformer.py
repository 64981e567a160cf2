"""Compute next-token logits with a decoder-only Transformer (Vaswani et al. 2017, arXiv:1706.03762).

Knows tensors of ids; knows no music, no vocabulary, no files. Every block is causal self-attention over all positions
of the context, as in the decoder without an encoder of Liu et al. 2018 (arXiv:1801.10198). Perceiver AR is compared
with it, so it shares the blocks, embedding and heads of our Perceiver AR (`model.blocks`, `model.fields`) and none of
its other parts.

Differences from the papers:
- The blocks are those of our Perceiver AR: RMS norm before each part, normalised queries and keys, a squared ReLU, no
  biases, and zeros in the output projections and the head at the beginning.
- Positions enter through a rotary embedding of a quarter of each head, not through a table. So only distances matter,
  and the context can slide.
- There is one block more than `num_layers`: the first, where Perceiver AR has its cross-attention. At equal settings
  both architectures have the same number of blocks and almost the same number of weights.

Padding may follow the tokens, where causality hides it. It must not precede them.

Shapes: `batch`; `m` positions of context; `d` width; `vocab` ids. Tokens are `[batch, m]`, or `[batch, m, fields]`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pamusic.model.blocks import Block, RMSNorm
from pamusic.model.cache import KeyValueCache
from pamusic.model.caches import Caches, empty_ids
from pamusic.model.config import ModelConfig
from pamusic.model.fields import FieldHeads
from pamusic.model.rotary import Rotation, rotation
from pamusic.model.sequence_model import SequenceModel


class Transformer(SequenceModel):
    """A decoder-only Transformer: logits for the token after each position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.recall = None
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.first = Block(config, config.num_heads)
        self.layers = nn.ModuleList(Block(config, config.num_heads) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, eps=1e-6)
        self.fields = FieldHeads(config.field_sizes, config.d_model) if config.field_sizes else None
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight)
        nn.init.zeros_(self.head.weight)

    def forward(
        self,
        tokens: Tensor,
        num_latents: int | None = None,
        prefix_indices: Tensor | None = None,
        recalled: Tensor | None = None,
        following: Tensor | None = None,
    ) -> Tensor:
        """Return logits `[batch, n, vocab]` of the tokens that follow each of the last `n` positions; all by default.

        The arguments are those of `SequenceModel.forward`.
        """
        assert prefix_indices is None, "every position attends to all positions before it"
        assert recalled is None, "a plain architecture has no recall"
        states = self._parallel(self._embedded(tokens))
        states = self.norm(states if num_latents is None else states[:, -num_latents:])
        return self._head_logits(states, following)

    def num_held(self, config: ModelConfig) -> int | None:
        return config.context_length

    def new_caches(
        self, batch: int, num_latents: int | None = None, context_length: int | None = None, headroom: int = 0
    ) -> Caches:
        config = self.config.resized(context_length=context_length, num_latents=num_latents)
        like, window = self.embedding.weight, self._window(config)
        head_dim = config.d_model // config.num_heads
        size = (batch, config.num_heads, head_dim)
        layers = [
            KeyValueCache(*size, window=window, headroom=headroom, device=like.device, dtype=like.dtype)
            for _ in self._blocks()
        ]
        return Caches(layers, ids=empty_ids(config, batch, like.device))

    def read(self, tokens: Tensor, caches: Caches) -> None:
        assert caches.ids is not None
        caches.ids.append(tokens)
        caches.position += tokens.shape[1]

    def latents(self, tokens: Tensor, caches: Caches) -> Tensor:
        """Return the embeddings of tokens, which all positions of the stack begin with."""
        return self._embedded(tokens)

    def states(self, latents: Tensor, caches: Caches, last_only: bool = False) -> Tensor:
        normed: Tensor = self.norm(self._extended(latents, caches.position - latents.shape[1], caches, last_only))
        return normed

    def logits(
        self, latents: Tensor, caches: Caches, last_only: bool = False, following: Tensor | None = None
    ) -> Tensor:
        return self._head_logits(self.states(latents, caches, last_only), following)

    def block_logits(self, tokens: Tensor, start: int, caches: Caches, num_latents: int) -> Tensor:
        """Return the logits of one parallel pass over the context of the block; arguments as in `SequenceModel`."""
        num_new = tokens.shape[1] - 1 - start
        self.read(tokens[:, start:-1], caches)
        logits: Tensor = self(caches.visible_ids(), num_latents=num_new, following=self._following(tokens, num_new))
        return logits

    def _window(self, config: ModelConfig) -> int:
        """Return the number of positions that a block attends to."""
        return config.context_length

    def _blocks(self) -> list[Block]:
        return [self.first, *(layer for layer in self.layers if isinstance(layer, Block))]

    def _parallel(self, x: Tensor) -> Tensor:
        """Apply all blocks to the embeddings of a window, `[batch, m, d]`."""
        rotary = self._rotation(torch.arange(x.shape[1], device=x.device))
        for block in self._blocks():
            x = self._apply_block(block, x, rotary)
        return x

    def _apply_block(self, block: Block, x: Tensor, rotary: Rotation, before: Tensor | None = None) -> Tensor:
        """Apply a block in training, where its activations may be recomputed."""
        if self.recompute:
            kept: Tensor = checkpoint(block, x, rotary, before=before, use_reentrant=False)
            return kept
        done: Tensor = block(x, rotary, before=before)
        return done

    def _extended(self, x: Tensor, first: int, caches: Caches, last_only: bool = False) -> Tensor:
        """Apply all blocks to embeddings `[batch, n, d]` from position `first` on, after the cached positions."""
        blocks = self._blocks()
        rotary = self._rotation(torch.arange(first, first + x.shape[1], device=x.device))
        for block, cache in zip(blocks, caches.layers, strict=True):
            x = block(x, rotary, cache=cache, last_only=last_only and block is blocks[-1])
        return x[:, -1:] if last_only else x

    def _head_logits(self, states: Tensor, following: Tensor | None) -> Tensor:
        """Return logits `[batch, n, vocab]` from normalised states."""
        if self.fields is None:
            return self.head(states)
        assert following is not None, "each field needs the fields before it"
        logits: Tensor = self.fields(states, following, self.head.weight)
        return logits

    def _following(self, tokens: Tensor, n: int) -> Tensor | None:
        """Return the last `n` tokens, which the heads of fields need; None for one id a position."""
        return None if self.fields is None else tokens[:, -n:]

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Return embeddings `[batch, m, d]` of ids `[batch, m]` or `[batch, m, fields]`."""
        embedded: Tensor = self.embedding(tokens)
        return embedded if self.fields is None else embedded.sum(-2) * tokens.shape[-1] ** -0.5

    def _rotation(self, positions: Tensor) -> Rotation:
        return rotation(positions, self.config.d_model // self.config.num_heads, self.config.rotary_fraction)
