"""Corrupt a piece up to some step with errors like a model's own, against exposure bias. Knows notes on a grid.

While generating, a model reads its own errors, such as a note that was not released with its chord, an extra note, or a
bar too fast. No real piece teaches it to recover from them, so one error leads to the next, and the music gets denser
and denser. Therefore we train it on music with such errors, and score only the part after them. All errors make the
music denser. With as many errors that make it thinner, generated music got denser again (`docs/experiments.md`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pamusic.tokens.grid import GridNotes

STUCK = (0.02, 0.8)  # share of stuck notes before the step: about 1 to 40 more sounding notes
EVENTS_TO_LET_GO = (2.0, 24.0)  # mean number of other notes that end before a stuck one does
HURRIED = 0.5  # share of pieces with a hurried passage
MOST_HURRIED = 2.0  # largest speed-up
LAID_OVER = 0.6  # share of pieces with overlaid notes
MOST_LAID_OVER = 2.0  # largest number of overlaid notes, relative to the notes of the passage
SECONDS_TO_END = 1.0  # mean seconds after the step by which overlaid notes end at the latest
SECONDS_ASTRAY = (4.0, 60.0)  # length of a hurried or overlaid passage


def with_mistakes(
    notes: GridNotes, others: GridNotes | None, steps_a_second: float, rng: np.random.Generator
) -> tuple[GridNotes, int]:
    """Return a piece that is corrupted up to some step: hurried, overlaid with other notes, and with stuck notes.

    Args:
        notes: Piece to corrupt; without notes it stays as it is.
        others: Another piece, the source of overlaid notes; None for the part of the same piece before the step.
        steps_a_second: Resolution of the grid.
        rng: Random generator.

    Returns:
        The corrupted piece, which `Tokenizer.settled` makes canonical, and the step.
    """
    if not len(notes):
        return notes, 0
    step = int(rng.choice(notes.onset))

    def duration() -> int:
        return round(np.exp(rng.uniform(*np.log(SECONDS_ASTRAY))) * steps_a_second)

    if rng.random() < HURRIED:
        notes, step = hurried(notes, step, duration(), np.exp(rng.uniform(0, np.log(MOST_HURRIED))))
    if others is None:
        others = before(notes, step)
    if rng.random() < LAID_OVER and len(others):
        most, after = rng.uniform(0, MOST_LAID_OVER), SECONDS_TO_END * steps_a_second
        notes = laid_over(notes, others, step, duration(), most, after, rng)
    share, events = (np.exp(rng.uniform(*np.log(between))) for between in (STUCK, EVENTS_TO_LET_GO))
    return with_stuck_keys(notes, step, share, events, rng), step


def before(notes: GridNotes, step: int) -> GridNotes:
    """Return the notes with an onset before a step, without pedals."""
    early = notes.onset < step
    return GridNotes(*(column[early] for column in (notes.onset, notes.offset, notes.pitch, notes.velocity_bin)))


def hurried(notes: GridNotes, step: int, duration: int, factor: float) -> tuple[GridNotes, int]:
    """Speed up the `duration` steps before a step by `factor`; return the music and the moved step."""
    begin = max(0, step - duration)
    gained = round((step - begin) * (1 - 1 / factor))

    def moved(steps: np.ndarray) -> np.ndarray:
        within = np.minimum(begin + np.floor((steps - begin) / factor + 0.5), step - gained - 1).astype(np.int64)
        return np.where(steps < begin, steps, np.where(steps < step, within, steps - gained))

    onset, pedal = moved(notes.onset), notes.pedal.copy()
    pedal["step"] = moved(pedal["step"])
    offset = np.maximum(moved(notes.offset), onset + 1)
    return replace(notes, onset=onset, offset=offset, pedal=pedal), step - gained


def laid_over(
    notes: GridNotes,
    others: GridNotes,
    step: int,
    duration: int,
    amount: float,
    steps_to_end: float,
    rng: np.random.Generator,
) -> GridNotes:
    """Overlay the `duration` steps before a step with the notes of random passages from `others`.

    Args:
        notes: The music.
        others: Source of the passages, with at least one note; each passage begins at an onset.
        step: Step before which the overlaid notes begin.
        duration: Length of a passage in steps.
        amount: Number of passages; the fractional part is the share of notes taken from the last one.
        steps_to_end: Mean number of steps after `step` by which overlaid notes end at the latest.
        rng: Random generator.
    """
    parts = [notes]
    while amount > 0:
        first = int(rng.choice(others.onset))
        taken = (others.onset >= first) & (others.onset < first + duration) & (rng.random(len(others)) < amount)
        onset, offset = (each[taken] + (step - duration - first) for each in (others.onset, others.offset))
        end = step + np.ceil(rng.exponential(steps_to_end, len(onset))).astype(np.int64)
        heard = onset >= 0
        columns = (onset, np.minimum(offset, end), others.pitch[taken], others.velocity_bin[taken])
        parts.append(GridNotes(*(column[heard] for column in columns)))
        amount -= 1
    onset, offset, pitch, velocity_bin = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("onset", "offset", "pitch", "velocity_bin")
    )
    order = np.argsort(onset, kind="stable")  # notes with the same onset keep their order
    both = GridNotes(onset[order], offset[order], pitch[order], velocity_bin[order], notes.pedal)
    offset = np.minimum(both.offset, struck_again(both))
    kept = offset > both.onset
    return GridNotes(both.onset[kept], offset[kept], both.pitch[kept], both.velocity_bin[kept], notes.pedal)


def with_stuck_keys(
    notes: GridNotes, step: int, share: float, mean_events: float, rng: np.random.Generator
) -> GridNotes:
    """Return the music with stuck notes, which sound up to a step and are then released.

    A stuck note is released when another note ends: chords end together, and so do notes held by a pedal.

    Args:
        notes: The music.
        step: Step up to which stuck notes sound.
        share: Share of stuck notes among those before the step. A stuck note ends earlier if its key is played again.
        mean_events: Mean number of other notes that end after the step before a stuck note does; drawn for each note.
        rng: Random generator.
    """
    ends = np.sort(notes.offset[notes.offset > step])
    if not len(ends):
        return notes
    passed = rng.exponential(mean_events, len(notes)).astype(np.int64)
    later = ends[np.minimum(passed, len(ends) - 1)]
    is_stuck = (notes.onset < step) & (rng.random(len(notes)) < share)
    stuck = np.maximum(np.minimum(later, struck_again(notes)), notes.offset)
    return replace(notes, offset=np.where(is_stuck, stuck, notes.offset))


def struck_again(notes: GridNotes) -> np.ndarray:
    """Return the next onset of each note's key, `[num_notes]`; the largest int64 if there is none."""
    by_key = np.lexsort((notes.onset, notes.pitch))
    same_key = notes.pitch[by_key][1:] == notes.pitch[by_key][:-1]
    again = np.full(len(notes), np.iinfo(np.int64).max)
    again[by_key[:-1]] = np.where(same_key, notes.onset[by_key][1:], again[by_key[:-1]])
    return again
