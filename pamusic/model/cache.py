"""What was computed of earlier positions. Knows tensors; knows no layers, no sampling policy.

All memory is taken once, at the start. How it lies makes no difference to reading it all, as a step does, but does to
writing: where a position's numbers are far from each other, taking 16 rows of it costs a layer 110 microseconds, not 6.

Shapes: `batch`; `heads` of width `head_dim`; `n` positions.
"""

from __future__ import annotations

from copy import copy
from typing import Protocol

import torch
from torch import Tensor

from pamusic.model.bytewise import Kernel, Seen, SeenContext, as_bytes


def spare(context_length: int) -> int:
    """Room for so many positions beyond a context, which is moved to the front of its memory once in as many tokens."""
    return max(256, context_length // 8)


class Attended(Protocol):
    """What a layer asks of a cache for one position more: to take it, and to be looked at with it."""

    def append(self, keys: Tensor, values: Tensor) -> None:
        """As of `KeyValueCache`, of one position."""

    def attended(self, queries: Tensor) -> Tensor:
        """As of `KeyValueCache`."""


class KeyValueCache:
    """The keys and values of one attention layer, of positions that stand in a row."""

    def __init__(
        self,
        batch: int,
        num_heads: int,
        head_dim: int,
        *,
        window: int,
        slack: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (batch, num_heads, window + slack, head_dim)
        self._kept = Kept([torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)], (2, 2), window)

    def __len__(self) -> int:
        """How many positions are visible."""
        return len(self._kept)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Takes `[batch, heads, n, head_dim]` keys and values of the next `n` positions."""
        self._kept.append(keys, values)

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Views of the keys and values of the last `count` positions, `[batch, heads, count, head_dim]`."""
        keys, values = self._kept.last(count)
        return keys, values

    def attended(self, queries: Tensor) -> Tensor:
        """What scaled queries of one position, `[batch, heads, head_dim]`, gather from all that is visible."""
        keys, values = (each.flatten(0, 1) for each in self._kept.last(len(self)))  # as products want them: fewer steps
        scores = torch.bmm(queries.reshape(keys.shape[0], 1, -1), keys.mT)
        return torch.bmm(scores.softmax(-1), values).view(queries.shape)

    @property
    def window(self) -> int:
        """How many positions are visible at most."""
        return self._kept.window

    @property
    def memory(self) -> tuple[Tensor, Tensor]:
        """All its room, `[batch, heads, room, head_dim]`, for keys and for values."""
        keys, values = self._kept.tensors
        return keys, values

    def make_room(self) -> int:
        """Counts one more position, which the receiver writes; its place in `memory`."""
        self._kept.make_room(1)
        return self._kept.stop - 1

    def clear(self) -> None:
        """Forgets all positions."""
        self._kept.stop = 0

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows of the batch, `[n]`; one can be taken more than once."""
        self._kept.select(rows)

    def rows(self, rows: slice) -> KeyValueCache:
        """Some rows of the batch, in the same memory; this cache notices what is appended there after `advance`."""
        some = copy(self)
        some._kept = self._kept.rows(rows)
        return some

    def advance(self, n: int) -> None:
        """Counts `n` positions that its rows were given apart."""
        self._kept.stop += n


class ByteCache(KeyValueCache):
    """The same in bytes, a quarter to read: for steps by `model.bytewise`."""

    def __init__(self, batch: int, num_heads: int, head_dim: int, *, window: int, slack: int) -> None:
        shape = (batch, num_heads, window + slack)
        keys, values = (torch.zeros(*shape, head_dim, dtype=torch.int8) for _ in range(2))
        key_scales, value_scales = (torch.zeros(shape) for _ in range(2))
        self._kept = Kept([keys, key_scales, values, value_scales], (2, 2, 2, 2), window)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Takes `[batch, heads, n, head_dim]` keys and values of the next `n` positions."""
        self._kept.append(*as_bytes(keys.float()), *as_bytes(values.float()))

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """The keys and values of the last `count` positions, `[batch, heads, count, head_dim]`, float32."""
        keys, key_scales, values, value_scales = self._kept.last(count)
        return keys * key_scales[..., None], values * value_scales[..., None]

    def opened(self) -> Seen:
        """What is visible with one position more, whose key and value the receiver writes."""
        self._kept.make_room(1)
        return Seen(self._kept.stop - len(self), len(self), *self._kept.tensors)


class ContextCache:
    """The keys and values of the context, of which only what a position changes is kept.

    Both come from a token's id alone, but for the part of a key that its position turns. So ids are kept, and that
    part; all else stands in tables `[vocab]`. With a quarter of each head turned, an eighth of what keys and values
    take is read a step. Scores are the turned part's plus what each id's rest has, and of values, each id's is added
    once, with the weights of all positions that have it.
    """

    def __init__(self, keys: Tensor, values: Tensor, num_turned: int, batch: int, *, window: int, slack: int) -> None:
        """Begins empty.

        Args:
            keys, values: `[vocab, heads, head_dim]` of each id, not turned.
            num_turned: how many dimensions of a head are turned, the first ones.
            batch: rows.
            window: how many positions are visible at most.
            slack: room for more, so that they are moved only once in so many.
        """
        self._still = keys[..., num_turned:].permute(1, 2, 0).contiguous()  # [heads, head_dim - num_turned, vocab]
        self._keys, self._values = (table.transpose(0, 1).contiguous() for table in (keys, values))  # heads first
        heads = len(self._values)
        ids = torch.zeros(batch, window + slack, dtype=torch.int64, device=keys.device)
        self._kept = Kept([ids, keys.new_zeros(batch, heads, num_turned, window + slack)], (1, 3), window)
        self._num_turned, self.window = num_turned, window

    def __len__(self) -> int:
        """How many positions are visible."""
        return len(self._kept)

    def ids(self) -> Tensor:
        """Those of all that is visible, `[batch, n]`."""
        return self._kept.last(len(self))[0]

    def append(self, ids: Tensor, turned: Tensor) -> None:
        """Takes ids `[batch, n]` of the next positions and what is turned of keys `[batch, heads, n, turned]`."""
        self._kept.append(ids, turned.mT)

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """The keys and values of the last `count` positions, `[batch, heads, count, head_dim]`, put together."""
        ids, turned = self._kept.last(count)
        return self._whole(ids, turned.mT)

    def attended(self, queries: Tensor) -> Tensor:
        """What scaled, turned queries of one position, `[batch, heads, head_dim]`, gather from all that is visible."""
        ids, turned = self._kept.last(len(self))
        heads = queries.shape[1]
        own, of_ids = self._asked(queries)
        index = ids[:, None].expand(-1, heads, -1)
        weights = (of_ids.gather(2, index) + (own[:, :, None] @ turned)[:, :, 0]).softmax(-1)
        # A GPU adds up in any order, so not by id there: the same seed must give the same music.
        return self._gathered_by_id(weights, ids) if ids.device.type == "cpu" else self._gathered(weights, ids)

    def _gathered_by_id(self, weights: Tensor, ids: Tensor) -> Tensor:
        """Values with the weights of their positions, `[batch, heads, head_dim]`: each id's is read once."""
        of_ids = weights.new_zeros(*weights.shape[:2], self._values.shape[1])
        return self._given(of_ids.scatter_add_(2, ids[:, None].expand_as(weights), weights))

    def _gathered(self, weights: Tensor, ids: Tensor) -> Tensor:
        """The same, read once a position."""
        return (weights[:, :, None] @ self._values[:, ids].transpose(0, 1))[:, :, 0]

    def _whole(self, ids: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each `[batch, heads, n, head_dim]`, of ids and what is turned of keys."""
        keys, values = (table[:, ids].transpose(0, 1) for table in (self._keys, self._values))
        keys[..., : self._num_turned] = turned
        return keys, values

    def _asked(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """What is turned of queries, and the scores of the rest of each id's key, `[batch, heads, vocab]`."""
        own, still = queries.split([self._num_turned, queries.shape[-1] - self._num_turned], dim=-1)
        return own, (still.transpose(0, 1) @ self._still).transpose(0, 1)

    def _given(self, shares: Tensor) -> Tensor:
        """Values with the weights of ids, `[batch, heads, vocab]` -> `[batch, heads, head_dim]`."""
        return (shares.transpose(0, 1) @ self._values).transpose(0, 1)

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows of the batch, `[n]`; one can be taken more than once."""
        self._kept.select(rows)


class ByteContextCache(ContextCache):
    """The same with what is turned of keys in bytes, looked at by a kernel."""

    def __init__(
        self, keys: Tensor, values: Tensor, num_turned: int, batch: int, kernel: Kernel, *, window: int, slack: int
    ) -> None:
        """Begins empty; `kernel` looks, and the rest is as for `ContextCache`."""
        super().__init__(keys, values, num_turned, batch, window=window, slack=slack)
        ids, turned = self._kept.tensors
        turned, scales = as_bytes(turned.mT)
        self._kept, self._kernel = Kept([ids, turned.contiguous(), scales.contiguous()], (1, 2, 2), window), kernel

    def append(self, ids: Tensor, turned: Tensor) -> None:
        """As there."""
        self._kept.append(ids, *as_bytes(turned.float()))

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """As there, but for what bytes cannot tell."""
        ids, turned, scales = self._kept.last(count)
        return self._whole(ids, turned * scales[..., None])

    def attended(self, queries: Tensor) -> Tensor:
        """As there."""
        context = SeenContext(self._kept.stop - len(self), len(self), *self._kept.tensors)
        return self._given(self._kernel.share(*self._asked(queries), context))


class Kept:
    """Tensors with an axis of positions each, filled from the front, of which the last `window` positions are seen.

    Full, it moves these to its front: once in `capacity - window` positions.
    """

    def __init__(self, tensors: list[Tensor], axes: tuple[int, ...], window: int) -> None:
        self.tensors, self.axes, self.window, self.stop = tensors, axes, window, 0

    def __len__(self) -> int:
        return min(self.stop, self.window)

    def append(self, *new: Tensor) -> None:
        """Takes the next positions of each tensor."""
        n = new[0].shape[self.axes[0]]
        if n > self.window:
            ends = zip(new, self.axes, strict=True)
            new, n = tuple(each.narrow(axis, n - self.window, self.window) for each, axis in ends), self.window
        self.make_room(n)
        for tensor, axis, each in zip(self.tensors, self.axes, new, strict=True):
            tensor.narrow(axis, self.stop - n, n).copy_(each)

    def make_room(self, n: int) -> None:
        """Counts `n` more positions, at most `window`, which are still to be written."""
        if self.stop + n > self.tensors[0].shape[self.axes[0]]:
            stays = self.window - n
            for tensor, axis in zip(self.tensors, self.axes, strict=True):
                tensor.narrow(axis, 0, stays).copy_(tensor.narrow(axis, self.stop - stays, stays).clone())
            self.stop = stays
        self.stop += n

    def last(self, count: int) -> list[Tensor]:
        """Views of the last `count` positions."""
        return [
            tensor.narrow(axis, self.stop - count, count) for tensor, axis in zip(self.tensors, self.axes, strict=True)
        ]

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, `[n]`."""
        self.tensors = [tensor[rows] for tensor in self.tensors]

    def rows(self, rows: slice) -> Kept:
        """Some rows in the same memory, standing where this stands."""
        some = Kept([tensor[rows] for tensor in self.tensors], self.axes, self.window)
        some.stop = self.stop
        return some
