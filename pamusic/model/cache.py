"""Caches of keys and values of earlier positions. Knows tensors; knows no layers, no sampling policy.

All memory is allocated once, at the start. Its layout does not matter to a decode step, which reads all of it, but it
matters to writing: with the numbers of a position far apart, writing 16 rows takes a layer 110 microseconds, not 6.

Shapes: `batch`; `heads` of width `head_dim`; `n` positions.
"""

from __future__ import annotations

from copy import copy
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


def context_headroom(context_length: int) -> int:
    """Return the number of spare positions in the buffer of a context.

    When the buffer is full, its context moves to the front: once in this many tokens.
    """
    return max(256, context_length // 8)


class ContextMemory(Protocol):
    """The cache of the context, as the cross-attention uses it."""

    def __len__(self) -> int:
        """Return the number of visible positions."""

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the last `count` positions, like `KeyValueCache.last`."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, `[n]`, like `KeyValueCache.select`."""


@runtime_checkable
class KnowsIds(Protocol):
    """A cache that keeps the ids of its positions."""

    def ids(self) -> Tensor:
        """Return the ids of all visible positions, `[batch, n]`."""


class KeyValueCache:
    """The keys and values of one attention layer, for consecutive positions."""

    def __init__(
        self,
        batch: int,
        num_heads: int,
        head_dim: int,
        *,
        window: int,
        headroom: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (batch, num_heads, window + headroom, head_dim)
        self._kept = SlidingBuffer([torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)], (2, 2), window)

    def __len__(self) -> int:
        """Return the number of visible positions."""
        return len(self._kept)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append keys and values `[batch, heads, n, head_dim]` of the next `n` positions."""
        self._kept.append(keys, values)

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Return views of the keys and values of the last `count` positions, `[batch, heads, count, head_dim]`."""
        keys, values = self._kept.last(count)
        return keys, values

    def attend(self, queries: Tensor) -> Tensor:
        """Return the attention output of one position's scaled queries, `[batch, heads, head_dim]`, over the cache."""
        keys, values = (each.flatten(0, 1) for each in self._kept.last(len(self)))  # one batch axis, as bmm needs it
        scores = torch.bmm(queries.reshape(keys.shape[0], 1, -1), keys.mT)
        return torch.bmm(scores.softmax(-1), values).view(queries.shape)

    @property
    def window(self) -> int:
        """Largest number of visible positions."""
        return self._kept.window

    @property
    def memory(self) -> tuple[Tensor, Tensor]:
        """Whole buffers of keys and of values, each `[batch, heads, capacity, head_dim]`."""
        keys, values = self._kept.tensors
        return keys, values

    def reserve(self) -> int:
        """Count one more position, which the caller writes, and return its index in `memory`."""
        self._kept.reserve(1)
        return self._kept.stop - 1

    def clear(self) -> None:
        """Forget all positions."""
        self._kept.stop = 0

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, `[n]`; a row may be repeated."""
        self._kept.select(rows)

    def rows(self, rows: slice) -> KeyValueCache:
        """Return a cache of some rows in the same memory; `follow` counts here what is appended to that cache."""
        some = copy(self)
        some._kept = self._kept.rows(rows)
        return some

    def follow(self, rows: KeyValueCache) -> None:
        """Count the positions that were appended to a result of `rows`."""
        self._kept.stop = rows._kept.stop

    def keep_last(self, count: int) -> None:
        """Forget all positions but the last `count`."""
        self._kept.keep_last(count)


class SlidingBuffer:
    """Tensors with one axis of positions each, filled from the front; the last `window` positions are visible.

    When full, it moves the visible positions to the front: once in `capacity - window` positions.
    """

    def __init__(self, tensors: list[Tensor], axes: tuple[int, ...], window: int) -> None:
        self.tensors, self.axes, self.window, self.stop = tensors, axes, window, 0

    def __len__(self) -> int:
        return min(self.stop, self.window)

    def append(self, *new: Tensor) -> None:
        """Append the next positions of each tensor."""
        n = new[0].shape[self.axes[0]]
        if n > self.window:
            ends = zip(new, self.axes, strict=True)
            new, n = tuple(each.narrow(axis, n - self.window, self.window) for each, axis in ends), self.window
        self.reserve(n)
        for tensor, axis, each in zip(self.tensors, self.axes, new, strict=True):
            tensor.narrow(axis, self.stop - n, n).copy_(each)

    def reserve(self, n: int) -> None:
        """Count `n` more positions, at most `window`, which the caller then writes."""
        if self.stop + n > self.tensors[0].shape[self.axes[0]]:
            stays = self.window - n
            for tensor, axis in zip(self.tensors, self.axes, strict=True):
                tensor.narrow(axis, 0, stays).copy_(tensor.narrow(axis, self.stop - stays, stays).clone())
            self.stop = stays
        self.stop += n

    def last(self, count: int) -> list[Tensor]:
        """Return views of the last `count` positions."""
        return [
            tensor.narrow(axis, self.stop - count, count) for tensor, axis in zip(self.tensors, self.axes, strict=True)
        ]

    def keep_last(self, count: int) -> None:
        """Move the last `count` positions to the front and forget the others."""
        if len(self) <= count:
            return
        for tensor, axis, stay in zip(self.tensors, self.axes, self.last(count), strict=True):
            tensor.narrow(axis, 0, count).copy_(stay.clone())
        self.stop = count

    def select(self, rows: Tensor) -> None:
        """Keep these rows, `[n]`."""
        self.tensors = [tensor[rows] for tensor in self.tensors]

    def rows(self, rows: slice) -> SlidingBuffer:
        """Return a buffer of some rows in the same memory, filled as far as this one."""
        some = SlidingBuffer([tensor[rows] for tensor in self.tensors], self.axes, self.window)
        some.stop = self.stop
        return some
