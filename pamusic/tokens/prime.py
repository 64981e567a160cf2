"""Encode a prime: select the part to read, and find where the continuation begins.

Knows performances and a tokenizer; knows no model. A whole prime is complete: new music begins where its last note has
ended. A prime that is cut is open: notes that sound at the cut (held by their keys or by the pedal) stay open in the
ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np

from pamusic.errors import PamusicError, UsageError
from pamusic.music.performance import Performance
from pamusic.tokens.grid import GridNotes
from pamusic.tokens.positions import position_steps
from pamusic.tokens.tokenizer import NOTE_ON, TIME_SHIFT, Tokenizer


@dataclass(frozen=True)
class PrimeRange:
    """The part of a prime that is read, in its seconds.

    Attributes:
        start: Notes that begin earlier are not read.
        end: Notes that begin at this time or later are not read, and new music begins here. None: the whole rest is
            read.
    """

    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < float("inf"):
            raise UsageError(f"--prime-start must be 0 or more seconds, got {self.start:g}")
        if self.end is not None and not isfinite(self.end):
            raise UsageError(f"--prime-end must be a finite number of seconds, got {self.end:g}")
        if self.end is not None and self.end <= self.start:
            raise UsageError(
                f"--prime-end must be after --prime-start, got {self.end:g} and {self.start:g}: nothing lies between"
            )


WHOLE = PrimeRange()
TAIL_SECONDS = 1.0  # that a model of notes reads of a whole prime after its last position


@dataclass(frozen=True, eq=False)
class EncodedPrime:
    """A prime as the model reads it.

    Attributes:
        ids: Ids `[num_tokens]`, or positions `[num_positions, fields]`, without start. Ids end with the last event, or
            with time shifts of the maximum.
        num_notes: Number of onsets in the ids.
        cut_step: Step of the cut, counted from the beginning of the ids; None for a whole prime.
        gap_steps: Steps from the end of the ids to the point where new music begins; the first new time shift must be
            at least as long. 0 after a whole prime of events.
    """

    ids: np.ndarray
    num_notes: int
    cut_step: int | None
    gap_steps: int


def prime_ids(tokenizer: Tokenizer, prime: Performance, prime_range: PrimeRange = WHOLE) -> np.ndarray:
    """Return the ids of a prime, without start; pedals that are down at its end stay down.

    Returns:
        Ids `[num_tokens]`, or positions `[num_positions, fields]`, int64.

    Raises:
        PamusicError: the prime has no note to read.
    """
    return encode_prime(tokenizer, prime, prime_range).ids


def encode_prime(tokenizer: Tokenizer, prime: Performance, prime_range: PrimeRange = WHOLE) -> EncodedPrime:
    """Return a prime as the model reads it.

    Raises:
        PamusicError: the prime has no note to read, or ends before the cut.
    """
    vocabulary = tokenizer.vocabulary
    if prime_range.end is not None and prime_range.end > prime.duration:
        raise PamusicError(
            f"the prime lasts {prime.duration:.2f} seconds, not {prime_range.end:g}; to use all of it, leave out"
            " --prime-end"
        )
    grid = tokenizer.to_grid(read_part(prime, prime_range), lifted=False)
    ids = tokenizer.ids_from_grid(grid).astype(np.int64)
    cut_step, gap_steps = None, 0
    if prime_range.end is not None:
        cut_step = int((prime_range.end - prime_range.start) * 1000 / vocabulary.time_step_ms + 0.5)
    if vocabulary.has("length"):  # a position has its time shift, so none follows the last one
        if cut_step is None:
            grid = _with_short_tail(grid, round(TAIL_SECONDS * 1000 / vocabulary.time_step_ms))
            ids = tokenizer.ids_from_grid(grid).astype(np.int64)
        step = position_steps(grid)
        step = step if len(step) == len(ids) else steps_passed(tokenizer, ids)
        if cut_step is not None:
            ids, step = ids[step <= cut_step], step[step <= cut_step]
        gap_steps = (grid.last_step if cut_step is None else cut_step) - int(step[-1:].sum())
        # After a silence longer than any shift, new music begins at the cut all the same.
        gap_steps = min(max(gap_steps, 0), int(vocabulary.range("time_shift").middle[-1]))
    elif cut_step is not None:
        step = steps_passed(tokenizer, ids)
        # The model draws the time shift that crosses the cut; all ids after this shift lie beyond the cut, too.
        ids = ids[step <= cut_step]
        ids = ids[: np.flatnonzero(vocabulary.kind_of_id[ids] != TIME_SHIFT)[-1:].sum() + 1] if len(ids) else ids
        longest = vocabulary.range("time_shift").last
        gap_steps = cut_step - int(steps_passed(tokenizer, ids)[-1:].sum())
        num_longest = -(-gap_steps // longest) - 1 if gap_steps else 0
        ids = np.concatenate([ids, np.full(num_longest, vocabulary.id("time_shift", longest), np.int64)])
        gap_steps -= num_longest * longest
    num_notes = int((vocabulary.kind_of_id[ids] == NOTE_ON).sum())
    if not num_notes:
        raise _nothing_to_read(tokenizer, prime, prime_range)
    return EncodedPrime(ids, num_notes, cut_step, gap_steps)


def _with_short_tail(grid: GridNotes, tail_steps: int) -> GridNotes:
    """Return a grid whose notes and pedals end a few steps after the last position at the latest.

    A whole prime ends by itself, and new music begins at its end. After a long last chord this would ask the model for
    the rarest time shifts.
    """
    step = position_steps(grid)
    the_end = int(step.max(initial=0)) + tail_steps
    pedal = grid.pedal[grid.pedal["step"] <= the_end]
    return GridNotes(grid.onset, np.minimum(grid.offset, the_end), grid.pitch, grid.velocity_bin, pedal)


def read_part(prime: Performance, prime_range: PrimeRange) -> Performance:
    """Return the part of a prime that is read; notes keep their full length, and time starts at 0."""
    if prime_range.end is not None:
        prime = Performance(prime.notes[prime.notes["onset"] < prime_range.end], prime.pedal)
    return prime.cropped(prime_range.start, float("inf")) if prime_range.start else prime


def describe_unsupported_notes(tokenizer: Tokenizer, prime: Performance, prime_range: PrimeRange) -> str:
    """Return a message with the number of notes outside the vocabulary's pitches; empty if there are none."""
    pitch, keys = read_part(prime, prime_range).notes["pitch"], tokenizer.vocabulary.range("note_on")
    num_outside = int(((pitch < keys.first) | (pitch > keys.last)).sum())
    if not num_outside:
        return ""
    return (
        f"the model does not hear {num_outside:,} of the prime's {len(pitch):,} notes: {tokenizer.name} knows pitches"
        f" {keys.first} to {keys.last}"
    )


