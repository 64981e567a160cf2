"""Rank the pieces that were drawn. Knows the measures of `evaluation.ranking` and what a piece costs its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from pamusic.checkpoint import Checkpoint
from pamusic.compose.request import SampleRequest
from pamusic.compose.token_stream import nats_per_token
from pamusic.evaluation.ranking import RankedPiece, can_be_measured, rank, targets
from pamusic.music.performance import Performance
from pamusic.tokens.continuation import continuation
from pamusic.tokens.vocabulary import Position


@dataclass(frozen=True)
class BestOf:
    """Pieces, ranked.

    Attributes:
        standings: from best to worst; `row` is the place among the pieces that were drawn.
        is_like_prime: whether they were compared with the prime first, which is long enough for that.
    """

    standings: list[RankedPiece]
    is_like_prime: bool


def rank_pieces(
    checkpoint: Checkpoint, pieces: Sequence[Sequence[Position]], request: SampleRequest, prime: Performance | None
) -> BestOf:
    """Return pieces from best to worst.

    Args:
        checkpoint: composed them.
        pieces: ids of each, as they follow the prime.
        request: which asked for them.
        prime: what was played before, or None.
    """
    tokenizer, prime_range = checkpoint.tokenizer, request.prime_range
    music = [
        continuation(tokenizer, ids, prime=prime, prime_range=prime_range, seconds=request.max_seconds)
        for ids in pieces
    ]
    end = inf if prime_range.end is None else prime_range.end
    heard = None if prime is None else prime.cropped(prime_range.start, end)
    wanted = targets(heard, with_pedal=tokenizer.vocabulary.sustain == "played")
    nats = nats_per_token(checkpoint, pieces, prime, prime_range, request.inference)
    return BestOf(rank(music, nats, wanted), can_be_measured(heard))
