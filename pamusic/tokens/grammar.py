"""The grammar of a vocabulary: which ids may come next, so that sampling writes only what the encoder can write.

Knows one vocabulary; knows no model, no sampler. The rules (the tests check them against a plain implementation):

1. Start and pad never follow. The end is allowed only if no key sounds, no pedal is down, and the last event is not a
   time shift.
2. A time shift below the maximum is not followed by another time shift, and does not end the piece.
3. Within a step, releases come first, then pedals (soft, sostenuto, sustain; each at most once), then onsets.
4. A velocity differs from the one in force, and an onset follows it. No onset comes before the first velocity.
5. A key is released only while it sounds. Releases of one step stand in the order of their onsets.
6. A key has an onset only while it does not sound. Where keys are played, onsets of one step stand from low to high.
   Where the pedal is folded into the notes, the encoder guarantees less: a key may sound twice (6 times in all of
   MAESTRO), and onsets of one step stand in the order of their real times.
7. A pedal event changes the pedal's depth. A depth that has lasted fewer than `shortest_steps` may not continue in the
   same direction. If it is next to the depth before it, it may not return there (see `grid.without_short_ways`).

Where a position has a length, the rules are fewer, because a note's end is known when it begins: ids of one position
fit together (`Vocabulary.fits`), and within a step pedals come first (soft, sostenuto, sustain; each at most once),
then onsets from low to high.

The rules leave this module as arrays without any musical terms. `sampling/constraints.py` applies them and defines its
terms. Rules 1 to 4 and 7 are finite-state machines that run side by side; 5 and 6 are slots that open and close.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from pamusic.tokens.vocabulary import KINDS, PEDAL_KINDS, Vocabulary

STAYS = -1  # next state, while a machine is built: keep the state


class _Machine:
    """A table of states by columns, built from rules; a column is a class of ids that the rules treat alike."""

    def __init__(self, num_states: int, num_columns: int) -> None:
        self.next_state = np.full((num_states, num_columns), STAYS, np.int64)
        self.forbidden = np.zeros((num_states, num_columns), bool)
        self.pedal_level = np.zeros(num_states, np.int64)

    def shifted(self, by: int) -> np.ndarray:
        """Return the next states, offset by `by`; `STAYS` becomes the state itself."""
        own = np.arange(len(self.next_state))[:, None]
        return np.where(self.next_state == STAYS, own, self.next_state) + by


class _Columns:
    """An index of the classes of ids that the rules treat alike."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        num_ages = max(1, vocabulary.shortest_steps)
        most = vocabulary.range("time_shift").last
        classes: dict[tuple[str, int], int] = {}
        self.of_id = np.empty(len(vocabulary), np.int64)
        for events in vocabulary.ranges:
            for value in range(events.first, events.last + 1):
                if events.kind == "time_shift":
                    name = ("full_shift" if value == most else "part_shift", min(value, num_ages))
                elif events.kind in ("note_on", "note_off"):
                    name = (events.kind, 0)
                else:
                    name = (events.kind, value)
                self.of_id[events.start + value - events.first] = classes.setdefault(name, len(classes))
        self._classes = classes

    def __len__(self) -> int:
        return len(self._classes)

    def of(self, *kinds: str) -> list[int]:
        """Return all columns of these kinds."""
        return [column for (kind, _), column in self._classes.items() if kind in kinds]

    def items(self, *kinds: str) -> list[tuple[int, int]]:
        """Return (value, column) pairs of these kinds."""
        return [(value, column) for (kind, value), column in self._classes.items() if kind in kinds]


class GrammarArrays(TypedDict):
    """Fields of `sampling.constraints.GrammarTables`, which documents them."""

    column_of_id: np.ndarray
    first_states: np.ndarray
    next_state: np.ndarray
    forbidden: np.ndarray
    pedal_level: np.ndarray
    first_opening: int
    first_closing: int
    num_slots: int
    most_open: int
    ascending: bool
    is_tick: np.ndarray
    needs_opening: np.ndarray
    needs_all_closed: np.ndarray


