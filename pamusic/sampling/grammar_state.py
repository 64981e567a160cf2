"""Track the grammar of sequences of ids: compute which ids are forbidden next.

Knows arrays; never what the ids mean. The tables come from `tokens/grammar.py` as `constraints.GrammarTables`, in two
parts that work together:

Machines. A few finite-state machines run side by side. Each id has a column, which moves every machine to the state in
its table. An id is forbidden if the state of any machine forbids its column.

Slots. Each slot has an id that opens it and one that closes it. Openings are numbered from 1. A slot can be closed if
the number of its oldest opening is greater than all numbers closed since the last tick. A slot can be opened if it is
open fewer than `most_open` times. If slots are opened in ascending order, it must also be above the last slot opened
since the last tick.

Some id is always allowed. If the grammar would forbid all ids, which happens only after ids that broke it, ticks are
allowed.

`GrammarState` tracks one sequence in plain Python, in a few microseconds per id. `BatchGrammarState` tracks many at
once, in tensors of fixed shape that it changes in place. It reads no value on the host, so it never waits for a device
and a CUDA graph can record it. Tests compare both with a simple reference implementation.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from pamusic.sampling.constraints import GrammarTables


class GrammarState:
    """The grammar state of one sequence of ids."""

    def __init__(self, grammar: GrammarTables) -> None:
        self._grammar = grammar
        self._column, self._is_tick = grammar.column_of_id.tolist(), grammar.is_tick.tolist()
        self._next_state = grammar.next_state.tolist()
        self._states: list[int] = grammar.first_states.tolist()
        self._oldest = np.zeros(grammar.num_slots, np.int64)  # number of the oldest opening; 0 where the slot is closed
        self._second = np.zeros(grammar.num_slots, np.int64)
        self._slot = np.arange(grammar.num_slots)
        self._num_openings = self._num_open = self._last_closed = 0
        self._last_opened = -1
        self._forbidden = np.empty(len(grammar.column_of_id), bool)
        self._openings, self._closings = grammar.slots.openings, grammar.slots.closings
        self._needs_opening, self._needs_all_closed = (
            np.flatnonzero(which) for which in (grammar.needs_opening, grammar.needs_all_closed)
        )

    def advance(self, ids: Iterable[int]) -> None:
        """Consume more ids, allowed or not."""
        for id in ids:
            column = self._column[id]
            self._states = [self._next_state[state][column] for state in self._states]
            if self._is_tick[id]:
                self._last_closed, self._last_opened = 0, -1
            elif 0 <= id - self._grammar.first_opening < self._grammar.num_slots:
                self._open(id - self._grammar.first_opening)
            elif 0 <= id - self._grammar.first_closing < self._grammar.num_slots:
                self._close(id - self._grammar.first_closing)

    def _open(self, slot: int) -> None:
        self._num_openings += 1
        self._last_opened = slot
        if not self._oldest[slot]:
            self._oldest[slot] = self._num_openings
            self._num_open += 1
        elif self._grammar.most_open == 1:
            self._oldest[slot] = self._num_openings
        elif not self._second[slot]:
            self._second[slot] = self._num_openings

    def _close(self, slot: int) -> None:
        number = int(self._oldest[slot])
        if number:
            self._last_closed = max(self._last_closed, number)
            self._oldest[slot], self._second[slot] = self._second[slot], 0
            self._num_open -= not self._oldest[slot]

    def is_open(self) -> Tensor:
        """Return which slots are open, `[slots]`, bool."""
        return torch.from_numpy(self._oldest > 0)

    def is_silent(self) -> Tensor:
        """Return whether no slot is open and no pedal is down, a bool tensor."""
        return torch.tensor(not self._num_open and not self._grammar.pedal_level[self._states].any())

    def raises_pedal(self) -> Tensor:
        """Return the ids that press a pedal further down, `[vocab]`, bool."""
        more = (
            self._grammar.pedal_level[self._grammar.next_state[self._states]]
            > self._grammar.pedal_level[self._states][:, None]
        )
        return torch.from_numpy(more.any(0)[self._grammar.column_of_id])

    def forbidden(self) -> Tensor:
        """Return the forbidden ids, `[vocab]`, bool; the next call overwrites the result."""
        forbidden = self._forbidden
        self._grammar.forbidden[self._states].any(0).take(self._grammar.column_of_id, out=forbidden)
        cannot_open = (self._oldest if self._grammar.most_open == 1 else self._second) > 0
        if self._grammar.ascending:
            cannot_open |= self._slot <= self._last_opened
        forbidden[self._openings] |= cannot_open
        forbidden[self._closings] |= self._oldest <= self._last_closed
        if cannot_open.all():
            forbidden[self._needs_opening] = True
        if self._num_open:
            forbidden[self._needs_all_closed] = True
        if forbidden.all():
            forbidden[self._grammar.is_tick] = False
        return torch.from_numpy(forbidden)


class BatchGrammarState:
    """The grammar states of a batch of sequences: `GrammarState` in tensors."""

    _STATES = ("_states", "_oldest", "_second", "_num_openings", "_last_closed", "_last_opened")

    def __init__(self, grammar: GrammarTables, num_rows: int, device: torch.device | str = "cpu") -> None:
        def on_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        vocab, slots = len(grammar.column_of_id), grammar.num_slots
        self._grammar = grammar
        self._column, self._is_tick = on_device(grammar.column_of_id), on_device(grammar.is_tick)
        self._next_state, self._forbidden_columns = on_device(grammar.next_state), on_device(grammar.forbidden)
        self._pedal_level, self._needs_opening = on_device(grammar.pedal_level), on_device(grammar.needs_opening)
        self._needs_all_closed = on_device(grammar.needs_all_closed)
        of_ids = (grammar.slots.opened_by(vocab), grammar.slots.closed_by(vocab))
        self._slot_of_id = torch.stack(of_ids, dim=1).to(device)
        self._slot = torch.arange(slots + 1, device=device)
        self._states = on_device(grammar.first_states).repeat(num_rows, 1)
        self._oldest = torch.zeros(num_rows, slots + 1, dtype=torch.int64, device=device)
        self._second = torch.zeros_like(self._oldest)
        self._num_openings, self._last_closed = (self._oldest.new_zeros(num_rows, 1) for _ in range(2))
        self._last_opened = self._oldest.new_full((num_rows, 1), -1)

    @classmethod
    def after(cls, row: GrammarState, num_rows: int, device: torch.device | str = "cpu") -> BatchGrammarState:
        """Return a batch whose rows all continue one row."""
        rows = cls(row._grammar, num_rows, device)
        rows._states.copy_(torch.tensor(row._states))
        rows._oldest[:, :-1] = torch.from_numpy(row._oldest)
        rows._second[:, :-1] = torch.from_numpy(row._second)
        rows._num_openings.fill_(row._num_openings)
        rows._last_closed.fill_(row._last_closed)
        rows._last_opened.fill_(row._last_opened)
        return rows

    def states(self) -> list[Tensor]:
        """Return the tensors that `advance` changes, `[rows, ...]` each."""
        return [getattr(self, name) for name in self._STATES]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, `[n]`."""
        for name in self._STATES:
            setattr(self, name, getattr(self, name)[rows])

    @torch.inference_mode()
    def advance(self, ids: Tensor) -> None:
        """Consume one more id in each row; `[rows]`, int64."""
        self._states.copy_(self._next_state[self._states, self._column[ids][:, None]])
        opened, closed = self._slot_of_id[ids].split(1, dim=1)
        tick = self._is_tick[ids][:, None]
        nobody = self._grammar.num_slots

        number = self._oldest.gather(1, closed)
        torch.maximum(self._last_closed, number, out=self._last_closed).masked_fill_(tick, 0)
        self._oldest.scatter_(1, closed, self._second.gather(1, closed))
        self._second.scatter_(1, closed, 0)

        self._num_openings.add_(opened != nobody)
        if self._grammar.most_open == 1:
            self._oldest.scatter_(1, opened, self._num_openings)
        else:
            oldest, second = self._oldest.gather(1, opened), self._second.gather(1, opened)
            number = self._num_openings
            self._second.scatter_(1, opened, torch.where((oldest > 0) & (second == 0), number, second))
            self._oldest.scatter_(1, opened, torch.where(oldest == 0, number, oldest))
        self._oldest[:, nobody] = 0
        self._second[:, nobody] = 0
        self._last_opened.copy_(torch.where(opened != nobody, opened, self._last_opened)).masked_fill_(tick, -1)

    def is_open(self) -> Tensor:
        """Return which slots are open, `[rows, slots]`, bool."""
        return self._oldest[:, : self._grammar.num_slots] > 0

    def is_silent(self) -> Tensor:
        """Return whether no slot is open and no pedal is down, `[rows]`, bool."""
        return ~(self.is_open().any(1) | self._pedal_level[self._states].any(1))

    def raises_pedal(self) -> Tensor:
        """Return the ids that press a pedal further down, `[rows, vocab]`, bool."""
        more = self._pedal_level[self._next_state[self._states]] > self._pedal_level[self._states][:, :, None]
        return more.any(1).index_select(1, self._column)

    @torch.inference_mode()
    def forbidden(self) -> Tensor:
        """Return the forbidden ids, `[rows, vocab]`, bool."""
        grammar, slots = self._grammar, self._grammar.num_slots
        forbidden = self._forbidden_columns[self._states].any(1).index_select(1, self._column)
        oldest = self._oldest[:, :slots]
        cannot_open = (oldest if grammar.most_open == 1 else self._second[:, :slots]) > 0
        if grammar.ascending:
            cannot_open |= self._slot[:slots] <= self._last_opened
        forbidden[:, grammar.slots.openings].logical_or_(cannot_open)
        forbidden[:, grammar.slots.closings].logical_or_(oldest <= self._last_closed)
        forbidden |= self._needs_opening & cannot_open.all(1, keepdim=True)
        forbidden |= self._needs_all_closed & (oldest > 0).any(1, keepdim=True)
        return forbidden & ~(self._is_tick & forbidden.all(1, keepdim=True))


