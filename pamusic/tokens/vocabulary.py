"""The table (kind, value) <-> id, read from a TOML file of `tokenizers/`.

Knows what kinds of events there are and which ids they have; knows no performances. A vocabulary is data: copy a file,
rename it, change it.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pamusic.errors import PamusicError

NEEDED_KINDS = ("note_on", "note_off", "time_shift", "velocity", "start", "end", "pad")
PEDAL_KINDS = ("soft", "sostenuto", "sustain")  # in the order in which those of one step are written
KINDS = (*NEEDED_KINDS, *PEDAL_KINDS)
BORDERS = ("start", "end", "pad")
CLASSES = {"time": "time_shift", "pitch": "note_on", "velocity": "velocity"}  # of ids that a musician thinks of as one
SUSTAIN_MODES = ("folded", "played")
DEEPEST = 15  # finer than this no foot is; the grammar's tables grow with it
LONGEST_STEPS = 50  # of pedal.shortest_ms, for the same reason


@dataclass(frozen=True)
class EventRange:
    """Ids `start` to `start + last - first` stand for values `first` to `last` of one kind."""

    kind: str
    first: int
    last: int
    start: int

    def __len__(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of event ranges and the grid they speak of.

    Attributes:
        name: how a user calls it.
        version: raised when its meaning changes.
        time_step_ms: the grid of time, in milliseconds.
        num_velocity_bins: loudness classes, of equal width, over velocities 1 to 127.
        sustain: what becomes of the pedals: the sustain pedal is `folded` into the notes' lengths and the others are
            left out, or keys and pedals are events as `played`.
        ranges: the events in the order of their ids.
        hysteresis: where pedals are played, by how much a control's value must pass the border between two depths.
        shortest_ms: where pedals are played, how long a depth lasts that is more than a way to another or a tremor.
    """

    name: str
    version: int
    time_step_ms: float
    num_velocity_bins: int
    sustain: str
    ranges: tuple[EventRange, ...]
    hysteresis: float = 0
    shortest_ms: float = 0

    def __len__(self) -> int:
        """The number of ids."""
        return sum(len(events) for events in self.ranges)

    def range(self, kind: str) -> EventRange:
        return next(events for events in self.ranges if events.kind == kind)

    @property
    def pedals(self) -> dict[str, int]:
        """Each pedal that has events, in the order in which those of one step are written, and its deepest depth."""
        last = {events.kind: events.last for events in self.ranges}
        return {kind: last[kind] for kind in PEDAL_KINDS if kind in last}

    @property
    def velocity_bin_width(self) -> int:
        """Velocities a bin; what is left of 127 is for the last one. Where they run out before the bins do, the rest of
        these is never written."""
        return -(-127 // self.num_velocity_bins)

    @property
    def shortest_steps(self) -> int:
        """`shortest_ms` on the grid."""
        return round(self.shortest_ms / self.time_step_ms)

    def id(self, kind: str, value: int = 0) -> int:
        """The id of an event.

        Raises:
            ValueError: the kind has no such value.
        """
        events = self.range(kind)
        if not events.first <= value <= events.last:
            raise ValueError(f"{self.name} has {kind} {events.first} to {events.last}, not {value}")
        return events.start + value - events.first

    def event(self, id: int) -> tuple[str, int]:
        """The kind and value of an id."""
        for events in self.ranges:
            if events.start <= id < events.start + len(events):
                return events.kind, events.first + id - events.start
        raise ValueError(f"{self.name} has ids 0 to {len(self) - 1}, not {id}")

    @cached_property
    def kind_of_id(self) -> np.ndarray:
        """`[vocab]`, index into `KINDS` of each id."""
        return np.concatenate([np.full(len(events), KINDS.index(events.kind), np.uint8) for events in self.ranges])

    @cached_property
    def value_of_id(self) -> np.ndarray:
        """`[vocab]`, value of each id."""
        return np.concatenate([np.arange(events.first, events.last + 1, dtype=np.int64) for events in self.ranges])

    @cached_property
    def seconds_of_id(self) -> np.ndarray:
        """`[vocab]`, seconds that pass with each id; all but time shifts are instantaneous."""
        is_shift = self.kind_of_id == KINDS.index("time_shift")
        return np.where(is_shift, self.value_of_id * self.time_step_ms / 1000, 0.0)

    @cached_property
    def class_of_id(self) -> np.ndarray:
        """`[vocab]`, int64, index into `CLASSES` of each id, -1 for those of no class.

        A release is of no class: which of the keys that sound is let go is no choice of a pitch.
        """
        kind_of_class = [KINDS.index(kind) for kind in CLASSES.values()]
        return np.array([kind_of_class.index(kind) if kind in kind_of_class else -1 for kind in self.kind_of_id])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what the vocabulary means: comments, layout and name of the file do not enter."""
        step_ms = int(self.time_step_ms) if self.time_step_ms == int(self.time_step_ms) else self.time_step_ms
        meaning: list[object] = [step_ms, self.num_velocity_bins, self.sustain]
        if self.pedals:
            meaning += [float(self.hysteresis), float(self.shortest_ms)]
        meaning += [[events.kind, events.first, events.last] for events in self.ranges]
        return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:16]

    def toml(self) -> str:
        """The vocabulary as the text of a TOML file that `load_vocabulary` reads."""
        lines = [
            f"name = {json.dumps(self.name, ensure_ascii=False)}",
            f"version = {self.version}",
            "",
            "[time]",
            f"step_ms = {self.time_step_ms}",
            "",
        ]
        lines += ["[velocity]", f"bins = {self.num_velocity_bins}", "", "[pedal]", f'sustain = "{self.sustain}"']
        if self.pedals:
            lines += [f"hysteresis = {self.hysteresis}", f"shortest_ms = {self.shortest_ms}"]
        for events in self.ranges:
            lines += ["", "[[events]]", f'kind = "{events.kind}"', f"first = {events.first}", f"last = {events.last}"]
        return "\n".join(lines) + "\n"


def load_vocabulary(path: Path) -> Vocabulary:
    """Reads a vocabulary.

    Raises:
        PamusicError: the file is missing, is no TOML, or does not describe a vocabulary.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PamusicError(f"{path}: no such tokenizer file; check the path") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PamusicError(f"{path}: is not a tokenizer file ({error})") from None
    try:
        ranges, start = [], 0
        for events in table["events"]:
            ranges.append(EventRange(str(events["kind"]), _whole(events["first"]), _whole(events["last"]), start))
            start += len(ranges[-1])
        pedal = table["pedal"]
        played = pedal["sustain"] == "played"
        vocabulary = Vocabulary(
            name=str(table["name"]),
            version=_whole(table["version"]),
            time_step_ms=table["time"]["step_ms"],
            num_velocity_bins=_whole(table["velocity"]["bins"]),
            sustain=str(pedal["sustain"]),
            ranges=tuple(ranges),
            hysteresis=pedal["hysteresis"] if played else 0,
            shortest_ms=pedal["shortest_ms"] if played else 0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PamusicError(f"{path}: is not a tokenizer file (missing or malformed: {error})") from None
    _check(vocabulary, path)
    return vocabulary


def _whole(number: object) -> int:
    if type(number) is not int:  # TOML's true is an int to Python, and 1.5 could be cut to one
        raise ValueError(f"{number!r} should be a whole number")
    return number


def _check(vocabulary: Vocabulary, path: Path) -> None:
    kinds = [events.kind for events in vocabulary.ranges]
    for kind in kinds:
        if kind not in KINDS:
            raise PamusicError(f"{path}: has events of kind {kind!r}; the kinds are {', '.join(KINDS)}")
    needed = (*NEEDED_KINDS, "sustain") if vocabulary.sustain == "played" else NEEDED_KINDS
    if len(set(kinds)) < len(kinds) or not set(needed) <= set(kinds):
        raise PamusicError(f"{path}: must have each kind of event once ({', '.join(needed)}), has {', '.join(kinds)}")
    if not vocabulary.name.isprintable() or not vocabulary.name.strip():
        raise PamusicError(f"{path}: name must be a line of text, not {vocabulary.name!r}")
    for events in vocabulary.ranges:
        if len(events) < 1:
            raise PamusicError(f"{path}: {events.kind} ends at {events.last}, below its first value {events.first}")
        if events.kind in BORDERS and (events.first, events.last) != (0, 0):
            raise PamusicError(f"{path}: {events.kind} has one value, 0, not {events.first} to {events.last}")
    step_ms = vocabulary.time_step_ms
    if not _is_number(step_ms) or not 1 <= step_ms <= 1000:
        raise PamusicError(f"{path}: time.step_ms is 1 to 1000, not {step_ms}")
    velocity, shift = vocabulary.range("velocity"), vocabulary.range("time_shift")
    if not 1 <= vocabulary.num_velocity_bins <= 127 or (velocity.first, velocity.last) != (
        1,
        vocabulary.num_velocity_bins,
    ):
        raise PamusicError(
            f"{path}: velocity events must be 1 to velocity.bins ({vocabulary.num_velocity_bins}, at most 127)"
        )
    if shift.first != 1:
        raise PamusicError(f"{path}: time_shift events must begin at 1, not {shift.first}")
    notes = [(vocabulary.range(kind).first, vocabulary.range(kind).last) for kind in ("note_on", "note_off")]
    if notes[0] != notes[1] or not 0 <= notes[0][0] <= notes[0][1] <= 127:
        raise PamusicError(f"{path}: note_on and note_off must have the same pitches, within 0 to 127")
    _check_pedals(vocabulary, path)
    if len(vocabulary) > 2**16:
        raise PamusicError(f"{path}: has {len(vocabulary)} ids; at most {2**16} fit a corpus")


def _check_pedals(vocabulary: Vocabulary, path: Path) -> None:
    if vocabulary.sustain not in SUSTAIN_MODES:
        raise PamusicError(f"{path}: pedal.sustain is one of {', '.join(SUSTAIN_MODES)}, not {vocabulary.sustain!r}")
    if vocabulary.sustain == "folded" and vocabulary.pedals:
        raise PamusicError(f'{path}: events of {", ".join(vocabulary.pedals)} need pedal.sustain = "played"')
    for kind, deepest in vocabulary.pedals.items():
        if vocabulary.range(kind).first != 0 or not 1 <= deepest <= DEEPEST:
            raise PamusicError(f"{path}: {kind} events are depths from 0 (up) to a last of 1 to {DEEPEST} (down)")
    hysteresis, shortest_ms = vocabulary.hysteresis, vocabulary.shortest_ms
    most = 127 / max(vocabulary.pedals.values(), default=1) / 2 - 1  # a depth's own value must lead to it from anywhere
    if not _is_number(hysteresis) or not 0 <= hysteresis <= most:
        raise PamusicError(f"{path}: pedal.hysteresis is 0 to {most:.1f} for that many depths, not {hysteresis}")
    if not _is_number(shortest_ms) or not 0 <= shortest_ms <= LONGEST_STEPS * vocabulary.time_step_ms:
        raise PamusicError(f"{path}: pedal.shortest_ms is 0 to {LONGEST_STEPS} steps of time, not {shortest_ms}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
