"""Compute statistics of a performance that a listener would notice.

Task: describe a performance by a few named statistics. Convention: statistics describe the sound: the sustain pedal
lengthens the notes, so music with pedals and music without them (from the tokenizer `performance`) are comparable. Each
statistic is a mean, a share or a histogram. Those that grow with the length of a piece are taken over windows of fixed
length. So pieces of different lengths are comparable, although long pieces scatter less. Metrics: `STATISTICS`. The
distance of two performances in a statistic is the Euclidean distance of its values, whether one or more.

Source: Yang and Lerch 2020, "On the evaluation of generative models in music", Neural Computing and Applications 32,
whose set is for monophonic scores with a beat. Differences: we count notes and pitches per second or window instead of
per piece. Lengths and distances of notes are in seconds, because a performance has no beat. Polyphony, velocity, pedal,
similarity and repetition are added, and the transition matrices, of 144 cells each, are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pamusic.music.pedal import DOWN, sustain_folded
from pamusic.music.performance import CHORD, SUSTAIN, Performance

STEP = 0.05  # seconds of a step of the piano roll
WINDOW = 10.0  # seconds of a window
SHORT_WINDOW = 4.0
NGRAM = 8  # notes of a figure, which rarely repeats by chance
MEMORY = 60.0  # seconds within which `self_repetition` counts a repetition
LAGS = {"2s": (-np.inf, 2.0), "12s": (2.0, 12.0), "60s": (12.0, MEMORY), "later": (MEMORY, np.inf)}  # seconds

LAST_INTERVAL = 12  # semitones; all wider melodic intervals are one class
ONSET_EDGES = 0.0125 * 2.0 ** np.arange(8)  # seconds, 12.5 ms to 1.6 s: edges of nine classes
LENGTH_EDGES = 0.05 * 2.0 ** np.arange(8)  # seconds, 50 ms to 6.4 s

Statistics = dict[str, np.ndarray]  # by name, `[size]` float64 each


class PerformanceFeatures:
    """The features of a performance that several statistics share, computed on first use."""

    def __init__(self, performance: Performance) -> None:
        notes = sustain_folded(performance).notes
        self.pedal = performance.pedal[performance.pedal["control"] == SUSTAIN]
        self.onset, self.offset = (np.ascontiguousarray(notes[name]) for name in ("onset", "offset"))
        self.pitch, self.velocity = (notes[name].astype(np.int64) for name in ("pitch", "velocity"))
        self.seconds = max(performance.duration, STEP)

    @cached_property
    def roll(self) -> np.ndarray:
        """Number of sounding notes by step and pitch, `[steps, 128]`."""
        num_steps = int(self.seconds / STEP) + 2
        first = (self.onset / STEP).astype(np.int64)
        last = np.maximum((self.offset / STEP + 0.5).astype(np.int64), first + 1)  # one step at least
        changes = np.zeros((num_steps + 1, 128), np.int16)
        np.add.at(changes, (first, self.pitch), 1)
        np.add.at(changes, (np.minimum(last, num_steps), self.pitch), -1)
        return changes.cumsum(0, dtype=np.int16)[: int(np.ceil(self.seconds / STEP))]

    @cached_property
    def chroma(self) -> np.ndarray:
        """Number of sounding notes by step and pitch class, `[steps, 12]`."""
        padded = np.pad(self.roll, ((0, 0), (0, 132 - 128)))
        return padded.reshape(len(padded), 11, 12).sum(1)

    @cached_property
    def chord(self) -> np.ndarray:
        """Number of the chord of each note, `[notes]`; onsets of a chord are at most `CHORD` apart."""
        return np.cumsum(np.diff(self.onset, prepend=-np.inf) > CHORD) - 1

    @cached_property
    def lags(self) -> np.ndarray:
        """Time since the last occurrence of each figure of `NGRAM` notes in a row, `[notes - NGRAM + 1]`.

        In seconds, from first note to first note; NaN for the first occurrence. Notes of a chord are sorted by pitch.
        """
        order = np.lexsort((self.pitch, self.chord))
        if len(order) < NGRAM:
            return np.empty(0)
        pitch, onset = self.pitch[order].astype(np.uint64), self.onset[order]
        powers = np.uint64(128) ** np.arange(NGRAM, dtype=np.uint64)  # eight times seven bits fit in 64
        figure = (np.lib.stride_tricks.sliding_window_view(pitch, NGRAM) * powers).sum(1)
        by_figure = np.argsort(figure, kind="stable")
        again = np.diff(figure[by_figure]) == 0
        lags = np.full(len(figure), np.nan)
        lags[by_figure[1:][again]] = np.diff(onset[: len(figure)][by_figure])[again]
        return lags

    def windows(self, length: float) -> np.ndarray:
        """Return the number of the window in which each note begins, `[notes]`; -1 after the last whole window.

        A performance shorter than a window counts as one window.
        """
        window = (self.onset / length).astype(np.int64)
        window[window >= max(1, int(self.seconds / length))] = -1
        return window

    def num_windows(self, length: float) -> int:
        return max(1, int(self.seconds / length))


def _density(features: PerformanceFeatures) -> float:
    return len(features.onset) / features.seconds


def _density_spread(features: PerformanceFeatures) -> float:
    window = features.windows(SHORT_WINDOW)
    counts = np.bincount(window[window >= 0], minlength=features.num_windows(SHORT_WINDOW))
    return float(counts.std() / min(SHORT_WINDOW, features.seconds))


def _polyphony(features: PerformanceFeatures) -> float:
    strings = (features.roll > 0).sum(1)
    return float(strings[strings > 0].mean()) if strings.any() else 0.0


def _silence(features: PerformanceFeatures) -> float:
    return float((features.roll.sum(1) == 0).mean())


def _pitch(features: PerformanceFeatures) -> float:
    return float(features.pitch.mean()) if len(features.pitch) else 0.0


def _pitch_range(features: PerformanceFeatures) -> float:
    window = features.windows(WINDOW)
    ranges = [np.ptp(features.pitch[window == each]) for each in np.unique(window[window >= 0])]
    return float(np.mean(ranges)) if ranges else 0.0


def _pitch_classes(features: PerformanceFeatures) -> np.ndarray:
    return _shares(np.bincount(features.pitch % 12, minlength=12))


def _pitch_class_entropy(features: PerformanceFeatures) -> float:
    window = features.windows(WINDOW)
    counts = np.zeros((features.num_windows(WINDOW), 12))
    np.add.at(counts, (window[window >= 0], features.pitch[window >= 0] % 12), 1)
    counts = counts[counts.sum(1) > 0]
    shares = counts / counts.sum(1, keepdims=True)
    bits = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1)
    return float(bits.mean()) if len(bits) else 0.0


def _melody(features: PerformanceFeatures) -> np.ndarray:
    top = np.zeros(features.chord[-1] + 1 if len(features.chord) else 0, np.int64)
    np.maximum.at(top, features.chord, features.pitch)
    return _shares(np.bincount(np.minimum(np.abs(np.diff(top)), LAST_INTERVAL + 1), minlength=LAST_INTERVAL + 2))


def _harmony(features: PerformanceFeatures) -> np.ndarray:
    sounds = (features.chroma > 0).astype(np.int64)
    both = [(sounds * np.roll(sounds, interval, axis=1)).sum() for interval in range(1, 7)]
    both[5] //= 2  # each tritone was counted from both ends
    return _shares(np.array(both))


def _inter_onsets(features: PerformanceFeatures) -> np.ndarray:
    return _shares(np.bincount(np.digitize(np.diff(features.onset), ONSET_EDGES), minlength=len(ONSET_EDGES) + 1))


def _lengths(features: PerformanceFeatures) -> np.ndarray:
    lengths = features.offset - features.onset
    return _shares(np.bincount(np.digitize(lengths, LENGTH_EDGES), minlength=len(LENGTH_EDGES) + 1))


def _velocity(features: PerformanceFeatures) -> float:
    return float(features.velocity.mean()) if len(features.velocity) else 0.0


def _velocity_spread(features: PerformanceFeatures) -> float:
    return float(features.velocity.std()) if len(features.velocity) else 0.0


def _velocity_change(features: PerformanceFeatures) -> float:
    return float(np.abs(np.diff(features.velocity)).mean()) if len(features.velocity) > 1 else 0.0


def _sustain(features: PerformanceFeatures) -> float:
    down = np.concatenate([[False], features.pedal["value"] >= DOWN])
    lasts = np.diff(np.concatenate([[0.0], features.pedal["time"], [features.seconds]]))
    return float(lasts[down].sum() / features.seconds)


def _similarity(features: PerformanceFeatures, seconds: float) -> float:
    """Return the mean correlation of pitch classes in neighbouring windows: 1 is the same harmony, 0 unrelated."""
    steps = round(seconds / STEP)
    num_windows = len(features.chroma) // steps
    windows = features.chroma[: num_windows * steps].reshape(num_windows, steps, 12).sum(1).astype(np.float64)
    windows -= windows.mean(1, keepdims=True)
    size = np.linalg.norm(windows, axis=1)
    both = (size[:-1] > 0) & (size[1:] > 0)
    products = (windows[:-1] * windows[1:]).sum(1)[both] / (size[:-1] * size[1:])[both]
    return float(products.mean()) if len(products) else 0.0


def _self_repetition(features: PerformanceFeatures) -> float:
    """Return the share of figures of `NGRAM` notes that last occurred at most `MEMORY` seconds before."""
    return float((features.lags <= MEMORY).mean()) if len(features.lags) else 0.0


def _repetition(features: PerformanceFeatures, lag: str) -> float:
    """Return the share of figures of `NGRAM` notes that last occurred within this range of `LAGS`."""
    after, until = LAGS[lag]
    return float(((features.lags > after) & (features.lags <= until)).mean()) if len(features.lags) else 0.0


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / max(counts.sum(), 1)


@dataclass(frozen=True)
class Statistic:
    """One statistic.

    Attributes:
        words: Description.
        unit: Unit of its values, or of their distance.
        of: Function that computes it.
        in_mean: True if it counts for the mean overlap of two sets. The shares of repetition by lag do not, because
            `self_repetition` does, and so the mean stays comparable with earlier ones.
    """

    words: str
    unit: str
    of: Callable[[PerformanceFeatures], float | np.ndarray]
    in_mean: bool = True


def _repetition_at(lag: str) -> Statistic:
    after, until = LAGS[lag]
    ago = f"more than {after:g} s" if until == np.inf else f"at most {until:g} s"
    words = f"figures of 8 notes that last occurred {ago} ago"
    if np.isfinite(after) and np.isfinite(until):
        words += f", and more than {after:g}"
    return Statistic(words, "share", lambda features: _repetition(features, lag), in_mean=False)


STATISTICS = {
    "density": Statistic("onsets", "a second", _density),
    "density_spread": Statistic("variation of onsets between windows of 4 s", "a second", _density_spread),
    "polyphony": Statistic("sounding notes, outside of silence", "notes", _polyphony),
    "silence": Statistic("silence", "share", _silence),
    "pitch": Statistic("mean pitch", "semitones", _pitch),
    "pitch_range": Statistic("pitch range within 10 s", "semitones", _pitch_range),
    "pitch_classes": Statistic("onsets by pitch class", "shares", _pitch_classes),
    "pitch_class_entropy": Statistic("entropy of pitch classes within 10 s", "bits", _pitch_class_entropy),
    "melody": Statistic("intervals of the highest notes", "shares", _melody),
    "harmony": Statistic("intervals of pitch classes that sound together", "shares", _harmony),
    "inter_onsets": Statistic("time between onsets, in powers of 2", "shares", _inter_onsets),
    "lengths": Statistic("sounding length, in powers of 2", "shares", _lengths),
    "velocity": Statistic("mean velocity", "of 127", _velocity),
    "velocity_spread": Statistic("standard deviation of velocity", "of 127", _velocity_spread),
    "velocity_change": Statistic("change of velocity between notes", "of 127", _velocity_change),
    "sustain": Statistic("time with the sustain pedal down", "share", _sustain),
    "similarity_1s": Statistic("harmony of consecutive seconds", "correlation", lambda h: _similarity(h, 1)),
    "similarity_4s": Statistic("harmony of consecutive 4 s", "correlation", lambda h: _similarity(h, 4)),
    "similarity_16s": Statistic("harmony of consecutive 16 s", "correlation", lambda h: _similarity(h, 16)),
    "self_repetition": Statistic("figures of 8 notes that occurred within the last 60 s", "share", _self_repetition),
    **{f"repetition_{name}": _repetition_at(name) for name in LAGS},
}


def statistics(performance: Performance) -> Statistics:
    """Compute all `STATISTICS` of a performance, from second 0 to its end; zeros without notes."""
    features = PerformanceFeatures(performance)
    return {name: np.atleast_1d(np.asarray(each.of(features), np.float64)) for name, each in STATISTICS.items()}


def excerpt(performance: Performance, seconds: float) -> Performance:
    """Return the first `seconds` of a performance, counted from its first note."""
    start = float(performance.notes["onset"][0]) if len(performance) else 0.0
    return performance.cropped(start, start + seconds)


def distance(one: Statistics, other: Statistics, name: str) -> float:
    """Return the distance of two performances in one statistic."""
    return float(np.linalg.norm(one[name] - other[name]))
