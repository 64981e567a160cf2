"""A prime and a checkpoint -> new ids, each as soon as it is drawn, and what they cost.

Knows performances, checkpoints and the sampler; knows no terminal and no paths. It stands above `generation/`, which
must not know what ids mean, and below `cli/`, which knows no music: here alone the two meet. A prime becomes ids in
`tokens/prime.py`, new ids become music in `tokens/continuation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, zip_longest
from math import inf
from typing import Any

import numpy as np

from pamusic.checkpoint import Checkpoint, check_events
from pamusic.evaluation.likelihood import score
from pamusic.inference.int8 import Kernel
from pamusic.inference.session import Reader
from pamusic.music.performance import Performance
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import Rules
from pamusic.sampling.ending import Ending
from pamusic.sampling.generate import generate_rows
from pamusic.sampling.guard import Alarm, Guard, Kept, guarded
from pamusic.sampling.positions import generate_positions
from pamusic.tokens.grammar import grammar_arrays
from pamusic.tokens.prime import WHOLE, Cut, opened, too_early
from pamusic.tokens.vocabulary import Vocabulary

# A second of MAESTRO has 40 tokens on average. A model that lets no time pass would never reach its seconds.
MOST_TOKENS_A_SECOND = 500
MOST_TOKENS = 2**62  # whatever number of seconds is asked for


def compose(checkpoint: Checkpoint, prime: Performance | None = None, *, seed: int, **how: Any) -> Iterator[Any]:
    """Yields the ids that follow a prime, each as soon as it is drawn: `compose_many` for one piece.

    Where the checkpoint has several fields a position, these are `compose_positions`'.
    """
    if checkpoint.tokenizer.vocabulary.shape and prime is None:
        return (position for (position,) in compose_positions(checkpoint, seed=seed, **how) if position is not None)
    return (id for (id,) in compose_many(checkpoint, prime, seed=seed, **how) if id is not None)


def compose_many(
    checkpoint: Checkpoint,
    prime: Performance | None = None,
    *,
    cut: Cut = WHOLE,
    seed: int,
    num: int = 1,
    length: int | None = None,
    seconds: float | None = None,
    may_end: bool = False,
    ending: Ending | None = None,
    sampling: SamplingConfig | None = None,
    num_latents: int | None = None,
    context_length: int | None = None,
    refill: str | int = "half",
    precision: str = "fp32",
    kernel: Kernel | None = None,
    guard: Guard | None = None,
    alarmed: Callable[[int, Alarm], None] = lambda row, alarm: None,
    keeping: Callable[[int, Kept], None] = lambda row, kept: None,
    stop_after: int | None = None,
) -> Iterator[list[int | None]]:
    """Yields the next id of each of some pieces that follow a prime, as soon as it is drawn; None where one has ended.

    By the vocabulary's grammar, none is ill-formed. With a guard each piece is drawn alone, for a batch cannot go back
    in one row and on in the others: they take turns, an id each, and it takes as long as one after the other.

    Args:
        checkpoint: who composes.
        prime: what was played so far; nothing by default.
        cut: which part of it is read.
        seed: the same seed gives the same ids; of many pieces, the next ones have the next seeds.
        num: how many pieces.
        length: how many ids at most.
        seconds: how much new music at most.
        may_end: whether the piece may end before that.
        ending: brings it to a close near that length; none stops it there.
        sampling: how an id is drawn; its classes are `vocabulary.CLASSES`, in their order.
        num_latents, context_length: in place of the checkpoint's own.
        refill: what happens when all latents are in use (`inference.session`).
        precision: of the weights (`inference.precision`).
        kernel: computes steps in bytes (`inference.session`, `pamusic.inference.native_kernel`).
        guard: what is taken back, and drawn anew; an id then comes later than it is drawn.
        alarmed: hears of it, with the number of the piece.
        keeping: hears what there is of a guarded piece, held back or not, whenever one more id was drawn for it.
        stop_after: each piece ends when so many ids have been drawn for it, whatever a guard took back of them.

    Raises:
        ValueError: the arguments do not fit together or to the checkpoint.
        PamusicError: the tokenizer knows none of the prime's notes.
    """
    check_events(checkpoint, "following a prime, token by token,")
    vocabulary = checkpoint.tokenizer.vocabulary
    opening = None if prime is None else opened(checkpoint.tokenizer, prime, cut)
    if seconds is not None:
        length = _most_positions(length, seconds)
    before = [vocabulary.id("start"), *([] if opening is None else opening.ids.tolist())]
    how: dict[str, Any] = {
        **of_vocabulary(vocabulary),
        "length": length,
        "seconds": seconds,
        "sampling": sampling,
        "barred_at_first": [] if opening is None else too_early(checkpoint.tokenizer, opening.gap),
        "end_after": 1 if may_end else None,
        "ending": ending,
    }
    how["like"] = Reader(
        checkpoint.model, num_latents=num_latents, context_length=context_length, refill=refill, precision=precision,
        kernel=kernel,
    )  # fmt: skip
    if guard is None:
        return islice(generate_rows(checkpoint.model, before, seed=seed, num_rows=num, **how), stop_after)
    rows = [
        guarded(
            checkpoint.model, before, guard=guard, seed=seed + row, told=partial(alarmed, row),
            keeping=partial(keeping, row), stop_after=inf if stop_after is None else stop_after, **how,
        )
        for row in range(num)
    ]  # fmt: skip
    return (list(ids) for ids in zip_longest(*rows))


def compose_positions(
    checkpoint: Checkpoint,
    *,
    seed: int,
    num: int = 1,
    length: int | None = None,
    seconds: float | None = None,
    may_end: bool = False,
    sampling: SamplingConfig | None = None,
    stop_after: int | None = None,
) -> Iterator[list[list[int] | None]]:
    """Yields the next position of each of some pieces from nothing, where a checkpoint has several fields a position.

    The arguments are those of `compose_many`, counted in positions, with as much fewer as is not done here yet.

    Raises:
        ValueError: the arguments do not fit together.
    """
    vocabulary = checkpoint.tokenizer.vocabulary
    most = _most_positions(length, seconds)
    never = [vocabulary.id("start"), vocabulary.id("pad"), *([] if may_end else [vocabulary.id("end")])]
    positions = generate_positions(
        checkpoint.model, vocabulary.border("start")[None], num_rows=num, seed=seed, length=most, fits=vocabulary.fits,
        seconds_of_id=vocabulary.seconds_of_id, seconds=inf if seconds is None else seconds,
        end_id=vocabulary.id("end"), barred_ids=never, sampling=_of_fields(vocabulary, sampling or SamplingConfig()),
    )  # fmt: skip
    return islice(positions, stop_after)


def _of_fields(vocabulary: Vocabulary, sampling: SamplingConfig) -> list[SamplingConfig]:
    """Return how each field is drawn: filters leave shifts and lengths as they are; temperature applies to all.

    Their rarest values are the longest ones. Without these, music has few rests and few long notes: where the filters
    take the last hundredth of these fields too, it has half again as many notes a second (`docs/experiments.md`).
    """
    whole = replace(sampling, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0)
    times = [vocabulary.range(kind).first for kind in ("time_shift", "length") if vocabulary.has(kind)]
    return [
        whole if any(field.start <= first < field.start + field.size for first in times) else sampling
        for field in vocabulary.fields
    ]


def _most_positions(length: int | None, seconds: float | None) -> int:
    """How many ids or positions there are at most.

    Raises:
        ValueError: `seconds` is no length.
    """
    if seconds is None:
        return MOST_TOKENS if length is None else length
    if not 0 < seconds < inf:
        raise ValueError(f"seconds is a number above 0, not {seconds}")
    most = round(min(seconds * MOST_TOKENS_A_SECOND, MOST_TOKENS)) + MOST_TOKENS_A_SECOND
    return min(length or most, most)


def of_vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    """What the sampler has to be told of a vocabulary, by the names of its arguments."""
    return {
        "seconds_of_id": vocabulary.seconds_of_id.tolist(),
        "class_of_id": vocabulary.class_of_id.tolist(),
        "barred_ids": [vocabulary.id("start"), vocabulary.id("pad")],
        "rules": Rules(**grammar_arrays(vocabulary)),
        "end_id": vocabulary.id("end"),
    }


def nats_of(
    checkpoint: Checkpoint,
    pieces: Sequence[Sequence[Any]],
    prime: Performance | None = None,
    cut: Cut = WHOLE,
    **compute: Any,
) -> list[float]:
    """What a new token of each piece costs the model, by itself, whatever the draws were filtered by; NaN without one.

    Args:
        checkpoint: composed them.
        pieces: the ids, or positions, that followed the prime.
        prime, cut: what they followed.
        compute: with how much latents and context, as for `likelihood.score`.
    """
    opening = [] if prime is None else opened(checkpoint.tokenizer, prime, cut).ids.tolist()
    before = [checkpoint.tokenizer.vocabulary.border("start").tolist(), *opening]
    return [
        float(score(checkpoint.model, np.array([*before, *ids]), first=len(before), **compute)[0].sum() / len(ids))
        if len(ids)
        else float("nan")
        for ids in pieces
    ]
