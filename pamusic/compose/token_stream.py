"""Stream new ids from a prime and a checkpoint, and compute their likelihood.

Knows performances, checkpoints and the sampler; knows no terminal and no paths. The layer below, `sampling/`, must not
know the meaning of ids: here a vocabulary becomes the sampler's constraints. `tokens/prime.py` turns a prime into ids,
and `tokens/continuation.py` turns new ids into music.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, zip_longest
from math import inf
from typing import Protocol

import numpy as np

from pamusic.checkpoint import Checkpoint
from pamusic.errors import UsageError
from pamusic.evaluation.likelihood import score
from pamusic.inference.int8 import Kernel
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.music.performance import Performance
from pamusic.sampling.config import SamplingConfig
from pamusic.sampling.constraints import Constraints, GrammarTables, PositionConstraints, PrimeTokens, TokenConstraints
from pamusic.sampling.decoding import DecodingConfig
from pamusic.sampling.ending import StopCondition
from pamusic.sampling.generate import generate
from pamusic.sampling.guard import GuardConfig, Intervention, Snapshot, generate_guarded
from pamusic.sampling.returns import ReturnsConfig
from pamusic.tokens.grammar import grammar_arrays, position_arrays
from pamusic.tokens.prime import WHOLE, EncodedPrime, PrimeRange, encode_prime, ids_before
from pamusic.tokens.tokenizer import Tokenizer
from pamusic.tokens.vocabulary import Position, Vocabulary

# A second of MAESTRO has 40 tokens on average. Without this limit, a model that draws no time shift would never stop.
MAX_TOKENS_PER_SECOND = 500
MAX_TOKENS = 2**62  # limit for any number of seconds


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Settings for pieces that follow one prime.

    Attributes:
        seed: Seed of the first piece; each further piece has the next seed. The same seed gives the same ids.
        num_pieces: Number of pieces.
        prime_range: Part of the prime to read.
        sampling: Sampling settings; their classes are `vocabulary.CLASSES`, in this order.
        stop: Condition that ends a piece.
        inference: Settings of inference.
        guard: Settings of the guard, which delays the ids; None for no guard.
        returns: Settings of returns to earlier passages; None for none. Only a model of notes has them.
        max_draws: Limit on the draws of a piece, including ids that a guard took back.
    """

    seed: int
    num_pieces: int = 1
    prime_range: PrimeRange = WHOLE
    sampling: SamplingConfig = SamplingConfig()
    stop: StopCondition = StopCondition()
    inference: InferenceConfig = InferenceConfig()
    guard: GuardConfig | None = None
    returns: ReturnsConfig | None = None
    max_draws: int | None = None


class GuardMonitor(Protocol):
    """A receiver of the events of guarded pieces, with the number of the piece."""

    def on_intervention(self, piece: int, intervention: Intervention) -> None:
        """Receive an intervention of the guard."""

    def on_snapshot(self, piece: int, snapshot: Snapshot) -> None:
        """Receive the ids of a piece, yielded or not, after each draw."""


class _Unmonitored:
    """A monitor that ignores all events."""

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
    """Return an iterator over the next id of each piece, as soon as it is drawn; None for a piece that has ended.

    The vocabulary's grammar keeps all pieces well-formed. With a guard, each piece is drawn separately, because a batch
    cannot go back in a single row. The pieces then take turns, one id each, which takes as long as one after the other.

    Args:
        checkpoint: Checkpoint that generates.
        prime: Prime, or None.
        config: Settings.
        kernel: Kernel that computes steps in int8 (`inference.session`, `inference.native_kernel`).
        monitor: Receiver of the guard's events.

    Raises:
        UsageError: The arguments do not fit each other or the checkpoint.
        PamusicError: The tokenizer supports none of the prime's notes.
    """
    config = replace(config, stop=_bounded(config.stop))
    if checkpoint.tokenizer.vocabulary.shape and not checkpoint.tokenizer.vocabulary.has("length"):
        _check_compound(checkpoint, prime, config)
    return _stream_tokens(checkpoint, prime, config, kernel, monitor or _Unmonitored())