def end_of_prime(tokenizer: Tokenizer, prime: Performance, prime_range: PrimeRange) -> float:
    """Return the second at which the prime's ids end, or its last key release if that is later (off the grid)."""
    read = read_part(prime, prime_range)
    end_on_grid = tokenizer.to_grid(read, lifted=False).last_step * tokenizer.vocabulary.time_step_ms / 1000
    return prime_range.start + max(end_on_grid, float(read.notes["offset"].max()))


def ids_before(tokenizer: Tokenizer, gap_steps: int) -> list[int]:
    """Return the ids that would place an event before a gap of steps has passed.

    Where a position has several ids, these are time shifts.
    """
    vocabulary = tokenizer.vocabulary
    is_shift = vocabulary.kind_of_id == TIME_SHIFT
    passes = np.where(is_shift, vocabulary.value_of_id, 0)
    return np.flatnonzero((passes < gap_steps) & (is_shift | (not vocabulary.shape))).tolist()


def steps_passed(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Return `[n]`, the steps that have passed after each id, or position `[n, fields]`."""
    vocabulary = tokenizer.vocabulary
    passes = np.where(vocabulary.kind_of_id[ids] == TIME_SHIFT, vocabulary.value_of_id[ids], 0)
    return np.cumsum(passes.sum(-1) if vocabulary.shape else passes)


def _nothing_to_read(tokenizer: Tokenizer, prime: Performance, prime_range: PrimeRange) -> PamusicError:
    pitches = tokenizer.vocabulary.range("note_on")
    known = f"between pitches {pitches.first} and {pitches.last}, the range of {tokenizer.name}"
    if prime_range == WHOLE:
        return PamusicError(f"the prime has no note {known}; transpose it, or leave it out")
    if prime_range.start >= prime.duration:
        return PamusicError(
            f"the prime lasts {prime.duration:.2f} seconds, got --prime-start {prime_range.start:g}; start earlier"
        )
    to = prime.duration if prime_range.end is None else prime_range.end
    return PamusicError(
        f"in the prime's {prime.duration:.2f} seconds, those from {prime_range.start:g} to {to:.2f} begin no note"
        f" {known}; read more of the prime with --prime-start and --prime-end"
    )
