"""The same music, somewhere else on the keyboard or a little slower. Knows ids through their tokenizer.

Both ways give what the tokenizer could have written for some performance: a stretched piece is put on the grid and
encoded anew, and a window moves only as far as all of it stays on the 88 keys.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pamusic.music.performance import HIGHEST_PIANO_PITCH, LOWEST_PIANO_PITCH
from pamusic.tokens.tokenizer import NOTE_OFF, NOTE_ON, GridNotes, Tokenizer


def stretched_ids(notes: GridNotes, tokenizer: Tokenizer, most: float, rng: np.random.Generator) -> np.ndarray:
    """The ids `[num_tokens]` of a piece played at a tempo drawn between `1 - most` and `1 + most` of its length."""
    return tokenizer.ids_from_grid(tokenizer.settled(notes.stretched(1 + rng.uniform(-most, most))))


def with_stuck_keys(
    notes: GridNotes, share: float, mean_steps: float, rng: np.random.Generator
) -> tuple[GridNotes, int]:
    """The same music up to some step in which keys were left down, and from there on as it is, while they are let go.

    Args:
        notes: a piece; one without notes stays as it is.
        share: of the notes before that step, that are left down until it is reached, unless struck anew.
        mean_steps: how long after it a key is let go, on average; each by itself, as chance has it.

    Returns:
        The music, which `Tokenizer.settled` makes canonical, and the step.
    """
    if not len(notes):
        return notes, 0
    step = int(rng.choice(notes.onset))
    later = step + np.ceil(rng.exponential(mean_steps, len(notes))).astype(np.int64)
    offset = np.where(
        (notes.onset < step) & (rng.random(len(notes)) < share), np.maximum(notes.offset, later), notes.offset
    )
    by_key = np.lexsort((notes.onset, notes.pitch))
    again = np.full(len(notes), np.iinfo(np.int64).max)  # when the same key is struck next
    same_key = notes.pitch[by_key][1:] == notes.pitch[by_key][:-1]
    again[by_key[:-1]] = np.where(same_key, notes.onset[by_key][1:], again[by_key[:-1]])
    offset = np.where(offset > notes.offset, np.maximum(np.minimum(offset, again), notes.offset), offset)
    return replace(notes, offset=offset), step


def transposed_ids(ids: np.ndarray, tokenizer: Tokenizer, down: int, up: int, rng: np.random.Generator) -> np.ndarray:
    """The ids `[n]` of a window moved by a number of semitones drawn from those that keep it on the keyboard."""
    kind = tokenizer.vocabulary.kind_of_id[ids]
    is_note = (kind == NOTE_ON) | (kind == NOTE_OFF)
    pitch = tokenizer.vocabulary.value_of_id[ids[is_note]]
    if not len(pitch):
        return ids
    pitches = tokenizer.vocabulary.range("note_on")
    lowest = max(-down, max(LOWEST_PIANO_PITCH, pitches.first) - int(pitch.min()))
    highest = min(up, min(HIGHEST_PIANO_PITCH, pitches.last) - int(pitch.max()))
    if lowest > 0 or highest < 0:  # it is not on the keyboard as it stands
        return ids
    moved = ids.copy()
    moved[is_note] += rng.integers(lowest, highest + 1).astype(ids.dtype)
    return moved
