"""Performance <-> ids.

Knows performances and one vocabulary; knows no corpus, no model. Three steps each way: the pedal is folded into the
notes, the notes fall on the vocabulary's grid (`GridNotes`), the grid is written as ids. Augmentation enters at the
grid: what it makes is again something that the encoder could have written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pamusic.errors import PamusicError
from pamusic.music.pedal import sustain_folded
from pamusic.music.performance import Performance, notes_in_order
from pamusic.shipped import tokenizers_folder
from pamusic.tokens.vocabulary import KINDS, Vocabulary, load_vocabulary

NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY = (KINDS.index(kind) for kind in KINDS[:4])
DEFAULT_VELOCITY = 64  # of an onset that no velocity event precedes


@dataclass(frozen=True, eq=False)
class GridNotes:
    """Notes on a vocabulary's grid, parallel arrays `[num_notes]` of int64, in the order in which onsets are written.

    Attributes:
        onset, offset: steps; an offset is at least one step after its onset.
        pitch: MIDI pitch.
        velocity_bin: from 1 on.
    """

    onset: np.ndarray
    offset: np.ndarray
    pitch: np.ndarray
    velocity_bin: np.ndarray

    def __len__(self) -> int:
        return len(self.onset)

    def stretched(self, factor: float) -> GridNotes:
        """The same notes `factor` times as long, on the grid again."""
        onset = _rounded(self.onset * factor)
        offset = np.maximum(_rounded(self.offset * factor), onset + 1)
        return GridNotes(onset, offset, self.pitch, self.velocity_bin)

    def transposed(self, semitones: int) -> GridNotes:
        """The same notes higher or lower; the caller sees to it that they stay on the keyboard."""
        return GridNotes(self.onset, self.offset, self.pitch + semitones, self.velocity_bin)


class Tokenizer:
    """Turns performances into ids of one vocabulary and back."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._kind, self._value = vocabulary.kind_of_id, vocabulary.value_of_id
        self._bin_width = -(-127 // vocabulary.num_velocity_bins)

    @property
    def name(self) -> str:
        return self.vocabulary.name

    @property
    def fingerprint(self) -> str:
        return self.vocabulary.fingerprint

    def encode(self, performance: Performance) -> np.ndarray:
        """Ids `[num_tokens]`, uint16, without start and end. Notes outside the vocabulary's pitches are left out."""
        return self.ids_from_grid(self.to_grid(performance))

    def decode(self, ids: np.ndarray) -> Performance:
        """A valid performance, whatever the ids: open notes end with the piece, releases of silent keys do nothing."""
        return self.from_grid(self.grid_from_ids(ids))

    def normalised(self, performance: Performance) -> Performance:
        """What `encode` means to keep, before the grid: the notes within the vocabulary's pitches, without pedal, as
        long as their strings sound."""
        notes, pitches = sustain_folded(performance).notes, self.vocabulary.range("note_on")
        within = (notes["pitch"] >= pitches.first) & (notes["pitch"] <= pitches.last)
        return Performance(notes if within.all() else notes[within])

    def to_grid(self, performance: Performance) -> GridNotes:
        notes = notes_in_order(self.normalised(performance).notes)
        steps_per_second = 1000 / self.vocabulary.time_step_ms
        onset = _rounded(notes["onset"] * steps_per_second)
        offset = _rounded(notes["offset"] * steps_per_second)
        velocity_bin = (np.maximum(notes["velocity"].astype(np.int64), 1) - 1) // self._bin_width + 1
        return GridNotes(
            onset, np.where(offset == onset, onset + 1, offset), notes["pitch"].astype(np.int64), velocity_bin
        )

    def from_grid(self, grid: GridNotes) -> Performance:
        seconds = self.vocabulary.time_step_ms / 1000
        middle = (grid.velocity_bin - 1) * self._bin_width + 1 + self._bin_width // 2
        return Performance.from_arrays(grid.onset * seconds, grid.offset * seconds, grid.pitch, np.clip(middle, 1, 127))

    def ids_from_grid(self, grid: GridNotes) -> np.ndarray:
        """Events by (step, note, onset before offset), as note-seq orders them; `[num_tokens]`, uint16."""
        if not len(grid):
            return np.empty(0, np.uint16)
        num_notes = len(grid)
        index = np.arange(num_notes)
        # One sortable number an event: the step, then the note, then whether it is the offset.
        key = np.concatenate([(grid.onset * num_notes + index) * 2, (grid.offset * num_notes + index) * 2 + 1])
        key.sort()
        note, is_onset = (key >> 1) % num_notes, (key & 1) == 0
        step = (key >> 1) // num_notes

        shift = np.diff(step, prepend=0)
        max_shift = self.vocabulary.range("time_shift").last
        num_shifts = -(-shift // max_shift)
        last_shift = shift - (num_shifts - 1) * max_shift
        velocity_bin = grid.velocity_bin[note]
        at_onset = np.flatnonzero(is_onset)
        new_velocity = np.zeros(len(key), bool)
        new_velocity[at_onset] = np.diff(velocity_bin[at_onset], prepend=0) != 0

        first = {kind: self.vocabulary.range(kind).start - self.vocabulary.range(kind).first for kind in KINDS[:4]}
        end = np.cumsum(num_shifts + new_velocity + 1)  # where each event's tokens end
        ids = np.full(end[-1], first["time_shift"] + max_shift, np.uint16)
        pitch = grid.pitch[note]
        ids[end - 1] = np.where(is_onset, first["note_on"] + pitch, first["note_off"] + pitch)
        ids[end[new_velocity] - 2] = first["velocity"] + velocity_bin[new_velocity]
        shifts = num_shifts > 0
        ids[(end - 2 - new_velocity)[shifts]] = first["time_shift"] + last_shift[shifts]
        return ids

    def grid_from_ids(self, ids: np.ndarray) -> GridNotes:
        """The notes that ids stand for. A release closes the oldest open note of its pitch, as in note-seq."""
        ids = np.asarray(ids, np.int64)
        kind, value = self._kind[ids], self._value[ids]
        step = np.cumsum(np.where(kind == TIME_SHIFT, value, 0))
        last_velocity = np.maximum.accumulate(np.where(kind == VELOCITY, np.arange(len(ids)), -1))
        default_bin = (DEFAULT_VELOCITY - 1) // self._bin_width + 1
        velocity_bin = np.where(last_velocity >= 0, value[last_velocity], default_bin) if len(ids) else value

        at_onset, at_offset = np.flatnonzero(kind == NOTE_ON), np.flatnonzero(kind == NOTE_OFF)
        the_end = int(step[-1]) if len(ids) else 0
        closed_at = np.full(len(ids), the_end, np.int64)
        for pitch in np.unique(value[at_onset]):
            onsets, offsets = at_onset[value[at_onset] == pitch], at_offset[value[at_offset] == pitch]
            offsets = _releases_of_open_notes(onsets, offsets)
            closed_at[onsets[: len(offsets)]] = step[offsets]
            closed_at[onsets[len(offsets) :]] = np.maximum(the_end, step[onsets[len(offsets) :]] + 1)
        onset, offset = step[at_onset], closed_at[at_onset]
        kept = offset > onset
        return GridNotes(onset[kept], offset[kept], value[at_onset][kept], velocity_bin[at_onset][kept])


def load_tokenizer(name: str) -> Tokenizer:
    """A tokenizer that ships, by name, or one's own, by the path of its TOML file.

    Raises:
        PamusicError: there is none.
    """
    from pathlib import Path

    if name.endswith(".toml"):
        return Tokenizer(load_vocabulary(Path(name)))
    path = tokenizers_folder() / f"{name}.toml"
    if not path.is_file():
        names = ", ".join(shipped_tokenizers())
        raise PamusicError(f"no tokenizer is called {name!r}; there is {names}, or give a .toml file of your own")
    return Tokenizer(load_vocabulary(path))


def shipped_tokenizers() -> list[str]:
    """The names of the tokenizers that ship."""
    return sorted(file.stem for file in tokenizers_folder().glob("*.toml"))


def _rounded(steps: np.ndarray) -> np.ndarray:
    """note-seq's `int(steps + 0.5)`."""
    return (steps + 0.5).astype(np.int64)


def _releases_of_open_notes(onsets: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Of one pitch's releases (places in the ids), those that find a note open; the k-th closes the k-th onset."""
    places = np.concatenate([onsets, offsets])
    order = np.argsort(places)
    step = np.where(order < len(onsets), 1, -1)
    balance = np.cumsum(step)
    # A release finds nothing open exactly when it takes the balance below all that it was before.
    lowest_before = np.minimum.accumulate(np.concatenate([[0], balance[:-1]]))
    return places[order][(step == -1) & (balance >= lowest_before)]
