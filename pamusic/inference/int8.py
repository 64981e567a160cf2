"""A block of the stack for one token a row, with weights, keys and values in bytes, and its look at the context.

Knows tensors; knows no layers' order, no sampling. This is the plain twin: `inference/block.cpp` is the same in one
call of a compiled function (`pamusic/inference/native_kernel.py`), which reads a quarter of what float32 takes. Of each
row of a weight, and of each key and value, the largest number is 127, and what the others are multiplied with is kept
beside them.

Shapes: `rows`; `heads` of width `head_dim`; `n` positions that are visible, the token's own the last; `d` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_INT8 = 127  # of a byte with a sign

Rotary = tuple[Tensor, Tensor, Tensor]  # factors of each dimension and of its partner, and which its partner is


@dataclass(frozen=True, eq=False)
class Int8Matrix:
    """A weight `[out, in]` in bytes, and a scale for each of its rows, float32."""

    bytes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Int8Matrix:
        return cls(*(each.contiguous() for each in quantize_rows(weight)))

    def __call__(self, x: Tensor) -> Tensor:
        """Return `[rows, in]` -> `[rows, out]`."""
        return F.linear(x, self.bytes * self.scales[:, None])


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8Block:
    """A block's weights, into which gains and the scale of attention are multiplied.

    Attributes:
        project: to queries, keys and values.
        output, up, down: of the heads and of the MLP.
        least, least_of_heads: keep the norms of the stream and of a head from dividing by zero, as for `unit`.
    """

    project: Int8Matrix
    output: Int8Matrix
    up: Int8Matrix
    down: Int8Matrix
    least: float
    least_of_heads: float


@dataclass(frozen=True, eq=False)
class CacheView:
    """The memory of a cache, and what of its room is visible: `n` positions from `first` on, the last to be written.

    Attributes:
        first, n: places.
        keys, values: `[rows, heads, room, head_dim]`, int8.
        key_scales, value_scales: `[rows, heads, room]`, float32.
    """

    first: int
    n: int
    keys: Tensor
    key_scales: Tensor
    values: Tensor
    value_scales: Tensor


@dataclass(frozen=True, eq=False)
class ContextCacheView:
    """What of the memory of a context's cache is visible: `n` positions from `first` on.

    Attributes:
        first, n: places.
        ids: `[rows, room]`, int64.
        turned: of each key, what its place turned, `[rows, heads, room, num_turned]`, int8.
        scales: of these, `[rows, heads, room]`, float32.
    """

    first: int
    n: int
    ids: Tensor
    turned: Tensor
    scales: Tensor


class Kernel(Protocol):
    """Who computes blocks in bytes. Threads are as many as torch has."""

    def step(self, block: Int8Block, x: Tensor, seen: CacheView, rotary: Rotary) -> Tensor:
        """Return the stream `[rows, d]`, float32, after a block. `x` may be overwritten, and is contiguous."""

    def finish(self, block: Int8Block, x: Tensor, heads: Tensor) -> Tensor:
        """Return the same from what the heads gathered, `[rows, d]`, on; `x` as for `step`."""

    def share(self, queries: Tensor, of_ids: Tensor, context: ContextCacheView) -> Tensor:
        """Return how much of what they gather heads take of each id, `[rows, heads, vocab]`; all of it is 1.

        Args:
            queries: what is turned of them, `[rows, heads, num_turned]`.
            of_ids: scores of the rest of each id's key, `[rows, heads, vocab]`.
            context: what they see.
        """


class ReferenceKernel:
    """By operations of torch: slow, and easy to see through."""

    def step(self, block: Int8Block, x: Tensor, seen: CacheView, rotary: Rotary) -> Tensor:
        rows, heads, _, head_dim = seen.keys.shape
        projected = block.project(unit_rms(x, block.least)).view(rows, 3, heads, head_dim)
        queries, new = apply_rotary(unit_rms(projected[:, :2], block.least_of_heads), rotary).unbind(1)
        visible = slice(seen.first, seen.first + seen.n)
        held = [each[:, :, visible] for each in (seen.keys, seen.key_scales, seen.values, seen.value_scales)]
        for to, number in zip(held, (*quantize_rows(new), *quantize_rows(projected[:, 2])), strict=True):
            to[:, :, -1] = number
        keys, key_scales, values, value_scales = held
        weights = ((keys.float() @ queries[..., None])[..., 0] * key_scales).softmax(-1) * value_scales
        return self.finish(block, x, (weights[:, :, None] @ values.float()).flatten(1))

    def finish(self, block: Int8Block, x: Tensor, heads: Tensor) -> Tensor:
        x = x + block.output(heads)
        return x + block.down(block.up(unit_rms(x, block.least)).relu().square())

    def share(self, queries: Tensor, of_ids: Tensor, context: ContextCacheView) -> Tensor:
        visible = slice(context.first, context.first + context.n)
        keys, scales = context.turned[:, :, visible].float(), context.scales[:, :, visible]
        index = context.ids[:, None, visible].expand(scales.shape)
        weights = ((keys @ queries[..., None])[..., 0] * scales + of_ids.gather(2, index)).softmax(-1)
        return torch.zeros_like(of_ids).scatter_add_(2, index, weights)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` `[..., width]` as int8, and what that is to be multiplied with, `[...]`."""
    scales = x.abs().amax(-1).clamp(min=1e-12) / MAX_INT8
    return (x / scales[..., None]).round().to(torch.int8), scales


def apply_rotary(heads: Tensor, rotary: Rotary) -> Tensor:
    """`rotate` for queries and keys `[rows, 2, heads, head_dim]` of one position, times their gains."""
    own, partners, partner = rotary
    return torch.addcmul(heads * own, heads.index_select(-1, partner), partners)


def unit_rms(x: Tensor, least: Tensor | float) -> Tensor:
    """RMS norm over the last axis, without gain and as a unit vector: `x / sqrt(sum(x²) + least²)`.

    What is missing, the square root of the width, stands in the weights behind it. Three operations in place of six.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.hypot(torch.as_tensor(least, dtype=norm.dtype, device=norm.device))
