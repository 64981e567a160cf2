"""Which id of one vocabulary means most nearly what an id of another does. Knows vocabularies, and no music."""

from __future__ import annotations

import numpy as np

from pamusic.tokens.vocabulary import EventRange, Vocabulary

NOTHING = -1  # where the other vocabulary has no event of that kind


def nearest_ids(vocabulary: Vocabulary, among: Vocabulary) -> np.ndarray:
    """`[vocab]`, int64: for each id the nearest of its kind among another vocabulary's; `NOTHING` where there is none.

    Near is in semitones for keys, milliseconds for time, MIDI velocities for loudness, shares of the way for pedals.
    Of two as near it is the lower one.
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
    """Return `[k]`, float64, ascending: what the values of a range measure, in units that all vocabularies share."""
    values = np.arange(events.first, events.last + 1, dtype=np.float64)
    if events.kind == "time_shift":
        return values * vocabulary.time_step_ms
    if events.kind == "velocity":
        return (values - 0.5) * vocabulary.velocity_bin_width
    return values / events.last if events.kind in vocabulary.pedals else values
