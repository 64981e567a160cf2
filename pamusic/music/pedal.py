"""How long a string sounds once the sustain pedal is reckoned in.

Knows performances; knows no tokens. The rules are those of note-seq's `apply_sustain_control_changes`, the reference
of all published MAESTRO figures, here over whole arrays at once.
"""

from __future__ import annotations

import numpy as np

from pamusic.music.performance import SUSTAIN, Performance

DOWN = 64  # the pedal is down from this value on: General MIDI's threshold, and note-seq's


def sustain_folded(performance: Performance) -> Performance:
    """The same sound without a sustain pedal: each note lasts as long as its string does.

    A note released while the pedal is down sounds on until the pedal goes up or its key is struck anew, whichever
    comes first; a note struck anew with the pedal down ends there even if its key was never seen to rise. Of two
    strokes of a key at one instant with the pedal down, the later in the file stays. What the pedal holds at the end
    sounds until the last thing that happens. The other pedals are left out.

    Returns:
        A performance whose offsets are sounding offsets, without pedal.
    """
    notes = performance.notes
    pedal = performance.pedal[performance.pedal["control"] == SUSTAIN]
    if not len(notes) or not len(pedal):
        return Performance(notes)
    onset, offset, pitch = notes["onset"], notes["offset"], notes["pitch"]

    # At one instant pedal-downs come before pedal-ups, and both before notes.
    is_up = pedal["value"] < DOWN
    pedal = pedal[np.lexsort((is_up, pedal["time"]))]
    pedal_down = np.concatenate([[False], pedal["value"] >= DOWN])  # its state before, then after each movement
    pedal_up_times = pedal["time"][pedal["value"] < DOWN]
    the_end = max(float(offset.max()), float(onset.max()), float(pedal["time"].max()))

    def held(at: np.ndarray) -> np.ndarray:
        return pedal_down[np.searchsorted(pedal["time"], at, side="right")]

    held_at_offset = held(offset)
    next_up = np.append(pedal_up_times, the_end)[np.searchsorted(pedal_up_times, offset, side="right")]
    sounding = np.where(held_at_offset, next_up, offset)

    # The next stroke of the same key with the pedal down, if the string still sounds then.
    by_key = np.lexsort((np.arange(len(notes)), onset, pitch))
    stroke = np.where(held(onset), onset, np.inf)[by_key]
    key_changes = np.flatnonzero(np.diff(pitch[by_key].astype(np.int64)))
    next_stroke = np.full(len(notes), np.inf)
    for first, last in zip(np.append(0, key_changes + 1), np.append(key_changes + 1, len(notes)), strict=True):
        of_key = stroke[first + 1 : last]
        next_stroke[by_key[first : last - 1]] = np.minimum.accumulate(of_key[::-1])[::-1]
    cut = (next_stroke <= offset) | (next_stroke < sounding)
    sounding = np.where(cut, next_stroke, sounding)

    folded = notes.copy()
    folded["offset"] = sounding
    return Performance(folded[~(cut & (sounding == onset))])
