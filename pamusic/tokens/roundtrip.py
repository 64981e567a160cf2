"""Measure what a vocabulary keeps of a performance and what it loses, by encoding and decoding it.

Knows performances and tokenizers; knows no files. It uses only the interface of `Tokenizer`: `encode`, `decode`, and
`normalised`, the music that encoding intends to keep before rounding to the grid. For several fields it also counts
what the bins clip. Two losses are measured apart: what the vocabulary leaves out by design (performance against
normalised), and what its grid and bins blur (normalised against decoded). The pedals are measured over both at once.

Notes are matched for each pitch, in the order of onsets. If one side has more notes, the match leaves over those that
make the sum of onset distances smallest (`aligned`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from pamusic.errors import PamusicError
from pamusic.music.describe import PEDAL_NAMES
from pamusic.music.pedal import DOWN
from pamusic.music.performance import Performance
from pamusic.tokens.positions import num_clipped
from pamusic.tokens.tokenizer import Tokenizer

RESOLUTION = 0.01  # of counted errors: a hundredth of a millisecond, or of a velocity step
COARSE = 100.0  # errors from here on are counted in whole units: they are rare, and all differ
MAX_PAIRINGS = 20_000_000  # of one pitch in one table: 160 MB

OUTSIDE, NO_LENGTH, SAME_STEP, OTHER = "outside the pitches", "no length", "same key in the same step", "other"


@dataclass(frozen=True, eq=False)
class Errors:
    """Sizes of errors and their counts; a compact form, so that errors of many pieces can be added.

    Attributes:
        sizes: `[num_sizes]`, ascending, in units of `RESOLUTION`.
        counts: `[num_sizes]`.
    """

    sizes: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, differences: np.ndarray) -> Errors:
        """Return the absolute sizes of differences `[n]`."""
        sizes = np.abs(differences)
        rounded = np.where(sizes < COARSE, np.rint(sizes / RESOLUTION), np.rint(sizes) / RESOLUTION)
        return cls(*np.unique(np.rint(rounded).astype(np.int64), return_counts=True))

    def __add__(self, other: Errors) -> Errors:
        sizes, place = np.unique(np.concatenate([self.sizes, other.sizes]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([self.counts, other.counts]), len(sizes)).astype(np.int64)
        return Errors(sizes, counts)

    def __len__(self) -> int:
        """Return the number of errors."""
        return int(self.counts.sum())

    def within(self, share: float) -> float:
        """Return the smallest size that at least this share of the errors does not exceed; 0 without errors."""
        if not len(self):
            return 0.0
        place = np.searchsorted(np.cumsum(self.counts), share * len(self) - 1e-9)
        return float(self.sizes[min(int(place), len(self.sizes) - 1)] * RESOLUTION)

    @property
    def maximum(self) -> float:
        return self.within(1.0)

    @property
    def share_of_some(self) -> float:
        """Share of errors greater than 0."""
        return float(self.counts[self.sizes > 0].sum() / max(len(self), 1))


@dataclass(frozen=True, eq=False)
class Notes:
    """Notes before and after a conversion.

    Attributes:
        num_before: Number of notes before.
        lost: Number of lost notes, by reason.
        num_doubled: Number of notes dropped because their key has another onset at the same instant. The other note
            stayed, so no music is lost.
        num_added: Number of notes that exist only after.
        onset_ms, offset_ms, velocity: Differences of the notes that stayed.
    """

    num_before: int
    lost: Counter[str]
    num_doubled: int
    num_added: int
    onset_ms: Errors
    offset_ms: Errors
    velocity: Errors

    def __add__(self, other: Notes) -> Notes:
        return Notes(
            self.num_before + other.num_before,
            self.lost + other.lost,
            self.num_doubled + other.num_doubled,
            self.num_added + other.num_added,
            self.onset_ms + other.onset_ms,
            self.offset_ms + other.offset_ms,
            self.velocity + other.velocity,
        )


@dataclass(frozen=True, eq=False)
class Pedal:
    """One pedal before and after a conversion.

    Attributes:
        kept: Whether the vocabulary has this pedal.
        seconds: Length of the music.
        seconds_apart: Seconds in which the pedal is down on one side (64 or more) and up on the other.
        value_seconds: Difference in value, 0 to 127, times the seconds that it lasts.
        largest: Largest difference in value.
        num_presses: Presses (from up to down) before.
        num_lost, num_added: Presses that exist only before, or only after.
        press_ms, release_ms: Time differences of the presses and releases that stayed.
    """

    kept: bool
    seconds: float
    seconds_apart: float
    value_seconds: float
    largest: int
    num_presses: int
    num_lost: int
    num_added: int
    press_ms: Errors
    release_ms: Errors

    def __add__(self, other: Pedal) -> Pedal:
        return Pedal(
            self.kept or other.kept,
            self.seconds + other.seconds,
            self.seconds_apart + other.seconds_apart,
            self.value_seconds + other.value_seconds,
            max(self.largest, other.largest),
            self.num_presses + other.num_presses,
            self.num_lost + other.num_lost,
            self.num_added + other.num_added,
            self.press_ms + other.press_ms,
            self.release_ms + other.release_ms,
        )


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """Result of encoding and decoding one performance, or the sum over many.

    Attributes:
        tokenizer: Name of the tokenizer.
        folded: Whether the sustain pedal is folded into the notes' lengths.
        seconds, num_tokens: Length of the music, and number of ids.
        meaning: Notes as played, against those that the vocabulary intends to keep.
        grid: Notes that it intends to keep, against those that come back.
        pedals: Results by pedal name, for pedals that were used.
        num_clipped: Numbers of notes and pedal presses, and of rests, too long for the vocabulary.
    """

    tokenizer: str
    folded: bool
    seconds: float
    num_tokens: int
    meaning: Notes
    grid: Notes
    pedals: dict[str, Pedal]
    num_clipped: tuple[int, int] = (0, 0)

    def __add__(self, other: RoundTrip) -> RoundTrip:
        pedals = dict(self.pedals)
        for name, pedal in other.pedals.items():
            pedals[name] = pedals[name] + pedal if name in pedals else pedal
        return RoundTrip(
            self.tokenizer,
            self.folded,
            self.seconds + other.seconds,
            self.num_tokens + other.num_tokens,
            self.meaning + other.meaning,
            self.grid + other.grid,
            pedals,
            (self.num_clipped[0] + other.num_clipped[0], self.num_clipped[1] + other.num_clipped[1]),
        )


def round_trip(performance: Performance, tokenizer: Tokenizer) -> RoundTrip:
    """Encode and decode a performance, and measure the differences.

    Raises:
        PamusicError: too many notes of one key are lost to match them.
    """
    ids, vocabulary = tokenizer.encode(performance), tokenizer.vocabulary
    meant, decoded = tokenizer.normalised(performance), tokenizer.decode(ids)
    return RoundTrip(
        tokenizer=tokenizer.name,
        folded=tokenizer.vocabulary.sustain == "folded",
        seconds=performance.duration,
        num_tokens=len(ids),
        meaning=_notes_compared(performance, meant, tokenizer),
        grid=_notes_compared(meant, decoded, tokenizer),
        pedals={
            PEDAL_NAMES[control]: _pedal_compared(performance, decoded, control)
            for control in PEDAL_NAMES
            if np.any(performance.pedal["value"][performance.pedal["control"] == control])
        },
        num_clipped=num_clipped(tokenizer.to_grid(performance), vocabulary) if vocabulary.shape else (0, 0),
    )


def aligned(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match two ascending series of times, one to one and in order, with the smallest sum of distances.

    Every element of the shorter series gets a partner in the longer one.

    Returns:
        Indices into `before` and into `after`, `[min(len(before), len(after))]` each.

    Raises:
        PamusicError: there are more than `MAX_PAIRINGS` pairings to compare.
    """
    if len(before) < len(after):
        return aligned(after, before)[::-1]
    num_pairs, surplus = len(after), len(before) - len(after)
    places = np.arange(num_pairs)
    if not surplus or not num_pairs:
        return places, places
    if num_pairs * (surplus + 1) > MAX_PAIRINGS:
        raise PamusicError("more notes are lost than can be matched (all of one key); use a file of piano music")
    # least[j, d]: the smallest distance of the first j + 1 pairs when d elements of the longer series are left over.
    distance = np.abs(before[places[:, None] + np.arange(surplus + 1)] - after[:, None])
    least = np.empty_like(distance)
    so_far = np.zeros(surplus + 1)
    for j in range(num_pairs):
        least[j] = distance[j] + so_far
        so_far = np.minimum.accumulate(least[j])
    left_over = np.empty(num_pairs, np.int64)
    most = surplus
    for j in range(num_pairs - 1, -1, -1):
        left_over[j] = most = int(np.argmin(least[j, : most + 1]))
    return places + left_over, places


