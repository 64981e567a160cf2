"""Apply rotary position embedding (Su et al. 2021, arXiv:2104.09864) to a fraction of each head.

Knows tensors. Only the distance between two positions matters to attention, so positions may be counted from anywhere.
Where positions have times, another fraction can be rotated by time: music recurs after a number of seconds rather than
after a number of notes.
"""

from __future__ import annotations

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cosines and sines

BASE = 10_000.0  # the longest wavelength is 2 pi times this many tokens: Su et al. 2021


def rotation(positions: Tensor, head_dim: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines that rotate heads.

    Args:
        positions: `[..., n]`, integers.
        head_dim: Width of a head.
        fraction: Fraction of a head that is rotated.

    Returns:
        Two float32 tensors `[..., n, rotated / 2]`.
    """
    pairs = max(1, int(head_dim * fraction) // 2)
    # In float64, because position 100,000 must differ from 100,001. Metal has no float64, so the CPU computes it there.
    at = positions.cpu() if positions.device.type == "mps" else positions
    frequencies = BASE ** (-torch.arange(pairs, device=at.device, dtype=torch.float64) / pairs)
    angles = at.to(torch.float64)[..., None] * frequencies
    return angles.cos().float().to(positions.device), angles.sin().float().to(positions.device)


def both(by: tuple[Tensor, Tensor], also: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Join rotations by position, `[..., n, pairs]`, and by time, `[batch, 1, n, other pairs]`."""
    cos, sin = (
        torch.cat([one.expand(*other.shape[:-1], one.shape[-1]), other], dim=-1)
        for one, other in zip(by, also, strict=True)
    )
    return cos, sin


def rotate(heads: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the first dimensions of each head; the others stay unchanged.

    Args:
        heads: `[batch, num_heads, n, head_dim]`.
        by: Cosines and sines, `[n, pairs]` or `[batch, 1, n, pairs]`.
    """
    cos, sin = by
    pairs = cos.shape[-1]
    left, right, rest = heads[..., :pairs].float(), heads[..., pairs : 2 * pairs].float(), heads[..., 2 * pairs :]
    turned = torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)
    return torch.cat([turned.to(heads.dtype), rest], dim=-1)
