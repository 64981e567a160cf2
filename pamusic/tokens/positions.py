"""Convert between notes on a grid and ids of a vocabulary with several fields, `[num_positions, num_fields]`.

Knows grids and vocabularies; knows no performances. A position is a note or a pedal press with its length. In a
vocabulary without lengths it is an event: a key or a pedal that goes down or up.

Times in bins are rounded. Two rules keep the rounding inaudible:
- The next shifts make up for the rounding of a long shift. Each changes by at most the width of a bin, as a share (4 %
  in `notes.toml`). So onsets do not drift, and the notes of a chord or a quick figure keep their distances. Correcting
  at once would tear apart the first chord after a rest.
- A note that touched the next note of its key (or a press, the next of its pedal) still does: its bin reaches that
  far, and decoding cuts it. A note that did not touch still does not: its bin ends earlier, by the shortest duration of
  a depth or by the original gap. So the decoded music encodes to the same ids.
"""

from __future__ import annotations

import numpy as np

from pamusic.tokens.grid import GRID_PEDAL, GridNotes
from pamusic.tokens.vocabulary import BORDERS, KINDS, PEDAL_KINDS, EventRange, Vocabulary

NOTE_ON, NOTE_OFF = KINDS.index("note_on"), KINDS.index("note_off")
KIND_OF_PEDAL = np.array([KINDS.index(kind) for kind in PEDAL_KINDS])
NEVER = np.iinfo(np.int64).max


