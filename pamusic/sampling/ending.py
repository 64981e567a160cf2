"""Stop a row at a wanted length, or bring it to a close near that length. Knows numbers only.

`StopCondition` is the wanted length, in ids or seconds. Lengths are compared as shares of it.

With an `EndingConfig` a row is not cut at the wanted length. Before it, the end is forbidden, except in a silence that
lasts until then. After it, a growing bias raises the end's logit in rests, and the piece closes at the next breath. A
breath is a time without openings that is as long as the recent pauses; the later it is, the shorter it may be. At the
deadline the row stops, and the caller closes the open slots.

`EndingTracker` does this for the rows of a batch. A breath comes with a time shift (an id with seconds). It is detected
before that id is taken: after a short time shift, the grammar allows neither another one nor the end.

- If something still sounds, the longest time shift replaces the id. From then on nothing new is opened. Sounding notes
  are held for a moment, then released as the model predicts. The end follows as soon as all is silent.
- If nothing sounds and the breath is long enough for a rest, the end replaces the id.
- If nothing sounds but the breath is shorter, as in the gaps of a quick, dry passage, an end would sound broken off. So
  the next openings are the last ones, and these are held.
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
CERTAIN = 1e4  # a bias larger than any difference of logits
PAUSE_DECAY_SECONDS = 30.0  # time in which the weight of a pause decays to 1/e
EPSILON_SECONDS = 1e-6  # tolerance for sums of seconds


@dataclass(frozen=True, kw_only=True)
class EndingConfig:
    """Settings that bring a piece to a close. Shares are fractions of the wanted length; seconds are seconds of music.

    Attributes:
        max_bias: Bias on the end's logit, in nats, at the share `closing`; it grows linearly from 0 at the wanted
            length.
        closing: Share at which closing begins at the latest. The pause that starts closing falls linearly from the
            longest recent pause, at the wanted length, to 0 at this share.
        hold_seconds: Seconds from the last opening until sounding notes are released, or less before the deadline. In
            MAESTRO's validation and test pieces the median is 2.6, and the middle half is 1.0 to 5.0.
        wait_penalty: Nats per second, after `hold_seconds`, by which time shifts become less likely.
        rest_seconds: Seconds since the last opening after which a silence is a rest, where the piece may end.
        chord_seconds: Seconds within which openings belong to one chord.
        deadline: Share at which the row stops in any case.

    Raises:
        UsageError: `1 < closing <= deadline` is violated.
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
            raise UsageError(
                f"closing must be above 1 and at most deadline, got closing {self.closing} and deadline {self.deadline}"
            )

    def closes(self, shares: Tensor, waited: Tensor, longest: Tensor) -> Tensor:
        """Return which rows begin to close, `[rows]`, bool: nothing new may open there.

        Args:
            shares: Shares of the wanted length so far, `[rows]`.
            waited, longest: Results of the methods of `Pauses`, `[rows]`.
        """
        return (shares >= 1) & (waited >= longest * (self.closing - shares) / (self.closing - 1))

    def holds(self, shares: Tensor, waited: Tensor) -> Tensor:
        """Return which closing rows still hold their sounding notes, `[rows]`, bool; arguments as for `closes`."""
        return (waited < self.hold_seconds) & (shares < (self.closing + self.deadline) / 2)

    def bias(self, shares: Tensor, closes: Tensor) -> Tensor:
        """Return the bias on the end's logit, `[rows]`, at these shares of the wanted length, `[rows]`."""
        likelier = (self.max_bias * (shares - 1) / (self.closing - 1)).masked_fill(closes, CERTAIN)
        return likelier.masked_fill(shares < 1, FORBIDDEN)


@dataclass(frozen=True, kw_only=True)
class StopCondition:
    """The condition that stops a row. Without `max_tokens` and `seconds`, only an allowed end stops it.

    Attributes:
        max_tokens: Largest number of ids, or of positions.
        seconds: Wanted seconds. The row stops with the time shift that completes them, or before the position
            that would begin later.
        min_tokens_before_end: Smallest number of ids before the end; None forbids the end, except through `ending`.
        ending: Settings that bring each row to a close near the wanted length, instead of stopping there; or None.

    Raises:
        UsageError: A length is not above 0, or there is an ending but no length.
    """

    max_tokens: int | None = None
    seconds: float | None = None
    min_tokens_before_end: int | None = None
    ending: EndingConfig | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"length must be at least 1, got {self.max_tokens}")
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"seconds must be above 0, got {self.seconds}")
        if self.ending is not None and self.max_tokens is None and self.seconds is None:
            raise UsageError("to bring a piece to a close, give length or seconds")

    @property
    def deadline(self) -> float:
        """Share of the wanted length at which a row stops in any case."""
        return 1.0 if self.ending is None else self.ending.deadline

    def share(self, num_tokens: int, seconds: float) -> float:
        """Return the share of the wanted length that these ids and seconds reach."""
        return max(num_tokens / (self.max_tokens or inf), seconds / (self.seconds or inf))

    def shares(self, num_tokens: Tensor, seconds: Tensor) -> Tensor:
        """Return `share` for float64 tensors that broadcast."""
        return torch.maximum(num_tokens / (self.max_tokens or inf), seconds / (self.seconds or inf))


