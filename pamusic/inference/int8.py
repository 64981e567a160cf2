"""Compute a block for one token a row, with weights, keys and values in int8, and the attention to the context.

Knows tensors; knows no layers' order, no sampling. This is the plain reference. `inference/block.cpp` does the same in
one call of a compiled function (`pamusic/inference/native_kernel.py`), with a quarter of float32's memory traffic. In
each row of a weight, and in each key and value, the largest magnitude becomes 127; the scale is stored beside it.

Shapes: `rows`; `heads` of width `head_dim`; `n` visible positions, the token's own last; `d` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_INT8 = 127  # largest magnitude of a quantized number

Rotary = tuple[Tensor, Tensor, Tensor]  # factors of each dimension, factors of its partner, index of its partner


@dataclass(frozen=True, eq=False)
class Int8Matrix:
    """A weight `[out, in]` in int8, with a float32 scale for each row."""

    bytes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Int8Matrix:
        return cls(*(each.contiguous() for each in quantize_rows(weight)))

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply `[rows, in]` to `[rows, out]`."""
        return F.linear(x, self.bytes * self.scales[:, None])


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8Block:
    """The weights of a block, multiplied by the gains of norms and by the scale of attention.

    Attributes:
        project: Projection to queries, keys and values.
        output, up, down: Output projection of the heads, and the two layers of the MLP.
        least, least_of_heads: Constants that keep the norms of the stream and of a head from dividing by zero, as in
            `unit_rms`.
    """

    project: Int8Matrix
    output: Int8Matrix
    up: Int8Matrix
    down: Int8Matrix
    least: float
    least_of_heads: float


@dataclass(frozen=True, eq=False)
class CacheView:
    """The buffers of a cache and the range of visible positions; the last of these is still to be written.

    Attributes:
        first, n: Index of the first visible position, and number of visible positions.
        keys, values: Keys and values, `[rows, heads, capacity, head_dim]`, int8.
        key_scales, value_scales: Their scales, `[rows, heads, capacity]`, float32.
    """

    first: int
    n: int
    keys: Tensor
    key_scales: Tensor
    values: Tensor
    value_scales: Tensor


@dataclass(frozen=True, eq=False)
class ContextCacheView:
    """The buffers of the context's cache and the range of visible positions.

    Attributes:
        first, n: Index of the first visible position, and number of visible positions.
        ids: Ids, `[rows, capacity]`, int64.
        turned: Rotated parts of keys, `[rows, heads, capacity, num_turned]`, int8.
        scales: Scales of the rotated parts, `[rows, heads, capacity]`, float32.
    """

    first: int
    n: int
    ids: Tensor
    turned: Tensor
    scales: Tensor


class Kernel(Protocol):
    """A kernel that computes blocks in int8, with the number of threads that torch uses."""

    def step(
        self, block: Int8Block, x: Tensor, seen: CacheView, rotary: Rotary, source: Tensor | None = None
    ) -> Tensor:
        """Return the residual stream `[rows, d]`, float32, after a block; `x` is contiguous and may be overwritten.

        Keys and values are made from `source` `[rows, d]`, by default from `x`. The factors of `rotary` are
        `[2, 1, head_dim]`, the same for all rows, or `[rows, 2, 1, head_dim]`, contiguous.
        """

    def finish(self, block: Int8Block, x: Tensor, heads: Tensor | None) -> Tensor:
        """Finish a block from the output of its heads, `[rows, d]`; `x` and the result are as for `step`.

        Without heads, only the MLP is computed.
        """

    def share(self, queries: Tensor, of_ids: Tensor, context: ContextCacheView) -> Tensor:
        """Return the attention weights of heads, summed by id, `[rows, heads, vocab]`; they sum to 1.

        Args:
            queries: Rotated parts of queries, `[rows, heads, num_turned]`.
            of_ids: Scores of the other dimensions by id, `[rows, heads, vocab]`.
            context: Visible positions of the context.
        """


class ReferenceKernel:
    """A kernel of torch operations: slow, but easy to verify."""

    def step(
        self, block: Int8Block, x: Tensor, seen: CacheView, rotary: Rotary, source: Tensor | None = None
    ) -> Tensor:
        rows, heads, _, head_dim = seen.keys.shape
        projected = block.project(unit_rms(x, block.least)).view(rows, 3, heads, head_dim)
        if source is not None:
            projected[:, 1:] = block.project(unit_rms(source, block.least)).view(rows, 3, heads, head_dim)[:, 1:]
        queries, new = apply_rotary(unit_rms(projected[:, :2], block.least_of_heads), rotary).unbind(1)
        visible = slice(seen.first, seen.first + seen.n)
        held = [each[:, :, visible] for each in (seen.keys, seen.key_scales, seen.values, seen.value_scales)]
        for to, number in zip(held, (*quantize_rows(new), *quantize_rows(projected[:, 2])), strict=True):
            to[:, :, -1] = number
        keys, key_scales, values, value_scales = held
        weights = ((keys.float() @ queries[..., None])[..., 0] * key_scales).softmax(-1) * value_scales
        return self.finish(block, x, (weights[:, :, None] @ values.float()).flatten(1))

    def finish(self, block: Int8Block, x: Tensor, heads: Tensor | None) -> Tensor:
        x = x if heads is None else x + block.output(heads)
        return x + block.down(block.up(unit_rms(x, block.least)).relu().square())

    def share(self, queries: Tensor, of_ids: Tensor, context: ContextCacheView) -> Tensor:
        visible = slice(context.first, context.first + context.n)
        keys, scales = context.turned[:, :, visible].float(), context.scales[:, :, visible]
        index = context.ids[:, None, visible].expand(scales.shape)
        weights = ((keys @ queries[..., None])[..., 0] * scales + of_ids.gather(2, index)).softmax(-1)
        return torch.zeros_like(of_ids).scatter_add_(2, index, weights)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize `x` `[..., width]` to int8; return the int8 tensor and its scales, `[...]`."""
    scales = x.abs().amax(-1).clamp(min=1e-12) / MAX_INT8
    return (x / scales[..., None]).round().to(torch.int8), scales


def apply_rotary(heads: Tensor, rotary: Rotary) -> Tensor:
    """Rotate queries and keys `[rows, 2, heads, head_dim]` of one position, like `rotate`, and apply their gains."""
    own, partners, partner = rotary
    return torch.addcmul(heads * own, heads.index_select(-1, partner), partners)


def unit_rms(x: Tensor, least: Tensor | float) -> Tensor:
    """Normalise the last axis to a unit vector: `x / sqrt(sum(x²) + least²)`, an RMS norm without gain.

    The missing factor, the square root of the width, is in the weights that follow. This takes three operations instead
    of six.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.hypot(torch.as_tensor(least, dtype=norm.dtype, device=norm.device))
