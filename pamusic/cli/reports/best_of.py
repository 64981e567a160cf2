"""`--best-of`: which of the pieces that were drawn are kept, and why, as a table. Knows words."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from pamusic.cli.terminal import say, table

if TYPE_CHECKING:
    from pamusic.checkpoint import Checkpoint
    from pamusic.evaluation.ranking import Standing
    from pamusic.music.performance import Performance
    from pamusic.tokens.prime import Cut

TOLD = 3  # deviations of a piece


def chosen(
    who: Checkpoint,
    pieces: list[list[int]],
    keep: int,
    *,
    prime: Performance | None,
    cut: Cut,
    seconds: float | None,
    seed: int,
    **compute: Any,
) -> list[int]:
    """The places of the best pieces, the best first; a table says why.

    Args:
        who: composed them.
        pieces: ids of each, as they follow the prime.
        keep: how many are kept.
        prime, cut, seconds: as for `composition.continuation`.
        seed: of the first piece.
        compute: how much the model works with, as for `likelihood.score`.
    """
    from pamusic.compose.token_stream import nats_of
    from pamusic.evaluation.ranking import can_be_measured, ranked, targets
    from pamusic.tokens.continuation import continuation

    say(f"comparing {len(pieces)} pieces")
    music = [continuation(who.tokenizer, ids, prime=prime, cut=cut, seconds=seconds) for ids in pieces]
    heard = None if prime is None else prime.cropped(cut.start, inf if cut.end is None else cut.end)
    wanted = targets(heard, with_pedal=who.tokenizer.vocabulary.sustain == "played")
    standings = ranked(music, nats_of(who, pieces, prime, cut, **compute), wanted)
    rows = [
        {
            "kept": "yes" if place < keep else "",
            "seed": str(seed + each.row),
            "cost": f"{each.cost:.2f}",
            "farthest off in (by so many spreads)": _told(each),
        }
        for place, each in enumerate(standings)
    ]
    table(rows, f"The best of {len(rows)}")
    like = "the prime, or else of MAESTRO" if can_be_measured(heard) else "MAESTRO"
    say(f"cost: the mean square of all deviations from minutes of {like}, in spreads; in nats a token from the batch")
    return [each.row for each in standings[:keep]]


def _told(standing: Standing) -> str:
    farthest = sorted(standing.deviations.items(), key=lambda each: -abs(each[1]))[:TOLD]
    words = [f"{name.replace('_', ' ')} {standing.values[name]:.3g} ({by:+.1f})" for name, by in farthest]
    return ", ".join(words) or "no note"
