"""The table (kind, value) <-> id, read from a TOML file of `tokenizers/`.

Knows what kinds of events there are and which ids they have; knows no performances. A vocabulary is data: copy a file,
rename it, change it.

A position of the sequence holds one id of each field of the vocabulary. Most vocabularies have one field: a position is
an event. Where there are several, the ids of one field follow those of the field before it, so that an id says which
field it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pamusic.errors import PamusicError

NEEDED_KINDS = ("note_on", "note_off", "time_shift", "velocity", "start", "end", "pad")
PEDAL_KINDS = ("soft", "sostenuto", "sustain")  # in the order in which those of one step are written
KINDS = (*NEEDED_KINDS, *PEDAL_KINDS, "length")
BORDERS = ("start", "end", "pad")
CLASSES = {"time": "time_shift", "pitch": "note_on", "velocity": "velocity"}  # of ids that a musician thinks of as one
SUSTAIN_MODES = ("folded", "played")
MAX_DEPTH = 15  # finer than this no foot is; the grammar's tables grow with it
MAX_SHORTEST_STEPS = 50  # of pedal.shortest_ms, for the same reason
EVENT = "event"  # the name of the field of a vocabulary that has one
FIELDS = ("shift", "key", "velocity", "length")  # of one that has several, in this order; the last one can be missing
FIELD_OF_KIND = {"time_shift": "shift", "velocity": "velocity", "length": "length"}  # all others are of `key`
MAX_GROWTH = 1.1  # the middle of a bin is then within 5 % of all its values
MAX_VALUE = 1_000_000  # of any value


@dataclass(frozen=True)
class EventRange:
    """Ids from `start` on stand for values `first` to `last` of one kind.

    Attributes:
        kind: one of `KINDS`.
        first, last: the values.
        start: the id of the first value.
        exact: the last value that has an id of its own; all have one where it is None. Above it stand bins.
        growth: how much further up the next bin begins.
        field: the name of the field that the ids belong to.
    """

    kind: str
    first: int
    last: int
    start: int
    exact: int | None = None
    growth: float = 1.0
    field: str = EVENT

    def __len__(self) -> int:
        return len(self.lowest)

    @cached_property
    def lowest(self) -> np.ndarray:
        """`[num_ids]`, int64, the lowest value that each id stands for."""
        if self.exact is None:
            return np.arange(self.first, self.last + 1)
        lowest, bins = self.exact + 1, []
        while lowest <= self.last:
            bins.append(lowest)
            lowest = max(lowest + 1, int(lowest * self.growth))
        return np.array([*range(self.first, self.exact + 1), *bins], np.int64)

    @cached_property
    def size(self) -> np.ndarray:
        """`[num_ids]`, int64, how many values each id stands for."""
        return np.diff(self.lowest, append=self.last + 1)

    @cached_property
    def middle(self) -> np.ndarray:
        """`[num_ids]`, int64, the value that each id is decoded as."""
        return self.lowest + (self.size - 1) // 2

    def place(self, values: np.ndarray) -> np.ndarray:
        """Return which id, counted from `start`, stands for each value; those beyond the last have the last id."""
        if self.exact is None:
            return np.minimum(values, self.last) - self.first
        return np.searchsorted(self.lowest, values, side="right") - 1


@dataclass(frozen=True)
class Field:
    """A part of each position: ids `start` to `start + size - 1`."""

    name: str
    start: int
    size: int


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
        """Return the number of ids, of all fields together."""
        return sum(len(events) for events in self.ranges)

    def range(self, kind: str) -> EventRange:
        return next(events for events in self.ranges if events.kind == kind)

    def has(self, kind: str) -> bool:
        """Return whether there are events of a kind."""
        return any(events.kind == kind for events in self.ranges)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The parts of a position, in the order in which they are predicted."""
        names = dict.fromkeys(events.field for events in self.ranges)
        its = {name: [events for events in self.ranges if events.field == name] for name in names}
        return tuple(Field(name, ranges[0].start, sum(map(len, ranges))) for name, ranges in its.items())

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes that a position adds to an array of ids: none for one field, `(num_fields,)` for several."""
        return () if len(self.fields) == 1 else (len(self.fields),)

    def border(self, kind: str) -> np.ndarray:
        """Return the ids of a start, end or pad, as an array of `shape`, uint16."""
        value = {"time_shift": 0, "velocity": 0, "length": 0}
        kinds = {FIELDS[0]: "time_shift", FIELDS[1]: kind, FIELDS[2]: "velocity", FIELDS[3]: "length", EVENT: kind}
        ids = [self.id(kinds[field.name], value.get(kinds[field.name], 0)) for field in self.fields]
        return np.array(ids, np.uint16).reshape(self.shape)

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
        """Return the id of an event.

        Raises:
            ValueError: the kind has no such value.
        """
        events = self.range(kind)
        if not events.first <= value <= events.last:
            raise ValueError(f"{self.name} has {kind} {events.first} to {events.last}, not {value}")
        return events.start + int(events.place(np.array(value)))

    def event(self, id: int) -> tuple[str, int]:
        """Return the kind and value of an id."""
        for events in self.ranges:
            if events.start <= id < events.start + len(events):
                return events.kind, int(events.middle[id - events.start])
        raise ValueError(f"{self.name} has ids 0 to {len(self) - 1}, not {id}")

    @cached_property
    def kind_of_id(self) -> np.ndarray:
        """`[vocab]`, index into `KINDS` of each id."""
        return np.concatenate([np.full(len(events), KINDS.index(events.kind), np.uint8) for events in self.ranges])

    @cached_property
    def value_of_id(self) -> np.ndarray:
        """`[vocab]`, value of each id."""
        return np.concatenate([events.middle.astype(np.int64) for events in self.ranges])

    @cached_property
    def first_of_kind(self) -> np.ndarray:
        """`[len(KINDS)]`, int64, what is added to a value of each kind to get its id, where it has no bins."""
        first = np.zeros(len(KINDS), np.int64)
        for events in self.ranges:
            first[KINDS.index(events.kind)] = events.start - events.first
        return first

    @cached_property
    def nats_within_id(self) -> np.ndarray:
        """`[vocab]`, nats that say which of the values of each id it is: the logarithm of how many there are.

        With them the likelihood is one of the music on the grid, whatever bins a vocabulary has.
        """
        return np.log(np.concatenate([events.size for events in self.ranges]))

    @cached_property
    def fits(self) -> np.ndarray:
        """`[vocab, vocab]`, bool, which ids of different fields can stand in one position.

        A note has a velocity, all else has none; a note or a press of a pedal has a length, a border has none.
        """
        kind, value = self.kind_of_id, self.value_of_id
        is_note = kind == KINDS.index("note_on")
        is_border = np.isin(kind, [KINDS.index(border) for border in BORDERS])
        is_key = np.isin(kind, [KINDS.index(name) for name in (*BORDERS, *PEDAL_KINDS, "note_on", "note_off")])
        fits = np.ones((len(self), len(self)), bool)
        for name, has_it in (("velocity", is_note), ("length", ~is_border)):
            its = np.flatnonzero(kind == KINDS.index(name))
            fits[np.ix_(is_key, its)] = has_it[is_key][:, None] == (value[its] > 0)
        return fits & fits.T

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
        if self.shape:
            meaning += [[events.field, events.exact, float(events.growth)] for events in self.ranges]
        return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:16]

    def toml(self) -> str:
        """Return the vocabulary as the text of a TOML file that `load_vocabulary` reads."""
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
        head, field = "[[events]]", EVENT
        for events in self.ranges:
            if events.field != field:
                head, field = "[[fields.events]]", events.field
                lines += ["", "[[fields]]", f'name = "{field}"']
            lines += ["", head, f'kind = "{events.kind}"', f"first = {events.first}", f"last = {events.last}"]
            if events.exact is not None:
                lines += [f"exact = {events.exact}", f"growth = {events.growth}"]
        return "\n".join(lines) + "\n"


def load_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary.

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
        ranges = _ranges(table)
        pedal = table["pedal"]
        played = pedal["sustain"] == "played"
        vocabulary = Vocabulary(
            name=str(table["name"]),
            version=_whole(table["version"]),
            time_step_ms=table["time"]["step_ms"],
            num_velocity_bins=_whole(table["velocity"]["bins"]),
            sustain=str(pedal["sustain"]),
            ranges=ranges,
            hysteresis=pedal["hysteresis"] if played else 0,
            shortest_ms=pedal["shortest_ms"] if played else 0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PamusicError(f"{path}: is not a tokenizer file (missing or malformed: {error})") from None
    _check(vocabulary, path)
    return vocabulary


def _ranges(table: dict[str, Any]) -> tuple[EventRange, ...]:
    """Return the events of a TOML file, of one field or of several.

    Raises:
        KeyError, TypeError, ValueError: something is missing or malformed.
    """
    if "fields" in table and "events" in table:
        raise ValueError("it has both events and fields; give one of them")
    for whose in [table, *_tables(table, "fields")]:
        _tables(whose, "events")
    parts = {str(field["name"]): field["events"] for field in table["fields"]} if "fields" in table else None
    if parts is not None and (empty := [name for name, its in parts.items() if not its]):
        raise ValueError(f"the field {empty[0]} has no events")
    if parts is not None and len(parts) < len(table["fields"]):
        raise ValueError("two fields have one name")
    ranges: list[EventRange] = []
    for name, its in ({EVENT: table["events"]} if parts is None else parts).items():
        for events in its:
            first, last = _whole(events["first"]), _whole(events["last"])
            if max(abs(first), abs(last)) > MAX_VALUE:
                raise ValueError(f"values are at most {MAX_VALUE:,}, not {first} to {last}")
            exact = _whole(events["exact"]) if "exact" in events else None
            if ("exact" in events) != ("growth" in events):
                raise ValueError("bins need both exact, their lower end, and growth; give both or none")
            growth = events.get("growth", 1.0)
            if exact is not None and not first <= exact < last:
                raise ValueError(f"exact is {first} or more and below last ({last}), not {exact}")
            if exact is not None and not (_is_number(growth) and 1 < growth <= MAX_GROWTH):
                raise ValueError(f"growth is above 1 and at most {MAX_GROWTH}, not {growth!r}")
            start = ranges[-1].start + len(ranges[-1]) if ranges else 0
            ranges.append(EventRange(str(events["kind"]), first, last, start, exact, growth, name))
    return tuple(ranges)


def _tables(table: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the tables `[[name]]` of a table; none where it has none.

    Raises:
        ValueError: what has this name is something else.
    """
    tables = table.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise ValueError(f"{name} must be tables; write [[{name}]]")
    return tables