class PositionArrays(TypedDict):
    """The fields of `sampling.constraints.PositionConstraints`, which documents them."""

    fits: np.ndarray
    seconds_of_id: np.ndarray
    seconds_lasting: np.ndarray
    rank_of_id: np.ndarray | None
    slot_of_id: np.ndarray
    sustains: np.ndarray
    class_of_id: np.ndarray
    filtered: list[bool]
    forbidden_ids: list[int]
    end: list[int]


class RecallRanges(TypedDict):
    """Fields of `model.config.RecallConfig` that follow from a vocabulary."""

    num_slots: int
    first_opening: int
    first_closing: int
    numbers: tuple[tuple[int, int], ...]


def grammar_arrays(vocabulary: Vocabulary) -> GrammarArrays:
    """Return the rules of a vocabulary as arrays."""
    columns = _Columns(vocabulary)
    machines = [_order(vocabulary, columns), _velocity(vocabulary, columns)]
    machines += [_pedal(vocabulary, columns, kind, deepest) for kind, deepest in vocabulary.pedals.items()]
    firsts = np.cumsum([0, *(len(machine.next_state) for machine in machines)])[:-1]
    played = vocabulary.sustain == "played"
    presses, releases = vocabulary.range("note_on"), vocabulary.range("note_off")
    return {
        "column_of_id": columns.of_id,
        "first_states": firsts,
        "next_state": np.concatenate([m.shifted(first) for m, first in zip(machines, firsts.tolist(), strict=True)]),
        "forbidden": np.concatenate([machine.forbidden for machine in machines]),
        "pedal_level": np.concatenate([machine.pedal_level for machine in machines]),
        "first_opening": presses.start,
        "first_closing": releases.start,
        "num_slots": len(presses),
        "most_open": 1 if played else 2,
        "ascending": played,
        "is_tick": vocabulary.kind_of_id == KINDS.index("time_shift"),
        "needs_opening": vocabulary.kind_of_id == KINDS.index("velocity"),
        "needs_all_closed": vocabulary.kind_of_id == KINDS.index("end"),
    }


def position_arrays(vocabulary: Vocabulary) -> PositionArrays:
    """Return the rules of a vocabulary with several ids a position as arrays.

    Top-p and the other filters do not apply to time shifts and lengths. Their rarest values are the longest ones.
    Without these, music has few rests and few long notes, and is half again as dense (`docs/experiments.md`).
    """
    kind, value = vocabulary.kind_of_id, vocabulary.value_of_id
    seconds = value * vocabulary.time_step_ms / 1000
    is_note = kind == KINDS.index("note_on")
    rank: np.ndarray | None = None
    if vocabulary.has("length"):  # releases are ordered by their onsets, which no rank of keys tells
        rank = np.where(is_note, len(PEDAL_KINDS) + value, -1)
        for place, pedal in enumerate(PEDAL_KINDS):
            rank[kind == KINDS.index(pedal)] = place
        rank[vocabulary.id("end")] = rank.max() + 1
    return {
        "fits": vocabulary.fits,
        "seconds_of_id": vocabulary.seconds_of_id,
        "seconds_lasting": np.where(kind == KINDS.index("length"), seconds, 0.0),
        "rank_of_id": rank,
        "slot_of_id": np.where(is_note, value, -1),
        "sustains": kind == KINDS.index("sustain"),
        "class_of_id": vocabulary.class_of_id,
        "filtered": [field.name not in ("shift", "length") for field in vocabulary.fields],
        "forbidden_ids": [vocabulary.id("start"), vocabulary.id("pad")],
        "end": vocabulary.border("end").tolist(),
    }


