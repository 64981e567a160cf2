"""`--best-of`: which of the pieces that were drawn are kept, and why, as a table. Knows words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pamusic.cli.terminal import log, table

if TYPE_CHECKING:
    from pamusic.compose.best_of import BestOf
    from pamusic.evaluation.ranking import RankedPiece

MAX_DEVIATIONS = 3  # of a piece, in its row


def print_best_of(best_of: BestOf, *, keep: int, seed: int) -> None:
    """Print the pieces from best to worst, and why they stand so.

    Args:
        best_of: the pieces, ranked.
        keep: how many are kept.
        seed: of the first piece that was drawn.
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
    log(f"cost: the mean square of all deviations from minutes of {like}, in spreads; in nats a token from the batch")


def _format_deviations(standing: RankedPiece) -> str:
    farthest = sorted(standing.deviations.items(), key=lambda each: -abs(each[1]))[:MAX_DEVIATIONS]
    words = [f"{name.replace('_', ' ')} {standing.values[name]:.3g} ({by:+.1f})" for name, by in farthest]
    return ", ".join(words) or "no note"