def _whole(number: object) -> int:
    if type(number) is not int:  # TOML's true is an int to Python, and 1.5 could be cut to one
        raise ValueError(f"{number!r} should be a whole number")
    return number


def _check(vocabulary: Vocabulary, path: Path) -> None:
    kinds = [events.kind for events in vocabulary.ranges]
    for kind in kinds:
        if kind not in KINDS:
            raise PamusicError(f"{path}: has events of kind {kind!r}; the kinds are {', '.join(KINDS)}")
    needed = [*NEEDED_KINDS, *(["sustain"] if vocabulary.sustain == "played" else [])]
    if vocabulary.has("length"):
        needed.remove("note_off")
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
    _check_fields(vocabulary, path)
    velocity, shift = vocabulary.range("velocity"), vocabulary.range("time_shift")
    lowest = 0 if vocabulary.shape else 1  # of several fields, 0 says that there is none, or that no time passes
    if not 1 <= vocabulary.num_velocity_bins <= 127 or (velocity.first, velocity.last) != (
        lowest,
        vocabulary.num_velocity_bins,
    ):
        raise PamusicError(
            f"{path}: velocity events must be {lowest} to velocity.bins ({vocabulary.num_velocity_bins}, at most 127)"
        )
    if shift.first != lowest:
        raise PamusicError(f"{path}: time_shift events must begin at {lowest}, not {shift.first}")
    if vocabulary.has("length") and vocabulary.range("length").first != 0:
        raise PamusicError(f"{path}: length events must begin at 0, not {vocabulary.range('length').first}")
    for kind in ("time_shift", "length") if vocabulary.shape else ():
        if vocabulary.has(kind) and vocabulary.range(kind).last < 1:
            raise PamusicError(f"{path}: {kind} events must go up to 1 or more, not {vocabulary.range(kind).last}")
    notes = [
        (vocabulary.range(kind).first, vocabulary.range(kind).last)
        for kind in ("note_on", "note_off")
        if vocabulary.has(kind)
    ]
    if notes[0] != notes[-1] or not 0 <= notes[0][0] <= notes[0][1] <= 127:
        raise PamusicError(f"{path}: note_on and note_off must have the same pitches, within 0 to 127")
    _check_pedals(vocabulary, path)
    if len(vocabulary) > 2**16:
        raise PamusicError(f"{path}: has {len(vocabulary)} ids; at most {2**16} fit a corpus")


