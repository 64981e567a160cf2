"""Map each id of one vocabulary to the nearest id of another. Knows vocabularies, and no music."""

from __future__ import annotations

import numpy as np

from pamusic.tokens.vocabulary import EventRange, Vocabulary

NOTHING = -1  # for kinds that the other vocabulary does not have


def nearest_ids(vocabulary: Vocabulary, among: Vocabulary) -> np.ndarray:
    """Return `[vocab]`, int64: the nearest id of its kind in another vocabulary, or `NOTHING` without that kind.

    Distance is in semitones for keys, milliseconds for time, MIDI velocities for loudness, and shares of the full depth
    for pedals. Of two equally near ids the lower one is used.
    """
    nearest = np.full(len(vocabulary), NOTHING, np.int64)
    others = {events.kind: events for events in among.ranges}
    for events in vocabulary.ranges:
        if (other := others.get(events.kind)) is not None:
            here, there = _measures(events, vocabulary), _measures(other, among)
            above = np.searchsorted(there, here).clip(max=len(there) - 1)
            below = (above - 1).clip(min=0)
            found = np.where(here - there[below] <= there[above] - here, below, above)
            nearest[events.start : events.start + len(events)] = other.start + found
    return nearest


def _measures(events: EventRange, vocabulary: Vocabulary) -> np.ndarray:
    """Return `[k]`, float64, ascending: the values of a range, in units that all vocabularies share."""
    values = np.arange(events.first, events.last + 1, dtype=np.float64)
    if events.kind == "time_shift":
        return values * vocabulary.time_step_ms
    if events.kind == "velocity":
        return (values - 0.5) * vocabulary.velocity_bin_width
    return values / events.last if events.kind in vocabulary.pedals else values
