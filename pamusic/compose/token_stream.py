"""A prime and a checkpoint -> new ids, each as soon as it is drawn, and what they cost.

Knows performances, checkpoints and the sampler; knows no terminal and no paths. It stands above `sampling/`, which must
not know what ids mean: here a vocabulary becomes the sampler's constraints. A prime becomes ids in `tokens/prime.py`,
new ids become music in `tokens/continuation.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, zip_longest
from math import inf
from typing import Protocol

import numpy as np

from pamusic.checkpoint import Checkpoint, check_events
from pamusic.errors import UsageError
from pamusic.evaluation.likelihood import score
from pamusic.inference.int8 import Kernel
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.music.performance import Performance
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import GrammarTables, PrimeTokens, TokenConstraints
from pamusic.sampling.ending import StopCondition
from pamusic.sampling.generate import generate
from pamusic.sampling.guard import GuardConfig, Intervention, Snapshot, generate_guarded
from pamusic.sampling.positions import PositionConstraints, generate_positions
from pamusic.sampling.token_sampler import DecodingConfig
from pamusic.tokens.grammar import grammar_arrays
from pamusic.tokens.prime import WHOLE, PrimeRange, encode_prime, ids_before
from pamusic.tokens.vocabulary import Position, Vocabulary

# A second of MAESTRO has 40 tokens on average. A model that lets no time pass would never reach its seconds.
MAX_TOKENS_PER_SECOND = 500
MAX_TOKENS = 2**62  # whatever number of seconds is asked for


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How pieces that follow one prime are drawn.

    Attributes:
        seed: the same seed gives the same ids; of several pieces, the next ones have the next seeds.
        num_pieces: that are drawn.
        prime_range: which part of the prime is read.
        sampling: how an id is drawn; its classes are `vocabulary.CLASSES`, in their order.
        stop: when a piece ends.
        inference: how much is computed, and in which precision.
        guard: what is taken back, and drawn again; ids then come later than they are drawn. None for no guard.
        max_draws: a piece ends when so many ids have been drawn for it, whatever a guard took back of them.
    """

    seed: int
    num_pieces: int = 1
    prime_range: PrimeRange = WHOLE
    sampling: SamplingConfig = SamplingConfig()
    stop: StopCondition = StopCondition()
    inference: InferenceConfig = InferenceConfig()
    guard: GuardConfig | None = None
    max_draws: int | None = None


class GuardMonitor(Protocol):
    """Receives the events of guarded pieces, by the number of the piece."""

    def on_intervention(self, piece: int, intervention: Intervention) -> None:
        """Take what the guard did."""

    def on_snapshot(self, piece: int, snapshot: Snapshot) -> None:
        """Take what there is of a piece, held back or not, whenever one more id was drawn for it."""


class _Unmonitored:
    """Takes what nobody wants to hear."""

    def on_intervention(self, piece: int, intervention: Intervention) -> None: ...

    def on_snapshot(self, piece: int, snapshot: Snapshot) -> None: ...


def stream(
    checkpoint: Checkpoint,
    prime: Performance | None,
    config: StreamConfig,
    *,
    kernel: Kernel | None = None,
    monitor: GuardMonitor | None = None,
) -> Iterator[Sequence[Position | None]]:
    """Return an iterator over the next id of each piece, as soon as it is drawn; None where one has ended.

    By the vocabulary's grammar, none is ill-formed. With a guard each piece is drawn alone, for a batch cannot go back
    in one row and on in the others: they take turns, an id each, and it takes as long as one after the other.

    Where the checkpoint has several fields a position, a piece begins from nothing; of the configuration, seed, number
    of pieces, sampling and stop enter.

    Args:
        checkpoint: the model that composes.
        prime: what was played so far, or None.
        config: how.
        kernel: computes steps in int8 (`inference.session`, `inference.native_kernel`).
        monitor: receives what a guard does.

    Raises:
        UsageError: the arguments do not fit together or to the checkpoint.
        PamusicError: the tokenizer knows none of the prime's notes.
    """
    config = replace(config, stop=_bounded(config.stop))
    if checkpoint.tokenizer.vocabulary.shape and prime is None:
        return _stream_positions(checkpoint, config)
    check_events(checkpoint, "following a prime, token by token,")
    return _stream_tokens(checkpoint, prime, config, kernel, monitor or _Unmonitored())


def stream_piece(checkpoint: Checkpoint, prime: Performance | None, config: StreamConfig) -> Iterator[Position]:
    """Return an iterator over the ids of one piece; the arguments and errors are `stream`'s."""
    return (id for (id,) in stream(checkpoint, prime, config) if id is not None)


