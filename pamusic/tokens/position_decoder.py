"""Decode positions with lengths to events one at a time.

Knows one vocabulary; knows no clock and no port. `StreamingDecoder` does this for events. The end of a note is known
with its beginning. It is given when a later position shows that no onset of its key comes before it. The tests hold the
result to the decoder of whole pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from pamusic.music.events import Event, EventType
from pamusic.tokens.tokenizer import CONTROLS, NOTE_ON
from pamusic.tokens.vocabulary import KINDS, Position, Vocabulary


@dataclass
class _Press:
    """A note, or a depth of a pedal, with the step at which it ends; `level` is a velocity bin or a depth."""

    level: int
    end: int


class PositionDecoder:
    """A decoder that takes positions one at a time and returns events, in order, as soon as they are certain.

    Args:
        vocabulary: The meaning of the ids; notes have lengths.
        known: Positions before the new ones. They give no events, but their pedals continue as moves at second 0.
        gap: Steps from the onset of the last known position to second 0, where the first new position begins or later.
        seconds: Where to stop, even within a note.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        known: Iterable[list[int]] = (),
        gap: int = 0,
        seconds: float | None = None,
    ) -> None:
        self._kind, self._value = vocabulary.kind_of_id.tolist(), vocabulary.value_of_id.tolist()
        self._velocity = vocabulary.velocity_of_bin.tolist()
        self._step_seconds = vocabulary.time_step_ms / 1000
        self._deepest = vocabulary.pedals
        self._stop = inf
        self._step = 0
        self._sounding: dict[int, _Press] = {}  # notes that were given, by pitch
        self._begun: dict[int, _Press] = {}  # notes of this step
        self._down: dict[str, _Press] = {}  # pedals; an end that has passed is a pedal that is up
        self._depth = dict.fromkeys(self._deepest, 0)  # as given
        for position in known:
            self.follow(position)
        self._events_of_step()
        zero = self._step + gap
        self._sounding = {}
        self._down = {kind: _Press(press.level, press.end - zero) for kind, press in self._down.items()}
        self._depth = dict.fromkeys(self._deepest, 0)
        self._step, self._stop = -gap, inf if seconds is None else seconds

    @property
    def seconds(self) -> float:
        """Second up to which, and no further, all events were given."""
        return min(max(self._step, 0) * self._step_seconds, self._stop)

    def follow(self, position: Position) -> list[Event]:
        """Return the events that are certain after one more position: those before its onset."""
        assert not isinstance(position, int)
        shift, key, velocity, length = (self._value[id] for id in position)
        onset = self._step + shift
        given: list[Event] = []
        if shift and onset > 0:  # at first, the pedals of what went before move at second 0
            self._step = max(self._step, 0)
            given = self._events_until(onset)
        self._step = onset
        kind = self._kind[position[1]]
        press = _Press(velocity, self._step + length)
        if kind == NOTE_ON:
            self._begun[key] = press
        elif KINDS[kind] in self._deepest:
            self._down[KINDS[kind]] = _Press(key, press.end)
        return given

    def end(self) -> list[Event]:
        """Return the remaining events: no more positions follow, and every note and pedal ends at its time."""
        self._step = max(self._step, 0)
        ends = [press.end for press in (*self._begun.values(), *self._sounding.values(), *self._down.values())]
        return self._events_until(max([self._step, *ends]) + 1)

    def _events_until(self, step: int) -> list[Event]:
        """Return the events of this step, then the ends before another; `_step` is then the last of these."""
        given = self._events_of_step()
        ends = sorted({press.end for press in (*self._sounding.values(), *self._down.values())})
        now = self._step
        for self._step in (end for end in ends if now < end < step):
            given += self._events_of_step()
        return given

    def _events_of_step(self) -> list[Event]:
        """Return the events at this step: note-offs, pedals, note-ons."""
        step, time = max(self._step, 0), max(self._step, 0) * self._step_seconds
        if time >= self._stop:
            self._begun = {}
            return self._all_released()
        ended = {pitch for pitch, press in self._sounding.items() if press.end <= step or pitch in self._begun}
        given = [Event(time, EventType.NOTE_OFF, pitch) for pitch in sorted(ended)]
        for pitch in ended:
            del self._sounding[pitch]
        for kind, deepest in self._deepest.items():
            press = self._down.get(kind)
            depth = press.level if press is not None and press.end > step else 0
            if depth != self._depth[kind]:
                given.append(Event(time, EventType.PEDAL, CONTROLS[kind], round(depth * 127 / deepest)))
                self._depth[kind] = depth
        for pitch, note in sorted(self._begun.items()):
            if note.end > step:
                given.append(Event(time, EventType.NOTE_ON, pitch, self._velocity[max(note.level, 1)]))
                self._sounding[pitch] = note
        self._begun = {}
        return given

    def _all_released(self) -> list[Event]:
        """Return the events that release every note and pedal, at the second at which to stop."""
        given = [Event(self._stop, EventType.NOTE_OFF, pitch) for pitch in sorted(self._sounding)]
        controls = (CONTROLS[kind] for kind, depth in self._depth.items() if depth)
        given += [Event(self._stop, EventType.PEDAL, control, 0) for control in controls]
        self._sounding, self._down = {}, {}
        self._depth = dict.fromkeys(self._deepest, 0)
        return given
