"""What the heads of one layer gather for one token, out of keys and values held in bytes: one function of tensors.

Knows tensors; knows no layers, no weights. It stands alone so that a compiler can make one kernel of it
(`pamusic/kernels.py`): a plain product reads numbers of a byte no faster than whole ones, and a kernel that multiplies
as it reads does. Uncompiled it is the plain twin, and computes the same.

Of each key and value the largest number is 127, and what the others are multiplied with is kept beside them.

Shapes: `batch`; `heads` of width `head_dim`; `n` positions that are visible, the token's own the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Gather = Callable[..., Tensor]  # `gathered`, or what was compiled of it
MOST = 127  # of a byte with a sign


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a kernel is made for.

    Attributes:
        num_heads, head_dim: of the layer.
        room: positions that its cache has memory for.
        is_batch: for two rows or more; else for one.
    """

    num_heads: int
    head_dim: int
    room: int
    is_batch: bool


class Forge(Protocol):
    """Who makes kernels, which takes some seconds, while plain steps go on."""

    order_at: int  # the step at which they are ordered
    after: int  # steps that are taken plain, however soon a kernel is there: the same seed must give the same music

    @property
    def is_used(self) -> bool:
        """Whether a kernel was made and asked for."""

    def order(self, shape: Shape) -> None:
        """Begins to make a kernel, unless there is one."""

    def made(self, shape: Shape) -> Gather | None:
        """The kernel that was ordered, waited for if need be; None if none can be made here."""


def gathered(
    projected: Tensor,
    least: Tensor,
    own: Tensor,
    partners: Tensor,
    partner: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor,
    value_scales: Tensor,
) -> Tensor:
    """What the heads gather, `[batch, heads * head_dim]`, float32; the token's key and value are written at the end.

    Args:
        projected: queries, keys and values of the token, `[batch, 3 * heads * head_dim]`.
        least: keeps the norm of a head from dividing by zero, as for `unit`.
        own, partners, partner: turn queries and keys, as for `turned`.
        keys, values: `[batch, heads, n, head_dim]`, int8.
        key_scales, value_scales: `[batch, heads, n]`, float32.
    """
    heads, head_dim = keys.shape[1], keys.shape[3]
    parts = projected.float().view(-1, 3, heads, head_dim)
    queries, new_keys = kept(turned(unit(parts[:, :2], least), (own, partners, partner))).unbind(1)
    for new, bytes, scales in ((new_keys, keys, key_scales), (parts[:, 2], values, value_scales)):
        bytes[:, :, -1], scales[:, :, -1] = as_bytes(new)
    scores = (queries[:, :, None] * keys.float()).sum(-1) * key_scales
    weights = kept(scores.softmax(-1) * value_scales)
    return (weights[..., None] * values.float()).sum(-2).flatten(1)


def as_bytes(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` `[..., head_dim]` as int8, and what that is to be multiplied with, `[...]`."""
    scales = x.abs().amax(-1).clamp(min=1e-12) / MOST
    return (x / scales[..., None]).round().to(torch.int8), scales


def turned(heads: Tensor, turn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """`rotated` for queries and keys `[batch, 2, heads, head_dim]` of one position, times their gains."""
    own, partners, partner = turn
    return torch.addcmul(heads * own, heads.index_select(-1, partner), partners)


def unit(x: Tensor, least: Tensor) -> Tensor:
    """RMS norm over the last axis, without gain and as a unit vector: `x / sqrt(sum(x²) + least²)`.

    What is missing, the square root of the width, stands in the weights behind it. Three operations in place of six.
    """
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(least)


def kept(x: Tensor) -> Tensor:
    """`x`; a compiler then keeps it, and does not compute it anew for each number that it is read for."""
    return x.as_strided(x.shape, x.stride())
