"""When a row ends, and how it is brought to a close near the length that was wanted. Knows numbers only.

`StopCondition` is the wanted length, in ids or seconds. Lengths are compared as shares of it.

With an `EndingConfig` a row is not cut there. Before the wanted length the end is forbidden, except in a silence that
lasts until then. From there on its logit is raised in rests, more and more, and the piece closes at the next breath:
once nothing was opened for as long as its pauses are lately, or, the later it is, for less. At the deadline it stops,
and its reader closes what is still open.

`EndingTracker` does this for the rows of a batch. A breath comes with an id that waits. It is found before that id is
taken, while something can still be done about it: after a short wait the grammar allows no other and no end.

- Where something still sounds, the longest wait comes in its place. From then on nothing new is opened; what sounds is
  held for a moment, then released as the model likes, and the end is taken as soon as all is done.
- Where nothing sounds and the breath is long enough for a rest, the end comes in its place.
- Where nothing sounds for less than that, as in the gaps of a quick, dry passage, to stop would be to break off. So
  what is opened after it is the last, and that is what is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pamusic.errors import UsageError
from pamusic.sampling.constraints import GrammarTables, PrimeTokens, TokenConstraints

FORBIDDEN = float("-inf")
CERTAIN = 1e4  # more than logits differ by
PAUSE_DECAY_SECONDS = 30.0  # in which a pause counts for 1/e of what it did
EPSILON_SECONDS = 1e-6  # by which sums of seconds may be off


@dataclass(frozen=True, kw_only=True)
class EndingConfig:
    """How a piece is brought to a close. `shares` are of the wanted length; seconds are of music.

    Attributes:
        max_bias: nats by which the end has become likelier than the model thinks when closing begins; they grow evenly
            from 0 at the wanted length.
        closing: at this share closing begins in any case; from the wanted length on the pause that it takes falls
            evenly to 0.
        hold_seconds: from the last opening to when what sounds then is released, or less where the deadline comes
            before. In MAESTRO's validation and test pieces it is 2.6 in the median, 1.0 to 5.0 in the middle half.
        wait_penalty: nats by which ids that wait become less likely with each second after that.
        rest_seconds: from the last opening after which a silence is a rest, and the piece may end where it stands.
        chord_seconds: within which openings belong together.
        deadline: at this share it stops in any case.

    Raises:
        UsageError: not `1 < closing <= deadline`.
    """

    max_bias: float = 20.0
    closing: float = 1.15
    hold_seconds: float = 2.5
    wait_penalty: float = 2.0
    rest_seconds: float = 1.0
    chord_seconds: float = 0.05
    deadline: float = 1.25

    def __post_init__(self) -> None:
        if not 1 < self.closing <= self.deadline:
            raise UsageError(f"1 < closing <= deadline, not {self.closing} and {self.deadline}")

    def closes(self, shares: Tensor, waited: Tensor, longest: Tensor) -> Tensor:
        """Return whether nothing new is opened, `[rows]`, bool.

        Args:
            shares: of the wanted length that have passed, `[rows]`.
            waited, longest: as in `Pauses`, `[rows]`.
        """
        return (shares >= 1) & (waited >= longest * (self.closing - shares) / (self.closing - 1))

    def holds(self, shares: Tensor, waited: Tensor) -> Tensor:
        """Return whether what sounds in a row that closes is held, `[rows]`, bool; arguments as for `closes`."""
        return (waited < self.hold_seconds) & (shares < (self.closing + self.deadline) / 2)

    def bias(self, shares: Tensor, closes: Tensor) -> Tensor:
        """Return what is added to the logit of the end, `[rows]`, at these shares of the wanted length, `[rows]`."""
        likelier = (self.max_bias * (shares - 1) / (self.closing - 1)).masked_fill(closes, CERTAIN)
        return likelier.masked_fill(shares < 1, FORBIDDEN)


@dataclass(frozen=True, kw_only=True)
class StopCondition:
    """When a row stops; without `max_tokens` and `seconds` only the end does that, if it may come at all.

    Attributes:
        max_tokens: ids, or positions, at most.
        seconds: the row stops with the id that completes them.
        min_tokens_before_end: how many ids precede the end; None forbids it, except by `ending`.
        ending: brings each row to a close near the wanted length instead of stopping there.

    Raises:
        UsageError: a length is not above 0, or there is an ending and no length.
    """

    max_tokens: int | None = None
    seconds: float | None = None
    min_tokens_before_end: int | None = None
    ending: EndingConfig | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"length is 1 or more, not {self.max_tokens}")
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"seconds is above 0, not {self.seconds}")
        if self.ending is not None and self.max_tokens is None and self.seconds is None:
            raise UsageError("to bring a piece to a close, give length or seconds")

    @property
    def deadline(self) -> float:
        """Share of the wanted length at which a row stops in any case."""
        return 1.0 if self.ending is None else self.ending.deadline

    def share(self, num_tokens: int, seconds: float) -> float:
        """Return the share of the wanted length that so many ids and seconds are."""
        return max(num_tokens / (self.max_tokens or inf), seconds / (self.seconds or inf))

    def shares(self, num_tokens: Tensor, seconds: Tensor) -> Tensor:
        """Return `share` for tensors, float64, that broadcast."""
        return torch.maximum(num_tokens / (self.max_tokens or inf), seconds / (self.seconds or inf))


class EndingState(NamedTuple):
    """How far rows are, `[rows]` each.

    Attributes:
        shares: of the wanted length that have passed.
        waited: seconds since something was opened.
        closes: whether nothing new is opened.
        done: whether nothing sounds.
        raised: whether the end is raised: in a rest, and while it closes.
    """

    shares: Tensor
    waited: Tensor
    closes: Tensor
    done: Tensor
    raised: Tensor


class EndingTracker:
    """Brings some rows to a close, all of which follow the same prime."""

    def __init__(
        self,
        prime: PrimeTokens,
        constraints: TokenConstraints,
        stop: StopCondition,
        *,
        vocab_size: int,
        num_rows: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Begin after a prime. Without a grammar, or without seconds, only lengths count, and the end alone closes.

        Args:
            prime: what the rows follow; its resumed ids count as drawn.
            constraints: with an `end_id`.
            stop: with an `ending`.
            vocab_size: how many ids there are.
            num_rows: how many rows follow the prime.
            device: where the tensors are; one that knows float64.
        """
        assert stop.ending is not None
        assert constraints.end_id is not None
        seconds_of_id = constraints.seconds_of_id
        self._ending, self._stop, self._end_id = stop.ending, stop, constraints.end_id
        self._count = torch.full((1,), prime.num_resumed, dtype=torch.float64, device=device)
        passed = constraints.seconds_of(prime.resumed)
        self._passed = torch.full((num_rows,), passed, dtype=torch.float64, device=device)
        self._seconds = torch.tensor(seconds_of_id or [0.0] * vocab_size, dtype=torch.float64, device=device)
        self._waits = self._seconds > 0
        self._longest_wait = self._seconds.argmax()
        self._is_shorter = torch.arange(vocab_size, device=device) != self._longest_wait
        # Whether what is opened next is the last, and whether it was; the second of the opening before it.
        self._is_last, self._was_last = (torch.zeros(num_rows, dtype=torch.bool, device=device) for _ in range(2))
        self._last_before = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._pauses: Pauses | None = None
        if constraints.grammar is not None and seconds_of_id is not None:
            self._pauses = Pauses(constraints.grammar, seconds_of_id, prime.ids, num_rows, device)

    def state(self, done: Tensor | None) -> EndingState:
        """Return where rows are before the next id; `done`, `[rows]`, bool, says where nothing sounds."""
        shares = self._stop.shares(self._count, self._passed)
        if self._pauses is None or done is None:
            nothing = torch.zeros_like(shares)
            closes = self._ending.closes(shares, nothing, nothing + 1)
            return EndingState(shares, nothing, closes, nothing > 0, nothing == 0)
        waited = self._pauses.waited()
        closes = self._was_last | (self._ending.closes(shares, waited, self._pauses.longest()) & ~self._is_last)
        rests = ~self._is_last & (waited > self._ending.rest_seconds - EPSILON_SECONDS)
        return EndingState(shares, waited, closes, done, closes | rests)

    def forbid_short_waits(self, state: EndingState, is_open: Tensor | None) -> Tensor:
        """Return what is forbidden in rows that close, so that nothing has to follow it at once, `[rows, vocab]`, bool.

        Where what sounds is held, that is all but the longest wait; where no slot is open (`is_open`, `[rows, slots]`)
        but a pedal is down, all shorter waits: there may be nothing else that the grammar allows behind them.
        """
        if self._pauses is None or is_open is None:
            return self._is_shorter & False
        holding = state.closes & ~state.done & self._ending.holds(state.shares, state.waited)
        lingers = state.closes & ~is_open.any(1)
        return self._is_shorter & (holding[:, None] | (self._waits & lingers[:, None]))

    def end_bias(self, state: EndingState) -> Tensor:
        """Return what is added to the logit of the end, `[rows]`, float32."""
        bias = self._ending.bias(state.shares, state.closes)
        return torch.where(state.raised, bias, bias.clamp(max=0.0)).float()

    def penalize_waiting(self, logits: Tensor, state: EndingState) -> Tensor:
        """Return logits, `[rows, vocab]`, with waiting the rarer the longer what sounds could have been released."""
        ending = self._ending
        by = ending.wait_penalty * (state.waited - ending.hold_seconds).clamp(min=0) * state.closes
        return logits - by.to(logits)[:, None] * self._waits

    def override(self, ids: Tensor, state: EndingState) -> Tensor:
        """Return what is taken in place of ids that were drawn, `[rows]`, int64."""
        if self._pauses is None:
            return ids
        ending, waits = self._ending, self._waits[ids]
        shares = self._stop.shares(self._count + 1, self._passed + self._seconds[ids])
        waited, longest = self._pauses.after(ids)
        is_rest = waits & (waited > ending.rest_seconds - EPSILON_SECONDS)
        silent = is_rest & (shares >= 1) & self._is_last  # nothing was opened after all
        breath = waits & ending.closes(shares, waited, longest) & (~self._is_last | silent) & ~state.closes
        opened = (self._pauses.last() > self._last_before) & ~state.done & (waited > ending.chord_seconds)
        last_opened = waits & self._is_last & ~state.closes & opened
        ends = state.done & ((breath & is_rest) | (waits & state.closes))
        holds = ~state.done & (breath | last_opened)
        becomes_last = breath & state.done & ~is_rest
        self._last_before.copy_(torch.where(becomes_last, self._pauses.last(), self._last_before))
        self._is_last |= becomes_last
        self._was_last |= last_opened | (breath & silent & ~state.done)
        return torch.where(holds, self._longest_wait, ids).masked_fill(ends, self._end_id)

    def advance(self, ids: Tensor) -> None:
        """Take one more id in each row; `[rows]`, int64."""
        self._count += 1
        self._passed += self._seconds[ids]
        if self._pauses is not None:
            self._pauses.advance(ids)

    def states(self) -> list[Tensor]:
        """Return the tensors that change as ids are taken."""
        own = [self._count, self._passed, self._is_last, self._was_last, self._last_before]
        return own + (self._pauses.states() if self._pauses is not None else [])

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, `[n]`."""
        own = (self._passed, self._is_last, self._was_last, self._last_before)
        self._passed, self._is_last, self._was_last, self._last_before = (each[rows] for each in own)
        if self._pauses is not None:
            self._pauses.select(rows)


class Pauses:
    """The seconds between what is opened and what is opened next, in some rows that begin alike."""

    def __init__(
        self,
        grammar: GrammarTables,
        seconds_of_id: Sequence[float],
        prime_ids: Sequence[int],
        num_rows: int,
        device: torch.device | str = "cpu",
    ) -> None:
        opens = np.zeros(len(grammar.column_of_id), dtype=bool)
        opens[grammar.slots.openings] = True
        prime, seconds = np.array(prime_ids, dtype=np.int64), np.array(seconds_of_id)
        passed = np.cumsum(seconds[prime])
        now, openings = passed[-1:].sum(), np.append(0.0, passed[opens[prime]])
        decay = np.exp((openings[1:] - now) / PAUSE_DECAY_SECONDS)
        longest = np.max(np.diff(openings) * decay, initial=0.0)

        def on_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        self._opens, self._seconds = on_device(opens), on_device(seconds)
        self._decay = on_device(np.exp(-seconds / PAUSE_DECAY_SECONDS))
        # The seconds now, at the last opening, and those of the longest pause, `[rows]` each.
        self._now, self._last, self._longest = (
            on_device(np.full(num_rows, value)) for value in (now, openings[-1], longest)
        )

    def advance(self, ids: Tensor) -> None:
        """Take one more id in each row; `[rows]`, int64."""
        opens = self._opens[ids]
        self._now += self._seconds[ids]
        self._longest *= self._decay[ids]
        torch.maximum(self._longest, self.waited().masked_fill(~opens, 0.0), out=self._longest)
        self._last.copy_(torch.where(opens, self._now, self._last))

    def states(self) -> list[Tensor]:
        """Return the tensors that change as ids are taken."""
        return [self._now, self._last, self._longest]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, `[n]`."""
        self._now, self._last, self._longest = (each[rows] for each in self.states())

    def after(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return `waited` and `longest` as they would be after ids, `[rows]`, int64, that open nothing."""
        return self.waited() + self._seconds[ids], self._longest * self._decay[ids]

    def last(self) -> Tensor:
        """Return the second of the last opening, `[rows]`, float64; 0 where there was none."""
        return self._last

    def waited(self) -> Tensor:
        """Return seconds since something was opened last, `[rows]`, float64; since the beginning where nothing was."""
        return self._now - self._last

    def longest(self) -> Tensor:
        """Return seconds of the longest pause before an opening, `[rows]`, float64, where each fades from then on."""
        return self._longest
