"""Keep the state of a model between the positions that it reads. Knows caches and shapes; knows no layers.

Every architecture has the caches of its layers. The others belong to the parts of a Perceiver AR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pamusic.model.cache import ContextMemory, KeyValueCache, KnowsIds, SlidingBuffer, context_headroom
from pamusic.model.config import ModelConfig
from pamusic.model.ledger import LedgerState
from pamusic.model.recall import RecallCache


@dataclass
class Caches:
    """The state of a model between the positions that it reads.

    Attributes:
        layers: Keys and values of the latents, one cache per self-attention layer.
        cross: Keys and values of the context. They depend only on a token and its position, so they stay valid. None
            without a cross-attention.
        position: Position of the next token.
        ids: Ids of the context, unless `cross` keeps them.
        entries: State of the ledger, if the decode steps update it.
        memory: Entries of recall, if the decode steps update them.
        now: Time of the last token, `[batch]`, with a clock.
    """

    layers: list[KeyValueCache]
    cross: ContextMemory | None = None
    position: int = 0
    ids: SlidingBuffer | None = None
    entries: LedgerState | None = None
    memory: RecallCache | None = None
    now: Tensor | None = None

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, headroom: int, like: Tensor) -> Self:
        """Return empty caches of a Perceiver AR for `batch` rows, with the device and dtype of `like`.

        `headroom` is explained in `PerceiverAR.new_caches`.
        """

        def cache(num_heads: int, window: int, headroom: int) -> KeyValueCache:
            head_dim = config.d_model // num_heads
            return KeyValueCache(
                batch, num_heads, head_dim, window=window, headroom=headroom, device=like.device, dtype=like.dtype
            )

        room = context_headroom(config.context_length)
        return cls(
            cross=cache(config.cross_num_heads, config.context_length, room),
            layers=[cache(config.num_heads, config.num_latents, headroom) for _ in range(config.num_layers)],
            ids=empty_ids(config, batch, like.device),
            now=None if config.clock is None else torch.zeros(batch, dtype=torch.int64, device=like.device),
        )

    @property
    def num_latents(self) -> int:
        return len(self.layers[0]) if self.layers else 0

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, `[n]`; a row may be repeated."""
        for cache in (self.cross, *self.layers, self.ids, self.entries, self.memory):
            if cache is not None:
                cache.select(rows)
        if self.now is not None:
            self.now = self.now[rows]

    @property
    def context(self) -> ContextMemory:
        """Keys and values of the context, in a model with a cross-attention."""
        assert self.cross is not None, "only a cross-attention reads a context"
        return self.cross

    def rows(self, rows: slice) -> Caches:
        """Return caches of some rows, in the same memory, for the layers; the context keeps all rows."""
        return Caches(
            layers=[cache.rows(rows) for cache in self.layers],
            cross=self.cross,
            position=self.position,
            ids=None if self.ids is None else self.ids.rows(rows),
            memory=None if self.memory is None else self.memory.rows(rows),
            now=None if self.now is None else self.now[rows],
        )

    def visible_ids(self) -> Tensor:
        """Return the ids of the visible context, `[batch, m]` or `[batch, m, fields]`."""
        if self.ids is None:
            context = self.context
            assert isinstance(context, KnowsIds)
            return context.ids()
        (ids,) = self.ids.last(len(self.ids))
        return ids


def empty_ids(config: ModelConfig, batch: int, device: torch.device) -> SlidingBuffer:
    """Return an empty buffer for the ids of the context."""
    fields = (len(config.field_sizes),) if config.field_sizes else ()
    shape = (batch, config.context_length + context_headroom(config.context_length), *fields)
    return SlidingBuffer([torch.zeros(shape, dtype=torch.int64, device=device)], (1,), config.context_length)
