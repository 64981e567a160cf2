"""Predict positions that have several ids (fields), one field after the other.

Knows tensors of ids; knows no music. The probability of a position is the product of its fields' probabilities, each
given the fields before it (nested decoding of compound tokens: Ryu et al. 2024, arXiv:2408.01180). They use attention
over the fields; we use a sum of embeddings and one small MLP per field. The ids of a field follow those of the field
before it, so one embedding table and one head serve all fields.

Shapes: `batch`; `n` latents; `fields`; `d` width; `vocab` ids of all fields together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pamusic.model.config import ClockConfig, OffsetsConfig

HIDDEN = 2  # width of the hidden layer of a field's MLP, over `d`
KEY = 1  # the field of keys, after the field of times


class Hints(NamedTuple):
    """What is counted in the context and added to the logits.

    Attributes:
        lasting: Result of `Offsets.lasting`, `[..., num_positions]`; None without offsets.
        key_bias: Bias on the logits of the keys, `[..., size]`; None without recall.
    """

    lasting: Tensor | None = None
    key_bias: Tensor | None = None

    def changed(self, change: Callable[[Tensor], Tensor]) -> Hints:
        """Return the hints, each changed."""
        return Hints(*(None if hint is None else change(hint) for hint in self))


NO_HINTS = Hints()


class FieldHeads(nn.Module):
    """Logits of the fields of the next position."""

    def __init__(self, sizes: Sequence[int], d_model: int, offsets: OffsetsConfig | None = None) -> None:
        super().__init__()
        self.slices = field_slices(sizes, sum(sizes))
        self.chosen = nn.Embedding(sum(sizes) - sizes[-1], d_model)  # nothing is predicted given the last field
        self.mlps = nn.ModuleList(FieldMLP(d_model) for _ in sizes[1:])
        self.offsets = None if offsets is None else Offsets(offsets, sizes, d_model)
        nn.init.normal_(self.chosen.weight)

    def forward(self, latents: Tensor, following: Tensor, head: Tensor, hints: Hints = NO_HINTS) -> Tensor:
        """Return logits `[batch, n, vocab]` of all fields, each given the true ids of the fields before it.

        Args:
            latents: `[batch, n, d]`, normalised.
            following: `[batch, n, fields]`, ids of the position after each latent.
            head: `[vocab, d]`, weights of the head.
            hints: What is counted in the context, `[batch, n, …]`; `lasting` is needed with offsets.
        """
        fields = range(len(self.slices))
        return torch.cat([self.logits(i, latents, following[..., :i], head, hints) for i in fields], dim=-1)

    def logits(self, field: int, latents: Tensor, chosen: Tensor, head: Tensor, hints: Hints = NO_HINTS) -> Tensor:
        """Return logits `[..., size]` of field number `field`, given the ids `[..., field]` of the fields before it."""
        if field:
            latents = self.mlps[field - 1](latents + self.chosen(chosen).sum(-2).to(latents.dtype))
        return self.of_states(field, latents, chosen, head, hints)

    def of_states(self, field: int, latents: Tensor, chosen: Tensor, head: Tensor, hints: Hints) -> Tensor:
        """Return logits `[..., size]` of a field from the output `[..., d]` of its MLP."""
        logits = F.linear(latents, head[self.slices[field]])
        if field == KEY and hints.key_bias is not None:
            logits = logits + hints.key_bias.to(logits.dtype)
        if self.offsets is not None and field in (0, len(self.slices) - 1):
            assert hints.lasting is not None, "offsets need `lasting`"
            logits = logits + self.offsets(latents, hints.lasting, chosen[..., 0] if field else None).to(logits.dtype)
        return logits


def ticks_of_ids(edges: Sequence[int], first: int, vocab_size: int) -> Tensor:
    """Return the ticks that each id decodes to, `[vocab]`, int64: mid-bin for ids from `first` on, 0 for others."""
    low = torch.tensor(edges)
    ticks = torch.zeros(vocab_size, dtype=torch.int64)
    ticks[first : first + len(edges) - 1] = low[:-1] + (low.diff() - 1) // 2
    return ticks


class Clock(nn.Module):
    """The time of each position, in ticks."""

    ticks: Tensor

    def __init__(self, config: ClockConfig, vocab_size: int) -> None:
        super().__init__()
        self.fraction = config.rotary_fraction
        self.register_buffer("ticks", ticks_of_ids(config.shift_edges, 0, vocab_size), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the time of each position of `[batch, m, fields]`, `[batch, m]`, int64.

        Times count from the position before the first one.
        """
        return self.ticks[tokens[..., 0]].cumsum(1)


