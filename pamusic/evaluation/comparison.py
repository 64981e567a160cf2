"""Compare generated with real performances, one statistic at a time.

Task: compare two sets of MIDI files. Convention: Yang and Lerch 2020, "On the evaluation of generative models in
music". `statistics.distance` is the distance of two pieces in a statistic. One distribution has the distances of all
pairs of real pieces, the other the distances from each real to each generated piece. A Gaussian kernel, with a width by
Scott's rule, turns each into a density. Metrics: the area under both densities (overlap; 1: generated pieces lie among
the real ones like real ones), and the Kullback-Leibler divergence of the first from the second, in nats.

Differences from their code (mgeval):
- Both densities are on one grid; theirs computes the divergence of two vectors taken at different distances.
- Histograms of distances are smoothed on this grid, which is faster and changes no reported digit.
- The divergence is finite, because no density falls below `MIN_DENSITY`.
- The overlap is also reported for real against real pieces, as the value that this number of pieces can reach.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pamusic.corpus.build import why_nothing
from pamusic.corpus.parallel import in_parallel
from pamusic.corpus.sources import Refusal, Source, find_sources
from pamusic.errors import PamusicError
from pamusic.evaluation.statistics import LAGS, NGRAM, STATISTICS, PerformanceFeatures, Statistics, excerpt, statistics
from pamusic.music.midi import Tracks, read_and_mend

MIN_REAL = 5  # with fewer, half of the real pieces has a single distance, which is not a distribution
GRID = 1000  # points of a density, as in their code
MIN_DENSITY = 1e-10  # smallest share of a density's mass at a point
HALVINGS = 10  # random halvings of the real pieces


@dataclass(frozen=True, eq=False)
class StatisticSet:
    """The statistics of a set of pieces.

    Attributes:
        num_pieces: Number of pieces that could be read.
        num_short: Number of pieces shorter than the requested excerpt.
        values: Values of each of `STATISTICS` by name, `[pieces, size]`.
        num_figures: Number of figures of `statistics.NGRAM` consecutive notes, `[pieces]`.
        refused: Files that could not be read.
        left_out: Files of other kinds.
    """

    num_pieces: int
    num_short: int
    values: dict[str, np.ndarray]
    num_figures: np.ndarray
    refused: list[Refusal]
    left_out: list[str]

    def repetition(self) -> dict[str, float]:
        """Return the share of figures that occurred before in their piece, by the time since (`statistics.LAGS`)."""
        num_figures = max(1, int(self.num_figures.sum()))
        return {lag: float(self.values[f"repetition_{lag}"][:, 0] @ self.num_figures) / num_figures for lag in LAGS}


@dataclass(frozen=True, eq=False)
class StatisticComparison:
    """The comparison of two sets in one statistic.

    Attributes:
        name: Name of the statistic.
        real, generated: Mean and standard deviation over the pieces; None for a statistic with several values.
        within_real, within_generated, between: Mean distances of pairs; None without a pair.
        overlap: Area under both densities, 0 to 1.
        divergence: Divergence of the distances within the real set from the distances between the sets, in nats.
        reachable: Mean overlap of halves of the real set.
        distances: Grid of the densities, `[GRID]`.
        densities: Densities of the distances within the real set and between the sets, `[2, GRID]`; each sums to 1.
    """

    name: str
    real: tuple[float, float] | None
    generated: tuple[float, float] | None
    within_real: float
    within_generated: float | None
    between: float
    overlap: float
    divergence: float
    reachable: float
    distances: np.ndarray
    densities: np.ndarray

    def numbers(self) -> dict[str, Any]:
        """Return all values except the densities, rounded."""

        def rounded(value: float | None) -> float | None:
            return None if value is None else float(f"{value:.4g}")

        def pair(values: tuple[float, float] | None) -> dict[str, float | None] | None:
            return None if values is None else {"mean": rounded(values[0]), "spread": rounded(values[1])}

        return {
            "statistic": self.name,
            "words": STATISTICS[self.name].words,
            "unit": STATISTICS[self.name].unit,
            "real": pair(self.real),
            "generated": pair(self.generated),
            "within_real": rounded(self.within_real),
            "within_generated": rounded(self.within_generated),
            "between": rounded(self.between),
            "overlap": round(self.overlap, 4),
            "reachable": round(self.reachable, 4),
            "divergence": round(self.divergence, 4),
        }


def measure_statistics(
    paths: list[Path],
    *,
    seconds: float,
    split: str | None = None,
    tracks: Tracks = "piano",
    num_workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> StatisticSet:
    """Compute the statistics of all MIDI files under some paths, on all cores.

    Args:
        paths: Folders, zip archives, MIDI files.
        seconds: Length to measure of each file, from its first note.
        split: Split of MAESTRO's table that the files must belong to, or None.
        tracks: Parts of a file to read.
        num_workers: Number of processes; one per core by default.
        progress: Called with (files done, files in all).

    Raises:
        PamusicError: There is no file, none in the split, or none that can be read.
    """
    sources, refused, left_out = find_sources(paths)
    if split is not None:
        refused = []
        sources = [source for source in sources if source.split == split]
        if not sources:
            what = ", ".join(str(path) for path in paths)
            raise PamusicError(f"{what}: has no {split} files by MAESTRO's table; leave out --split")
    pieces, num_short, num_figures = [], 0, []
    with closing(in_parallel(sources, partial(_measure, seconds=seconds, tracks=tracks), num_workers)) as results:
        for done, result in enumerate(results, start=1):
            if isinstance(result, Refusal):
                refused.append(result)
            else:
                pieces.append(result[0])
                num_short += result[1]
                num_figures.append(result[2])
            progress(done, len(sources))
    if not pieces:
        raise PamusicError(why_nothing(refused))
    values = {name: np.stack([piece[name] for piece in pieces]) for name in STATISTICS}
    return StatisticSet(len(pieces), num_short, values, np.array(num_figures), refused, left_out)


def compare_statistics(real: StatisticSet, generated: StatisticSet) -> list[StatisticComparison]:
    """Compare two sets in each statistic; leave out the sustain pedal if one set never uses it.

    Raises:
        PamusicError: There are too few real pieces.
    """
    if real.num_pieces < MIN_REAL:
        raise PamusicError(f"a comparison needs at least {MIN_REAL} real pieces, got {real.num_pieces}; pass more")
    without_pedal = not (real.values["sustain"].any() and generated.values["sustain"].any())
    return [
        _compare(name, real.values[name], generated.values[name])
        for name in STATISTICS
        if not (name == "sustain" and without_pedal)
    ]


def mean_overlap(rows: list[StatisticComparison]) -> tuple[float, float]:
    """Return the mean overlap and the mean reachable overlap, over the statistics that count for the mean."""
    entering = [row for row in rows if STATISTICS[row.name].in_mean]
    return float(np.mean([row.overlap for row in entering])), float(np.mean([row.reachable for row in entering]))


def overlap_and_divergence(within: np.ndarray, between: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Return overlap, divergence, grid and densities of two sets of distances, `[n]` and `[m]`.

    `StatisticComparison` explains them.
    """
    low, high = (float(end(np.concatenate([within, between]))) for end in (np.min, np.max))
    widths = [max(float(each.std()) * len(each) ** -0.2, 1e-12) for each in (within, between)]
    edges = np.linspace(low - 3 * max(widths), high + 3 * max(widths), GRID + 1)
    first, second = (_density(each, edges, width) for each, width in zip((within, between), widths, strict=True))
    divergence = float((first * np.log(first / second)).sum())
    overlap = float(np.minimum(first, second).sum())
    return overlap, divergence, (edges[:-1] + edges[1:]) / 2, np.stack([first, second])


