"""Represent a performance: the notes with their times and velocities, and the pedals.

Knows seconds, pitches and velocities; knows no files, no ticks, no tokens. Times are float64 seconds. Values in,
values out: every method returns a new `Performance`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

LOWEST_PIANO_PITCH = 21  # A0
HIGHEST_PIANO_PITCH = 108  # C8

SUSTAIN, SOSTENUTO, SOFT = 64, 66, 67  # MIDI control numbers of the right, the middle and the left pedal
PEDALS = (SUSTAIN, SOSTENUTO, SOFT)

# Seconds; onsets no further apart form a chord. A melody leads the other notes of its chord by about 30 ms
# (Goebl 2001, JASA 110); on a grid of 10 ms the limit becomes 30 ms, too.
CHORD = 0.035

NOTE = np.dtype([("onset", "f8"), ("offset", "f8"), ("pitch", "u1"), ("velocity", "u1")])
PEDAL = np.dtype([("time", "f8"), ("control", "u1"), ("value", "u1")])


def empty_notes() -> np.ndarray:
    return np.empty(0, NOTE)


def empty_pedal() -> np.ndarray:
    return np.empty(0, PEDAL)


def notes_in_order(notes: np.ndarray) -> np.ndarray:
    """Sort notes by (onset, pitch); return the same array if it is sorted already, since the check is far faster."""
    onset, pitch = np.ascontiguousarray(notes["onset"]), notes["pitch"].astype(np.int64)
    later = np.diff(onset)
    if ((later > 0) | ((later == 0) & (np.diff(pitch) >= 0))).all():
        return notes
    return notes[np.lexsort((pitch, onset))]


def pedal_in_order(pedal: np.ndarray) -> np.ndarray:
    """Sort movements by time, stably; return the same array if it is sorted already."""
    time = np.ascontiguousarray(pedal["time"])
    return pedal if (np.diff(time) >= 0).all() else pedal[np.argsort(time, kind="stable")]


@dataclass(frozen=True, eq=False)
class Performance:
    """Music as played on one piano.

    Attributes:
        notes: `[num_notes]` records of `NOTE`, ordered by (onset, pitch); onset and offset are those of the key, not of
            the sound, in seconds.
        pedal: `[num_pedal]` records of `PEDAL`, ordered by time; values 0 (up) to 127 (down).
    """

    notes: np.ndarray = field(default_factory=empty_notes)
    pedal: np.ndarray = field(default_factory=empty_pedal)

    @classmethod
    def from_arrays(
        cls,
        onset: np.ndarray,
        offset: np.ndarray,
        pitch: np.ndarray,
        velocity: np.ndarray,
        pedal: np.ndarray | None = None,
    ) -> Performance:
        """Build a performance from parallel arrays `[num_notes]`, in any order."""
        notes = np.empty(len(onset), NOTE)
        notes["onset"], notes["offset"], notes["pitch"], notes["velocity"] = onset, offset, pitch, velocity
        return cls(notes_in_order(notes), pedal_in_order(empty_pedal() if pedal is None else pedal))

    def __len__(self) -> int:
        """Return the number of notes."""
        return len(self.notes)

    @property
    def duration(self) -> float:
        """Seconds from 0 to the last event: an offset or a pedal movement."""
        last_offset = float(self.notes["offset"].max()) if len(self.notes) else 0.0
        last_pedal = float(self.pedal["time"].max()) if len(self.pedal) else 0.0
        return max(last_offset, last_pedal)

    def equals(self, other: Performance) -> bool:
        """Return whether both have exactly the same notes and the same pedal."""
        return np.array_equal(self.notes, other.notes) and np.array_equal(self.pedal, other.pedal)

    def transposed(self, semitones: int) -> Performance:
        """Return the same music, higher or lower.

        Raises:
            ValueError: a note would leave MIDI's 0 to 127.
        """
        pitch = self.notes["pitch"].astype(np.int64) + semitones
        if len(pitch) and not (0 <= pitch.min() and pitch.max() <= 127):
            raise ValueError(
                f"transposing by {semitones} must keep pitches within 0 to 127, got {pitch.min()} to {pitch.max()}"
            )
        notes = self.notes.copy()
        notes["pitch"] = pitch
        return Performance(notes, self.pedal)

    def stretched(self, factor: float) -> Performance:
        """Return the same music, `factor` times as long.

        Raises:
            ValueError: the factor is not a positive number.
        """
        if not 0 < factor < float("inf"):
            raise ValueError(f"factor must be a positive number, got {factor}")
        notes, pedal = self.notes.copy(), self.pedal.copy()
        notes["onset"] *= factor
        notes["offset"] *= factor
        pedal["time"] *= factor
        return Performance(notes, pedal)

    def shifted(self, seconds: float) -> Performance:
        """Return the same music, later (or, for a negative number, earlier) by `seconds`."""
        notes, pedal = self.notes.copy(), self.pedal.copy()
        notes["onset"] += seconds
        notes["offset"] += seconds
        pedal["time"] += seconds
        return Performance(notes, pedal)

    def cropped(self, start: float, end: float) -> Performance:
        """Return the music that begins in `[start, end)` seconds, shifted so that `start` becomes 0.

        Notes that sound at `end` end there. Pedals begin in their position at `start`.
        """
        inside = (self.notes["onset"] >= start) & (self.notes["onset"] < end)
        notes = self.notes[inside].copy()
        notes["offset"] = np.minimum(notes["offset"], end)
        before, inside = (
            self.pedal[self.pedal["time"] < start],
            self.pedal[(self.pedal["time"] >= start) & (self.pedal["time"] < end)],
        )
        carried = []
        for control in np.unique(before["control"]):
            last = before[before["control"] == control][-1:].copy()
            last["time"] = start
            carried.append(last)
        pedal = np.concatenate([*carried, inside]) if carried else inside.copy()
        return Performance(notes, pedal).shifted(-start)

    def joined(self, other: Performance) -> Performance:
        """Return both performances at the same time; use `shifted` first to place one after the other."""
        notes = np.concatenate([self.notes, other.notes])
        pedal = np.concatenate([self.pedal, other.pedal])
        return Performance(notes_in_order(notes), pedal_in_order(pedal))
