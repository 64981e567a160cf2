"""Measure the likelihood of the same tokens with other lengths of context and numbers of latents.

Task: the score of `likelihood`, repeated. Convention: only tokens that have the longest of the contexts before them
count, so that every token has the full context. If no piece is that long, all tokens count. Metrics: nats per token,
operations per token (`model.flops`) and speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pamusic.corpus.corpus import Corpus
from pamusic.evaluation.likelihood import Likelihood, evaluate, select_pieces
from pamusic.model.flops import scoring_flops
from pamusic.model.sequence_model import SequenceModel

MIN_CONTEXT = 128


@dataclass(frozen=True)
class SweepPoint:
    """One point of a sweep.

    Attributes:
        context_length, num_latents, block: Settings of the point.
        nats_per_token, num_tokens: Mean nats, and number of scored tokens.
        flops: Operations per token.
        tokens_per_second: Speed in this measurement.
    """

    context_length: int
    num_latents: int
    block: int
    nats_per_token: float
    num_tokens: int
    flops: float
    tokens_per_second: float

    def numbers(self) -> dict[str, float | int]:
        """Return all values by name, rounded."""
        rounded = {"nats_per_token": round(self.nats_per_token, 4), "flops": round(self.flops)}
        return {**asdict(self), **rounded, "tokens_per_second": round(self.tokens_per_second)}


def contexts_and_latents(model: SequenceModel) -> list[tuple[int, int]]:
    """Return pairs (context, latents) to try: contexts up to twice the model's, latents from a quarter to twice.

    A model that carries its state along a piece is tried with other segments only.
    """
    context, latents = model.config.context_length, model.config.num_latents
    if model.num_held(model.config) is None:
        return [(context, n) for n in (latents // 4, latents // 2, latents, 2 * latents) if 2 <= n <= context]
    contexts = [context >> k for k in range(20) if context >> k >= min(MIN_CONTEXT, context)][::-1]
    tried = [(length, min(latents, length)) for length in [*contexts, 2 * context]]
    more = [n for n in (latents // 4, latents // 2, 2 * latents) if 2 <= n <= context]
    return tried + [(context, n) for n in more]


def sweep(
    model: SequenceModel,
    corpus: Corpus,
    split: str,
    ways: list[tuple[int, int]],
    *,
    num_pieces: int | None = None,
    progress: Callable[[int, Likelihood, int, int], None] = lambda way, so_far, done, of: None,
) -> list[SweepPoint]:
    """Score the same tokens at each point.

    Args:
        model, corpus, split, num_pieces: As for `evaluate`.
        ways: Pairs (context, latents).
        progress: As for `evaluate`, with the index of the point as first argument.
    """
    longest = max(context for context, _ in ways)
    reaches = any(corpus.pieces[piece].num_tokens > longest for piece in select_pieces(corpus, split, num_pieces))
    points = []
    for way, (context, latents) in enumerate(ways):
        began = time.perf_counter()
        num_scored = 0

        def tell(so_far: Likelihood, done: int, of: int, way: int = way) -> None:
            nonlocal num_scored
            num_scored = done
            progress(way, so_far, done, of)

        total = evaluate(
            model, corpus, split, num_latents=latents, context_length=context, num_pieces=num_pieces,
            from_position=longest if reaches else 0, progress=tell,
        )  # fmt: skip
        config, block = model.config.resized(context_length=context, num_latents=latents), max(1, latents // 2)
        took = time.perf_counter() - began
        points.append(
            SweepPoint(
                context_length=context,
                num_latents=latents,
                block=block,
                nats_per_token=total.nats_per_token,
                num_tokens=total.num_tokens,
                flops=scoring_flops(config, block=block),
                tokens_per_second=num_scored / took,
            )
        )
    return points
