"""Define the table (kind, value) <-> id, read from a TOML file of `tokenizers/`.

Knows the kinds of events and their ids; knows no performances. A vocabulary is data: to make your own, copy a file,
rename it, change it.

A position of the sequence holds one id of each field of the vocabulary. Most vocabularies have one field, so a position
is one event. With several fields, the id ranges of the fields follow one another, so an id determines its field.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pamusic.errors import PamusicError

Position: TypeAlias = int | list[int]  # an id, or one id per field

NEEDED_KINDS = ("note_on", "note_off", "time_shift", "velocity", "start", "end", "pad")
PEDAL_KINDS = ("soft", "sostenuto", "sustain")  # in the order in which a step holds them
KINDS = (*NEEDED_KINDS, *PEDAL_KINDS, "length")
BORDERS = ("start", "end", "pad")
CLASSES = {"time": "time_shift", "pitch": "note_on", "velocity": "velocity", "length": "length"}  # classes of ids
SUSTAIN_MODES = ("folded", "played")
MAX_DEPTH = 15  # finer than any foot; the grammar's tables grow with it
MAX_SHORTEST_STEPS = 50  # limit of pedal.shortest_ms, for the same reason
EVENT = "event"  # name of the field in a vocabulary with one field
FIELDS = ("shift", "key", "velocity", "length")  # names and order of several fields; the last one is optional
FIELD_OF_KIND = {"time_shift": "shift", "velocity": "velocity", "length": "length"}  # all other kinds: `key`
MAX_GROWTH = 1.1  # the middle of a bin is then within 5 % of all its values
MAX_VALUE = 1_000_000  # limit of every event value


@dataclass(frozen=True)
class EventRange:
    """A range of ids from `start` on, for the values `first` to `last` of one kind.

    Attributes:
        kind: One of `KINDS`.
        first, last: First and last value.
        start: Id of the first value.
        exact: Last value with an id of its own; larger values share bins. None: every value has its own id.
        growth: Factor from the lower end of a bin to the lower end of the next.
        field: Name of the field that the ids belong to.
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
        """Lowest value that each id stands for, `[num_ids]`, int64."""
        if self.exact is None:
            return np.arange(self.first, self.last + 1)
        lowest, bins = self.exact + 1, []
        while lowest <= self.last:
            bins.append(lowest)
            lowest = max(lowest + 1, int(lowest * self.growth))
        return np.array([*range(self.first, self.exact + 1), *bins], np.int64)

    @cached_property
    def size(self) -> np.ndarray:
        """Number of values that each id stands for, `[num_ids]`, int64."""
        return np.diff(self.lowest, append=self.last + 1)

    @cached_property
    def middle(self) -> np.ndarray:
        """Value that each id is decoded as, `[num_ids]`, int64."""
        return self.lowest + (self.size - 1) // 2

    def place(self, values: np.ndarray) -> np.ndarray:
        """Return the id of each value, counted from `start`; values beyond the last have the last id."""
        if self.exact is None:
            return np.minimum(values, self.last) - self.first
        return np.searchsorted(self.lowest, values, side="right") - 1


