"""Pieces that a model composed -> which to listen to first, and why.

Knows their statistics and what they cost the model; knows no model. A piece is held to real performances or, where it
follows a prime that is long enough to be measured, to that prime in what a player keeps up: how dense, how wide, how
loud and how much pedal. How far it is off is told in spreads: of minutes of performances, or of neighbouring minutes
of one. Cost: the mean of the squares of these deviations, none counting as more than `MAX_DEVIATION` spreads.

What it costs the model, in nats per token, is compared within the batch: too little is a loop or a cliché, too much a
fall out of any style (Holtzman et al. 2020, arXiv:1904.09751, section 4, find that human text is neither).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from pamusic.evaluation.statistics import Statistics, statistics
from pamusic.music.performance import Performance

MAX_DEVIATION = 4.0  # spreads; as if farther off nothing were worse
MIN_PRIME_SECONDS, MIN_PRIME_NOTES = 10.0, 40  # of a prime that says how it is played
LAST_SECONDS = 60.0  # of it that are held to say so: what follows goes on from there
NATS_SPREAD = 0.2  # at least: between validation pieces of MAESTRO it is 0.23 for the checkpoint that ships

LIKE_THE_PRIME = ("density", "pitch_range", "velocity", "velocity_spread", "sustain")
ONLY_TOO_MUCH = ("repetition_2s", "silence")  # many real minutes have none; a phrase that returns later is wanted


@dataclass(frozen=True)
class ReferenceStatistic:
    """What a statistic is among minutes of real performances.

    Attributes:
        mean: of all.
        spread: their standard deviation.
        drift: the root mean square of how one minute of a performance differs from the next.
    """

    mean: float
    spread: float
    drift: float


# The training split of MAESTRO v3.0.0, each performance cut into minutes from its first note on: 9,066 minutes of 961
# performances, as `benchmarks/typical.py` computes them.
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
    """Where a piece stands.

    Attributes:
        row: its place among the pieces.
        cost: the lower the better; infinite without a note.
        values: what was measured, by name: of `TYPICAL`, and nats.
        deviations: how far it is off in each, in spreads.
    """

    row: int
    cost: float
    values: dict[str, float]
    deviations: dict[str, float]


def can_be_measured(prime: Performance | None) -> bool:
    """Return whether a prime is long enough to say how it is played."""
    return prime is not None and prime.duration >= MIN_PRIME_SECONDS and len(prime) >= MIN_PRIME_NOTES


def targets(prime: Performance | None, *, with_pedal: bool) -> dict[str, tuple[float, float]]:
    """Return what each statistic should be, and the spread around it.

    Args:
        prime: what the pieces follow.
        with_pedal: whether they could have a sustain pedal of their own.
    """
    wanted = {name: (each.mean, each.spread) for name, each in TYPICAL.items() if with_pedal or name != "sustain"}
    if prime is not None and can_be_measured(prime):
        its = statistics(prime.cropped(max(0.0, prime.duration - LAST_SECONDS), inf))
        wanted |= {name: (float(its[name][0]), TYPICAL[name].drift) for name in LIKE_THE_PRIME if name in wanted}
    return wanted


def rank(
    pieces: Sequence[Performance], nats: Sequence[float], wanted: dict[str, tuple[float, float]]
) -> list[RankedPiece]:
    """Return where each of some pieces stands, the best first.

    Args:
        pieces: what is new in them.
        nats: what a token of each costs the model, not counting a prime's.
        wanted: from `targets`.
    """
    finite = [each for each in nats if isfinite(each)]
    middle = float(np.median(finite)) if finite else 0.0
    off = float(np.median(np.abs(np.array(finite) - middle))) if finite else 0.0
    wanted = {"nats": (middle, max(1.4826 * off, NATS_SPREAD)), **wanted}  # as a normal distribution's deviation
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
