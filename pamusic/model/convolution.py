"""Mix each embedding with the few before it, by a causal convolution. Knows tensors of embeddings.

Without it, a key of the cross-attention comes from one position alone. An induction head, which finds what followed
the last time, needs keys that know the position before theirs (Olsson et al. 2022, arXiv:2209.11895). A causal
convolution gives them that with one layer of attention (arXiv:2407.05591). It is depthwise and begins as the identity.

In a training window, nothing precedes the first position. In a sliding cache, the first key still knows the positions
before it, which have left the context.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConvolution(nn.Module):
    """A depthwise causal convolution, added to its input."""

    def __init__(self, width: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width - 1, d_model))  # weights of 1, 2, … positions back

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, n, d]` to `[batch, n, d]`, with zeros before the first position."""
        y = x
        for back, weight in enumerate(self.weight, start=1):
            y = y + F.pad(x, (0, 0, back, 0))[:, : x.shape[1]] * weight.to(x.dtype)
        return y