@dataclass(frozen=True)
class Field:
    """A part of each position, with the ids `start` to `start + size - 1`."""

    name: str
    start: int
    size: int


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of event ranges, and their grid.

    Attributes:
        name: Name for users.
        version: Number that rises when the meaning changes.
        time_step_ms: Step of the time grid, in milliseconds.
        num_velocity_bins: Number of velocity bins, of equal width, over velocities 1 to 127.
        sustain: Treatment of the pedals. "folded": the sustain pedal extends the notes, and the other pedals are left
            out. "played": keys and pedals are events, as played.
        ranges: Event ranges in the order of their ids.
        hysteresis: Distance by which a control's value must pass the border between two depths (played pedals only).
        shortest_ms: Shortest duration of a depth that is neither a way to another nor a tremor (played pedals only).
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
        """Return the number of ids in all fields together."""
        return sum(len(events) for events in self.ranges)

    def range(self, kind: str) -> EventRange:
        return next(events for events in self.ranges if events.kind == kind)

    def has(self, kind: str) -> bool:
        """Return whether the vocabulary has events of a kind."""
        return any(events.kind == kind for events in self.ranges)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """Parts of a position, in the order in which they are predicted."""
        names = dict.fromkeys(events.field for events in self.ranges)
        its = {name: [events for events in self.ranges if events.field == name] for name in names}
        return tuple(Field(name, ranges[0].start, sum(map(len, ranges))) for name, ranges in its.items())

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes that a position adds to an array of ids: none for one field, `(num_fields,)` for several."""
        return () if len(self.fields) == 1 else (len(self.fields),)

    def border(self, kind: str) -> np.ndarray:
        """Return the ids of a start, end or pad position, as an array of `shape`, uint16."""
        value = {"time_shift": 0, "velocity": 0, "length": 0}
        kinds = {FIELDS[0]: "time_shift", FIELDS[1]: kind, FIELDS[2]: "velocity", FIELDS[3]: "length", EVENT: kind}
        ids = [self.id(kinds[field.name], value.get(kinds[field.name], 0)) for field in self.fields]
        return np.array(ids, np.uint16).reshape(self.shape)

    @property
    def pedals(self) -> dict[str, int]:
        """Pedals that have events, in the order in which a step holds them, each with its deepest depth."""
        last = {events.kind: events.last for events in self.ranges}
        return {kind: last[kind] for kind in PEDAL_KINDS if kind in last}

    @property
    def velocity_bin_width(self) -> int:
        """Number of velocities in a bin; the last bin takes the rest up to 127. Bins above 127 are never written."""
        return -(-127 // self.num_velocity_bins)

    @cached_property
    def velocity_of_bin(self) -> np.ndarray:
        """Velocity that each bin is decoded as, its middle, `[1 + num_velocity_bins]`, int64; bin 0 is not used."""
        middle = np.arange(-1, self.num_velocity_bins) * self.velocity_bin_width + 1 + self.velocity_bin_width // 2
        return np.clip(middle, 1, 127)

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
            raise ValueError(f"{kind} of {self.name} must be {events.first} to {events.last}, got {value}")
        return events.start + int(events.place(np.array(value)))

    def event(self, id: int) -> tuple[str, int]:
        """Return the kind and value of an id."""
        for events in self.ranges:
            if events.start <= id < events.start + len(events):
                return events.kind, int(events.middle[id - events.start])
        raise ValueError(f"ids of {self.name} must be 0 to {len(self) - 1}, got {id}")

    @cached_property
    def kind_of_id(self) -> np.ndarray:
        """Index into `KINDS` of each id, `[vocab]`."""
        return np.concatenate([np.full(len(events), KINDS.index(events.kind), np.uint8) for events in self.ranges])

    @cached_property
    def value_of_id(self) -> np.ndarray:
        """Value of each id, `[vocab]`."""
        return np.concatenate([events.middle.astype(np.int64) for events in self.ranges])

    @cached_property
    def first_of_kind(self) -> np.ndarray:
        """Offset from a value of each kind to its id, for kinds without bins, `[len(KINDS)]`, int64."""
        first = np.zeros(len(KINDS), np.int64)
        for events in self.ranges:
            first[KINDS.index(events.kind)] = events.start - events.first
        return first

    @cached_property
    def nats_within_id(self) -> np.ndarray:
        """Nats to select one value within each id, `[vocab]`: the logarithm of the number of its values.

        Added to the likelihood, they make it the likelihood of the music on the grid, whatever the bins.
        """
        return np.log(np.concatenate([events.size for events in self.ranges]))

    @cached_property
    def fits(self) -> np.ndarray:
        """Whether ids of two fields can stand in one position, `[vocab, vocab]`, bool.

        Only a note has a velocity. A note or a pedal press has a length; a border has none.
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
        """Seconds that pass with each id, `[vocab]`; 0 for all but time shifts."""
        is_shift = self.kind_of_id == KINDS.index("time_shift")
        return np.where(is_shift, self.value_of_id * self.time_step_ms / 1000, 0.0)

    @cached_property
    def class_of_id(self) -> np.ndarray:
        """Index into `CLASSES` of each id, `[vocab]`, int64; -1 for ids without a class.

        A release has no class: to release one of the sounding keys is not a choice of a pitch.
        """
        kind_of_class = [KINDS.index(kind) for kind in CLASSES.values()]
        return np.array([kind_of_class.index(kind) if kind in kind_of_class else -1 for kind in self.kind_of_id])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary's meaning; comments, layout and the name do not affect it."""
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
    """Read a vocabulary from a TOML file.

    Raises:
        PamusicError: the file is missing, is not TOML, or does not describe a vocabulary.
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
        raise ValueError("the file has both events and fields; use one of them")
    for whose in [table, *_tables(table, "fields")]:
        _tables(whose, "events")
    parts = {str(field["name"]): field["events"] for field in table["fields"]} if "fields" in table else None
    if parts is not None and (empty := [name for name, its in parts.items() if not its]):
        raise ValueError(f"the field {empty[0]} has no events")
    if parts is not None and len(parts) < len(table["fields"]):
        raise ValueError("field names must differ")
    ranges: list[EventRange] = []
    for name, its in ({EVENT: table["events"]} if parts is None else parts).items():
        for events in its:
            first, last = _whole(events["first"]), _whole(events["last"])
            if max(abs(first), abs(last)) > MAX_VALUE:
                raise ValueError(f"values must be at most {MAX_VALUE:,}, got {first} to {last}")
            exact = _whole(events["exact"]) if "exact" in events else None
            if ("exact" in events) != ("growth" in events):
                raise ValueError("bins need both exact, their lower end, and growth; use both or none")
            growth = events.get("growth", 1.0)
            if exact is not None and not first <= exact < last:
                raise ValueError(f"exact must be {first} or more and below last ({last}), got {exact}")
            if exact is not None and not (_is_number(growth) and 1 < growth <= MAX_GROWTH):
                raise ValueError(f"growth must be above 1 and at most {MAX_GROWTH}, got {growth!r}")
            start = ranges[-1].start + len(ranges[-1]) if ranges else 0
            ranges.append(EventRange(str(events["kind"]), first, last, start, exact, growth, name))
    return tuple(ranges)


def _tables(table: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the tables `[[name]]` of a table; an empty list if it has none.

    Raises:
        ValueError: the entry of this name is not a list of tables.
    """
    tables = table.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise ValueError(f"{name} must be tables; write [[{name}]]")
    return tables


