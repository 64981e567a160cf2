"""Rank generated pieces. Knows the measures of `evaluation.ranking` and the likelihood of a piece."""

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
    """The ranking of pieces.

    Attributes:
        standings: Ranked pieces, from best to worst; `row` is the index among the generated pieces.
        is_like_prime: True if they were compared with the prime, which was long enough.
    """

    standings: list[RankedPiece]
    is_like_prime: bool


def rank_pieces(
    checkpoint: Checkpoint, pieces: Sequence[Sequence[Position]], request: SampleRequest, prime: Performance | None
) -> BestOf:
    """Rank pieces from best to worst.

    Args:
        checkpoint: Checkpoint that generated them.
        pieces: New ids of each piece.
        request: Request for the pieces.
        prime: Prime, or None.
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
