"""Compute how long notes sound under the sustain pedal, and merge several channels into one piano.

Knows performances; knows no tokens. The rules are those of note-seq's `apply_sustain_control_changes`, the reference
for all published MAESTRO figures, here vectorised.
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


def merged(channels: list[Performance]) -> tuple[Performance, int]:
    """Return the music of several channels (at least one) as played on one piano.

    A piano has no sustain pedal for only some of its notes. So a press stays only if every note of every channel then
    sounds as long as under the channel's own pedal. A note that only the pedal holds ends at the next onset of its key
    in any channel. Any other press is removed, and the notes that it held get their sounding lengths. The soft and the
    sostenuto pedal do not change lengths here: the deepest position among the channels applies.

    Returns:
        The music, and the number of removed presses.
    """
    if len(channels) == 1:
        return channels[0], 0
    controls = (SOFT, SOSTENUTO, SUSTAIN)
    *others, sustain = (
        _deepest([each.pedal[each.pedal["control"] == control] for each in channels]) for control in controls
    )
    notes, num_removed = np.concatenate([each.notes for each in channels]), 0
    if not _has_one_sustain(channels):
        the_end = max(each.duration for each in channels)
        sounding, cut = (np.concatenate(each) for each in zip(*(_sounding(c, the_end) for c in channels), strict=True))
        order = np.lexsort((notes["pitch"], notes["onset"]))
        order = order[~(cut & (sounding == notes["onset"]))[order]]  # as `sustain_folded` drops them
        notes = notes[order]
        notes, sustain, num_removed = _with_one_pedal(notes, _until_struck_again(notes, sounding[order]), sustain)
    pedal = pedal_in_order(np.concatenate([*others, sustain]))
    return Performance(notes_in_order(notes), pedal), num_removed


def _has_one_sustain(channels: list[Performance]) -> bool:
    """Return whether all channels have the same movements of the sustain pedal."""
    first, *others = (each.pedal[each.pedal["control"] == SUSTAIN] for each in channels)
    return all(np.array_equal(each, first) for each in others)


def _until_struck_again(notes: np.ndarray, sounding: np.ndarray) -> np.ndarray:
    """Return the ends of notes, `[num_notes]`: the next onset in any channel ends a note that only the pedal holds."""
    ends = sounding.copy()
    for pitch in np.unique(notes["pitch"]):
        of_key = np.flatnonzero(notes["pitch"] == pitch)
        onset = notes["onset"][of_key]
        following = np.append(onset, np.inf)[np.searchsorted(onset, notes["offset"][of_key])]
        ends[of_key] = np.minimum(sounding[of_key], following)
    return ends


def _with_one_pedal(notes: np.ndarray, sounding: np.ndarray, sustain: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return notes and movements of one pedal that give the required lengths, and the number of removed presses.

    Args:
        notes: Notes in order, with the offsets of their keys.
        sounding: Required sounding offsets, `[num_notes]`.
        sustain: Movements of a pedal that is down whenever the pedal of any channel is.
    """
    is_down = sustain["value"] >= DOWN
    press = np.cumsum(np.diff(is_down, prepend=False) & is_down)  # number of the current or last press
    removed: set[int] = set()
    while True:
        played = notes.copy()
        wrong = sounding_offsets(Performance(notes, sustain)) != sounding
        played["offset"][wrong] = sounding[wrong]
        heard = sounding_offsets(Performance(played, sustain))
        wrong = heard != sounding
        if not wrong.any():
            return played, _changes(sustain) if removed else sustain, len(removed)
        # A note sounds on under the pedal, or an onset of its key in another channel ends it too early.
        place = np.searchsorted(sustain["time"], np.minimum(heard, sounding)[wrong], side="right") - 1
        more = set(press[place].tolist()) - removed
        removed |= more or set(press.tolist())  # fallback for an ambiguous order of movements at one instant
        sustain = sustain.copy()
        sustain["value"][is_down & np.isin(press, list(removed))] = 0


def _deepest(streams: list[np.ndarray]) -> np.ndarray:
    """Return the movements of one pedal that is always as deep as the deepest of several.

    If only one of them moves, or all have the same movements, these are returned unchanged.
    """
    first, *others = [each for each in streams if len(each)] or [streams[0]]
    if all(np.array_equal(each, first) for each in others):
        return first
    times = np.unique(np.concatenate([each["time"] for each in streams]))
    values = [np.append(0, each["value"])[np.searchsorted(each["time"], times, side="right")] for each in streams]
    deepest = np.empty(len(times), PEDAL)
    deepest["time"], deepest["control"], deepest["value"] = times, first["control"][0], np.max(values, axis=0)
    return _changes(deepest)


def _changes(moves: np.ndarray) -> np.ndarray:
    """Return the movements of a pedal (initially up) that change its position."""
    return moves[np.diff(moves["value"].astype(np.int64), prepend=0) != 0]


def sustain_folded(performance: Performance) -> Performance:
    """Return the same sound without a sustain pedal: each note gets its sounding length.

    A note released while the pedal is down sounds until the pedal goes up or the key has a new onset, whichever comes
    first. A new onset with the pedal down also ends a note whose key was never released. Of two onsets of a key at one
    instant with the pedal down, the later in the file stays. Notes that the pedal holds at the end sound until the last
    event. The other pedals are left out.

    Returns:
        A performance with sounding offsets, without pedal.
    """
    sounding, cut = _sounding(performance)
    folded = performance.notes.copy()
    folded["offset"] = sounding
    dropped = cut & (sounding == folded["onset"])
    return Performance(folded[~dropped] if dropped.any() else folded)


def sounding_offsets(performance: Performance) -> np.ndarray:
    """Return the sounding offset of each note, `[num_notes]`; the onset if `sustain_folded` drops the note."""
    return _sounding(performance)[0]


def _sounding(performance: Performance, the_end: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the sounding offset of each note, and whether a new onset of its key ended it.

    Notes that the pedal holds at the end sound until the last event, or until `the_end` if that is later.
    """
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
    turns = np.diff(is_up, prepend=True)  # other movements have no effect
    time, is_up = time[turns], is_up[turns]
    pedal_down = np.concatenate([[False], ~is_up])  # state before the first turn, then after each turn
    # The next time the pedal goes up, after each turn and before the first.
    index = np.minimum.accumulate(np.where(is_up, np.arange(len(time)), len(time))[::-1])[::-1]
    next_up = np.append(time, the_end)[np.append(index, len(time))]

    moved_by_offset = np.searchsorted(time, offset, side="right")
    sounding = np.where(pedal_down[moved_by_offset], next_up[moved_by_offset], offset)

    # The next onset of the same key with the pedal down, if the note still sounds then. Notes are ordered by onset.
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