def _whole(number: object) -> int:
    if type(number) is not int:  # True is an int in Python, and int() would truncate 1.5
        raise ValueError(f"{number!r} should be a whole number")
    return number


def _check(vocabulary: Vocabulary, path: Path) -> None:
    kinds = [events.kind for events in vocabulary.ranges]
    for kind in kinds:
        if kind not in KINDS:
            raise PamusicError(f"{path}: has events of kind {kind!r}; use one of {', '.join(KINDS)}")
    needed = [*NEEDED_KINDS, *(["sustain"] if vocabulary.sustain == "played" else [])]
    if vocabulary.has("length"):
        needed.remove("note_off")
    if len(set(kinds)) < len(kinds) or not set(needed) <= set(kinds):
        raise PamusicError(f"{path}: must have each kind of event once ({', '.join(needed)}), has {', '.join(kinds)}")
    if not vocabulary.name.isprintable() or not vocabulary.name.strip():
        raise PamusicError(f"{path}: name must be a line of text, got {vocabulary.name!r}")
    for events in vocabulary.ranges:
        if len(events) < 1:
            raise PamusicError(f"{path}: {events.kind} ends at {events.last}, below its first value {events.first}")
        if events.kind in BORDERS and (events.first, events.last) != (0, 0):
            raise PamusicError(f"{path}: {events.kind} must have one value, 0, got {events.first} to {events.last}")
    step_ms = vocabulary.time_step_ms
    if not _is_number(step_ms) or not 1 <= step_ms <= 1000:
        raise PamusicError(f"{path}: time.step_ms must be 1 to 1000, got {step_ms}")
    _check_fields(vocabulary, path)
    velocity, shift = vocabulary.range("velocity"), vocabulary.range("time_shift")
    lowest = 0 if vocabulary.shape else 1  # with several fields, 0 means no velocity, or no time between positions
    if not 1 <= vocabulary.num_velocity_bins <= 127 or (velocity.first, velocity.last) != (
        lowest,
        vocabulary.num_velocity_bins,
    ):
        raise PamusicError(
            f"{path}: velocity events must be {lowest} to velocity.bins ({vocabulary.num_velocity_bins}, at most 127)"
        )
    if shift.first != lowest:
        raise PamusicError(f"{path}: time_shift events must begin at {lowest}, got {shift.first}")
    if vocabulary.has("length") and vocabulary.range("length").first != 0:
        raise PamusicError(f"{path}: length events must begin at 0, got {vocabulary.range('length').first}")
    for kind in ("time_shift", "length") if vocabulary.shape else ():
        if vocabulary.has(kind) and vocabulary.range(kind).last < 1:
            raise PamusicError(f"{path}: {kind} events must go up to 1 or more, got {vocabulary.range(kind).last}")
    notes = [
        (vocabulary.range(kind).first, vocabulary.range(kind).last)
        for kind in ("note_on", "note_off")
        if vocabulary.has(kind)
    ]
    if notes[0] != notes[-1] or not 0 <= notes[0][0] <= notes[0][1] <= 127:
        raise PamusicError(f"{path}: note_on and note_off must have the same pitches, within 0 to 127")
    _check_pedals(vocabulary, path)
    if len(vocabulary) > 2**16:
        raise PamusicError(f"{path}: must have at most {2**16} ids to fit a corpus, got {len(vocabulary)}")