class Offsets(nn.Module):
    """Logit bias of time shift and length, from the ends of notes that still sound.

    Notes of a chord end together, and the next note often begins where one ends. The context contains this only as a
    difference of sums. Here it is a histogram: the number of last positions that end within each bin, counted from the
    last onset (for the shift) or from the next one (for the length). Each latent chooses a kernel that smooths it.
    """

    shift_ticks: Tensor
    length_ticks: Tensor
    shift_of_ticks: Tensor
    length_of_ticks: Tensor

    def __init__(self, config: OffsetsConfig, sizes: Sequence[int], d_model: int) -> None:
        super().__init__()
        self.config = config
        shift, *_, length = field_slices(sizes, sum(sizes))
        for name, ids, edges in (("shift", shift, config.shift_edges), ("length", length, config.length_edges)):
            ticks = ticks_of_ids(edges, ids.start, sum(sizes))
            self.register_buffer(f"{name}_ticks", ticks, persistent=False)
            bins = torch.bucketize(torch.arange(edges[-1]), torch.tensor(edges), right=True) - 1
            self.register_buffer(f"{name}_of_ticks", bins, persistent=False)
        kernels = [nn.Linear(d_model, 2 * config.reach + 1, bias=False) for _ in range(2)]
        for kernel in kernels:
            nn.init.zeros_(kernel.weight)
        self.kernels = nn.ModuleList(kernels)

    def lasting(self, tokens: Tensor, n: int) -> Tensor:
        """Return ticks from each of the last `n` onsets to the ends of the last positions.

        The result is `[batch, n, num_positions]`. Positions that have ended, or do not exist, have 0 or less.

        Args:
            tokens: `[batch, m, fields]`; only the last `n + num_positions - 1` are used.
        """
        missing = max(0, n + self.config.num_positions - 1 - tokens.shape[1])
        tokens = tokens[:, -(n + self.config.num_positions - 1) :]
        onset = self.shift_ticks[tokens[..., 0]].cumsum(1)
        end = F.pad(onset + self.length_ticks[tokens[..., -1]], (missing, 0), value=-1)
        return end.unfold(1, self.config.num_positions, 1) - onset[:, -n:, None]

    def forward(self, latents: Tensor, lasting: Tensor, shift: Tensor | None) -> Tensor:
        """Return the bias `[..., size]` on the logits of a shift, or of a length if the shift `[...]` is given."""
        if shift is None:
            bins, kernel, size = self.shift_of_ticks, 0, len(self.config.shift_edges) - 1
        else:
            bins, kernel, size = self.length_of_ticks, 1, len(self.config.length_edges) - 1
            lasting = lasting - self.shift_ticks[shift][..., None]
        places = torch.where(lasting > 0, bins[lasting.clamp(0, len(bins) - 1)], size)
        counts = latents.new_zeros(*places.shape[:-1], size + 1)
        counts = counts.scatter_add(-1, places, torch.ones_like(places, dtype=counts.dtype))[..., :size].log1p()
        weights = self.kernels[kernel](latents)  # [..., 2 * reach + 1]
        near = F.pad(counts, (self.config.reach, self.config.reach)).unfold(-1, weights.shape[-1], 1)
        return (near * weights[..., None, :]).sum(-1)


class FieldMLP(nn.Module):
    """`x + mlp(x)`, with RMS norm before and after."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, HIDDEN * d_model, bias=False)
        self.down = nn.Linear(HIDDEN * d_model, d_model, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.rms_norm(x, x.shape[-1:], eps=1e-6)
        return F.rms_norm(x + self.down(F.relu(self.up(x)).square()), x.shape[-1:], eps=1e-6)


def field_slices(sizes: Sequence[int], vocab_size: int) -> list[slice]:
    """Return the range of ids of each field; without sizes, one field of all ids."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))] or [vocab_size]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def by_field(logits: Tensor, targets: Tensor, sizes: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits `[..., size]` and targets `[...]` of each field, with targets counted from the field's first id.

    Args:
        logits: `[..., vocab]`.
        targets: `[..., fields]`, or `[...]` without sizes. Negative targets stay as they are.
    """
    if not sizes:
        yield logits, targets
        return
    for place, ids in enumerate(field_slices(sizes, logits.shape[-1])):
        target = targets[..., place]
        yield logits[..., ids], torch.where(target < 0, target, target - ids.start)
