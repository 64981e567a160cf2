"""A performance as a list of events in time: what a stream can carry and a port can play.

Knows keys, pedals and seconds; knows no messages and no clock.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from pamusic.music.performance import Performance


class EventType(IntEnum):
    """What happens; in the order of what happens at one moment, as in the files that `splicing` writes."""

    NOTE_OFF = 0
    PEDAL = 1
    NOTE_ON = 2


class Event(NamedTuple):
    """One thing that is played.

    Attributes:
        time: in seconds.
        type: a note ends or begins, or a pedal moves.
        number: the key's pitch, or the pedal's control number.
        value: a velocity for a note-on, a pedal's depth from 0 (up) to 127 (down); 0 for a note-off.
    """

    time: float
    type: EventType
    number: int
    value: int = 0


def events(performance: Performance) -> list[Event]:
    """Return all events of a performance, in order; within a moment and a type by key, pedals as they come."""
    notes = performance.notes.tolist()
    done = [Event(onset, EventType.NOTE_ON, pitch, velocity) for onset, _, pitch, velocity in notes]
    done += [Event(offset, EventType.NOTE_OFF, pitch) for _, offset, pitch, _ in notes]
    done.sort(key=lambda event: event.number)
    done += [Event(time, EventType.PEDAL, control, value) for time, control, value in performance.pedal.tolist()]
    return sorted(done, key=lambda event: event[:2])
