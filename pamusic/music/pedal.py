"""How long a string sounds once the sustain pedal is reckoned in; and several channels as one piano.

Knows performances; knows no tokens. The rules are those of note-seq's `apply_sustain_control_changes`, the reference
of all published MAESTRO figures, here over whole arrays at once.
"""

from __future__ import annotations

import numpy as np

from pamusic.music.performance import (
    PEDAL,
    SOFT,
    SOSTENUTO,
    SUSTAIN,
    Performance,
    notes_in_order,
    pedal_in_order,
)

DOWN = 64  # the pedal is down from this value on: General MIDI's threshold, and note-seq's


def merged(channels: list[Performance]) -> Performance:
    """Return what several channels play, at least one, as the music of one piano.

    Pedals that all channels move alike stay as they are. A piano has no sustain pedal for some of its strings alone. So
    where the channels move it differently, it is removed, and each channel's notes get their sounding lengths, as in
    `sustain_folded`. The other pedals change no lengths here: the deepest position among the channels holds.
    """
    if len(channels) == 1:
        return channels[0]
    the_end = max(each.duration for each in channels)
    controls = [SOFT, SOSTENUTO] if has_different_sustain(channels) else [SOFT, SOSTENUTO, SUSTAIN]
    played = channels if SUSTAIN in controls else [sustain_folded(each, the_end) for each in channels]
    moves = [_deepest([_moves(each, control) for each in channels]) for control in controls]
    return Performance(
        notes_in_order(np.concatenate([each.notes for each in played])), pedal_in_order(np.concatenate(moves))
    )


def has_different_sustain(channels: list[Performance]) -> bool:
    """Return whether some channels move the sustain pedal differently."""
    first, *others = [_moves(each, SUSTAIN) for each in channels]
    return not all(np.array_equal(each, first) for each in others)


def _moves(performance: Performance, control: int) -> np.ndarray:
    return performance.pedal[performance.pedal["control"] == control]


def _deepest(streams: list[np.ndarray]) -> np.ndarray:
    """The movements of one pedal that is always as deep as the deepest of several; those of one where all are alike."""
    first, *others = streams
    if all(np.array_equal(each, first) for each in others):
        return first
    moved = [each for each in streams if len(each)]
    times = np.unique(np.concatenate([each["time"] for each in moved]))
    values = [np.append(0, each["value"])[np.searchsorted(each["time"], times, side="right")] for each in moved]
    value = np.max(values, axis=0)
    turns = np.diff(value, prepend=0) != 0
    deepest = np.empty(int(turns.sum()), PEDAL)
    deepest["time"], deepest["control"], deepest["value"] = times[turns], moved[0]["control"][0], value[turns]
    return deepest


def sustain_folded(performance: Performance, the_end: float = 0.0) -> Performance:
    """The same sound without a sustain pedal: each note lasts as long as its string does.

    A note released while the pedal is down sounds on until the pedal goes up or its key is struck anew, whichever
    comes first; a note struck anew with the pedal down ends there even if its key was never seen to rise. Of two
    strokes of a key at one instant with the pedal down, the later in the file stays. What the pedal holds at the end
    sounds until the last thing that happens. The other pedals are left out.

    Args:
        performance: what is played.
        the_end: when the last thing happens, if that is later than what happens here.

    Returns:
        A performance whose offsets are sounding offsets, without pedal.
    """
    sounding, cut = _sounding(performance, the_end)
    folded = performance.notes.copy()
    folded["offset"] = sounding
    dropped = cut & (sounding == folded["onset"])
    return Performance(folded[~dropped] if dropped.any() else folded)


def sounding_offsets(performance: Performance) -> np.ndarray:
    """When each note's string is silent, `[num_notes]`, as `sustain_folded` has it; the onset where that drops it."""
    return _sounding(performance)[0]


def _sounding(performance: Performance, the_end: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The sounding offset of each note, and whether its key ended it, struck anew."""
    notes = performance.notes
    is_sustain = performance.pedal["control"] == SUSTAIN
    if not len(notes) or not is_sustain.any():
        return notes["offset"], np.zeros(len(notes), bool)
    onset, offset, pitch = (np.ascontiguousarray(notes[field]) for field in ("onset", "offset", "pitch"))

    # At one instant pedal-downs come before pedal-ups, and both before notes.
    time, is_up = performance.pedal["time"][is_sustain], performance.pedal["value"][is_sustain] < DOWN
    if not (time[1:] > time[:-1]).all():
        order = np.lexsort((is_up, time))
        time, is_up = time[order], is_up[order]
    the_end = max(float(offset.max()), float(onset.max()), float(time[-1]), the_end)
    turns = np.diff(is_up, prepend=True)  # the other movements nobody hears
    time, is_up = time[turns], is_up[turns]
    pedal_down = np.concatenate([[False], ~is_up])  # its state before, then after each turn
    # When it goes up next, after each turn and before the first.
    index = np.minimum.accumulate(np.where(is_up, np.arange(len(time)), len(time))[::-1])[::-1]
    next_up = np.append(time, the_end)[np.append(index, len(time))]

    moved_by_offset = np.searchsorted(time, offset, side="right")
    sounding = np.where(pedal_down[moved_by_offset], next_up[moved_by_offset], offset)

    # The next stroke of the same key with the pedal down, if the string still sounds then. Notes stand by onset.
    by_key = np.argsort(pitch, kind="stable")
    key, stroke = pitch[by_key], onset[by_key]
    held = pedal_down[np.searchsorted(time, onset, side="right")][by_key]
    index = np.minimum.accumulate(np.where(held, np.arange(len(notes)), len(notes))[::-1])[::-1]
    following = np.append(index[1:], len(notes))
    is_same_key = np.append(key, key[-1])[following] == key
    next_stroke = np.empty(len(notes))
    next_stroke[by_key] = np.where(is_same_key, np.append(stroke, np.inf)[following], np.inf)
    cut = (next_stroke <= offset) | (next_stroke < sounding)
    return np.where(cut, next_stroke, sounding), cut
