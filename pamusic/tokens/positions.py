"""Notes on a grid <-> ids of a vocabulary of several fields, `[num_positions, num_fields]`.

Knows grids and vocabularies; knows no performances. A position is a note, or a press of a pedal, with its length; or,
where the vocabulary has no lengths, an event: a key or a pedal that goes down or up.

Times in bins are rounded, and of that nothing must be heard:
- What a long shift was rounded by is made up by the next ones, each of which becomes longer or shorter by the width of
  a bin at most, as a share (4 % in `notes.toml`): so onsets do not drift, and the notes of a chord or of a quick figure
  stay as far apart as they were played. Made up at once, it would tear the first chord after a rest.
- What touched the next note of its key (or the next press of its pedal) still does: its bin reaches there, and
  decoding cuts it. What did not touch it does not: its bin ends before it, by the shortest time that a depth is meant
  for or by what it was. So what is decoded has the same ids again.
"""

from __future__ import annotations

import numpy as np

from pamusic.tokens.grid import GRID_PEDAL, GridNotes
from pamusic.tokens.vocabulary import BORDERS, KINDS, PEDAL_KINDS, EventRange, Vocabulary

NOTE_ON, NOTE_OFF = KINDS.index("note_on"), KINDS.index("note_off")
KIND_OF_PEDAL = np.array([KINDS.index(kind) for kind in PEDAL_KINDS])
NEVER = np.iinfo(np.int64).max


def events_in_order(grid: GridNotes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Step, kind, value and velocity bin (0 where it has none) of each event, `[num_events]` each.

    They stand by step; within one releases, pedals, onsets, each in the order of the grid.
    """
    num_notes, num_pedal = len(grid), len(grid.pedal)
    # One sortable number an event: the step, then its place among all that the step could hold.
    bits = (2 * num_notes + num_pedal).bit_length()
    index = np.arange(num_notes)
    key = np.concatenate(
        [
            (grid.offset << bits) + index,
            (grid.pedal["step"] << bits) + num_notes + np.arange(num_pedal),
            (grid.onset << bits) + num_notes + num_pedal + index,
        ]
    )
    key.sort(kind="stable")  # timsort: it is three runs that are in order, or nearly so
    step, place = key >> bits, key & (1 << bits) - 1
    kind = np.concatenate(
        [np.full(num_notes, NOTE_OFF), KIND_OF_PEDAL[grid.pedal["pedal"]], np.full(num_notes, NOTE_ON)]
    )
    value = np.concatenate([grid.pitch, grid.pedal["depth"], grid.pitch])
    velocity_bin = np.concatenate([np.zeros(num_notes + num_pedal, np.int64), grid.velocity_bin])
    return step, kind[place], value[place], velocity_bin[place]


def event_positions(grid: GridNotes, vocabulary: Vocabulary) -> np.ndarray:
    """Return ids `[num_events, 3]`, uint16: of each event the shift to it, its key or pedal, and its velocity."""
    step, kind, value, velocity_bin = events_in_order(grid)
    shift, _ = _shifts(step, vocabulary.range("time_shift"))
    return _columns(vocabulary, shift, kind, value, velocity_bin)


def note_positions(grid: GridNotes, vocabulary: Vocabulary) -> np.ndarray:
    """Return ids `[num_positions, 4]`, uint16: of each note or press its shift, key or pedal, velocity and length.

    They stand by onset; within a step pedals come first (soft, sostenuto, sustain), then notes from low to high.
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
    """Return what ids `[num_positions, 4]` say, and how many borders stand among them.

    A note, or a depth of a pedal, ends at the latest where its key or pedal is next. Notes of no length and depths that
    change nothing are still among them.
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


def num_clipped(grid: GridNotes, vocabulary: Vocabulary) -> tuple[int, int]:
    """How many notes and presses last longer, and how many shifts are longer, than a vocabulary of fields can say."""
    if vocabulary.has("length"):
        step, offset, *_ = _presses(grid)
        num_notes = int(np.count_nonzero(offset - step > vocabulary.range("length").last))
    else:
        step, num_notes = events_in_order(grid)[0], 0
    return num_notes, int(np.count_nonzero(np.diff(step, prepend=0) > vocabulary.range("time_shift").last))


def offset_edges(vocabulary: Vocabulary) -> dict[str, tuple[int, ...]]:
    """Steps that the ids of shifts and of lengths stand for, as the fields of `model.config.OffsetsConfig`."""
    kinds = {"shift_edges": "time_shift", "length_edges": "length"}
    ranges = {name: vocabulary.range(kind) for name, kind in kinds.items() if vocabulary.has(kind)}
    return {name: (*events.lowest.tolist(), events.last + 1) for name, events in ranges.items()}


def _presses(grid: GridNotes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Onset, offset, kind, value and velocity bin of each note and each depth of a pedal that is down, in order."""
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
    """Return ids that lead from each step to the next, and the steps that they are read as, `[n]` each."""
    shift = np.diff(step, prepend=0)
    read_as, behind = shift.copy(), 0  # behind: by how much what is read is too early
    exact = shifts.last if shifts.exact is None else shifts.exact
    give = ((shifts.growth - 1) * shift).astype(np.int64)  # by how much each may be read as longer or shorter
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
        near = near[off <= max(give[place], off.min())]  # its own bin's middle, if no other is as near as that
        read_as[place] = near[np.argmin(np.abs(near - shift[place] - behind))]
        behind += shift[place] - read_as[place]
    return shifts.start + shifts.place(read_as), np.cumsum(read_as)


def _lengths(length: np.ndarray, gap: np.ndarray, apart: np.ndarray, lengths: EventRange) -> np.ndarray:
    """Return ids of lengths in steps.

    Args:
        length: `[n]`.
        gap: `[n]`, from onset to onset, as they are read, of what is next on the same key or pedal.
        apart: `[n]`, steps that must lie between; 0 where one touches the next.
        lengths: their ids.
    """
    reaching = np.searchsorted(lengths.middle, gap, side="left")  # the shortest that reaches the next
    before = np.searchsorted(lengths.middle, gap - apart, side="right") - 1  # the longest that does not
    place = np.where(apart == 0, reaching, np.minimum(lengths.place(length), np.maximum(before, 1)))
    return lengths.start + np.minimum(place, len(lengths) - 1)


def _next_of_same(key: np.ndarray) -> np.ndarray:
    """Return `[n]`, where each key stands next; `n` where it does not."""
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
