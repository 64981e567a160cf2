"""Embed the open slots and their ages at each position, so that the latents need not count.

Knows ids that open a slot, ids that close one, and ids that let time pass; not what a slot is. The ledger is exact and
causal: a position sees only the ids up to its own. Only the visible context counts: a slot that was opened before it is
not in the ledger.

Why: a note-off names its note, and can come minutes after the note-on. To predict it, a model must know which notes
sound and the sum of all time shifts since each onset, and prefix dropout hides most onsets. On real music a model
learns enough by itself: the ledger does not measurably improve likelihood (`docs/experiments.md`). It is meant for
generated music, where notes were left on by mistake. A table `[slots, ages]` of vectors costs one product with a sparse
row. Ages stand on a logarithmic scale; an age between two marks gets a share of both.

Shapes: `batch`; `m` positions, the last `n` of them returned; `slots`; `d` width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pamusic.model.config import LedgerConfig
from pamusic.model.slots import NoteSlots

# The last mark stands at 127 times the first age: at 5 s, with ticks of 10 ms. Greater ages share this mark: only half
# a percent of MAESTRO's notes last longer, and the model would learn nothing about an age that it hardly ever sees.
NUM_AGES = 8
FIRST_AGE = 4  # ticks
LAST_AGE = FIRST_AGE * (2 ** (NUM_AGES - 1) - 1)


@dataclass
class LedgerState:
    """State of a ledger after the ids so far, with one row per row of the batch.

    Attributes:
        position: Position of the next id, `[1]`, int64.
        now: Ticks that have passed, `[batch, 1]`.
        opened: 1 + the position of the opening of each open slot, 0 for closed ones, `[batch, slots + 1]`.
        opened_at: Value of `now` at that opening, `[batch, slots + 1]`. The last slot of both tables is a dummy.
    """

    position: Tensor
    now: Tensor
    opened: Tensor
    opened_at: Tensor

    def select(self, rows: Tensor) -> None:
        """Keep these rows, `[n]`."""
        self.now, self.opened, self.opened_at = self.now[rows], self.opened[rows], self.opened_at[rows]

    def ages(self, window: int) -> Tensor:
        """Return ticks since each slot was opened, `[batch, slots]`, int64.

        It is -1 for slots that are closed or were opened before the last `window` positions.
        """
        is_open = self.opened > (self.position - window).clamp_(min=0)
        return torch.where(is_open, self.now - self.opened_at, -1)[:, :-1]


class Ledger(nn.Module):
    """An embedding of the open slots and their ages at each position; it begins at zero."""

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
        """Return embeddings `[batch, n, d]` of the last `n` of the visible ids `[batch, m]`."""
        return self._vectors(self.ages(ids, n))

    @torch.no_grad()
    def ages(self, ids: Tensor, n: int) -> Tensor:
        """Return ticks since each slot was opened, `[batch, n, slots]`, int64; -1 where it is closed."""
        batch, m = ids.shape
        now = self.ticks[ids].cumsum(1)
        places = torch.arange(1, m + 1, device=ids.device).expand(batch, m)
        opened, closed = (self._last(of_id[ids], places, n) for of_id in (self.opens, self.closes))
        opened_at = now.gather(1, (opened - 1).clamp(min=0).flatten(1)).view(opened.shape)
        return torch.where(opened > closed, now[:, m - n :, None] - opened_at, -1)

    def new_entries(self, batch: int) -> LedgerState:
        """Return the state of an empty ledger."""
        opened = self.ticks.new_zeros(batch, self.num_slots + 1)
        return LedgerState(self.ticks.new_zeros(1), self.ticks.new_zeros(batch, 1), opened, opened.clone())

    @torch.no_grad()
    def enter(self, ids: Tensor, entries: LedgerState) -> None:
        """Update the state with the next ids, `[batch, m]`, all at once."""
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
        """Update the state with one more id per row, `[batch]`, and return its embedding, `[batch, d]`.

        The last `window` ids are visible. It changes tensors in place and reads no value of them on the host, so a
        CUDA graph can record it.
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
        """Return the last place of each slot up to each of the last `n` positions, or 0, `[batch, n, slots]`."""
        batch, before = len(slots), slots.shape[1] - n
        last = places.new_zeros(batch, n, self.num_slots + 1)
        last.scatter_(2, slots[:, before:, None], places[:, before:, None])
        earlier = places.new_zeros(batch, self.num_slots + 1)
        earlier.scatter_reduce_(1, slots[:, :before], places[:, :before], "amax")
        last[:, 0] = torch.maximum(last[:, 0], earlier)
        return last.cummax(1).values[..., : self.num_slots]


def shares_of_ages() -> Tensor:
    """Return the share of each mark in each age, `[1 + 1 + LAST_AGE, NUM_AGES]`.

    Rows are the ages -1 (closed), 0, 1, 2 … ticks. Two neighbouring marks share an age.
    """
    place = torch.log2(1 + torch.arange(LAST_AGE + 1) / FIRST_AGE)
    shares = (1 - (place[:, None] - torch.arange(NUM_AGES)).abs()).clamp(min=0)
    return torch.cat([torch.zeros(1, NUM_AGES), shares])
