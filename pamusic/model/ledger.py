"""What is open at each position, and for how long: told to the latents, which would otherwise have to count.

Knows ids that open a slot, ids that close one, and ids that let time pass; not what a slot is. From these alone the
ledger is kept, exactly: no position sees more than the ids up to its own. Only the visible context counts: a slot that
was opened before it is not in the ledger.

Why: a key that is struck is let go by an id that says which, up to minutes of ids later. To write that, a model must
know the set of keys that sound and the sum of all time shifts since each was struck, and prefix dropout hides most of
the strokes. On real music it learns enough of that by itself: in likelihood the ledger is worth nothing we could
measure (`docs/experiments.md`). It is meant for what a model composes, where keys were left down by mistake. A table
`[slots, ages]` of vectors costs one product with a sparse row. Ages stand on a scale of logarithms, and what lies
between two of its marks gets a share of both.

Shapes: `batch`; `m` positions, of which the last `n` are asked for; `slots`; `d` width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pamusic.model.config import LedgerConfig
from pamusic.model.slots import NoteSlots

# The last mark stands at 127 times the first age: with ticks of 10 ms, at 5 s. Older is not told from older: half a
# percent of MAESTRO's notes last so long, and of an age that is hardly ever seen nothing is learned.
NUM_AGES = 8
FIRST_AGE = 4  # ticks
LAST_AGE = FIRST_AGE * (2 ** (NUM_AGES - 1) - 1)


@dataclass
class LedgerState:
    """Where a ledger stands after the ids so far; one row for each of a batch.

    Attributes:
        position: `[1]`, int64, of the next id.
        now: `[batch, 1]`, ticks that have passed.
        opened: `[batch, slots + 1]`, 1 + the position at which each slot that is open was opened, 0 for the others.
        opened_at: `[batch, slots + 1]`, `now` at that opening. The last slot of both is nobody's.
    """

    position: Tensor
    now: Tensor
    opened: Tensor
    opened_at: Tensor

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, `[n]`."""
        self.now, self.opened, self.opened_at = self.now[rows], self.opened[rows], self.opened_at[rows]

    def ages(self, window: int) -> Tensor:
        """`[batch, slots]`, int64: ticks since each slot was opened, -1 where that was not in the last `window`."""
        is_open = self.opened > (self.position - window).clamp_(min=0)
        return torch.where(is_open, self.now - self.opened_at, -1)[:, :-1]


class Ledger(nn.Module):
    """A vector `[d]` for each position, of the slots that are open there and their ages; zero at first."""

    opens: Tensor
    closes: Tensor
    ticks: Tensor
    shares: Tensor

    def __init__(self, config: LedgerConfig, vocab_size: int, d_model: int) -> None:
        super().__init__()
        slots = NoteSlots.of(config)
        opens, closes = slots.opened_by(vocab_size), slots.closed_by(vocab_size)
        ticks = torch.zeros(vocab_size, dtype=torch.int64)
        ticks[config.first_tick : config.first_tick + config.num_ticks] = torch.arange(1, config.num_ticks + 1)
        for name, table in {"opens": opens, "closes": closes, "ticks": ticks, "shares": shares_of_ages()}.items():
            self.register_buffer(name, table, persistent=False)
        self.num_slots = config.num_slots
        self.weight = nn.Parameter(torch.zeros(d_model, config.num_slots * NUM_AGES))

    def forward(self, ids: Tensor, n: int) -> Tensor:
        """Return `[batch, n, d]` of the last `n` of the ids `[batch, m]`, which are all that is visible."""
        return self._vectors(self.ages(ids, n))

    @torch.no_grad()
    def ages(self, ids: Tensor, n: int) -> Tensor:
        """Return `[batch, n, slots]`, int64: ticks since each slot was opened, -1 where it is not open."""
        batch, m = ids.shape
        now = self.ticks[ids].cumsum(1)
        places = torch.arange(1, m + 1, device=ids.device).expand(batch, m)
        opened, closed = (self._last(of_id[ids], places, n) for of_id in (self.opens, self.closes))
        opened_at = now.gather(1, (opened - 1).clamp(min=0).flatten(1)).view(opened.shape)
        return torch.where(opened > closed, now[:, m - n :, None] - opened_at, -1)

    def new_entries(self, batch: int) -> LedgerState:
        """Return the state of a ledger in which nothing stands yet."""
        opened = self.ticks.new_zeros(batch, self.num_slots + 1)
        return LedgerState(self.ticks.new_zeros(1), self.ticks.new_zeros(batch, 1), opened, opened.clone())

    @torch.no_grad()
    def enter(self, ids: Tensor, entries: LedgerState) -> None:
        """Take the next ids, `[batch, m]`, all at once."""
        batch, m = ids.shape
        first = entries.position + 1
        now = entries.now + self.ticks[ids].cumsum(1)
        places = (first + torch.arange(m, device=ids.device)).expand(batch, m)
        opened, closed = (
            torch.zeros_like(entries.opened).scatter_reduce_(1, of_id[ids], places, "amax")
            for of_id in (self.opens, self.closes)
        )
        entries.opened_at = torch.where(opened > 0, now.gather(1, (opened - first).clamp_(min=0)), entries.opened_at)
        entries.opened = torch.where(opened > closed, opened, entries.opened.masked_fill(closed > 0, 0))
        entries.now, entries.position = now[:, -1:].clone(), entries.position + m

    @torch.no_grad()
    def step(self, ids: Tensor, entries: LedgerState, window: int) -> Tensor:
        """Take one more id a row, `[batch]`; gives `[batch, d]` at its place, the last `window` ids being visible.

        All that it changes it changes in place, and it looks at no number.
        """
        opens = self.opens[ids][:, None]
        entries.position += 1
        entries.now += self.ticks[ids][:, None]
        entries.opened.scatter_(1, self.closes[ids][:, None], 0)
        entries.opened.scatter_(1, opens, entries.position.expand_as(opens))
        entries.opened_at.scatter_(1, opens, entries.now)
        return self._vectors(entries.ages(window))

    def _vectors(self, ages: Tensor) -> Tensor:
        shares = self.shares[(ages + 1).clamp_(max=LAST_AGE + 1)].flatten(-2)
        return F.linear(shares.to(self.weight.dtype), self.weight)

    def _last(self, slots: Tensor, places: Tensor, n: int) -> Tensor:
        """`[batch, n, slots]`: the last of the places up to each of the last `n` at which each slot stands, or 0."""
        batch, before = len(slots), slots.shape[1] - n
        last = places.new_zeros(batch, n, self.num_slots + 1)
        last.scatter_(2, slots[:, before:, None], places[:, before:, None])
        earlier = places.new_zeros(batch, self.num_slots + 1)
        earlier.scatter_reduce_(1, slots[:, :before], places[:, :before], "amax")
        last[:, 0] = torch.maximum(last[:, 0], earlier)
        return last.cummax(1).values[..., : self.num_slots]


def shares_of_ages() -> Tensor:
    """What each mark of the scale has of each age, `[1 + 1 + LAST_AGE, NUM_AGES]`: of none (-1), of 0, 1, 2 … ticks.

    Two marks next to each other share an age.
    """
    place = torch.log2(1 + torch.arange(LAST_AGE + 1) / FIRST_AGE)
    shares = (1 - (place[:, None] - torch.arange(NUM_AGES)).abs()).clamp(min=0)
    return torch.cat([torch.zeros(1, NUM_AGES), shares])