def ledger_ranges(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the ids of onsets, releases and time shifts, as the fields of `model.config.LedgerConfig`."""
    presses, shifts = vocabulary.range("note_on"), vocabulary.range("time_shift")
    return {
        "num_slots": len(presses),
        "first_opening": presses.start,
        "first_closing": vocabulary.range("note_off").start,
        "first_tick": shifts.start,
        "num_ticks": len(shifts),
    }


def recall_ranges(vocabulary: Vocabulary) -> RecallRanges:
    """Return the ids of onsets, releases and numeric values, as the fields of `model.config.RecallConfig`."""
    presses, releases, *numbers = (vocabulary.range(kind) for kind in ("note_on", "note_off", "time_shift", "velocity"))
    return {
        "num_slots": len(presses),
        "first_opening": presses.start,
        "first_closing": releases.start,
        "numbers": tuple((ids.start, len(ids)) for ids in numbers),
    }


def _order(vocabulary: Vocabulary, columns: _Columns) -> _Machine:
    """Build the machine of rules 1 to 3, and of the onset after a velocity; its state is the last event."""
    in_step = ["note_off", *vocabulary.pedals, "velocity", "note_on"]
    beginning, after_part, after_full, after_first = 0, 1, 2, 3  # then one state for each kind of `in_step`
    machine = _Machine(after_first + len(in_step), len(columns))
    for state, kind in enumerate(in_step, start=after_first):
        machine.next_state[:, columns.of(kind)] = state
        earlier = in_step[: state - after_first + (kind in vocabulary.pedals)]
        machine.forbidden[state, columns.of(*(earlier if kind != "note_on" else in_step[:-2]))] = True
    machine.next_state[:, columns.of("part_shift")] = after_part
    machine.next_state[:, columns.of("full_shift")] = after_full
    machine.forbidden[after_part, columns.of("part_shift", "full_shift", "end")] = True
    machine.forbidden[after_full, columns.of("end")] = True
    machine.forbidden[after_first + in_step.index("velocity")] = True
    machine.forbidden[after_first + in_step.index("velocity"), columns.of("note_on")] = False
    machine.forbidden[:, columns.of("start", "pad")] = True
    assert not machine.forbidden[beginning, columns.of("end")].any(), "a piece may be empty"
    return machine


def _velocity(vocabulary: Vocabulary, columns: _Columns) -> _Machine:
    """Build the machine of rule 4: state 0 before the first velocity, then the bin in force."""
    machine = _Machine(1 + vocabulary.num_velocity_bins, len(columns))
    machine.forbidden[0, columns.of("note_on")] = True
    for velocity_bin, column in columns.items("velocity"):
        machine.next_state[:, column] = velocity_bin
        machine.forbidden[velocity_bin, column] = True
        machine.forbidden[:, column] |= (velocity_bin - 1) * vocabulary.velocity_bin_width >= 127
    return machine


def _pedal(vocabulary: Vocabulary, columns: _Columns, kind: str, deepest: int) -> _Machine:
    """Build the machine of rule 7 and of the pedal's part of rule 1.

    States: first one for each depth that has lasted long enough. If a minimum duration applies, then one for each
    combination of depth, direction (from below or above), distance (from the next depth or further) and age in steps.
    """
    shortest = vocabulary.shortest_steps if deepest > 1 else 0  # with two depths there is none in between
    num_depths = deepest + 1

    def young(depth: int, up: bool, next_to: bool, age: int) -> int:
        return num_depths + ((depth * 2 + up) * 2 + next_to) * shortest + age

    machine = _Machine(num_depths * (1 + 4 * shortest), len(columns))
    # (depth, reached from below, reached from the next depth, age in steps or -1 if old enough, state)
    states = [(depth, False, False, -1, depth) for depth in range(num_depths)]
    states += [
        (depth, up, next_to, age, young(depth, up, next_to, age))
        for depth in range(num_depths)
        for up in (False, True)
        for next_to in (False, True)
        for age in range(shortest)
    ]
    for depth, up, next_to, age, state in states:
        for other, column in columns.items(kind):
            if other != depth:
                reached = other > depth, abs(other - depth) == 1
                machine.next_state[state, column] = young(other, *reached, 0) if shortest else other
            further = other > depth if up else other < depth
            back = other == (depth - 1 if up else depth + 1)
            machine.forbidden[state, column] = other == depth or (age >= 0 and (further or (next_to and back)))
        if age >= 0:
            for steps, column in columns.items("part_shift", "full_shift"):
                lasted = age + steps >= shortest
                machine.next_state[state, column] = depth if lasted else young(depth, up, next_to, age + steps)
        machine.forbidden[state, columns.of("end")] = depth != 0
        machine.pedal_level[state] = depth
    return machine