def pairwise(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances `[n, m]` from values `[n, size]` to values `[m, size]`."""
    squares = np.zeros((len(one), len(other)))
    for a, b in zip(one.T, other.T, strict=True):
        squares += (a[:, None] - b) ** 2
    return np.sqrt(squares)


def _compare(name: str, real: np.ndarray, generated: np.ndarray) -> StatisticComparison:
    among_real, among_generated = pairwise(real, real), pairwise(generated, generated)
    within = _pairs(among_real)
    between = pairwise(real, generated).ravel()
    overlap, divergence, distances, densities = overlap_and_divergence(within, between)
    has_one_value = real.shape[1] == 1
    return StatisticComparison(
        name=name,
        real=(float(real.mean()), float(real.std())) if has_one_value else None,
        generated=(float(generated.mean()), float(generated.std())) if has_one_value else None,
        within_real=float(within.mean()),
        within_generated=float(_pairs(among_generated).mean()) if len(generated) > 1 else None,
        between=float(between.mean()),
        overlap=overlap,
        divergence=divergence,
        reachable=_reachable(among_real),
        distances=distances,
        densities=densities,
    )


def _reachable(distances: np.ndarray) -> float:
    """Return the mean overlap when a random half of the real pieces, at distances `[n, n]`, counts as generated."""
    num_real = len(distances)
    overlaps = []
    for seed in range(HALVINGS):
        order = np.random.default_rng(seed).permutation(num_real)
        half, other = order[: (num_real + 1) // 2], order[(num_real + 1) // 2 :]
        within, between = _pairs(distances[np.ix_(half, half)]), distances[np.ix_(half, other)].ravel()
        overlaps.append(overlap_and_divergence(within, between)[0])
    return float(np.mean(overlaps))


def _pairs(distances: np.ndarray) -> np.ndarray:
    """Return each pair of the distances `[n, n]` once, `[n * (n - 1) / 2]`."""
    return distances[np.triu_indices(len(distances), 1)]


def _density(values: np.ndarray, edges: np.ndarray, width: float) -> np.ndarray:
    """Return the density of values, `[GRID]`, smoothed by a Gaussian of some width; it sums to 1."""
    counts = np.histogram(values, edges)[0].astype(np.float64)
    cell = edges[1] - edges[0]
    reach = max(1, int(np.ceil(6 * width / cell)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * cell / max(width, cell / 2)) ** 2)
    smooth = np.convolve(counts, kernel)[reach : reach + len(counts)]
    floored = np.maximum(smooth / smooth.sum(), MIN_DENSITY)
    return floored / floored.sum()


def _measure(source: Source, seconds: float, tracks: Tracks) -> tuple[Statistics, bool, int] | Refusal:
    try:
        performance, _ = read_and_mend(source.read(), source.name, tracks=tracks)
    except PamusicError as error:
        return Refusal(source.name, str(error).removeprefix(f"{source.name}: "), error.rule)
    lasts = performance.duration - float(performance.notes["onset"][0])
    part = excerpt(performance, seconds)
    return statistics(part), lasts < seconds, max(0, len(PerformanceFeatures(part).onset) - NGRAM + 1)