def _check_fields(vocabulary: Vocabulary, path: Path) -> None:
    """Check the fields: one field has no lengths and no bins; of several, each has the kinds that belong there."""
    names = tuple(field.name for field in vocabulary.fields)
    if names == (EVENT,):
        if vocabulary.has("length") or any(events.exact is not None for events in vocabulary.ranges):
            raise PamusicError(
                f"{path}: length and exact need a vocabulary with fields; use [[fields]] or leave them out"
            )
        return
    if names not in (FIELDS, FIELDS[:-1]):
        raise PamusicError(f"{path}: fields must be {', '.join(FIELDS)}, the last one optional, got {', '.join(names)}")
    for events in vocabulary.ranges:
        belongs = FIELD_OF_KIND.get(events.kind, "key")
        if events.field != belongs:
            raise PamusicError(f"{path}: {events.kind} events must be in the field {belongs}, got {events.field}")
        if events.exact is not None and events.kind not in ("time_shift", "length"):
            raise PamusicError(f"{path}: {events.kind} events cannot have bins; leave exact and growth out")
    if vocabulary.has("length") and vocabulary.has("note_off"):
        raise PamusicError(f"{path}: notes must have either a length or a note_off, got both")


def _check_pedals(vocabulary: Vocabulary, path: Path) -> None:
    if vocabulary.sustain not in SUSTAIN_MODES:
        raise PamusicError(
            f"{path}: pedal.sustain must be one of {', '.join(SUSTAIN_MODES)}, got {vocabulary.sustain!r}"
        )
    if vocabulary.sustain == "folded" and vocabulary.pedals:
        raise PamusicError(f'{path}: events of {", ".join(vocabulary.pedals)} need pedal.sustain = "played"')
    shallowest = 1 if vocabulary.has("length") else 0  # a press has a length, so its end needs no event
    for kind, deepest in vocabulary.pedals.items():
        if vocabulary.range(kind).first != shallowest or not 1 <= deepest <= MAX_DEPTH:
            up = "1" if shallowest else "0 (up)"
            raise PamusicError(f"{path}: {kind} events must be depths from {up} to a last of 1 to {MAX_DEPTH} (down)")
    hysteresis, shortest_ms = vocabulary.hysteresis, vocabulary.shortest_ms
    most = 127 / max(vocabulary.pedals.values(), default=1) / 2 - 1  # a depth's own value must always reach it
    if not _is_number(hysteresis) or not 0 <= hysteresis <= most:
        raise PamusicError(
            f"{path}: pedal.hysteresis must be 0 to {most:.1f} at this number of depths, got {hysteresis}"
        )
    if not _is_number(shortest_ms) or not 0 <= shortest_ms <= MAX_SHORTEST_STEPS * vocabulary.time_step_ms:
        raise PamusicError(f"{path}: pedal.shortest_ms must be 0 to {MAX_SHORTEST_STEPS} time steps, got {shortest_ms}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
