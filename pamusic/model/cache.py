"""Keys and values that were computed before. Knows tensors; knows no layers, no sampling policy.

All memory is taken once, at the start. Positions lie along the last axis, for a step of one token reads them all: in
long rows that takes 0.7 ms for 8,192 positions on two CPU cores, in rows of one head's width 1.7 (`benchmarks/`).
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """The keys and values of one attention layer, of positions that stand in a row.

    Full, it moves what its owner still sees (`window` positions) to its front: once in `capacity - window` positions.
    """

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
        self._keys = torch.zeros(batch, num_heads, head_dim, window + slack, device=device, dtype=dtype)
        self._values = torch.zeros_like(self._keys)
        self.window, self._stop = window, 0

    def __len__(self) -> int:
        """How many positions are visible."""
        return min(self._stop, self.window)

    def clear(self) -> None:
        self._stop = 0

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows of the batch, `[n]`; one can be taken more than once."""
        self._keys, self._values = self._keys[rows], self._values[rows]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Takes `[batch, num_heads, n, head_dim]` keys and values of the next `n` positions."""
        n = keys.shape[2]
        if n > self.window:
            keys, values, n = keys[:, :, -self.window :], values[:, :, -self.window :], self.window
        if self._stop + n > self._keys.shape[3]:
            kept = self.window - n
            for kept_of in (self._keys, self._values):
                kept_of[..., :kept] = kept_of[..., self._stop - kept : self._stop].clone()
            self._stop = kept
        self._keys[..., self._stop : self._stop + n] = keys.mT
        self._values[..., self._stop : self._stop + n] = values.mT
        self._stop += n

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Views of the keys and values of the last `count` positions, `[batch, num_heads, count, head_dim]`."""
        first = self._stop - count
        return self._keys[..., first : self._stop].mT, self._values[..., first : self._stop].mT