def stream_piece(checkpoint: Checkpoint, prime: Performance | None, config: StreamConfig) -> Iterator[Position]:
    """Return an iterator over the ids of one piece, with the arguments and errors of `stream`."""
    return (id for (id,) in stream(checkpoint, prime, config) if id is not None)


def _stream_tokens(
    checkpoint: Checkpoint,
    prime: Performance | None,
    config: StreamConfig,
    kernel: Kernel | None,
    monitor: GuardMonitor,
) -> Iterator[Sequence[Position | None]]:
    vocabulary = checkpoint.tokenizer.vocabulary
    start: Position = vocabulary.border("start").tolist()
    tokens = PrimeTokens([start])
    if prime is not None:
        encoded = encode_prime(checkpoint.tokenizer, prime, config.prime_range)
        too_early = ids_before(checkpoint.tokenizer, encoded.gap_steps)
        gap = _seconds_of_gap(vocabulary, encoded)
        tokens = PrimeTokens([start, *encoded.ids.tolist()], forbidden_next=too_early, gap_seconds=gap)
    decoding = DecodingConfig(
        constraints=constraints_of(vocabulary),
        sampling=config.sampling,
        stop=config.stop,
        returns=config.returns if vocabulary.has("length") else None,
    )
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


def _check_compound(checkpoint: Checkpoint, prime: Performance | None, config: StreamConfig) -> None:
    """Raise an error for what needs note lengths, with a vocabulary of events with several fields.

    Raises:
        UsageError: The request has a prime, a guard or an ending.
    """
    for what, is_asked in (
        ("a prime", prime is not None),
        ("--guard", config.guard is not None),
        ("--end-near-length", config.stop.ending is not None),
    ):
        if is_asked:
            raise UsageError(
                f"{checkpoint.title} has events of several fields, and {what} needs note lengths; leave it out"
            )


def _bounded(stop: StopCondition) -> StopCondition:
    """Return a stop condition with a limit on tokens if it has one on seconds, for a model that draws no time shift.

    Raises:
        UsageError: `seconds` is not a positive number.
    """
    if stop.seconds is None:
        return stop
    if not 0 < stop.seconds < inf:
        raise UsageError(f"seconds must be a number above 0, got {stop.seconds}")
    most = round(min(stop.seconds * MAX_TOKENS_PER_SECOND, MAX_TOKENS)) + MAX_TOKENS_PER_SECOND
    return replace(stop, max_tokens=min(stop.max_tokens or most, most))


def constraints_of(vocabulary: Vocabulary) -> Constraints:
    """Return what the sampler knows of a vocabulary."""
    if vocabulary.shape:
        return PositionConstraints(**position_arrays(vocabulary))
    return TokenConstraints(
        grammar=GrammarTables(**grammar_arrays(vocabulary)),
        seconds_of_id=vocabulary.seconds_of_id.tolist(),
        class_of_id=vocabulary.class_of_id.tolist(),
        forbidden_ids=[vocabulary.id("start"), vocabulary.id("pad")],
        end_id=vocabulary.id("end"),
    )


def gap_seconds(tokenizer: Tokenizer, prime: Performance | None, prime_range: PrimeRange = WHOLE) -> float:
    """Return the seconds between a prime's last position and new music, which the first time shift contains.

    It is 0 for events, where the first time shift is new music.
    """
    if prime is None or not tokenizer.vocabulary.has("length"):
        return 0.0
    return _seconds_of_gap(tokenizer.vocabulary, encode_prime(tokenizer, prime, prime_range))


def _seconds_of_gap(vocabulary: Vocabulary, encoded: EncodedPrime) -> float:
    return encoded.gap_steps * vocabulary.time_step_ms / 1000 if vocabulary.has("length") else 0.0


def nats_per_token(
    checkpoint: Checkpoint,
    pieces: Sequence[Sequence[Position]],
    prime: Performance | None = None,
    prime_range: PrimeRange = WHOLE,
    inference: InferenceConfig = InferenceConfig(),
) -> list[float]:
    """Return the mean nats of a new token of each piece, without sampling filters; NaN for a piece without tokens.

    Args:
        checkpoint: Checkpoint that generated them.
        pieces: New ids, or positions, of each piece.
        prime, prime_range: Prime of the pieces, and the part that was read.
        inference: Number of latents and length of context; the precision is always fp32.
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
