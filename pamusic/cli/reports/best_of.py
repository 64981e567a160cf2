"""Print which pieces `--best-of` keeps, and why, as a table. Knows words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pamusic.cli.terminal import log, table

if TYPE_CHECKING:
    from pamusic.compose.best_of import BestOf
    from pamusic.evaluation.ranking import RankedPiece

MAX_DEVIATIONS = 3  # deviations shown per piece


def print_best_of(best_of: BestOf, *, keep: int, seed: int) -> None:
    """Print the pieces from best to worst, with the reasons for their order.

    Args:
        best_of: Ranked pieces.
        keep: Number of pieces that are kept.
        seed: Seed of the first piece.
    """
    rows = [
        {
            "kept": "yes" if place < keep else "",
            "seed": str(seed + each.row),
            "cost": f"{each.cost:.2f}",
            "farthest off in (spreads)": _format_deviations(each),
        }
        for place, each in enumerate(best_of.standings)
    ]
    table(rows, f"The best of {len(rows)}")
    like = "the prime, or else of MAESTRO" if best_of.is_like_prime else "MAESTRO"
    log(f"cost: mean square of all deviations, in spreads, from minutes of {like}; for nats per token, from the batch")


def _format_deviations(standing: RankedPiece) -> str:
    farthest = sorted(standing.deviations.items(), key=lambda each: -abs(each[1]))[:MAX_DEVIATIONS]
    words = [f"{name.replace('_', ' ')} {standing.values[name]:.3g} ({by:+.1f})" for name, by in farthest]
    return ", ".join(words) or "no note"
