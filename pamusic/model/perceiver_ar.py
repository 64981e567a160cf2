"""Compute next-token logits from a very long context: Perceiver AR (Hawthorne et al. 2022, arXiv:2202.07765).

Knows tensors of ids; knows no music, no vocabulary, no files. One causal cross-attention reads the whole context into
the latents, which stand at its last positions. A deep stack of causal self-attention works on the latents alone.

Differences from the paper:
- RMS norm instead of layer norm, no biases, and normalised queries and keys: as stable, with fewer operations.
- Output projections and the head begin at zero, so that every block begins as the identity.
- The cross-attention has heads of at most 128 dimensions instead of one of full width, as fused attention requires.
- Cross-attend dropout drops prefix positions for each row separately. It leaves them out instead of masking them, so
  dropped positions cost nothing. It never drops the latents' own keys.
- After the cross-attention, each latent gets an embedding of the open slots and their ages (`model.ledger`).
- The prediction can be mixed with copies of what followed similar passages of the context (`model.recall`).
- A position can have several ids. They are read as the sum of their embeddings and predicted one by one
  (`model.fields`). Such models have no ledger, and a recall of their own (`model.key_recall`).

As in the paper, the query of a latent is a dense layer on its token's embedding and carries the residual. Rotary
embedding covers a quarter of each head, MLPs use a squared ReLU, and the head is untied.

Shapes: `batch`; `m` positions of context, with the latents as the last `n`; `d` width; `vocab` ids. Tokens are
`[batch, m]`, or `[batch, m, fields]` where a position has several.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pamusic.model.blocks import Block, RMSNorm
from pamusic.model.cache import KeyValueCache
from pamusic.model.caches import Caches
from pamusic.model.config import KeyRecallConfig, ModelConfig
from pamusic.model.convolution import CausalConvolution
from pamusic.model.fields import Clock, FieldHeads, Hints
from pamusic.model.key_recall import KeyRecall
from pamusic.model.ledger import Ledger
from pamusic.model.recall import Recall
from pamusic.model.rotary import Rotation, both, rotation
from pamusic.model.sequence_model import SequenceModel


class PerceiverAR(SequenceModel):
    """A Perceiver AR: logits for the token after each latent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.to_latents = nn.Linear(config.d_model, config.d_model, bias=False)
        self.context_norm = RMSNorm(config.d_model, eps=1e-6)
        self.cross = Block(config, config.cross_num_heads)
        self.layers = nn.ModuleList(Block(config, config.num_heads) for _ in range(config.num_layers))
        self.ledger = None if config.ledger is None else Ledger(config.ledger, config.vocab_size, config.d_model)
        self.recall = _recall(config)
        self.norm = RMSNorm(config.d_model, eps=1e-6)
        self.fields = FieldHeads(config.field_sizes, config.d_model, config.offsets) if config.field_sizes else None
        self.clock = None if config.clock is None else Clock(config.clock, config.vocab_size)
        self.conv = CausalConvolution(config.conv_width, config.d_model) if config.conv_width > 1 else None
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
        """Return logits `[batch, n, vocab]` of the tokens that follow each of the last `n` positions.

        Args:
            tokens: Ids `[batch, m]`. Padding may precede a prefix, where it is masked. It may also follow the last
                token of a piece that is too short to fill the latents, where the caller ignores its logits.
            num_latents: Number of latents `n`, at most `m`; the configuration's by default.
            prefix_indices: Visible positions of the prefix, `[batch, k]`, in order, -1 for none; all by default.
            recalled: Result of `self.recall` for these tokens, if it is already computed.
            following: Positions after the latents, `[batch, n, fields]`, for a model with several fields: each field is
                predicted given those before it.
        """
        m = tokens.shape[1]
        n = min(num_latents or self.config.num_latents, m)
        positions = torch.arange(m, device=tokens.device)
        if prefix_indices is None:
            prefix, prefix_positions = tokens[:, : m - n], positions[: m - n]
            prefix_valid = self._is_there(prefix)
        else:
            prefix_positions = prefix_indices.clamp(min=0)
            prefix = _gather(tokens, prefix_positions)
            prefix_valid = (prefix_indices >= 0) & self._is_there(prefix)

        own_positions = positions[m - n :]
        if self.conv is None:
            embedded, before = self._embedded(tokens[:, m - n :]), self._embedded(prefix)
        else:
            every = self._embedded(tokens)
            embedded = every[:, m - n :]
            before = every[:, : m - n] if prefix_indices is None else _gather(every, prefix_positions)
        context = torch.cat([before, embedded], dim=1)
        own_expanded = own_positions.expand(*prefix_positions.shape[:-1], n)
        times = own_times = None
        if self.clock is not None:
            every_time = self.clock(tokens)
            own_times = every_time[:, m - n :]
            before_times = every_time[:, : m - n] if prefix_indices is None else _gather(every_time, prefix_positions)
            times = torch.cat([before_times, own_times], dim=1)
        keys_values = self._context_keys_values(context, torch.cat([prefix_positions, own_expanded], dim=-1), times)
        rotary = self._rotation(own_positions, self.cross.attention.head_dim, own_times)
        latents = self.cross(self.to_latents(embedded), rotary, keys_values, prefix_valid)
        if self.ledger is not None:
            latents = latents + self.ledger(tokens, n)
        rotary = self._rotation(own_positions, self.config.d_model // self.config.num_heads, own_times)
        for layer in self.layers:
            latents = (
                checkpoint(layer, latents, rotary, use_reentrant=False) if self.recompute else layer(latents, rotary)
            )
        return self._head_logits(self.norm(latents), tokens, recalled, following)

    def num_held(self, config: ModelConfig) -> int | None:
        return config.num_latents

    def new_caches(
        self, batch: int, num_latents: int | None = None, context_length: int | None = None, headroom: int = 0
    ) -> Caches:
        """Return empty caches for `extend`; context and number of latents may differ from the configuration's.

        `headroom` is extra capacity of the layers' caches. It lets latents follow after `num_latents` of them; each
        then sees the last `num_latents`.
        """
        config = self.config.resized(context_length=context_length, num_latents=num_latents)
        return Caches.empty(config, batch, headroom, self.embedding.weight)

    def read(self, tokens: Tensor, caches: Caches) -> None:
        """Append tokens `[batch, n]` to the context only: compute their keys and values, but no latents."""
        positions = torch.arange(caches.position, caches.position + tokens.shape[1], device=tokens.device)
        assert isinstance(caches.cross, KeyValueCache), "caches of a TokenStep must be read by that TokenStep"
        assert caches.ids is not None
        embedded = self._embedded(tokens)
        if self.conv is not None:
            embedded = self._embedded_last(torch.cat([caches.visible_ids(), tokens], dim=1), tokens.shape[1])
        caches.ids.append(tokens)
        times = None
        if self.clock is not None:
            assert caches.now is not None
            times = caches.now[:, None] + self.clock(tokens)
            caches.now = times[:, -1]
        caches.cross.append(*self._context_keys_values(embedded, positions, times))
        caches.position += tokens.shape[1]

    def extend(
        self, tokens: Tensor, caches: Caches, last_only: bool = False, following: Tensor | None = None
    ) -> Tensor:
        """Return logits `[batch, n, vocab]` after each of the last `n` tokens read, as latents after the cached ones.

        Args:
            tokens: The last `n` tokens that `read` took, `[batch, n]`.
            caches: Caches with capacity for `n` more latents.
            last_only: Return logits after the last token only, `[batch, 1, vocab]`. For the other tokens, the last
                layer then computes only keys and values.
            following: `[batch, n, fields]`, as for `forward`.
        """
        return self.logits(self.latents(tokens, caches), caches, last_only, following)

    def latents(self, tokens: Tensor, caches: Caches) -> Tensor:
        """Return the latents before the first layer, `[batch, n, d]`, of the last `n` tokens read, `[batch, n]`.

        A latent depends only on the tokens up to its own, not on which other positions are latents.
        """
        n = tokens.shape[1]
        times = self._last_times(n, caches)
        rotary = self._rotation(self._last_positions(n, caches), self.cross.attention.head_dim, times)
        embedded = self._embedded(tokens) if self.conv is None else self._embedded_last(caches.visible_ids(), n)
        latents = self.cross(self.to_latents(embedded), rotary, caches.context.last(len(caches.context)))
        return latents if self.ledger is None else latents + self.ledger(caches.visible_ids(), n)

    def logits(
        self, latents: Tensor, caches: Caches, last_only: bool = False, following: Tensor | None = None
    ) -> Tensor:
        """Apply the layers and the head to the result of `latents`, `[batch, n, d]`; return logits as in `extend`."""
        latents, recalled = self.states(latents, caches, last_only), None
        if caches.memory is not None:
            assert last_only, "a memory predicts only after the last token"
            recalled = caches.memory.copy_probs()[:, None]
        return self._head_logits(latents, caches.visible_ids(), recalled, following)

    def states(self, latents: Tensor, caches: Caches, last_only: bool = False) -> Tensor:
        """Apply the layers to the result of `latents`, `[batch, n, d]`; return the input of the head.

        With `last_only`, return only the last latent.
        """
        n, head_dim = latents.shape[1], self.config.d_model // self.config.num_heads
        rotary = self._rotation(self._last_positions(n, caches), head_dim, self._last_times(n, caches))
        for layer, cache in zip(self.layers, caches.layers, strict=True):
            latents = layer(latents, rotary, cache=cache, last_only=last_only and layer is self.layers[-1])
        normed: Tensor = self.norm(latents[:, -1:] if last_only else latents)
        return normed

    def block_logits(self, tokens: Tensor, start: int, caches: Caches, num_latents: int) -> Tensor:
        """Return the logits of the last latents of a pass with all latents; arguments as in `SequenceModel`."""
        stop = tokens.shape[1] - 1
        first_latent = max(0, stop - num_latents)
        self.read(tokens[:, start:stop], caches)
        for layer in caches.layers:
            layer.clear()
        following = None if self.fields is None else tokens[:, first_latent + 1 :]
        return self.extend(tokens[:, first_latent:stop], caches, following=following)[:, start - stop :]

    def hints(self, tokens: Tensor, n: int, recalled: Tensor | None = None) -> Hints:
        """Return what is added to the logits of fields after the last `n` tokens, each `[batch, n, …]`.

        Args:
            tokens: All visible tokens, `[batch, m, fields]`.
            n: Number of last positions.
            recalled: Result of `self.recall` for these tokens, if it is already computed.
        """
        assert self.fields is not None, "only the heads of several fields take hints"
        offsets, bias = self.fields.offsets, None
        if isinstance(self.recall, KeyRecall):
            bias = self.recall.bias(self.recall(tokens, n) if recalled is None else recalled)
        return Hints(None if offsets is None else offsets.lasting(tokens, n), bias)

    def _head_logits(
        self, latents: Tensor, tokens: Tensor, recalled: Tensor | None, following: Tensor | None
    ) -> Tensor:
        """Return logits `[batch, n, vocab]` from normalised latents and all visible tokens; others as for `forward`."""
        logits: Tensor
        n = latents.shape[1]
        if self.fields is not None:
            assert following is not None, "each field needs the fields before it"
            logits = self.fields(latents, following, self.head.weight, self.hints(tokens, n, recalled))
            return logits
        logits = self.head(latents)
        if not isinstance(self.recall, Recall):
            return logits
        return self.recall.mix(
            logits, self.recall.gate(latents), self.recall(tokens, n) if recalled is None else recalled
        )

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Return embeddings `[batch, m, d]` of ids `[batch, m]` or `[batch, m, fields]`."""
        embedded: Tensor = self.embedding(tokens)
        if self.fields is None:
            return embedded
        embedded = embedded.sum(-2) * tokens.shape[-1] ** -0.5
        return embedded if self.conv is None else self.conv(embedded * self._is_there(tokens)[..., None])

    def _embedded_last(self, tokens: Tensor, n: int) -> Tensor:
        """Return embeddings of the last `n` tokens, `[batch, n, d]`."""
        return self._embedded(tokens[:, -(n + self.config.conv_width - 1) :])[:, -n:]

    def _is_there(self, tokens: Tensor) -> Tensor:
        """Return the mask `[batch, m]` of positions that are not padding, which has `pad_id` in all fields."""
        return (tokens if self.fields is None else tokens[..., 0]) != self.config.pad_id

    def _context_keys_values(
        self, embedded: Tensor, positions: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values `[batch, heads, m, head_dim]` of embeddings `[batch, m, d]`.

        Positions are `[m]` or `[batch, m]`.
        """
        rotary = self._rotation(positions, self.cross.attention.head_dim, times)
        return self.cross.attention.keys_values(self.context_norm(embedded), rotary)

    def _last_positions(self, n: int, caches: Caches) -> Tensor:
        return torch.arange(caches.position - n, caches.position, device=self.embedding.weight.device)

    def _last_times(self, n: int, caches: Caches) -> Tensor | None:
        """Return the times of the last `n` positions, `[batch, n]`; None without a clock."""
        if self.clock is None or caches.now is None:
            return None
        passed = self.clock(caches.visible_ids()[:, -n:])
        return caches.now[:, None] + passed - passed[:, -1:]

    def _rotation(self, positions: Tensor, head_dim: int, times: Tensor | None = None) -> Rotation:
        """Return the rotation of all heads at positions `[n]` or `[batch, n]` and, with a clock, times `[batch, n]`."""
        rotary = rotation(positions, head_dim, self.config.rotary_fraction)
        if positions.dim() == 2:
            rotary = (rotary[0][:, None], rotary[1][:, None])  # one rotary for all heads of a row
        if times is None or self.clock is None:
            return rotary
        cos, sin = rotation(times, head_dim, self.clock.fraction)
        return both(rotary, (cos[:, None], sin[:, None]))


def _recall(config: ModelConfig) -> Recall | KeyRecall | None:
    """Return the recall of a model, if it has one."""
    if isinstance(config.recall, KeyRecallConfig):
        return KeyRecall(config.recall, config.field_sizes)
    return None if config.recall is None else Recall(config.recall, config.vocab_size, config.d_model)


def _gather(rows: Tensor, positions: Tensor) -> Tensor:
    """Gather the entries at positions `[batch, k]` from rows `[batch, m]` or `[batch, m, size]`."""
    index = positions if rows.dim() == 2 else positions[..., None].expand(-1, -1, rows.shape[2])
    return rows.gather(1, index)
