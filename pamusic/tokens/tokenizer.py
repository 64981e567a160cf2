"""Convert between performances and ids.

Knows performances and one vocabulary; knows no corpus, no model. Encoding has three steps; decoding reverses them:
1. Bring the performance into the vocabulary's form: the pedal folded into the notes, or keys and pedals as played.
2. Round it to the vocabulary's grid (`GridNotes`). Augmentation works here, so its results are valid encoder output.
3. Write the grid as ids.

With one field, ids are `[num_tokens]`, one event each. With several fields they are `[num_positions, num_fields]`
(`tokens.positions`).

Within a step releases come first, then pedals, then onsets; ids hold no other order within a step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pamusic.errors import PamusicError
from pamusic.music.pedal import sustain_folded
from pamusic.music.performance import PEDAL, SOFT, SOSTENUTO, SUSTAIN, Performance, notes_in_order, pedal_in_order
from pamusic.resources import tokenizers_folder
from pamusic.tokens.grid import (
    GRID_PEDAL,
    GridNotes,
    depth_changes,
    pedal_in_step_order,
    pedal_records,
    rounded,
    without_short_ways,
)
from pamusic.tokens.positions import event_positions, events_in_order, grid_of_positions, note_positions, num_clipped
from pamusic.tokens.vocabulary import BORDERS, KINDS, PEDAL_KINDS, Vocabulary, load_vocabulary

NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY = (KINDS.index(kind) for kind in KINDS[:4])
DEFAULT_VELOCITY = 64  # for an onset without a velocity event before it
CONTROLS = {"soft": SOFT, "sostenuto": SOSTENUTO, "sustain": SUSTAIN}


@dataclass(frozen=True)
class Repairs:
    """Repairs that turn ids into a valid performance. The encoder's own output needs none.

    Attributes:
        notes_without_end: Notes ended at the end of the music, or at the next onset of their key.
        releases_of_silent_keys: Releases that were ignored.
        notes_without_length: Notes that were left out.
        idle_pedals: Pedal events left out, because nothing changed or the pedal moved again within the step.
        pedals_left_down: Pedals raised at the end of the music.
        borders: Start, end and pad ids within the music; left out.
    """

    notes_without_end: int = 0
    releases_of_silent_keys: int = 0
    notes_without_length: int = 0
    idle_pedals: int = 0
    pedals_left_down: int = 0
    borders: int = 0

    def __bool__(self) -> bool:
        """Return whether there were any repairs."""
        return any(getattr(self, each.name) for each in fields(self))


class Tokenizer:
    """A converter between performances and ids of one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._kind, self._value = vocabulary.kind_of_id, vocabulary.value_of_id
        self._bin_width = vocabulary.velocity_bin_width
        self._played = vocabulary.sustain == "played"

    @property
    def name(self) -> str:
        """The vocabulary's name."""
        return self.vocabulary.name

    @property
    def fingerprint(self) -> str:
        """Hash of the meaning of the ids: tokenizers with equal fingerprints are interchangeable."""
        return self.vocabulary.fingerprint

    def encode(self, performance: Performance) -> np.ndarray:
        """Return ids `[num_tokens]`, uint16, without start and end; omit notes outside the vocabulary's pitches."""
        return self.ids_from_grid(self.to_grid(performance))

    def decode(self, ids: np.ndarray) -> Performance:
        """Return a valid performance for any ids: open notes end with the piece, idle releases are ignored."""
        return self.decode_counted(ids)[0]

    def decode_counted(self, ids: np.ndarray) -> tuple[Performance, Repairs]:
        """Return a valid performance for any ids, and the repairs that they needed."""
        grid, repairs = self._read(ids)
        return self.from_grid(grid), repairs

    def normalised(self, performance: Performance) -> Performance:
        """Return the music that `encode` intends to keep, before the grid; compare decoded music with this.

        Folded pedal: the notes within the vocabulary's pitches, with their full sounding length, without pedals.
        Played pedal: the same notes with the lengths of their keys. Each ends no later than the next onset of its key;
        of two onsets at one instant the last stays. Pedals that have events keep each change of value, from up at the
        beginning to up at the end.
        """
        return self._normalised(performance, lifted=True)

    def _normalised(self, performance: Performance, lifted: bool) -> Performance:
        pitches = self.vocabulary.range("note_on")
        if not self._played:
            return Performance(_within(sustain_folded(performance).notes, pitches.first, pitches.last))
        notes = _end_at_next_onset(_within(performance.notes, pitches.first, pitches.last))
        controls = [CONTROLS[kind] for kind in self.vocabulary.pedals]
        pedal = performance.pedal[np.isin(performance.pedal["control"], controls)]
        the_end = Performance(notes, pedal).duration
        moves = [_moves(pedal[pedal["control"] == control], the_end if lifted else None) for control in controls]
        return Performance(notes, pedal_in_order(np.concatenate(moves)))

    def to_grid(self, performance: Performance, *, lifted: bool = True) -> GridNotes:
        """Return a performance on the grid.

        Args:
            performance: Any performance.
            lifted: Whether to raise pedals that are down at the end; False only if more music follows.
        """
        normal = self._normalised(performance, lifted)
        notes = notes_in_order(normal.notes)
        steps_per_second = 1000 / self.vocabulary.time_step_ms
        onset = rounded(notes["onset"] * steps_per_second)
        offset = rounded(notes["offset"] * steps_per_second)
        velocity_bin = (np.maximum(notes["velocity"].astype(np.int64), 1) - 1) // self._bin_width + 1
        offset = np.where(offset == onset, onset + 1, offset)
        pitch, pedal = notes["pitch"].astype(np.int64), self._depths(normal.pedal)
        return self.settled(GridNotes(onset, offset, pitch, velocity_bin, pedal), lifted=lifted)

    def from_grid(self, grid: GridNotes) -> Performance:
        """Return the performance of a grid: times in seconds, velocities in the middle of their bins."""
        seconds = self.vocabulary.time_step_ms / 1000
        pedal = np.empty(len(grid.pedal), PEDAL)
        pedal["time"] = grid.pedal["step"] * seconds
        for kind, deepest in self.vocabulary.pedals.items():
            its = grid.pedal["pedal"] == PEDAL_KINDS.index(kind)
            pedal["control"][its] = CONTROLS[kind]
            pedal["value"][its] = np.rint(grid.pedal["depth"][its] * 127 / deepest)
        return Performance.from_arrays(
            grid.onset * seconds,
            grid.offset * seconds,
            grid.pitch,
            self.vocabulary.velocity_of_bin[grid.velocity_bin],
            pedal,
        )

    def settled(self, grid: GridNotes, *, lifted: bool = True) -> GridNotes:
        """Return the grid in canonical form, as the encoder writes it and decoding restores it.

        Where keys and pedals are played: onsets of one step are ordered by pitch; a key is released no later than its
        next onset; short ways and tremors of pedals are removed; if `lifted`, pedals are up at the end. The same holds
        for notes in vocabularies with several fields. Other grids are canonical already.
        """
        if not self._played and not self.vocabulary.shape:
            return grid
        by_key = np.lexsort((grid.onset, grid.pitch))
        onset, offset, pitch = grid.onset[by_key], grid.offset[by_key], grid.pitch[by_key]
        same_key = pitch[1:] == pitch[:-1]
        offset[:-1] = np.where(same_key, np.minimum(offset[:-1], onset[1:]), offset[:-1])
        kept = offset > onset
        onset, offset, pitch = onset[kept], offset[kept], pitch[kept]
        velocity_bin = grid.velocity_bin[by_key][kept]
        order = np.lexsort((pitch, onset))

        the_end = max(int(offset.max(initial=0)), int(grid.pedal["step"].max(initial=0)))
        pedals = [np.empty(0, GRID_PEDAL)]
        for kind, deepest in self.vocabulary.pedals.items():
            pedal = grid.pedal[grid.pedal["pedal"] == PEDAL_KINDS.index(kind)]
            if lifted and len(pedal) and pedal["depth"][-1] != 0:
                pedal = np.append(pedal, np.array([(the_end, PEDAL_KINDS.index(kind), 0)], GRID_PEDAL))
            pedals.append(without_short_ways(pedal, deepest, self.vocabulary.shortest_steps))
        return GridNotes(onset[order], offset[order], pitch[order], velocity_bin[order], pedal_in_step_order(pedals))

    def ids_from_grid(self, grid: GridNotes) -> np.ndarray:
        """Return the ids of a grid, `[num_tokens]`, uint16: by step, then releases, pedals, onsets.

        This is also note-seq's order: by (step, note, onset before offset). A note that ends where another begins has
        begun before it.
        """
        vocabulary = self.vocabulary
        if vocabulary.has("length"):
            return self._note_positions(grid)
        if vocabulary.shape:
            return event_positions(grid, vocabulary)
        if not len(grid) + len(grid.pedal):
            return np.empty(0, np.uint16)
        step, kind, value, velocity_bin = events_in_order(grid)
        shift = np.diff(step, prepend=0)
        max_shift = vocabulary.range("time_shift").last
        num_shifts = -(-shift // max_shift)
        last_shift = shift - (num_shifts - 1) * max_shift
        at_onset = np.flatnonzero(kind == NOTE_ON)
        changes = np.diff(velocity_bin[at_onset], prepend=0) != 0
        new_velocity = np.zeros(len(step), bool)
        new_velocity[at_onset] = changes

        end = np.cumsum(num_shifts + new_velocity + 1)  # where each event's tokens end
        ids = np.full(end[-1], vocabulary.id("time_shift", max_shift), np.uint16)
        ids[end - 1] = vocabulary.first_of_kind[kind] + value
        ids[end[new_velocity] - 2] = vocabulary.first_of_kind[VELOCITY] + velocity_bin[new_velocity]
        shifts = num_shifts > 0
        ids[(end - 2 - new_velocity)[shifts]] = vocabulary.first_of_kind[TIME_SHIFT] + last_shift[shifts]
        return ids

    def _note_positions(self, grid: GridNotes) -> np.ndarray:
        """Return `note_positions` of a grid, repeated until the ids decode and encode to themselves.

        Only clipped pedal presses need a repetition. The pedal then goes up before its next depth, and this depth may
        now be too short to keep.
        """
        ids = note_positions(grid, self.vocabulary)
        while num_clipped(grid, self.vocabulary)[0]:
            grid = self.settled(self.grid_from_ids(ids))
            ids = note_positions(grid, self.vocabulary)
        return ids

    def grid_from_ids(self, ids: np.ndarray) -> GridNotes:
        """Return the notes and pedals of any ids.

        A release closes the oldest open note of its key, as in note-seq. Where keys are played, an onset does so, too.
        """
        return self._read(ids)[0]

    def _read(self, ids: np.ndarray) -> tuple[GridNotes, Repairs]:
        ids = np.asarray(ids, np.int64)
        if not len(ids):
            return GridNotes(*(np.empty(0, np.int64) for _ in range(4))), Repairs()
        if self.vocabulary.has("length"):
            return self._positions_read(ids)
        kind, value, step, velocity_bin = self._events_read(ids)
        at_onset = np.flatnonzero(kind == NOTE_ON)
        pair = self._paired_as_played if self._played else self._paired_as_sounding
        closed_by, num_idle_releases = pair(kind, value)
        is_open = closed_by < 0
        onset, pitch = step[at_onset], value[at_onset]
        offset = np.where(is_open, np.maximum(int(step[-1]), onset + 1), step[closed_by])
        kept = offset > onset
        grid = GridNotes(onset[kept], offset[kept], pitch[kept], velocity_bin[at_onset][kept])
        num_ended = np.count_nonzero(kind[closed_by[~is_open]] == NOTE_OFF)
        pedal, num_idle, num_down = self._pedals_read(kind, value, step, max(int(step[-1]), grid.last_step))
        return GridNotes(grid.onset, grid.offset, grid.pitch, grid.velocity_bin, pedal), Repairs(
            notes_without_end=len(at_onset) - int(num_ended),
            releases_of_silent_keys=num_idle_releases,
            notes_without_length=len(at_onset) - int(kept.sum()),
            idle_pedals=num_idle,
            pedals_left_down=num_down,
            borders=int(np.isin(kind, [KINDS.index(border) for border in BORDERS]).sum()),
        )

    def _events_read(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return kind, value, step and velocity bin in force of each position, `[n]` each."""
        kind, value = self._kind[ids], self._value[ids]
        if self.vocabulary.shape:
            shift, key, velocity = range(len(self.vocabulary.fields))
            return kind[:, key], value[:, key], np.cumsum(value[:, shift]), np.maximum(value[:, velocity], 1)
        step = np.cumsum(np.where(kind == TIME_SHIFT, value, 0))
        last_velocity = np.maximum.accumulate(np.where(kind == VELOCITY, np.arange(len(ids)), -1))
        default_bin = (DEFAULT_VELOCITY - 1) // self._bin_width + 1
        return kind, value, step, np.where(last_velocity >= 0, value[last_velocity], default_bin)

    def _positions_read(self, ids: np.ndarray) -> tuple[GridNotes, Repairs]:
        """Read ids in which notes and pedal presses have lengths; otherwise like `_read`."""
        grid, num_borders = grid_of_positions(ids, self.vocabulary)
        kept = grid.offset > grid.onset
        pedals, num_idle = [np.empty(0, GRID_PEDAL)], 0
        for name in self.vocabulary.pedals:
            its = grid.pedal[grid.pedal["pedal"] == PEDAL_KINDS.index(name)]
            pedals.append(depth_changes(its))
            num_idle += int(np.count_nonzero(its["depth"])) - int(np.count_nonzero(pedals[-1]["depth"]))
        onset, offset, pitch, velocity_bin = (
            each[kept] for each in (grid.onset, grid.offset, grid.pitch, grid.velocity_bin)
        )
        return GridNotes(onset, offset, pitch, velocity_bin, pedal_in_step_order(pedals)), Repairs(
            notes_without_length=len(grid) - int(kept.sum()), idle_pedals=num_idle, borders=num_borders
        )

    def _paired_as_sounding(self, kind: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, int]:
        """Return, for each onset, the place of the release that closes it, or -1; and the number of idle releases."""
        at_onset, at_offset = np.flatnonzero(kind == NOTE_ON), np.flatnonzero(kind == NOTE_OFF)
        closed_by = np.full(len(kind), -1, np.int64)
        num_used = 0
        for pitch in np.unique(value[at_onset]):
            onsets, offsets = at_onset[value[at_onset] == pitch], at_offset[value[at_offset] == pitch]
            offsets = _releases_of_open_notes(onsets, offsets)
            closed_by[onsets[: len(offsets)]] = offsets
            num_used += len(offsets)
        return closed_by[at_onset], len(at_offset) - num_used

    def _paired_as_played(self, kind: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the same as `_paired_as_sounding`, where a new onset of the same key also closes a note."""
        places = np.flatnonzero((kind == NOTE_ON) | (kind == NOTE_OFF))
        places = places[np.argsort(value[places], kind="stable")]  # by (key, place)
        closed_by = np.full(len(kind), -1, np.int64)
        same_key = value[places[1:]] == value[places[:-1]]
        closed_by[places[:-1][same_key]] = places[1:][same_key]
        follows_stroke = np.append(False, same_key & (kind[places[:-1]] == NOTE_ON))[: len(places)]
        num_idle = np.count_nonzero((kind[places] == NOTE_OFF) & ~follows_stroke)
        return closed_by[kind == NOTE_ON], int(num_idle)

    def _pedals_read(
        self, kind: np.ndarray, value: np.ndarray, step: np.ndarray, the_end: int
    ) -> tuple[np.ndarray, int, int]:
        """Return records of `GRID_PEDAL`, the number of events without effect, and the number of pedals left down."""
        pedals, num_idle, num_down = [np.empty(0, GRID_PEDAL)], 0, 0
        for name in self.vocabulary.pedals:
            places = np.flatnonzero(kind == KINDS.index(name))
            pedal = depth_changes(pedal_records(step[places], PEDAL_KINDS.index(name), value[places]))
            num_idle += len(places) - len(pedal)
            if len(pedal) and pedal["depth"][-1] != 0:
                pedal = depth_changes(np.append(pedal, pedal_records(np.array([the_end]), PEDAL_KINDS.index(name), 0)))
                num_down += 1
            pedals.append(pedal)
        return pedal_in_step_order(pedals), num_idle, num_down

    def _depths(self, moves: np.ndarray) -> np.ndarray:
        """Convert records of `PEDAL` to records of `GRID_PEDAL`: the last depth of each step, where it changes."""
        pedals = [np.empty(0, GRID_PEDAL)]
        steps_per_second = 1000 / self.vocabulary.time_step_ms
        for kind, deepest in self.vocabulary.pedals.items():
            its = moves[moves["control"] == CONTROLS[kind]]
            depth = depths(its["value"], deepest, self.vocabulary.hysteresis)
            step = rounded(its["time"] * steps_per_second)
            pedals.append(depth_changes(pedal_records(step, PEDAL_KINDS.index(kind), depth)))
        return pedal_in_step_order(pedals)


def depths(values: np.ndarray, deepest: int, hysteresis: float) -> np.ndarray:
    """Return the depth of a pedal, 0 to `deepest`, after each of its control's values `[n]`; it starts up.

    Depths have equal widths, around the values `127 k / deepest`. A value crosses a border only if it is `hysteresis`
    beyond it, so that a foot resting near a border does not make the depth flicker.
    """
    depth = np.zeros(len(values), np.int64)
    index = np.arange(len(values))
    for border in (np.arange(deepest) + 0.5) * 127 / deepest:
        above, below = values >= border + hysteresis, values < border - hysteresis
        last = np.maximum.accumulate(np.where(above | below, index, -1))  # the last value clearly on one side
        depth += (last >= 0) & above[last]
    return depth


def load_tokenizer(name: str) -> Tokenizer:
    """Return a tokenizer that ships with pamusic, by name, or a user's own, by the path of its TOML file.

    Raises:
        PamusicError: there is no such tokenizer.
    """
    if name.endswith(".toml"):
        return Tokenizer(load_vocabulary(Path(name)))
    path = tokenizers_folder() / f"{name}.toml"
    if not path.is_file():
        names = ", ".join(shipped_tokenizers())
        raise PamusicError(f"no tokenizer is called {name!r}; use {names}, or the path of a .toml file")
    return Tokenizer(load_vocabulary(path))


def shipped_tokenizers() -> list[str]:
    """Return the names of the tokenizers that ship with pamusic."""
    return sorted(file.stem for file in tokenizers_folder().glob("*.toml"))


def _within(notes: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    within = (notes["pitch"] >= lowest) & (notes["pitch"] <= highest)
    return notes if within.all() else notes[within]


def _end_at_next_onset(notes: np.ndarray) -> np.ndarray:
    """End each note no later than the next onset of its key; of onsets of a key at one instant, keep the last."""
    notes = notes[np.lexsort((notes["onset"], notes["pitch"]))]
    again = (notes["pitch"][1:] == notes["pitch"][:-1]) & (notes["offset"][:-1] > notes["onset"][1:])
    notes["offset"][:-1][again] = notes["onset"][1:][again]
    doubled = np.append(again & (notes["onset"][1:] == notes["onset"][:-1]), False)[: len(notes)]
    notes = notes[~doubled]
    return notes_in_order(notes)


def _moves(pedal: np.ndarray, lifted_at: float | None) -> np.ndarray:
    """Return the last value of each instant in one pedal's records, where it changes; the pedal starts up."""
    if lifted_at is not None and len(pedal) and pedal["value"][-1] != 0:
        pedal = np.append(pedal, np.array([(lifted_at, pedal["control"][-1], 0)], PEDAL))
    pedal = pedal[np.append(pedal["time"][1:] != pedal["time"][:-1], True)[: len(pedal)]]
    return pedal[np.diff(pedal["value"].astype(np.int64), prepend=0) != 0]


def _releases_of_open_notes(onsets: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the releases of one pitch (places in the ids) that find an open note; the k-th closes the k-th onset."""
    places = np.concatenate([onsets, offsets])
    order = np.argsort(places)
    step = np.where(order < len(onsets), 1, -1)
    balance = np.cumsum(step)
    # A release finds no open note exactly when it takes the balance below its minimum so far.
    lowest_before = np.minimum.accumulate(np.concatenate([[0], balance[:-1]]))
    return places[order][(step == -1) & (balance >= lowest_before)]
