"""A performance as what fingers and feet do, one thing after the other: what a stream can carry and a port can play.

Knows keys, pedals and seconds; knows no messages and no clock.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from pamusic.music.performance import Performance


class Action(IntEnum):
    """In the order of what happens at one moment, as in the files that `splicing` writes."""

    RELEASE = 0
    MOVE = 1
    STROKE = 2


class Gesture(NamedTuple):
    """What a finger or a foot does at one moment.

    Attributes:
        time: in seconds.
        action: a key is let go or struck, or a pedal moves.
        number: the key's pitch, or the pedal's control number.
        value: a stroke's velocity, a pedal's depth from 0 (up) to 127 (down); 0 for a release.
    """

    time: float
    action: Action
    number: int
    value: int = 0


def gestures(performance: Performance) -> list[Gesture]:
    """All that is done in a performance, in order; within a moment and an action by key, pedals as they come."""
    notes = performance.notes.tolist()
    done = [Gesture(onset, Action.STROKE, pitch, velocity) for onset, _, pitch, velocity in notes]
    done += [Gesture(offset, Action.RELEASE, pitch) for _, offset, pitch, _ in notes]
    done.sort(key=lambda gesture: gesture.number)
    done += [Gesture(time, Action.MOVE, control, value) for time, control, value in performance.pedal.tolist()]
    return sorted(done, key=lambda gesture: gesture[:2])
