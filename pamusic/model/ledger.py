"""What is open at each position, and for how long: told to the latents, which would otherwise have to count.

Knows ids that open a slot, ids that close one, and ids that let time pass; not what a slot is. From these alone the
ledger is kept, exactly: no position sees more than the ids up to its own. Only the visible context counts: a slot that
was opened before it is not in the ledger.

Why: a key that is struck is let go by an id that says which, up to minutes of ids later. To write that, a model must
know the set of keys that sound and the sum of all time shifts since each was struck; both take attention many
examples to learn, and neither survives prefix dropout, which hides four strokes in five. A table `[slots, ages]` of
vectors costs one product with a sparse row. Ages stand on a scale of logarithms, and what lies between two of its marks
gets a share of both.

Shapes: `batch`; `m` positions, of which the last `n` are asked for; `slots`; `d` width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pamusic.model.config import LedgerConfig

NUM_AGES = 8
FIRST_AGE = 8  # ticks: the scale is even up to about here, and logarithmic beyond
MARKS_AN_OCTAVE = 0.75  # the last mark stands at 51 s, where a tick is 10 ms


@dataclass
class Entries:
    """Where a ledger stands after the ids so far; one row for each of a batch.

    Attributes:
        position: of the next id.
        now: `[batch, 1]`, ticks that have passed.
        opened, closed: `[batch, slots + 1]`, 1 + the position of each slot's last opening and closing, 0 for none.
        opened_at: `[batch, slots + 1]`, `now` at that opening. The last slot of each is nobody's.
    """

    position: int
    now: Tensor
    opened: Tensor
    closed: Tensor
    opened_at: Tensor

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, `[n]`."""
        for name in ("now", "opened", "closed", "opened_at"):
            setattr(self, name, getattr(self, name)[rows])

    def ages(self, window: int) -> Tensor:
        """`[batch, slots]`, int64: ticks since each slot was opened, -1 where that was not in the last `window`."""
        is_open = (self.opened > self.closed) & (self.opened > self.position - window)
        return torch.where(is_open, self.now - self.opened_at, -1)[:, :-1]


class Ledger(nn.Module):
    """A vector `[d]` for each position, of the slots that are open there and their ages; zero at first."""

    opens: Tensor
    closes: Tensor
    ticks: Tensor

    def __init__(self, config: LedgerConfig, vocab_size: int, d_model: int) -> None:
        super().__init__()
        slots = config.num_slots
        opens, closes = (torch.full((vocab_size,), slots) for _ in range(2))
        opens[config.first_opening : config.first_opening + slots] = torch.arange(slots)
        closes[config.first_closing : config.first_closing + slots] = torch.arange(slots)
        ticks = torch.zeros(vocab_size, dtype=torch.int64)
        ticks[config.first_tick : config.first_tick + config.num_ticks] = torch.arange(1, config.num_ticks + 1)
        for name, of_id in {"opens": opens, "closes": closes, "ticks": ticks}.items():
            self.register_buffer(name, of_id, persistent=False)
        self.num_slots = slots
        self.weight = nn.Parameter(torch.zeros(d_model, slots * NUM_AGES))

    def forward(self, ids: Tensor, n: int) -> Tensor:
        """`[batch, n, d]` of the last `n` of the ids `[batch, m]`, which are all that is visible."""
        return self._vectors(self.ages(ids, n))

    @torch.no_grad()
    def ages(self, ids: Tensor, n: int) -> Tensor:
        """`[batch, n, slots]`, int64: ticks since each slot was opened, -1 where it is not open."""
        batch, m = ids.shape
        now = self.ticks[ids].cumsum(1)
        places = torch.arange(1, m + 1, device=ids.device).expand(batch, m)
        opened, closed = (self._last(of_id[ids], places, n) for of_id in (self.opens, self.closes))
        opened_at = now.gather(1, (opened - 1).clamp(min=0).flatten(1)).view(opened.shape)
        return torch.where(opened > closed, now[:, m - n :, None] - opened_at, -1)

    def _last(self, slots: Tensor, places: Tensor, n: int) -> Tensor:
        """`[batch, n, slots]`: the last of the places up to each of the last `n` at which each slot stands, or 0."""
        batch, before = len(slots), slots.shape[1] - n
        last = places.new_zeros(batch, n, self.num_slots + 1)
        last.scatter_(2, slots[:, before:, None], places[:, before:, None])
        earlier = places.new_zeros(batch, self.num_slots + 1)
        earlier.scatter_reduce_(1, slots[:, :before], places[:, :before], "amax")
        last[:, 0] = torch.maximum(last[:, 0], earlier)
        return last.cummax(1).values[..., : self.num_slots]

    def told(self, entries: Entries, window: int) -> Tensor:
        """`[batch, d]` at the last id that was entered, of which the last `window` are visible."""
        return self._vectors(entries.ages(window))

    def _vectors(self, ages: Tensor) -> Tensor:
        return F.linear(shares_of(ages).to(self.weight.dtype), self.weight)

    def new_entries(self, batch: int) -> Entries:
        """Those of a ledger in which nothing stands yet."""
        zeros = self.ticks.new_zeros(batch, self.num_slots + 1)
        return Entries(0, zeros[:, :1], zeros, zeros, zeros)

    @torch.no_grad()
    def enter(self, ids: Tensor, entries: Entries) -> None:
        """Takes the next ids, `[batch, m]`."""
        batch, m = ids.shape
        first = entries.position + 1
        now = entries.now + self.ticks[ids].cumsum(1)
        places = torch.arange(first, first + m, device=ids.device).expand(batch, m)
        opened, closed = (
            torch.zeros_like(entries.opened).scatter_reduce_(1, of_id[ids], places, "amax")
            for of_id in (self.opens, self.closes)
        )
        opened_at = now.gather(1, (opened - first).clamp(min=0))
        entries.opened_at = torch.where(opened > 0, opened_at, entries.opened_at)
        entries.opened = torch.maximum(entries.opened, opened)
        entries.closed = torch.maximum(entries.closed, closed)
        entries.now, entries.position = now[:, -1:], entries.position + m


def shares_of(ages: Tensor) -> Tensor:
    """What each mark of the scale has of each age: `[..., slots]` -> `[..., slots * NUM_AGES]`, float32.

    Two marks next to each other share an age; one of -1 has no share in any.
    """
    marks = torch.arange(NUM_AGES, device=ages.device)
    place = (MARKS_AN_OCTAVE * torch.log2(1 + ages.clamp(min=0) / FIRST_AGE)).clamp(max=NUM_AGES - 1)
    shares = (1 - (place[..., None] - marks).abs()).clamp(min=0)
    return (shares * (ages >= 0)[..., None]).flatten(-2)
