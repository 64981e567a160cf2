"""Build the blocks that all architectures share: attention, an MLP and their norms. Knows tensors of embeddings.

Knows no ids, no embedding and no head; `model.architectures` lists the models that are made of these blocks.

Shapes: `batch`; `n` positions; `d` width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pamusic.model.attention import attend
from pamusic.model.cache import KeyValueCache
from pamusic.model.config import ModelConfig
from pamusic.model.rotary import Rotation, rotate


class Block(nn.Module):
    """Attention and an MLP, each with a norm before it, added to the residual stream."""

    def __init__(self, config: ModelConfig, num_heads: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, eps=1e-6)
        self.attention = Attention(config.d_model, num_heads)
        self.mlp_norm = RMSNorm(config.d_model, eps=1e-6)
        self.mlp = MLP(config.d_model, config.mlp_ratio)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rotary: Rotation,
        context: tuple[Tensor, Tensor] | None = None,
        prefix_valid: Tensor | None = None,
        cache: KeyValueCache | None = None,
        last_only: bool = False,
        before: Tensor | None = None,
    ) -> Tensor:
        """Return the residual stream `[batch, n, d]` after this block.

        Args:
            x: Residual stream before the block.
            rotary: Rotation of its positions; with `before`, of all positions.
            context: Keys and values to attend to; the last `n` belong to `x`. None: computed from `x`.
            prefix_valid: Mask of the visible keys before the last `n`.
            cache: Cache that receives the keys and values of `x` and supplies the earlier ones.
            last_only: Continue with the last position only, `[batch, 1, d]`.
            before: Residual stream of the positions before `x`, `[batch, m - n, d]`, which `x` also attends to.
        """
        normed = self.attention_norm(x)
        if before is not None:
            context = self.attention.keys_values(torch.cat([self.attention_norm(before), normed], dim=1), rotary)
            rotary = _last(rotary, x.shape[1])
        keys, values = context or self.attention.keys_values(normed, rotary)
        if cache is not None:
            cache.append(keys, values)
            keys, values = cache.last(len(cache))
        if last_only:
            x, normed, rotary = x[:, -1:], normed[:, -1:], _last(rotary, 1)
        keys, values = keys.to(x.dtype), values.to(x.dtype)  # caches of a model with another dtype
        heads = attend(self.attention.queries(normed, rotary), keys, values, prefix_valid)
        x = x + self.dropout(self.attention.merged(heads))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def _last(rotary: Rotation, n: int) -> Rotation:
    """Return the rotation of the last `n` positions."""
    cos, sin = rotary
    return cos[..., -n:, :], sin[..., -n:, :]


class Attention(nn.Module):
    """The projections of multi-head attention; `attend` does the rest."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, d_model // num_heads
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.query_norm = RMSNorm(self.head_dim, eps=1e-6)
        self.key_norm = RMSNorm(self.head_dim, eps=1e-6)
        nn.init.zeros_(self.output.weight)

    def queries(self, x: Tensor, rotary: Rotation) -> Tensor:
        """Project `[batch, n, d]` to queries `[batch, num_heads, n, head_dim]`, normalised and rotated."""
        return rotate(self.query_norm(self._split(self.query(x))), rotary)

    def keys_values(self, x: Tensor, rotary: Rotation) -> tuple[Tensor, Tensor]:
        """Project `[batch, n, d]` to normalised, rotated keys and to values, each `[batch, num_heads, n, head_dim]`."""
        return rotate(self.key_norm(self._split(self.key(x))), rotary), self._split(self.value(x))

    def merged(self, heads: Tensor) -> Tensor:
        """Merge heads `[batch, num_heads, n, head_dim]` and project them to `[batch, n, d]`."""
        return self.output(heads.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    """Two layers with a squared ReLU (So et al. 2021, arXiv:2109.08668) between them."""

    def __init__(self, d_model: int, ratio: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, ratio * d_model, bias=False)
        self.down = nn.Linear(ratio * d_model, d_model, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class RMSNorm(nn.RMSNorm):
    """An RMS norm (Zhang and Sennrich 2019, arXiv:1910.07467) with its gain cast to the dtype of the input.

    Under autocast, PyTorch's own norm has a float32 gain and a bfloat16 input, and then no fused kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
