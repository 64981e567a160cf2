"""Cache keys and values compactly: by id, and in int8. Knows tensors; knows no layers, no sampling policy.

Shapes: `batch`; `heads` of width `head_dim`; `n` positions.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pamusic.inference.int8 import CacheView, ContextCacheView, Kernel, quantize_rows
from pamusic.model.cache import KeyValueCache, SlidingBuffer


class Attended(Protocol):
    """The cache of a layer, as a decode step uses it."""

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append keys and values of one position, like `KeyValueCache.append`."""

    def attend(self, queries: Tensor) -> Tensor:
        """Attend to all visible positions, like `KeyValueCache.attend`."""


class Int8Cache(KeyValueCache):
    """A `KeyValueCache` in int8, with a quarter of the memory traffic, for decode steps of `inference.int8`."""

    def __init__(self, batch: int, num_heads: int, head_dim: int, *, window: int, headroom: int) -> None:
        shape = (batch, num_heads, window + headroom)
        keys, values = (torch.zeros(*shape, head_dim, dtype=torch.int8) for _ in range(2))
        key_scales, value_scales = (torch.zeros(shape) for _ in range(2))
        self._kept = SlidingBuffer([keys, key_scales, values, value_scales], (2, 2, 2, 2), window)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append keys and values `[batch, heads, n, head_dim]` of the next `n` positions."""
        self._kept.append(*quantize_rows(keys.float()), *quantize_rows(values.float()))

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the last `count` positions, `[batch, heads, count, head_dim]`, float32."""
        keys, key_scales, values, value_scales = self._kept.last(count)
        return keys * key_scales[..., None], values * value_scales[..., None]

    def view(self) -> CacheView:
        """Reserve one more position, which the caller writes, and return a view of the visible ones."""
        self._kept.reserve(1)
        return CacheView(self._kept.stop - len(self), len(self), *self._kept.tensors)


class ContextCache:
    """The keys and values of the context, stored per position only where they depend on the position.

    Keys and values come from the id alone, except for the rotated part of a key. So the cache keeps ids and the rotated
    parts; everything else is in tables `[vocab, ...]`. With a quarter of each head rotated, a step reads an eighth of
    the memory of keys and values. Scores are the sum of the rotated part's score and the score of the id's other
    dimensions. The value of each id is added once, with the summed weights of its positions.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, num_turned: int, batch: int, *, window: int, headroom: int
    ) -> None:
        """Create an empty cache.

        Args:
            keys, values: Unrotated keys and values of each id, `[vocab, heads, head_dim]`.
            num_turned: Number of rotated dimensions of a head, the first ones.
            batch: Number of rows.
            window: Largest number of visible positions.
            headroom: Extra capacity. The visible positions move to the front once in this many tokens.
        """
        self._still = keys[..., num_turned:].permute(1, 2, 0).contiguous()  # [heads, head_dim - num_turned, vocab]
        self._keys, self._values = (table.transpose(0, 1).contiguous() for table in (keys, values))  # heads first
        heads = len(self._values)
        ids = torch.zeros(batch, window + headroom, dtype=torch.int64, device=keys.device)
        self._kept = SlidingBuffer([ids, keys.new_zeros(batch, heads, num_turned, window + headroom)], (1, 3), window)
        self._num_turned, self.window = num_turned, window

    def __len__(self) -> int:
        """Return the number of visible positions."""
        return len(self._kept)

    def ids(self) -> Tensor:
        """Return the ids of all visible positions, `[batch, n]`."""
        return self._kept.last(len(self))[0]

    def append(self, ids: Tensor, turned: Tensor) -> None:
        """Append ids `[batch, n]` of the next positions and the rotated parts of their keys."""
        self._kept.append(ids, turned.mT)

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Assemble the keys and values of the last `count` positions, `[batch, heads, count, head_dim]`."""
        ids, turned = self._kept.last(count)
        return self._whole(ids, turned.mT)

    def attend(self, queries: Tensor) -> Tensor:
        """Return the attention output of one position's scaled, rotated queries, `[batch, heads, head_dim]`."""
        ids, turned = self._kept.last(len(self))
        heads = queries.shape[1]
        own, of_ids = self._asked(queries)
        index = ids[:, None].expand(-1, heads, -1)
        weights = (of_ids.gather(2, index) + (own[:, :, None] @ turned)[:, :, 0]).softmax(-1)
        # A GPU would sum by id in a random order, but the same seed must give the same music.
        return self._gathered_by_id(weights, ids) if ids.device.type == "cpu" else self._gathered(weights, ids)

    def _gathered_by_id(self, weights: Tensor, ids: Tensor) -> Tensor:
        """Return the weighted sum of values, `[batch, heads, head_dim]`, reading the value of each id once."""
        of_ids = weights.new_zeros(*weights.shape[:2], self._values.shape[1])
        return self._given(of_ids.scatter_add_(2, ids[:, None].expand_as(weights), weights))

    def _gathered(self, weights: Tensor, ids: Tensor) -> Tensor:
        """Return the weighted sum of values, reading a value for each position."""
        return (weights[:, :, None] @ self._values[:, ids].transpose(0, 1))[:, :, 0]

    def _whole(self, ids: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each `[batch, heads, n, head_dim]`, from ids and the rotated parts of keys."""
        keys, values = (table[:, ids].transpose(0, 1) for table in (self._keys, self._values))
        keys[..., : self._num_turned] = turned
        return keys, values

    def _asked(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotated part of queries, and scores of the other dimensions by id, `[batch, heads, vocab]`."""
        own, still = queries.split([self._num_turned, queries.shape[-1] - self._num_turned], dim=-1)
        return own, (still.transpose(0, 1) @ self._still).transpose(0, 1)

    def _given(self, shares: Tensor) -> Tensor:
        """Return the sum of values with weights of ids: `[batch, heads, vocab]` to `[batch, heads, head_dim]`."""
        return (shares.transpose(0, 1) @ self._values).transpose(0, 1)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, `[n]`; a row may be repeated."""
        self._kept.select(rows)


class Int8ContextCache(ContextCache):
    """A `ContextCache` with the rotated parts of keys in int8, which a kernel reads."""

    def __init__(
        self, keys: Tensor, values: Tensor, num_turned: int, batch: int, kernel: Kernel, *, window: int, headroom: int
    ) -> None:
        """Create an empty cache; `kernel` computes the attention weights, and the rest is as for `ContextCache`."""
        super().__init__(keys, values, num_turned, batch, window=window, headroom=headroom)
        ids, turned = self._kept.tensors
        turned, scales = quantize_rows(turned.mT)
        self._kept, self._kernel = (
            SlidingBuffer([ids, turned.contiguous(), scales.contiguous()], (1, 2, 2), window),
            kernel,
        )

    def append(self, ids: Tensor, turned: Tensor) -> None:
        """Append the next positions, like `ContextCache.append`."""
        self._kept.append(ids, *quantize_rows(turned.float()))

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Return keys and values like `ContextCache.last`, in the precision of int8."""
        ids, turned, scales = self._kept.last(count)
        return self._whole(ids, turned * scales[..., None])

    def attend(self, queries: Tensor) -> Tensor:
        """Attend to all visible positions, like `ContextCache.attend`."""
        context = ContextCacheView(self._kept.stop - len(self), len(self), *self._kept.tensors)
        return self._given(self._kernel.share(*self._asked(queries), context))