class Grammar:
    """The grammar state of rows with the same prime, in the faster of the two implementations."""

    def __init__(
        self, grammar: GrammarTables, prime_ids: Iterable[int], num_rows: int, device: torch.device | str = "cpu"
    ) -> None:
        row = GrammarState(grammar)
        row.advance(prime_ids)
        alone = num_rows == 1 and torch.device(device).type == "cpu"
        self._followed = row if alone else BatchGrammarState.after(row, num_rows, device)

    def advance(self, ids: Tensor) -> None:
        """Consume one more id in each row; `[rows]`, int64."""
        if isinstance(self._followed, GrammarState):
            self._followed.advance(ids.tolist())
        else:
            self._followed.advance(ids)

    def states(self) -> list[Tensor]:
        """Return the tensors that `advance` changes."""
        return [] if isinstance(self._followed, GrammarState) else self._followed.states()

    def select(self, rows: Tensor) -> None:
        """Keep these rows, `[n]`; there must be more than one."""
        assert isinstance(self._followed, BatchGrammarState)
        self._followed.select(rows)

    def _as_rows(self, found: Tensor) -> Tensor:
        """Return a result as `[rows, n]`; `GrammarState` gives `[n]`."""
        return found[None] if isinstance(self._followed, GrammarState) else found

    def is_open(self) -> Tensor:
        """Return which slots are open, `[rows, slots]`, bool."""
        return self._as_rows(self._followed.is_open())

    def is_silent(self) -> Tensor:
        """Return whether nothing sounds, `[rows]`, bool."""
        return self._as_rows(self._followed.is_silent())

    def raises_pedal(self) -> Tensor:
        """Return the ids that press a pedal further down, `[rows, vocab]`, bool."""
        return self._as_rows(self._followed.raises_pedal())

    def forbidden(self) -> Tensor:
        """Return the forbidden ids, `[rows, vocab]`, bool; the next call may overwrite the result."""
        return self._as_rows(self._followed.forbidden())
