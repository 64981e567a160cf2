"""Augment training data: transpose windows, and stretch pieces in time. Knows ids through their tokenizer.

Both give ids that the tokenizer could have written for some performance. A stretched piece is put on the grid and
encoded again. A window is transposed only as far as all its notes stay on the 88 keys.
"""

from __future__ import annotations

import numpy as np

from pamusic.music.performance import HIGHEST_PIANO_PITCH, LOWEST_PIANO_PITCH
from pamusic.tokens.grid import GridNotes
from pamusic.tokens.tokenizer import NOTE_OFF, NOTE_ON, Tokenizer


def stretched_ids(notes: GridNotes, tokenizer: Tokenizer, most: float, rng: np.random.Generator) -> np.ndarray:
    """Return the ids `[num_tokens]` of a piece, stretched by a factor drawn between `1 - most` and `1 + most`."""
    return tokenizer.ids_from_grid(tokenizer.settled(notes.stretched(1 + rng.uniform(-most, most))))


def transposed_ids(ids: np.ndarray, tokenizer: Tokenizer, down: int, up: int, rng: np.random.Generator) -> np.ndarray:
    """Return the ids `[n]` of a window, transposed by a random number of semitones that keeps it on the keyboard."""
    kind = tokenizer.vocabulary.kind_of_id[ids]
    is_note = (kind == NOTE_ON) | (kind == NOTE_OFF)
    pitch = tokenizer.vocabulary.value_of_id[ids[is_note]]
    if not len(pitch):
        return ids
    pitches = tokenizer.vocabulary.range("note_on")
    lowest = max(-down, max(LOWEST_PIANO_PITCH, pitches.first) - int(pitch.min()))
    highest = min(up, min(HIGHEST_PIANO_PITCH, pitches.last) - int(pitch.max()))
    if lowest > 0 or highest < 0:  # the window has notes beyond the keyboard
        return ids
    moved = ids.copy()
    moved[is_note] += rng.integers(lowest, highest + 1).astype(ids.dtype)
    return moved
