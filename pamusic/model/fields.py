"""Several ids a position: which of them are which, and how those of the next position are predicted one by one.

Knows tensors of ids; knows no music. The probability of a position is the product of those of its fields, each given
the fields before it (nested decoding of compound tokens: Ryu et al. 2024, arXiv:2408.01180; there by attention over
the fields, here by a sum of embeddings and a small MLP a field). The ids of a field follow those of the one before it,
so that one embedding table and one head serve all of them.

Shapes: `batch`; `n` latents; `fields`; `d` width; `vocab` ids of all fields together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 2  # width of the hidden layer of a field's MLP, over `d`


class FieldHeads(nn.Module):
    """Logits of the fields of the next position."""

    def __init__(self, sizes: Sequence[int], d_model: int) -> None:
        super().__init__()
        self.slices = field_slices(sizes, sum(sizes))
        self.chosen = nn.Embedding(sum(sizes) - sizes[-1], d_model)  # nothing is predicted given the last field
        self.mlps = nn.ModuleList(_FieldMLP(d_model) for _ in sizes[1:])
        nn.init.normal_(self.chosen.weight)

    def forward(self, latents: Tensor, following: Tensor, head: Tensor) -> Tensor:
        """Logits `[batch, n, vocab]` of each field, given the right ids of the fields before it.

        Args:
            latents: `[batch, n, d]`, normed.
            following: `[batch, n, fields]`, the ids of the position that follows each latent.
            head: `[vocab, d]`, the weights of the head.
        """
        return torch.cat([self.logits(i, latents, following[..., :i], head) for i in range(len(self.slices))], dim=-1)

    def logits(self, field: int, latents: Tensor, chosen: Tensor, head: Tensor) -> Tensor:
        """Logits `[..., size]` of one field by its number, given `[..., field]` ids of the fields before it."""
        if field:
            latents = self.mlps[field - 1](latents + self.chosen(chosen).sum(-2).to(latents.dtype))
        return F.linear(latents, head[self.slices[field]])


class _FieldMLP(nn.Module):
    """`x + mlp(x)`, normed before and behind."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, HIDDEN * d_model, bias=False)
        self.down = nn.Linear(HIDDEN * d_model, d_model, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.rms_norm(x, x.shape[-1:], eps=1e-6)
        return F.rms_norm(x + self.down(F.relu(self.up(x)).square()), x.shape[-1:], eps=1e-6)


def field_slices(sizes: Sequence[int], vocab_size: int) -> list[slice]:
    """The ids of each field; all of them where there are no sizes, which is one field."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))] or [vocab_size]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def by_field(logits: Tensor, targets: Tensor, sizes: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits `[..., size]` and targets `[...]`, counted from 0, of each field; negative targets stay what they are.

    Args:
        logits: `[..., vocab]`.
        targets: `[..., fields]`, or `[...]` where there are no sizes, which is one field.
    """
    if not sizes:
        yield logits, targets
        return
    for place, ids in enumerate(field_slices(sizes, logits.shape[-1])):
        target = targets[..., place]
        yield logits[..., ids], torch.where(target < 0, target, target - ids.start)