def events_in_order(grid: GridNotes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return step, kind, value and velocity bin (0 if it has none) of each event, `[num_events]` each.

    Events are ordered by step; within a step releases, pedals, onsets, each in the order of the grid.
    """
    num_notes, num_pedal = len(grid), len(grid.pedal)
    # One sortable number per event: its step, then its rank among all events that the step could hold.
    bits = (2 * num_notes + num_pedal).bit_length()
    index = np.arange(num_notes)
    key = np.concatenate(
        [
            (grid.offset << bits) + index,
            (grid.pedal["step"] << bits) + num_notes + np.arange(num_pedal),
            (grid.onset << bits) + num_notes + num_pedal + index,
        ]
    )
    key.sort(kind="stable")  # timsort is fast here: three runs, each (almost) sorted
    step, place = key >> bits, key & (1 << bits) - 1
    kind = np.concatenate(
        [np.full(num_notes, NOTE_OFF), KIND_OF_PEDAL[grid.pedal["pedal"]], np.full(num_notes, NOTE_ON)]
    )
    value = np.concatenate([grid.pitch, grid.pedal["depth"], grid.pitch])
    velocity_bin = np.concatenate([np.zeros(num_notes + num_pedal, np.int64), grid.velocity_bin])
    return step, kind[place], value[place], velocity_bin[place]


def event_positions(grid: GridNotes, vocabulary: Vocabulary) -> np.ndarray:
    """Return ids `[num_events, 3]`, uint16: the shift to each event, its key or pedal, and its velocity."""
    step, kind, value, velocity_bin = events_in_order(grid)
    shift, _ = _shifts(step, vocabulary.range("time_shift"))
    return _columns(vocabulary, shift, kind, value, velocity_bin)


def note_positions(grid: GridNotes, vocabulary: Vocabulary) -> np.ndarray:
    """Return ids `[num_positions, 4]`, uint16: shift, key or pedal, velocity and length of each note or press.

    They are ordered by onset; within a step pedals come first (soft, sostenuto, sustain), then notes from low to high.
    """
    onset, offset, kind, value, velocity_bin = _presses(grid)
    shift, onset_read = _shifts(onset, vocabulary.range("time_shift"))
    key = np.where(kind == NOTE_ON, value, -kind)
    following = _next_of_same(key)
    gap = np.append(onset_read, NEVER)[following] - onset_read
    apart = np.minimum(np.append(onset, NEVER)[following] - offset, max(1, vocabulary.shortest_steps))
    length = _lengths(offset - onset, gap, apart, vocabulary.range("length"))
    return _columns(vocabulary, shift, kind, value, velocity_bin, length)


def grid_of_positions(ids: np.ndarray, vocabulary: Vocabulary) -> tuple[GridNotes, int]:
    """Return the grid that ids `[num_positions, 4]` stand for, and the number of borders among them.

    A note, or a depth of a pedal, ends no later than the next one of its key or pedal. Notes without length and depths
    that change nothing are not removed.
    """
    value = vocabulary.value_of_id
    onset, length = np.cumsum(value[ids[:, 0]]), value[ids[:, 3]]
    kind, key = vocabulary.kind_of_id[ids[:, 1]], value[ids[:, 1]]
    following = _next_of_same(np.where(kind == NOTE_ON, key, -kind.astype(np.int64)))
    next_onset = np.append(onset, NEVER)[following]
    offset = np.minimum(onset + length, next_onset)
    notes = kind == NOTE_ON
    presses = np.flatnonzero(np.isin(kind, KIND_OF_PEDAL))
    lifts = presses[offset[presses] < next_onset[presses]]
    pedal = np.empty(len(presses) + len(lifts), GRID_PEDAL)
    pedal["step"] = np.concatenate([onset[presses], offset[lifts]])
    pedal["pedal"] = np.searchsorted(KIND_OF_PEDAL, kind[np.concatenate([presses, lifts])])
    pedal["depth"] = np.concatenate([key[presses], np.zeros(len(lifts), np.int64)])
    pedal = pedal[np.lexsort((pedal["pedal"], pedal["step"]))]
    velocity_bin = np.maximum(value[ids[notes, 2]], 1)
    grid = GridNotes(onset[notes], offset[notes], key[notes], velocity_bin, pedal)
    return grid, int(np.isin(kind, [KINDS.index(border) for border in BORDERS]).sum())


def position_steps(grid: GridNotes) -> np.ndarray:
    """Return the step of each position that `note_positions` writes, `[num_positions]`, before any rounding."""
    return _presses(grid)[0]


def num_clipped(grid: GridNotes, vocabulary: Vocabulary) -> tuple[int, int]:
    """Return the numbers of notes and presses, and of shifts, that are too long for a vocabulary with fields."""
    if vocabulary.has("length"):
        step, offset, *_ = _presses(grid)
        num_notes = int(np.count_nonzero(offset - step > vocabulary.range("length").last))
    else:
        step, num_notes = events_in_order(grid)[0], 0
    return num_notes, int(np.count_nonzero(np.diff(step, prepend=0) > vocabulary.range("time_shift").last))


def offset_edges(vocabulary: Vocabulary) -> dict[str, tuple[int, ...]]:
    """Return the steps where the bins of shifts and lengths begin, as the fields of `model.config.OffsetsConfig`."""
    kinds = {"shift_edges": "time_shift", "length_edges": "length"}
    ranges = {name: vocabulary.range(kind) for name, kind in kinds.items() if vocabulary.has(kind)}
    return {name: (*events.lowest.tolist(), events.last + 1) for name, events in ranges.items()}


def _presses(grid: GridNotes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return onset, offset, kind, value and velocity bin of each note and each pedal depth above 0, in order."""
    pedal = grid.pedal[np.lexsort((grid.pedal["step"], grid.pedal["pedal"]))]
    same = pedal["pedal"][1:] == pedal["pedal"][:-1]
    left_at = np.append(np.where(same, pedal["step"][1:], grid.last_step), [grid.last_step] * min(1, len(pedal)))
    down = (pedal["depth"] > 0) & (left_at > pedal["step"])
    pedal, left_at = pedal[down], left_at[down]
    onset = np.concatenate([pedal["step"], grid.onset])
    value = np.concatenate([pedal["depth"], grid.pitch])
    rank = np.concatenate([pedal["pedal"] - len(PEDAL_KINDS), grid.pitch])  # pedals before all pitches
    order = np.lexsort((rank, onset))
    kind = np.concatenate([KIND_OF_PEDAL[pedal["pedal"]], np.full(len(grid), NOTE_ON)])
    velocity_bin = np.concatenate([np.zeros(len(pedal), np.int64), grid.velocity_bin])
    offset = np.concatenate([left_at, grid.offset])
    return onset[order], offset[order], kind[order], value[order], velocity_bin[order]


def _shifts(step: np.ndarray, shifts: EventRange) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of the shifts from each step to the next, and the steps as decoded, `[n]` each."""
    shift = np.diff(step, prepend=0)
    read_as, behind = shift.copy(), 0  # behind: steps by which the decoded time is too early
    exact = shifts.last if shifts.exact is None else shifts.exact
    give = ((shifts.growth - 1) * shift).astype(np.int64)  # steps by which each may be decoded longer or shorter
    for place in np.flatnonzero((give > 0) | (shift > shifts.last)):
        if shift[place] > shifts.last:
            read_as[place], behind = shifts.middle[-1], 0
            continue
        if not behind and shift[place] <= exact:
            continue
        wanted = min(max(shift[place] + behind, shift[place] - give[place]), shift[place] + give[place])
        places = np.add.outer([-1, 0, 1], shifts.place(np.array([wanted, shift[place]]))).ravel()
        near = shifts.middle[np.clip(places, 1, len(shifts) - 1)]
        off = np.abs(near - shift[place])
        near = near[off <= max(give[place], off.min())]  # the middle of its own bin, if no other is as near
        read_as[place] = near[np.argmin(np.abs(near - shift[place] - behind))]
        behind += shift[place] - read_as[place]
    return shifts.start + shifts.place(read_as), np.cumsum(read_as)


def _lengths(length: np.ndarray, gap: np.ndarray, apart: np.ndarray, lengths: EventRange) -> np.ndarray:
    """Return the ids of lengths in steps.

    Args:
        length: Lengths, `[n]`.
        gap: Steps from each onset, as decoded, to the next onset of the same key or pedal, `[n]`.
        apart: Steps that must separate the two, `[n]`; 0 where one touches the next.
        lengths: Id range of lengths.
    """
    reaching = np.searchsorted(lengths.middle, gap, side="left")  # the shortest that reaches the next onset
    before = np.searchsorted(lengths.middle, gap - apart, side="right") - 1  # the longest that does not reach it
    place = np.where(apart == 0, reaching, np.minimum(lengths.place(length), np.maximum(before, 1)))
    return lengths.start + np.minimum(place, len(lengths) - 1)


def _next_of_same(key: np.ndarray) -> np.ndarray:
    """Return `[n]`, the place where each key comes next; `n` if it does not."""
    by_key = np.argsort(key, kind="stable")
    following = np.full(len(key), len(key))
    same = key[by_key][1:] == key[by_key][:-1]
    following[by_key[:-1][same]] = by_key[1:][same]
    return following


def _columns(
    vocabulary: Vocabulary,
    shift: np.ndarray,
    kind: np.ndarray,
    value: np.ndarray,
    velocity_bin: np.ndarray,
    *length: np.ndarray,
) -> np.ndarray:
    first = vocabulary.first_of_kind
    velocity = first[KINDS.index("velocity")] + velocity_bin
    return np.stack([shift, first[kind] + value, velocity, *length], axis=1).astype(np.uint16)
