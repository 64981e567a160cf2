"""Notes and pedals on a vocabulary's grid, the form between performances and ids.

Knows steps, pitches, bins and depths; knows no vocabulary, no ids and no seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

GRID_PEDAL = np.dtype([("step", "i8"), ("pedal", "i8"), ("depth", "i8")])  # pedal: index into PEDAL_KINDS


@dataclass(frozen=True, eq=False)
class GridNotes:
    """Notes and pedals on a vocabulary's grid.

    Attributes:
        onset, offset: `[num_notes]`, int64, steps. An offset is at least one step after its onset. Notes stand in the
            order in which their onsets are written.
        pitch: `[num_notes]`, int64, MIDI pitch.
        velocity_bin: `[num_notes]`, int64, from 1.
        pedal: `[num_pedal]` records of `GRID_PEDAL`, ordered by (step, pedal). Each changes the depth of its pedal; the
            first is not up, the last is up. Empty where the pedal is folded into the notes.
    """

    onset: np.ndarray
    offset: np.ndarray
    pitch: np.ndarray
    velocity_bin: np.ndarray
    pedal: np.ndarray = field(default_factory=lambda: np.empty(0, GRID_PEDAL))

    def __len__(self) -> int:
        """Return the number of notes."""
        return len(self.onset)

    @property
    def last_step(self) -> int:
        """Step of the last event; 0 if there is none."""
        return int(max(self.offset.max(initial=0), self.pedal["step"].max(initial=0)))

    def stretched(self, factor: float) -> GridNotes:
        """Return the same music `factor` times as long, rounded to the grid; `Tokenizer.settled` makes it canonical."""
        onset = rounded(self.onset * factor)
        offset = np.maximum(rounded(self.offset * factor), onset + 1)
        pedal = self.pedal.copy()
        pedal["step"] = rounded(pedal["step"] * factor)
        return GridNotes(onset, offset, self.pitch, self.velocity_bin, pedal)

    def transposed(self, semitones: int) -> GridNotes:
        """Return the same notes higher or lower; the caller keeps them within the keyboard."""
        return GridNotes(self.onset, self.offset, self.pitch + semitones, self.velocity_bin, self.pedal)


def rounded(steps: np.ndarray) -> np.ndarray:
    """Round as note-seq does: `int(steps + 0.5)`."""
    return (steps + 0.5).astype(np.int64)


def pedal_records(step: np.ndarray, pedal: int, depth: np.ndarray | int) -> np.ndarray:
    records = np.empty(len(step), GRID_PEDAL)
    records["step"], records["pedal"], records["depth"] = step, pedal, depth
    return records


def pedal_in_step_order(pedals: list[np.ndarray]) -> np.ndarray:
    pedal = np.concatenate(pedals)
    return pedal[np.lexsort((pedal["pedal"], pedal["step"]))]


def depth_changes(pedal: np.ndarray) -> np.ndarray:
    """Return the last record of each step of one pedal, where it changes the depth; the depth starts at 0."""
    pedal = pedal[np.append(pedal["step"][1:] != pedal["step"][:-1], True)[: len(pedal)]]
    return pedal[np.diff(pedal["depth"], prepend=0) != 0]


def without_short_ways(pedal: np.ndarray, deepest: int, shortest: int) -> np.ndarray:
    """Remove depths of one pedal that lasted fewer than `shortest` steps and carry no intent.

    Two kinds carry no intent: a depth passed on the way to another (up, half, down: the change is dated in the middle),
    and a tremor (one depth up and back, or down and back). A turning point further out stays, however short: a quick
    lift between two chords. A pedal with two depths has neither kind. The removal repeats until nothing changes, so it
    is idempotent.
    """
    pedal = depth_changes(pedal)
    while len(pedal) > 1:
        step, depth = pedal["step"], pedal["depth"]
        before, here, after = np.append(0, depth[:-2]), depth[:-1], depth[1:]
        on_the_way = np.sign(here - before) == np.sign(after - here)
        tremor = (before == after) & (np.abs(here - before) == 1) & (deepest > 1)
        out = np.append((np.diff(step) < shortest) & (on_the_way | tremor), False)
        if not out.any():
            break
        # A run of removed depths becomes one change, midway between its first step and the step of the next depth.
        first = np.flatnonzero(out & ~np.append(False, out[:-1]))
        arrival = np.flatnonzero(~out & np.append(False, out[:-1]))
        pedal = pedal.copy()
        pedal["step"][arrival] = (step[first] + step[arrival]) // 2
        pedal = depth_changes(pedal[~out])
    return pedal