def _stream_tokens(
    checkpoint: Checkpoint,
    prime: Performance | None,
    config: StreamConfig,
    kernel: Kernel | None,
    monitor: GuardMonitor,
) -> Iterator[Sequence[Position | None]]:
    vocabulary = checkpoint.tokenizer.vocabulary
    tokens = PrimeTokens([vocabulary.id("start")])
    if prime is not None:
        encoded = encode_prime(checkpoint.tokenizer, prime, config.prime_range)
        too_early = ids_before(checkpoint.tokenizer, encoded.gap_steps)
        tokens = PrimeTokens([*tokens.ids, *encoded.ids.tolist()], forbidden_next=too_early)
    decoding = DecodingConfig(constraints=constraints_of(vocabulary), sampling=config.sampling, stop=config.stop)
    session = InferenceSession(checkpoint.model, config.inference, kernel)
    if config.guard is None:
        rows = generate(session, tokens, decoding, seed=config.seed, num_rows=config.num_pieces)
        return islice(rows, config.max_draws)
    pieces = [
        generate_guarded(
            session, tokens, decoding, guard=config.guard, seed=config.seed + piece, max_draws=config.max_draws,
            on_intervention=partial(monitor.on_intervention, piece), on_snapshot=partial(monitor.on_snapshot, piece),
        )
        for piece in range(config.num_pieces)
    ]  # fmt: skip
    return zip_longest(*pieces)


def _stream_positions(checkpoint: Checkpoint, config: StreamConfig) -> Iterator[Sequence[Position | None]]:
    vocabulary = checkpoint.tokenizer.vocabulary
    constraints = PositionConstraints(
        fits=vocabulary.fits,
        seconds_of_id=vocabulary.seconds_of_id,
        forbidden_ids=[vocabulary.id("start"), vocabulary.id("pad")],
        end_id=vocabulary.id("end"),
    )
    positions = generate_positions(
        checkpoint.model, vocabulary.border("start")[None], constraints, seed=config.seed, num_rows=config.num_pieces,
        sampling=_sampling_of_fields(vocabulary, config.sampling), stop=config.stop,
    )  # fmt: skip
    return islice(positions, config.max_draws)


def _sampling_of_fields(vocabulary: Vocabulary, sampling: SamplingConfig) -> list[SamplingConfig]:
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


def _bounded(stop: StopCondition) -> StopCondition:
    """Return the condition with a bound on tokens where there is one on seconds, for a model that lets no time pass.

    Raises:
        UsageError: `seconds` is no length.
    """
    if stop.seconds is None:
        return stop
    if not 0 < stop.seconds < inf:
        raise UsageError(f"seconds is a number above 0, not {stop.seconds}")
    most = round(min(stop.seconds * MAX_TOKENS_PER_SECOND, MAX_TOKENS)) + MAX_TOKENS_PER_SECOND
    return replace(stop, max_tokens=min(stop.max_tokens or most, most))


def constraints_of(vocabulary: Vocabulary) -> TokenConstraints:
    """Return the constraints of a vocabulary with one id a position."""
    return TokenConstraints(
        grammar=GrammarTables(**grammar_arrays(vocabulary)),
        seconds_of_id=vocabulary.seconds_of_id.tolist(),
        class_of_id=vocabulary.class_of_id.tolist(),
        forbidden_ids=[vocabulary.id("start"), vocabulary.id("pad")],
        end_id=vocabulary.id("end"),
    )


def nats_per_token(
    checkpoint: Checkpoint,
    pieces: Sequence[Sequence[Position]],
    prime: Performance | None = None,
    prime_range: PrimeRange = WHOLE,
    inference: InferenceConfig = InferenceConfig(),
) -> list[float]:
    """Return what a new token of each piece costs the model, whatever the draws were filtered by; NaN without one.

    Args:
        checkpoint: composed them.
        pieces: the ids, or positions, that followed the prime.
        prime, prime_range: what they followed.
        inference: with how many latents and how much context; in fp32.
    """
    encoded = [] if prime is None else encode_prime(checkpoint.tokenizer, prime, prime_range).ids.tolist()
    before = [checkpoint.tokenizer.vocabulary.border("start").tolist(), *encoded]
    size = {"num_latents": inference.num_latents, "context_length": inference.context_length}
    return [
        float(score(checkpoint.model, np.array([*before, *ids]), first=len(before), **size)[0].sum() / len(ids))
        if len(ids)
        else float("nan")
        for ids in pieces
    ]