def _notes_compared(before: Performance, after: Performance, tokenizer: Tokenizer) -> Notes:
    here, there = _by_pitch(before.notes), _by_pitch(after.notes)
    pairs = []
    for pitch in np.unique(here["pitch"]):
        ours, theirs = (np.searchsorted(side["pitch"], [pitch, pitch + 1]) for side in (here, there))
        places, others = aligned(here["onset"][slice(*ours)], there["onset"][slice(*theirs)])
        pairs.append(np.stack([places + ours[0], others + theirs[0]]))
    kept, found = np.concatenate([np.empty((2, 0), np.int64), *pairs], axis=1)
    stayed, became = here[kept], there[found]
    gone = np.setdiff1d(np.arange(len(here)), kept)
    is_double = np.isin(_strokes(here[gone]), _strokes(stayed))
    return Notes(
        num_before=len(here),
        lost=_why_lost(here, gone[~is_double], tokenizer),
        num_doubled=int(is_double.sum()),
        num_added=len(there) - len(found),
        onset_ms=Errors.of((became["onset"] - stayed["onset"]) * 1000),
        offset_ms=Errors.of((became["offset"] - stayed["offset"]) * 1000),
        velocity=Errors.of(became["velocity"].astype(np.int64) - stayed["velocity"]),
    )


