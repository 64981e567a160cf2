"""Rank generated pieces, and explain the ranking.

Knows their statistics and their cost in nats; knows no model. A piece is compared with real performances. If it follows
a prime that is long enough, some statistics are compared with the prime instead, since a player keeps them up: density,
range, loudness and pedal. Deviations are in spreads: the spread over minutes of all performances, or over neighbouring
minutes of one performance. The cost of a piece is the mean square of its deviations, each clipped to `MAX_DEVIATION`.

The nats per token are compared within the batch. A very low value is a loop or a cliché, and a very high one has lost
any style (Holtzman et al. 2020, arXiv:1904.09751, section 4, find that human text has neither).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from pamusic.evaluation.statistics import Statistics, statistics
from pamusic.music.performance import Performance

MAX_DEVIATION = 4.0  # spreads; larger deviations count as this
MIN_PRIME_SECONDS, MIN_PRIME_NOTES = 10.0, 40  # smallest prime to compare with
LAST_SECONDS = 60.0  # the end of the prime to compare with, because the continuation follows it
NATS_SPREAD = 0.2  # smallest spread; over validation pieces of MAESTRO it is 0.23 for the shipped checkpoint

LIKE_THE_PRIME = ("density", "pitch_range", "velocity", "velocity_spread", "sustain")
ONLY_TOO_MUCH = ("repetition_2s", "silence")  # only excess counts: many real minutes have none
# Repetition after more than 2 s is not among them, because a phrase that returns later is wanted.


@dataclass(frozen=True)
class ReferenceStatistic:
    """The distribution of a statistic over minutes of real performances.

    Attributes:
        mean: Mean over all minutes.
        spread: Standard deviation over all minutes.
        drift: Root mean square difference between neighbouring minutes of a performance.
    """

    mean: float
    spread: float
    drift: float


# The training split of MAESTRO v3.0.0, with each performance cut into minutes from its first note: 9,066 minutes of 961
# performances, computed by `benchmarks/typical.py`.
TYPICAL = {
    "repetition_2s": ReferenceStatistic(0.03201, 0.04849, 0.05467),
    "repetition_12s": ReferenceStatistic(0.03223, 0.04496, 0.05263),
    "repetition_60s": ReferenceStatistic(0.0208, 0.05093, 0.05714),
    "density": ReferenceStatistic(9.839, 4.53, 4.287),
    "pitch_range": ReferenceStatistic(45.52, 9.301, 9.093),
    "pitch_class_entropy": ReferenceStatistic(2.868, 0.2589, 0.2722),
    "velocity": ReferenceStatistic(61.52, 9.866, 10.4),
    "velocity_spread": ReferenceStatistic(16.2, 3.108, 3.303),
    "sustain": ReferenceStatistic(0.6374, 0.2585, 0.1785),
    "silence": ReferenceStatistic(0.0679, 0.07966, 0.09035),
}


@dataclass(frozen=True, eq=False)
class RankedPiece:
    """The rank of a piece.

    Attributes:
        row: Index among the pieces.
        cost: Cost, lower is better; infinite for a piece without notes.
        values: Measured values by name: the statistics in `TYPICAL`, and nats.
        deviations: Deviation of each value from its target, in spreads.
    """

    row: int
    cost: float
    values: dict[str, float]
    deviations: dict[str, float]


def can_be_measured(prime: Performance | None) -> bool:
    """Return whether a prime is long enough to compare with."""
    return prime is not None and prime.duration >= MIN_PRIME_SECONDS and len(prime) >= MIN_PRIME_NOTES


def targets(prime: Performance | None, *, with_pedal: bool) -> dict[str, tuple[float, float]]:
    """Return the target and the spread of each statistic.

    Args:
        prime: Prime of the pieces, or None.
        with_pedal: True if the pieces can use a sustain pedal.
    """
    wanted = {name: (each.mean, each.spread) for name, each in TYPICAL.items() if with_pedal or name != "sustain"}
    if prime is not None and can_be_measured(prime):
        its = statistics(prime.cropped(max(0.0, prime.duration - LAST_SECONDS), inf))
        wanted |= {name: (float(its[name][0]), TYPICAL[name].drift) for name in LIKE_THE_PRIME if name in wanted}
    return wanted


def rank(
    pieces: Sequence[Performance], nats: Sequence[float], wanted: dict[str, tuple[float, float]]
) -> list[RankedPiece]:
    """Rank pieces, the best first.

    Args:
        pieces: New parts of the pieces, without the prime.
        nats: Nats per token of each new part.
        wanted: Result of `targets`.
    """
    finite = [each for each in nats if isfinite(each)]
    middle = float(np.median(finite)) if finite else 0.0
    off = float(np.median(np.abs(np.array(finite) - middle))) if finite else 0.0
    wanted = {
        "nats": (middle, max(1.4826 * off, NATS_SPREAD)),
        **wanted,
    }  # the standard deviation of a normal distribution
    standings = []
    for row, (piece, cost_in_nats) in enumerate(zip(pieces, nats, strict=True)):
        if not len(piece):
            standings.append(RankedPiece(row, inf, {}, {}))
            continue
        values = {"nats": cost_in_nats, **{name: float(value[0]) for name, value in _scalars(statistics(piece))}}
        deviations = {}
        for name, (target, spread) in wanted.items():
            deviation = float(np.clip((values[name] - target) / spread, -MAX_DEVIATION, MAX_DEVIATION))
            deviations[name] = max(deviation, 0.0) if name in ONLY_TOO_MUCH else deviation
        cost = float(np.mean(np.square(list(deviations.values()))))
        standings.append(RankedPiece(row, cost, values, deviations))
    return sorted(standings, key=lambda each: (each.cost, each.row))


def _scalars(measured: Statistics) -> list[tuple[str, np.ndarray]]:
    return [(name, value) for name, value in measured.items() if name in TYPICAL]
