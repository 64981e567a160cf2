"""What is read of a position: it and the few before it. Knows tensors of embeddings.

A key of the cross-attention is made of one position. An induction head, which finds what followed the last time, needs
keys that know the position before theirs (Olsson et al. 2022, arXiv:2209.11895); a causal convolution gives them that
with one layer of attention (arXiv:2407.05591). It is depthwise, and begins as the identity.

In a window of training, nothing stands before the first position. In a cache that slides, the first key still knows the
positions before it, which have left the context.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConvolution(nn.Module):
    """Adds to each position those before it, each number by a weight of its own."""

    def __init__(self, width: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width - 1, d_model))  # of the position before, of that before it, …

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, n, d]` -> `[batch, n, d]`; before the first position there is nothing."""
        y = x
        for back, weight in enumerate(self.weight, start=1):
            y = y + F.pad(x, (0, 0, back, 0))[:, : x.shape[1]] * weight.to(x.dtype)
        return y
