"""A piece up to some step as a model might have played it, and from there on as it is. Knows notes on a grid.

A model that composes reads its own mistakes, which no real piece shows: a key that was not let go with its chord, a
note too many, a bar too fast. What it does then it has never learned, and one mistake leads to the next: pieces get
denser and denser. So it is shown music that has such mistakes, and learns, from where they end, how it goes on. All of
them add; with as many that take away it got denser again (`docs/experiments.md`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pamusic.tokens.grid import GridNotes

STUCK = (0.02, 0.8)  # of the notes before the step: one to some forty keys more are down
EVENTS_TO_LET_GO = (2.0, 24.0)  # other notes that end before a stuck one does, on average
HURRIED = 0.5  # of the pieces
MOST_HURRIED = 2.0  # times as fast
LAID_OVER = 0.6  # of the pieces
MOST_LAID_OVER = 2.0  # times as many notes as a piece has there
SECONDS_TO_END = 1.0  # what was laid over goes on sounding, on average, at most
SECONDS_ASTRAY = (4.0, 60.0)  # that either lasts


def with_mistakes(
    notes: GridNotes, others: GridNotes | None, steps_a_second: float, rng: np.random.Generator
) -> tuple[GridNotes, int]:
    """Return the same music, hurried, laid over with other notes, and with keys left down, up to some step.

    Args:
        notes: a piece; one without notes stays as it is.
        others: another piece, from which comes what is laid over it; None for what precedes the step in the same one.
        steps_a_second: of the grid.
        rng: draws all of it.

    Returns:
        The music, which `Tokenizer.settled` makes canonical, and the step.
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
    """Return the notes that are struck before a step, without pedals."""
    early = notes.onset < step
    return GridNotes(*(column[early] for column in (notes.onset, notes.offset, notes.pitch, notes.velocity_bin)))


def hurried(notes: GridNotes, step: int, duration: int, factor: float) -> tuple[GridNotes, int]:
    """Return the same music, `factor` times as fast in the `duration` steps before a step; and where that then is."""
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
    """Other notes as well, in the `duration` steps before a step: of stretches drawn from `others`, which has notes.

    Args:
        notes: the music.
        others: from which the notes come, each stretch from where one of them begins.
        step: before which they are struck.
        duration: of a stretch, in steps.
        amount: how many stretches; of what is left above a whole number, that share of the notes.
        steps_to_end: how much longer than the step they sound, on average, at most.
        rng: draws the rest.
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
    order = np.argsort(onset, kind="stable")  # what is struck in one step keeps its order
    both = GridNotes(onset[order], offset[order], pitch[order], velocity_bin[order], notes.pedal)
    offset = np.minimum(both.offset, struck_again(both))
    kept = offset > both.onset
    return GridNotes(both.onset[kept], offset[kept], both.pitch[kept], both.velocity_bin[kept], notes.pedal)


def with_stuck_keys(
    notes: GridNotes, step: int, share: float, mean_events: float, rng: np.random.Generator
) -> GridNotes:
    """Return the same music with keys left down up to a step, from which on they are let go.

    A key is let go as another note ends: chords end together, and so do notes that a pedal has held.

    Args:
        notes: the music.
        step: up to which they are down.
        share: of the notes struck before it, that are left down until it is reached, unless struck anew.
        mean_events: how many other notes end after it before a key is let go, on average; each by itself.
        rng: draws which and when.
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
    """Return `[num_notes]`, the step at which the key of each is struck next; beyond all steps where it is not."""
    by_key = np.lexsort((notes.onset, notes.pitch))
    same_key = notes.pitch[by_key][1:] == notes.pitch[by_key][:-1]
    again = np.full(len(notes), np.iinfo(np.int64).max)
    again[by_key[:-1]] = np.where(same_key, notes.onset[by_key][1:], again[by_key[:-1]])
    return again