class EndingState(NamedTuple):
    """The progress of rows towards their end, `[rows]` each.

    Attributes:
        shares: Share of the wanted length so far.
        waited: Seconds since the last opening.
        closes: True if the row closes: nothing new may open.
        done: True if nothing sounds.
        raised: True if the end's logit is raised: in rests, and in rows that close.
    """

    shares: Tensor
    waited: Tensor
    closes: Tensor
    done: Tensor
    raised: Tensor


class EndingTracker:
    """The tracker that brings rows with the same prime to a close."""

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
        """Begin after a prime. Without a grammar or seconds, only lengths count, and only the end is biased.

        Args:
            prime: Ids that the rows continue; its resumed ids count as drawn.
            constraints: Constraints with an `end_id`.
            stop: Stop condition with an `ending`.
            vocab_size: Number of ids.
            num_rows: Number of rows.
            device: Device of the tensors; it must support float64.
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
        # True if the next openings are the last ones; true if these came; the time of the last opening before them.
        self._is_last, self._was_last = (torch.zeros(num_rows, dtype=torch.bool, device=device) for _ in range(2))
        self._last_before = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._pauses: Pauses | None = None
        if constraints.grammar is not None and seconds_of_id is not None:
            self._pauses = Pauses(constraints.grammar, seconds_of_id, prime.tokens, num_rows, device)

    def state(self, done: Tensor | None) -> EndingState:
        """Return the progress of rows before the next id; `done`, `[rows]`, bool, marks rows where nothing sounds."""
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
        """Return the ids to forbid in rows that close, `[rows, vocab]`, bool.

        While notes are held, these are all ids but the longest time shift. Where no slot is open (`is_open`,
        `[rows, slots]`) but a pedal is down, they are all shorter time shifts, because the grammar may allow no id
        after those.
        """
        if self._pauses is None or is_open is None:
            return self._is_shorter & False
        holding = state.closes & ~state.done & self._ending.holds(state.shares, state.waited)
        lingers = state.closes & ~is_open.any(1)
        return self._is_shorter & (holding[:, None] | (self._waits & lingers[:, None]))

    def end_bias(self, state: EndingState) -> Tensor:
        """Return the bias on the end's logit, `[rows]`, float32."""
        bias = self._ending.bias(state.shares, state.closes)
        return torch.where(state.raised, bias, bias.clamp(max=0.0)).float()

    def penalize_waiting(self, logits: Tensor, state: EndingState) -> Tensor:
        """Return logits `[rows, vocab]` with a penalty on time shifts in rows that close.

        It grows with the time since held notes may be released.
        """
        ending = self._ending
        by = ending.wait_penalty * (state.waited - ending.hold_seconds).clamp(min=0) * state.closes
        return logits - by.to(logits)[:, None] * self._waits

    def override(self, ids: Tensor, state: EndingState) -> Tensor:
        """Return the ids that replace drawn ids, `[rows]`, int64; most stay the same."""
        if self._pauses is None:
            return ids
        ending, waits = self._ending, self._waits[ids]
        shares = self._stop.shares(self._count + 1, self._passed + self._seconds[ids])
        waited, longest = self._pauses.after(ids)
        is_rest = waits & (waited > ending.rest_seconds - EPSILON_SECONDS)
        silent = is_rest & (shares >= 1) & self._is_last  # the last openings never came
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
        """Consume one more id in each row; `[rows]`, int64."""
        self._count += 1
        self._passed += self._seconds[ids]
        if self._pauses is not None:
            self._pauses.advance(ids)

    def states(self) -> list[Tensor]:
        """Return the tensors that `advance` and `override` change."""
        own = [self._count, self._passed, self._is_last, self._was_last, self._last_before]
        return own + (self._pauses.states() if self._pauses is not None else [])

    def select(self, rows: Tensor) -> None:
        """Keep these rows, `[n]`."""
        own = (self._passed, self._is_last, self._was_last, self._last_before)
        self._passed, self._is_last, self._was_last, self._last_before = (each[rows] for each in own)
        if self._pauses is not None:
            self._pauses.select(rows)


class Pauses:
    """The pauses between openings, in rows with the same prime."""

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
        # The time now, the time of the last opening, and the length of the longest pause, `[rows]` each.
        self._now, self._last, self._longest = (
            on_device(np.full(num_rows, value)) for value in (now, openings[-1], longest)
        )

    def advance(self, ids: Tensor) -> None:
        """Consume one more id in each row; `[rows]`, int64."""
        opens = self._opens[ids]
        self._now += self._seconds[ids]
        self._longest *= self._decay[ids]
        torch.maximum(self._longest, self.waited().masked_fill(~opens, 0.0), out=self._longest)
        self._last.copy_(torch.where(opens, self._now, self._last))

    def states(self) -> list[Tensor]:
        """Return the tensors that `advance` changes."""
        return [self._now, self._last, self._longest]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, `[n]`."""
        self._now, self._last, self._longest = (each[rows] for each in self.states())

    def after(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return `waited` and `longest` as they would be after ids `[rows]` (int64) that open nothing."""
        return self.waited() + self._seconds[ids], self._longest * self._decay[ids]

    def last(self) -> Tensor:
        """Return the time of the last opening, `[rows]`, float64; 0 if there was none."""
        return self._last

    def waited(self) -> Tensor:
        """Return seconds since the last opening, or since the beginning without one, `[rows]`, float64."""
        return self._now - self._last

    def longest(self) -> Tensor:
        """Return the longest pause before an opening, in seconds, `[rows]`, float64; pauses decay with their age."""
        return self._longest
