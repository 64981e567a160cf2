"""Rules of what may follow, run beside the sampler: ids drawn so far -> which ids are barred.

Knows arrays; never what the ids mean. The rules are made elsewhere (`tokens/grammar.py`) and come as `Rules`, in two
forms that are run together:

Machines. A few finite machines run side by side. Each id has a column; it moves every machine to the state that its
table names, and is barred if any machine's state bars its column.

Slots. Each slot has an id that opens it and one that closes it. Openings are numbered from 1 on. A slot can be closed
if the number of its oldest opening is above those that were closed since the last tick; it can be opened while it is
open fewer than `most_open` times and, if slots are opened in ascending order, above the last one since the last tick.

Whatever was drawn, some id is always allowed: where the rules would bar all, which can only be after ids that had
broken them, ticks are allowed.

`Row` follows one sequence in plain Python, which costs a few microseconds an id. `Rows` follows many at once in tensors
of fixed shape that are changed in place, with no look at the data: it never waits for a device, and a CUDA graph can
record it. The tests hold both to a twin that knows the rules by their words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Rules:
    """What may follow what.

    Attributes:
        column_of_id: `[vocab]`, int64, the column of each id in the two tables.
        first_states: `[machines]`, int64, where each machine begins; their states are counted through.
        next_state: `[states, columns]`, int64.
        barred: `[states, columns]`, bool.
        lingers: `[states]`, int64, how much goes on in a state though no slot be open.
        first_opening, first_closing: the ids that open and close slot 0; the other slots' follow one by one.
        num_slots: how many there are.
        most_open: how many openings a slot holds at most, 1 or 2; one that is open once and opened anew begins anew.
        ascending: whether slots are opened in ascending order between ticks.
        is_tick: `[vocab]`, bool, the ids that begin a new step.
        needs_opening: `[vocab]`, bool, the ids that are barred where no slot can be opened.
        needs_all_closed: `[vocab]`, bool, the ids that are barred where a slot is open.
    """

    column_of_id: np.ndarray
    first_states: np.ndarray
    next_state: np.ndarray
    barred: np.ndarray
    lingers: np.ndarray
    first_opening: int
    first_closing: int
    num_slots: int
    most_open: int
    ascending: bool
    is_tick: np.ndarray
    needs_opening: np.ndarray
    needs_all_closed: np.ndarray


class Row:
    """One sequence of ids: which may follow it."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._column, self._is_tick = rules.column_of_id.tolist(), rules.is_tick.tolist()
        self._next_state = rules.next_state.tolist()
        self._states: list[int] = rules.first_states.tolist()
        self._oldest = np.zeros(rules.num_slots, np.int64)  # number of the oldest opening; 0 where the slot is closed
        self._second = np.zeros(rules.num_slots, np.int64)
        self._slot = np.arange(rules.num_slots)
        self._num_openings = self._num_open = self._last_closed = 0
        self._last_opened = -1
        self._barred = np.empty(len(rules.column_of_id), bool)
        self._openings = slice(rules.first_opening, rules.first_opening + rules.num_slots)
        self._closings = slice(rules.first_closing, rules.first_closing + rules.num_slots)
        self._needs_opening, self._needs_all_closed = (
            np.flatnonzero(which) for which in (rules.needs_opening, rules.needs_all_closed)
        )

    def advance(self, ids: Iterable[int]) -> None:
        """Follows more ids, whatever they are."""
        for id in ids:
            column = self._column[id]
            self._states = [self._next_state[state][column] for state in self._states]
            if self._is_tick[id]:
                self._last_closed, self._last_opened = 0, -1
            elif 0 <= id - self._rules.first_opening < self._rules.num_slots:
                self._open(id - self._rules.first_opening)
            elif 0 <= id - self._rules.first_closing < self._rules.num_slots:
                self._close(id - self._rules.first_closing)

    def _open(self, slot: int) -> None:
        self._num_openings += 1
        self._last_opened = slot
        if not self._oldest[slot]:
            self._oldest[slot] = self._num_openings
            self._num_open += 1
        elif self._rules.most_open == 1:
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
        """`[slots]`, bool."""
        return torch.from_numpy(self._oldest > 0)

    def is_done(self) -> Tensor:
        """A bool: whether no slot is open and nothing lingers."""
        return torch.tensor(not self._num_open and not self._rules.lingers[self._states].any())

    def wakes(self) -> Tensor:
        """`[vocab]`, bool: the ids after which more lingers than now."""
        more = self._rules.lingers[self._rules.next_state[self._states]] > self._rules.lingers[self._states][:, None]
        return torch.from_numpy(more.any(0)[self._rules.column_of_id])

    def barred(self) -> Tensor:
        """`[vocab]`, bool; it is overwritten by the next call."""
        barred = self._barred
        self._rules.barred[self._states].any(0).take(self._rules.column_of_id, out=barred)
        cannot_open = (self._oldest if self._rules.most_open == 1 else self._second) > 0
        if self._rules.ascending:
            cannot_open |= self._slot <= self._last_opened
        barred[self._openings] |= cannot_open
        barred[self._closings] |= self._oldest <= self._last_closed
        if cannot_open.all():
            barred[self._needs_opening] = True
        if self._num_open:
            barred[self._needs_all_closed] = True
        if barred.all():
            barred[self._rules.is_tick] = False
        return torch.from_numpy(barred)


