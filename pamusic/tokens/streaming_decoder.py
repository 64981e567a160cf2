"""Decode ids into events while the ids are still being generated; the streaming twin of `Tokenizer.decode`.

Knows one vocabulary; knows no clock and no port. A note-on is returned once its step is complete (at the next time
shift), long before its release is known. Tests hold it to the decoder of whole pieces: both give the same notes and
pedals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Protocol

from pamusic.music.events import Event, EventType
from pamusic.tokens.tokenizer import CONTROLS, DEFAULT_VELOCITY, NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY
from pamusic.tokens.vocabulary import KINDS, Position, Vocabulary


class EventDecoder(Protocol):
    """A decoder that takes new ids, or positions, one at a time and returns events in order."""

    @property
    def seconds(self) -> float:
        """Second up to which, and no further, all events were given."""

    def follow(self, position: Position) -> list[Event]:
        """Return the events that are certain after one more position."""

    def end(self) -> list[Event]:
        """Return the remaining events."""


@dataclass(eq=False)
class _OpenNote:
    """A note-on without a release so far; `bin` is its velocity bin."""

    pitch: int
    bin: int


class StreamingDecoder:
    """A decoder that takes ids one at a time and returns events, in order, as soon as they are final.

    A key is released no later than its next onset. Of several onsets of a key within a step, the last stays.

    Args:
        vocabulary: Vocabulary of the ids.
        known: Ids that came before. Their notes are not returned, but releases end the notes that they left open before
            later ones. Their velocity stays in force, and their pedal positions are returned as events at second 0.
        gap: Steps from the end of `known` to second 0; the next id is a time shift of at least this length.
        seconds: Time at which to stop, even within a note.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, known: Iterable[int] = (), gap: int = 0, seconds: float | None = None
    ) -> None:
        self._kind, self._value = vocabulary.kind_of_id.tolist(), vocabulary.value_of_id.tolist()
        self._step_seconds = vocabulary.time_step_ms / 1000
        self._velocity = vocabulary.velocity_of_bin.tolist()
        self._played = vocabulary.sustain == "played"
        self._deepest = vocabulary.pedals
        self._stop = inf
        self._step = 0
        self._bin = (DEFAULT_VELOCITY - 1) // vocabulary.velocity_bin_width + 1
        self._open: dict[int, deque[_OpenNote]] = {}  # by key: note-ons without a release, the oldest first
        self._sounding: dict[int, _OpenNote] = {}  # by key: the last note-on that was returned, until its release
        self._struck: dict[int, _OpenNote] = {}  # in this step, by key: the last note-on
        self._released: set[int] = set()  # in this step
        self._depth = dict.fromkeys(self._deepest, 0)
        self._moved: dict[str, int] = {}  # in this step
        for id in known:
            self.follow(id)
        self._events_of_step()
        self._moved, self._depth = self._depth, dict.fromkeys(self._deepest, 0)
        self._sounding.clear()
        self._step, self._stop = -gap, inf if seconds is None else seconds

    @property
    def seconds(self) -> float:
        """Time up to which all events were returned."""
        return min(max(self._step, 0) * self._step_seconds, self._stop)

    def follow(self, position: Position) -> list[Event]:
        """Take one more id and return the events that are now final: all events of a step, once it is complete."""
        assert isinstance(position, int)
        kind, value = self._kind[position], self._value[position]
        if kind == TIME_SHIFT:
            given = self._events_of_step()
            self._step += value
            return given
        if kind == VELOCITY:
            self._bin = value
        elif kind == NOTE_ON:
            if self._played:
                self._close(value)
            stroke = _OpenNote(value, self._bin)
            self._open.setdefault(value, deque()).append(stroke)
            self._struck[value] = stroke
        elif kind == NOTE_OFF:
            self._close(value)
        elif KINDS[kind] in self._deepest:
            self._moved[KINDS[kind]] = value
        return []

    def end(self) -> list[Event]:
        """Return the remaining events after the last id: open notes are released, and the pedals go up."""
        last = self._step + bool(self._struck)  # notes that begin in the last step last one more step
        if last == self._step:
            self._moved = dict.fromkeys(self._deepest, 0)
        self._released |= self._sounding.keys()
        given = self._events_of_step()
        self._step = last
        return given + self._all_released()

    def _close(self, pitch: int) -> None:
        """Close the oldest open note of a key, at its release or, where keys are played, its next onset."""
        strokes = self._open.get(pitch)
        if not strokes:
            return
        stroke = strokes.popleft()
        if self._sounding.get(pitch) is stroke:
            self._released.add(pitch)
        elif self._struck.get(pitch) is stroke:
            del self._struck[pitch]  # it has no length

    def _events_of_step(self) -> list[Event]:
        """Return the events of the step that is now complete."""
        time = max(self._step, 0) * self._step_seconds
        if time >= self._stop:
            self._struck, self._released, self._moved = {}, set(), {}
            return self._all_released()
        given = [
            Event(time, EventType.NOTE_OFF, pitch)
            for pitch in sorted(self._released | (self._struck.keys() & self._sounding.keys()))
        ]
        for _, _, pitch, _ in given:
            del self._sounding[pitch]
        for kind, deepest in self._deepest.items():
            depth = self._moved.get(kind, self._depth[kind])
            if depth != self._depth[kind]:
                given.append(Event(time, EventType.PEDAL, CONTROLS[kind], round(depth * 127 / deepest)))
                self._depth[kind] = depth
        for pitch, stroke in sorted(self._struck.items()):
            given.append(Event(time, EventType.NOTE_ON, pitch, self._velocity[stroke.bin]))
            self._sounding[pitch] = stroke
        self._struck, self._released, self._moved = {}, set(), {}
        return given

    def _all_released(self) -> list[Event]:
        """Release every sounding key and raise every pedal, now or at the second at which to stop."""
        time = self.seconds
        given = [Event(time, EventType.NOTE_OFF, pitch) for pitch in sorted(self._sounding)]
        given += [Event(time, EventType.PEDAL, CONTROLS[kind], 0) for kind, depth in self._depth.items() if depth]
        self._sounding.clear()
        self._depth = dict.fromkeys(self._deepest, 0)
        return given
