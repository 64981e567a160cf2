"""Turn a performance into a list of timed events, the form that a stream carries and a port plays.

Knows keys, pedals and seconds; knows no messages and no clock.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from pamusic.music.performance import Performance


class EventType(IntEnum):
    """Types of events, in the order in which events of one instant occur, as in the files that `splicing` writes."""

    NOTE_OFF = 0
    PEDAL = 1
    NOTE_ON = 2


class Event(NamedTuple):
    """One event of a performance.

    Attributes:
        time: Time in seconds.
        type: Note-off, pedal or note-on.
        number: Pitch of the key, or control number of the pedal.
        value: Velocity of a note-on; depth of a pedal from 0 (up) to 127 (down); 0 for a note-off.
    """

    time: float
    type: EventType
    number: int
    value: int = 0


def events(performance: Performance) -> list[Event]:
    """Return all events of a performance, by time, then type, then key; pedals of one instant keep their order."""
    notes = performance.notes.tolist()
    done = [Event(onset, EventType.NOTE_ON, pitch, velocity) for onset, _, pitch, velocity in notes]
    done += [Event(offset, EventType.NOTE_OFF, pitch) for _, offset, pitch, _ in notes]
    done.sort(key=lambda event: event.number)
    done += [Event(time, EventType.PEDAL, control, value) for time, control, value in performance.pedal.tolist()]
    return sorted(done, key=lambda event: event[:2])