class Rows:
    """Many sequences of ids, followed together; `Row` for a batch, in tensors."""

    _STATES = ("_states", "_oldest", "_second", "_num_openings", "_last_closed", "_last_opened")

    def __init__(self, rules: Rules, num_rows: int, device: torch.device | str = "cpu") -> None:
        def on_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        vocab, slots = len(rules.column_of_id), rules.num_slots
        self._rules = rules
        self._column, self._is_tick = on_device(rules.column_of_id), on_device(rules.is_tick)
        self._next_state, self._barred_columns = on_device(rules.next_state), on_device(rules.barred)
        self._lingers, self._needs_opening = on_device(rules.lingers), on_device(rules.needs_opening)
        self._needs_all_closed = on_device(rules.needs_all_closed)
        opens, closes = (torch.full((vocab,), slots, device=device) for _ in range(2))  # the last slot is nobody's
        opens[rules.first_opening : rules.first_opening + slots] = torch.arange(slots, device=device)
        closes[rules.first_closing : rules.first_closing + slots] = torch.arange(slots, device=device)
        self._slot_of_id = torch.stack([opens, closes], dim=1)
        self._slot = torch.arange(slots + 1, device=device)
        self._states = on_device(rules.first_states).repeat(num_rows, 1)
        self._oldest = torch.zeros(num_rows, slots + 1, dtype=torch.int64, device=device)
        self._second = torch.zeros_like(self._oldest)
        self._num_openings, self._last_closed = (self._oldest.new_zeros(num_rows, 1) for _ in range(2))
        self._last_opened = self._oldest.new_full((num_rows, 1), -1)

    @classmethod
    def after(cls, row: Row, num_rows: int, device: torch.device | str = "cpu") -> Rows:
        """So many rows, each of which goes on where one stands."""
        rows = cls(row._rules, num_rows, device)
        rows._states.copy_(torch.tensor(row._states))
        rows._oldest[:, :-1] = torch.from_numpy(row._oldest)
        rows._second[:, :-1] = torch.from_numpy(row._second)
        rows._num_openings.fill_(row._num_openings)
        rows._last_closed.fill_(row._last_closed)
        rows._last_opened.fill_(row._last_opened)
        return rows

    def states(self) -> list[Tensor]:
        """What changes as ids are followed, `[rows, ...]` each."""
        return [getattr(self, name) for name in self._STATES]

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, `[n]`."""
        for name in self._STATES:
            setattr(self, name, getattr(self, name)[rows])

    @torch.inference_mode()
    def advance(self, ids: Tensor) -> None:
        """Follows one more id in each row; `[rows]`, int64."""
        self._states.copy_(self._next_state[self._states, self._column[ids][:, None]])
        opened, closed = self._slot_of_id[ids].split(1, dim=1)
        tick = self._is_tick[ids][:, None]
        nobody = self._rules.num_slots

        number = self._oldest.gather(1, closed)
        torch.maximum(self._last_closed, number, out=self._last_closed).masked_fill_(tick, 0)
        self._oldest.scatter_(1, closed, self._second.gather(1, closed))
        self._second.scatter_(1, closed, 0)

        self._num_openings.add_(opened != nobody)
        if self._rules.most_open == 1:
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
        """`[rows, slots]`, bool."""
        return self._oldest[:, : self._rules.num_slots] > 0

    def is_done(self) -> Tensor:
        """`[rows]`, bool: whether no slot is open and nothing lingers."""
        return ~(self.is_open().any(1) | self._lingers[self._states].any(1))

    def wakes(self) -> Tensor:
        """`[rows, vocab]`, bool: the ids after which more lingers than now."""
        more = self._lingers[self._next_state[self._states]] > self._lingers[self._states][:, :, None]
        return more.any(1).index_select(1, self._column)

    @torch.inference_mode()
    def barred(self) -> Tensor:
        """`[rows, vocab]`, bool."""
        rules, slots = self._rules, self._rules.num_slots
        barred = self._barred_columns[self._states].any(1).index_select(1, self._column)
        oldest = self._oldest[:, :slots]
        cannot_open = (oldest if rules.most_open == 1 else self._second[:, :slots]) > 0
        if rules.ascending:
            cannot_open |= self._slot[:slots] <= self._last_opened
        barred[:, rules.first_opening : rules.first_opening + slots].logical_or_(cannot_open)
        barred[:, rules.first_closing : rules.first_closing + slots].logical_or_(oldest <= self._last_closed)
        barred |= self._needs_opening & cannot_open.all(1, keepdim=True)
        barred |= self._needs_all_closed & (oldest > 0).any(1, keepdim=True)
        return barred & ~(self._is_tick & barred.all(1, keepdim=True))


class Grammar:
    """What may follow in each row of a batch whose rows begin alike: `Row` for one on a CPU, else `Rows`."""

    def __init__(
        self, rules: Rules, prime_ids: Iterable[int], num_rows: int, device: torch.device | str = "cpu"
    ) -> None:
        row = Row(rules)
        row.advance(prime_ids)
        alone = num_rows == 1 and torch.device(device).type == "cpu"
        self._followed = row if alone else Rows.after(row, num_rows, device)

    def advance(self, ids: Tensor) -> None:
        """Follows one more id in each row; `[rows]`, int64."""
        if isinstance(self._followed, Row):
            self._followed.advance(ids.tolist())
        else:
            self._followed.advance(ids)

    def states(self) -> list[Tensor]:
        """The tensors that change as ids are followed."""
        return [] if isinstance(self._followed, Row) else self._followed.states()

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, `[n]`, of more than one."""
        assert isinstance(self._followed, Rows)
        self._followed.select(rows)

    def is_open(self) -> Tensor:
        """`[rows, slots]`, bool: which slots are open."""
        is_open = self._followed.is_open()
        return is_open[None] if isinstance(self._followed, Row) else is_open

    def is_done(self) -> Tensor:
        """`[rows]`, bool: in which nothing goes on."""
        is_done = self._followed.is_done()
        return is_done[None] if isinstance(self._followed, Row) else is_done

    def wakes(self) -> Tensor:
        """`[rows, vocab]`, bool: the ids after which more lingers than now."""
        wakes = self._followed.wakes()
        return wakes[None] if isinstance(self._followed, Row) else wakes

    def barred(self) -> Tensor:
        """`[rows, vocab]`, bool; it may be overwritten by the next call."""
        barred = self._followed.barred()
        return barred[None] if isinstance(self._followed, Row) else barred
