"""Caches that take less memory to read: by id, and in bytes. Knows tensors; knows no layers, no sampling policy.

Shapes: `batch`; `heads` of width `head_dim`; `n` positions.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pamusic.inference.int8 import CacheView, ContextCacheView, Kernel, quantize_rows
from pamusic.model.cache import KeyValueCache, SlidingBuffer


class Attended(Protocol):
    """The cache of a layer, as a step uses it."""

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append keys and values of one position, as `KeyValueCache.append` does."""

    def attend(self, queries: Tensor) -> Tensor:
        """Attend to all visible positions, as `KeyValueCache.attend` does."""


class Int8Cache(KeyValueCache):
    """The same in bytes, a quarter to read: for steps by `inference.int8`."""

    def __init__(self, batch: int, num_heads: int, head_dim: int, *, window: int, headroom: int) -> None:
        shape = (batch, num_heads, window + headroom)
        keys, values = (torch.zeros(*shape, head_dim, dtype=torch.int8) for _ in range(2))
        key_scales, value_scales = (torch.zeros(shape) for _ in range(2))
        self._kept = SlidingBuffer([keys, key_scales, values, value_scales], (2, 2, 2, 2), window)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Take `[batch, heads, n, head_dim]` keys and values of the next `n` positions."""
        self._kept.append(*quantize_rows(keys.float()), *quantize_rows(values.float()))

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the last `count` positions, `[batch, heads, count, head_dim]`, float32."""
        keys, key_scales, values, value_scales = self._kept.last(count)
        return keys * key_scales[..., None], values * value_scales[..., None]

    def view(self) -> CacheView:
        """Return what is visible with one position more, whose key and value the receiver writes."""
        self._kept.reserve(1)
        return CacheView(self._kept.stop - len(self), len(self), *self._kept.tensors)


class ContextCache:
    """The keys and values of the context. Stored per position is only what the position changes.

    Both come from a token's id alone, but for the part of a key that its position turns. So ids are kept, and that
    part; all else stands in tables `[vocab]`. With a quarter of each head turned, an eighth of what keys and values
    take is read a step. Scores are the turned part's plus what each id's rest has, and of values, each id's is added
    once, with the weights of all positions that have it.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, num_turned: int, batch: int, *, window: int, headroom: int
    ) -> None:
        """Begin empty.

        Args:
            keys, values: `[vocab, heads, head_dim]` of each id, not turned.
            num_turned: how many dimensions of a head are turned, the first ones.
            batch: rows.
            window: how many positions are visible at most.
            headroom: room for more, so that they are moved only once in so many.
        """
        self._still = keys[..., num_turned:].permute(1, 2, 0).contiguous()  # [heads, head_dim - num_turned, vocab]
        self._keys, self._values = (table.transpose(0, 1).contiguous() for table in (keys, values))  # heads first
        heads = len(self._values)
        ids = torch.zeros(batch, window + headroom, dtype=torch.int64, device=keys.device)
        self._kept = SlidingBuffer([ids, keys.new_zeros(batch, heads, num_turned, window + headroom)], (1, 3), window)
        self._num_turned, self.window = num_turned, window

    def __len__(self) -> int:
        """Return how many positions are visible."""
        return len(self._kept)

    def ids(self) -> Tensor:
        """Return the ids of all visible positions, `[batch, n]`."""
        return self._kept.last(len(self))[0]

    def append(self, ids: Tensor, turned: Tensor) -> None:
        """Take ids `[batch, n]` of the next positions and what is turned of keys `[batch, heads, n, turned]`."""
        self._kept.append(ids, turned.mT)

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the last `count` positions, `[batch, heads, count, head_dim]`, put together."""
        ids, turned = self._kept.last(count)
        return self._whole(ids, turned.mT)

    def attend(self, queries: Tensor) -> Tensor:
        """What scaled, turned queries of one position, `[batch, heads, head_dim]`, gather from all that is visible."""
        ids, turned = self._kept.last(len(self))
        heads = queries.shape[1]
        own, of_ids = self._asked(queries)
        index = ids[:, None].expand(-1, heads, -1)
        weights = (of_ids.gather(2, index) + (own[:, :, None] @ turned)[:, :, 0]).softmax(-1)
        # A GPU adds up in any order, so not by id there: the same seed must give the same music.
        return self._gathered_by_id(weights, ids) if ids.device.type == "cpu" else self._gathered(weights, ids)

    def _gathered_by_id(self, weights: Tensor, ids: Tensor) -> Tensor:
        """Return values with the weights of their positions, `[batch, heads, head_dim]`: each id's is read once."""
        of_ids = weights.new_zeros(*weights.shape[:2], self._values.shape[1])
        return self._given(of_ids.scatter_add_(2, ids[:, None].expand_as(weights), weights))

    def _gathered(self, weights: Tensor, ids: Tensor) -> Tensor:
        """Return the same, read once a position."""
        return (weights[:, :, None] @ self._values[:, ids].transpose(0, 1))[:, :, 0]

    def _whole(self, ids: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each `[batch, heads, n, head_dim]`, of ids and what is turned of keys."""
        keys, values = (table[:, ids].transpose(0, 1) for table in (self._keys, self._values))
        keys[..., : self._num_turned] = turned
        return keys, values

    def _asked(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is turned of queries, and the scores of the rest of each id's key, `[batch, heads, vocab]`."""
        own, still = queries.split([self._num_turned, queries.shape[-1] - self._num_turned], dim=-1)
        return own, (still.transpose(0, 1) @ self._still).transpose(0, 1)

    def _given(self, shares: Tensor) -> Tensor:
        """Return values with the weights of ids, `[batch, heads, vocab]` -> `[batch, heads, head_dim]`."""
        return (shares.transpose(0, 1) @ self._values).transpose(0, 1)

    def select(self, rows: Tensor) -> None:
        """Continue with these rows of the batch, `[n]`; a row may be given more than once."""
        self._kept.select(rows)


class Int8ContextCache(ContextCache):
    """The same with what is turned of keys in bytes, looked at by a kernel."""

    def __init__(
        self, keys: Tensor, values: Tensor, num_turned: int, batch: int, kernel: Kernel, *, window: int, headroom: int
    ) -> None:
        """Begin empty; `kernel` looks, and the rest is as for `ContextCache`."""
        super().__init__(keys, values, num_turned, batch, window=window, headroom=headroom)
        ids, turned = self._kept.tensors
        turned, scales = quantize_rows(turned.mT)
        self._kept, self._kernel = (
            SlidingBuffer([ids, turned.contiguous(), scales.contiguous()], (1, 2, 2), window),
            kernel,
        )

    def append(self, ids: Tensor, turned: Tensor) -> None:
        """Append the next positions, as `ContextCache.append` does."""
        self._kept.append(ids, *quantize_rows(turned.float()))

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Return keys and values as `ContextCache.last` does, within the precision of bytes."""
        ids, turned, scales = self._kept.last(count)
        return self._whole(ids, turned * scales[..., None])

    def attend(self, queries: Tensor) -> Tensor:
        """Attend to all visible positions, as `ContextCache.attend` does."""
        context = ContextCacheView(self._kept.stop - len(self), len(self), *self._kept.tensors)
        return self._given(self._kernel.share(*self._asked(queries), context))