def _by_pitch(notes: np.ndarray) -> np.ndarray:
    return notes[np.lexsort((notes["onset"], notes["pitch"]))]


def _strokes(notes: np.ndarray) -> np.ndarray:
    """Return onset and pitch of each note as one value, `[num_notes]`; equal for onsets of a key at one instant."""
    return notes["onset"] + 1j * notes["pitch"]


def _why_lost(notes: np.ndarray, lost: np.ndarray, tokenizer: Tokenizer) -> Counter[str]:
    """Count `notes[lost]` by reason; the notes alone show the reason."""
    pitches = tokenizer.vocabulary.range("note_on")
    step = np.floor(notes["onset"] * 1000 / tokenizer.vocabulary.time_step_ms + 0.5)
    strokes = Counter(zip(notes["pitch"].tolist(), step.tolist(), strict=True))
    reasons: Counter[str] = Counter()
    for place in lost.tolist():
        note = notes[place]
        if not pitches.first <= note["pitch"] <= pitches.last:
            reasons[OUTSIDE] += 1
        elif note["offset"] <= note["onset"]:
            reasons[NO_LENGTH] += 1
        elif strokes[int(note["pitch"]), float(step[place])] > 1:
            reasons[SAME_STEP] += 1
        else:
            reasons[OTHER] += 1
    return reasons


def _pedal_compared(before: Performance, after: Performance, control: int) -> Pedal:
    here, there = (played.pedal[played.pedal["control"] == control] for played in (before, after))
    the_end = max(before.duration, after.duration)
    borders = np.unique(np.concatenate([[0.0], here["time"], there["time"], [the_end]]))
    value_here, value_there = _value_at(here, borders[:-1]), _value_at(there, borders[:-1])
    lasts = np.diff(borders)
    difference = np.abs(value_here - value_there)
    apart = (value_here >= DOWN) != (value_there >= DOWN)

    (presses, releases), (others, other_releases) = _turns(here, before.duration), _turns(there, after.duration)
    kept, found = aligned(presses, others)
    let_go, let_go_there = aligned(releases, other_releases)
    return Pedal(
        kept=bool(len(there)),
        seconds=float(the_end),
        seconds_apart=float(lasts[apart].sum()),
        value_seconds=float((difference * lasts).sum()),
        largest=int(difference[lasts > 0].max(initial=0)),
        num_presses=len(presses),
        num_lost=len(presses) - len(kept),
        num_added=len(others) - len(found),
        press_ms=Errors.of((others[found] - presses[kept]) * 1000),
        release_ms=Errors.of((other_releases[let_go_there] - releases[let_go]) * 1000),
    )


def _value_at(moves: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return a pedal's value from each time on: the value of the last movement so far, 0 before the first."""
    values = np.concatenate([[0], moves["value"].astype(np.int64)])
    return values[np.searchsorted(moves["time"], times, side="right")]


def _turns(moves: np.ndarray, the_end: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the times at which a pedal goes down and up, ignoring movements within one instant.

    A pedal that is down at the end goes up there, as in decoding.
    """
    times = np.unique(moves["time"])
    down = _value_at(moves, times) >= DOWN
    turned = np.diff(down.astype(np.int64), prepend=0) != 0
    presses, releases = times[turned & down], times[turned & ~down]
    return presses, releases if len(releases) == len(presses) else np.append(releases, the_end)