def _check_fields(vocabulary: Vocabulary, path: Path) -> None:
    """One field has no lengths and no bins; of several each has the kinds that belong there."""
    names = tuple(field.name for field in vocabulary.fields)
    if names == (EVENT,):
        if vocabulary.has("length") or any(events.exact is not None for events in vocabulary.ranges):
            raise PamusicError(
                f"{path}: length and exact are of vocabularies with fields; write [[fields]] or leave them out"
            )
        return
    if names not in (FIELDS, FIELDS[:-1]):
        raise PamusicError(
            f"{path}: its fields are {', '.join(names)}; they must be {', '.join(FIELDS)}, or without the last"
        )
    for events in vocabulary.ranges:
        belongs = FIELD_OF_KIND.get(events.kind, "key")
        if events.field != belongs:
            raise PamusicError(
                f"{path}: {events.kind} events stand in the field {events.field}; they belong in {belongs}"
            )
        if events.exact is not None and events.kind not in ("time_shift", "length"):
            raise PamusicError(f"{path}: {events.kind} events have no bins; leave exact and growth out")
    if vocabulary.has("length") and vocabulary.has("note_off"):
        raise PamusicError(f"{path}: notes have either a length or a note_off, not both")


def _check_pedals(vocabulary: Vocabulary, path: Path) -> None:
    if vocabulary.sustain not in SUSTAIN_MODES:
        raise PamusicError(f"{path}: pedal.sustain is one of {', '.join(SUSTAIN_MODES)}, not {vocabulary.sustain!r}")
    if vocabulary.sustain == "folded" and vocabulary.pedals:
        raise PamusicError(f'{path}: events of {", ".join(vocabulary.pedals)} need pedal.sustain = "played"')
    shallowest = 1 if vocabulary.has("length") else 0  # a press has a length, so that there is no event of its end
    for kind, deepest in vocabulary.pedals.items():
        if vocabulary.range(kind).first != shallowest or not 1 <= deepest <= MAX_DEPTH:
            up = "1" if shallowest else "0 (up)"
            raise PamusicError(f"{path}: {kind} events are depths from {up} to a last of 1 to {MAX_DEPTH} (down)")
    hysteresis, shortest_ms = vocabulary.hysteresis, vocabulary.shortest_ms
    most = 127 / max(vocabulary.pedals.values(), default=1) / 2 - 1  # a depth's own value must lead to it from anywhere
    if not _is_number(hysteresis) or not 0 <= hysteresis <= most:
        raise PamusicError(f"{path}: pedal.hysteresis is 0 to {most:.1f} for that many depths, not {hysteresis}")
    if not _is_number(shortest_ms) or not 0 <= shortest_ms <= MAX_SHORTEST_STEPS * vocabulary.time_step_ms:
        raise PamusicError(f"{path}: pedal.shortest_ms is 0 to {MAX_SHORTEST_STEPS} steps of time, not {shortest_ms}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
