"""Compose and score with a model. Knows checkpoints and requests."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from pamusic.api.border import StrPath, as_path, in_python, write_file
from pamusic.api.midi import MIDI_SUFFIXES, MidiFile, as_performance, as_prime, synthesize
from pamusic.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from pamusic.compose.job import Composer, Prime
from pamusic.compose.provenance import Provenance
from pamusic.compose.request import SampleRequest
from pamusic.device import choose_machine
from pamusic.errors import PamusicError, UsageError
from pamusic.evaluation import likelihood
from pamusic.evaluation.likelihood import Likelihood
from pamusic.music.events import Event
from pamusic.music.performance import Performance
from pamusic.tokens.continuation import continuation, join
from pamusic.tokens.tokenizer import Tokenizer
from pamusic.tokens.vocabulary import Position

LOGGER = logging.getLogger("pamusic")


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece that a model composed.

    Attributes:
        ids: New tokens, `[num_tokens]`, or `[num_positions, fields]`, int64.
        seed: Seed of this piece. `sample` with this seed and `guard=False` makes the piece again, also one of several,
            up to rounding differences of products over more rows.
        midi: Bytes of its MIDI file, which `pamusic replay` can make again.
        performance: The prime, up to its cut, and the new music.
        continuation: The new music alone, from time 0.
    """

    ids: np.ndarray
    seed: int
    midi: bytes
    performance: Performance
    continuation: Performance

    def save(self, path: StrPath) -> Path:
        """Write the MIDI file, with the same bytes as `pamusic sample`, and return the path.

        Raises:
            PamusicError: the file cannot be written.
        """
        return write_file(path, self.midi, MIDI_SUFFIXES)

    def synthesize(self, path: StrPath, *, soundfont: StrPath | None = None) -> Path:
        """Write `performance` as a WAV file; arguments and errors as in `pamusic.synthesize`."""
        return synthesize(self.performance, path, soundfont=soundfont)


class Model:
    """A model that composes and scores; `load` makes one.

    Attributes:
        checkpoint: Network, tokenizer, and training metadata.
        tokenizer: Tokenizer of the model's ids.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, device: str = "auto") -> None:
        """Wrap a checkpoint; records contain `name` and `device`."""
        self.checkpoint, self._name, self._device = checkpoint, name, device
        self.tokenizer: Tokenizer = checkpoint.tokenizer

    def __repr__(self) -> str:
        num_parameters = self.checkpoint.model.num_parameters()
        return f"<pamusic.Model {self._name}: {num_parameters:,} parameters, {self.tokenizer.name} tokens>"

    def sample(
        self,
        prime: Performance | StrPath | None = None,
        request: SampleRequest | None = None,
        *,
        seconds: float | None = None,
        seed: int | None = None,
        **options: object,
    ) -> Piece:
        """Continue a prime, or compose from nothing.

        Args:
            prime: Music to continue: from `read_midi`, the path of a MIDI file, or any performance.
            seconds: Seconds of new music; 60 without `length`.
            seed: Seed; the same seed gives the same music. By default a new one.
            request: All options as one value, visible to a type checker; the other arguments override it.
            options: Fields of `pamusic.SampleRequest`, such as `temperature`, `top_p`, `length`, `best_of`.

        Raises:
            PamusicError: the prime cannot be continued, or an option makes no sense.
            TypeError: there is no such option.

        >>> piece = model.sample(prime, seconds=5, seed=1, top_p=0.98)
        >>> piece.continuation.duration <= 5
        True
        >>> bool((piece.ids == model.sample(prime, seconds=5, seed=1, top_p=0.98).ids).all())
        True
        """
        return self.sample_many(prime, request, seconds=seconds, seed=seed, **options)[0]

    def sample_many(
        self,
        prime: Performance | StrPath | None = None,
        request: SampleRequest | None = None,
        *,
        seconds: float | None = None,
        seed: int | None = None,
        **options: object,
    ) -> list[Piece]:
        """Compose several pieces at once, with consecutive seeds: `num_samples`, or the best of `best_of`.

        Arguments and errors are the same as for `sample`. Ranked pieces are ordered from best to worst.

        >>> [piece.seed for piece in model.sample_many(seconds=3, seed=7, num_samples=2)]
        [7, 8]
        """
        with in_python():
            asked = {"seconds": seconds, "seed": seed, **options}
            completed, known = self._request(prime, request, asked)
            composer = Composer(completed, checkpoint=self.checkpoint, log=LOGGER.warning)
            if unsupported := composer.unsupported_notes(known):
                LOGGER.warning(unsupported)
            collector = composer.collector(known)
            result = collector.collect(composer.stream(known, collector))
            if result.interruption is not None:
                raise result.interruption
            best_of = composer.best_of(result, known)
            rows = composer.rows
            if best_of is not None:
                rows = [each.row for each in best_of.standings[: len(rows)]]
            record_of = composer.records(result, known, is_cut=False)
            return [_piece(composer, result.pieces[row], known, record_of(row)) for row in rows]

    def stream(
        self,
        prime: Performance | StrPath | None = None,
        request: SampleRequest | None = None,
        *,
        seconds: float | None = None,
        seed: int | None = None,
        **options: object,
    ) -> Iterator[Event]:
        """Return an iterator over the events of one piece as soon as they are final: note-ons, note-offs, pedals.

        Arguments and errors are the same as for `sample`. The guard is off unless `guard=True`, since it delays the
        events by 30 seconds of music.

        Returns:
            `pamusic.Event`s `(time, type, number, value)`; times in seconds from the end of the prime.

        >>> events = list(model.stream(prime, seconds=3, seed=1))
        >>> all(before.time <= after.time for before, after in zip(events, events[1:]))
        True
        """
        with in_python():
            asked = {"seconds": seconds, "seed": seed, **options}
            completed, known = self._request(prime, request, asked, is_live=True)
            if not completed.is_one_piece:
                raise UsageError(f"a stream has one piece, got {completed.num_drawn}; leave out --num-samples")
            composer = Composer(completed, checkpoint=self.checkpoint, is_live=True, log=LOGGER.warning)
            drawn = composer.stream(known, composer.collector(known))
            decoder = composer.decoder(known)

        def events() -> Iterator[Event]:
            with in_python():
                for (position,) in drawn:
                    if position is not None:
                        yield from decoder.follow(position)
                yield from decoder.end()

        return events()

    def score(self, music: Performance | StrPath) -> Likelihood:
        """Return the cost of a performance: the likelihood of each token, given the tokens before it.

        Args:
            music: A performance, or the path of a MIDI file.

        Returns:
            `.nats_per_token`, `.bits_per_note`, `.num_tokens`, and more. The end token counts.

        Raises:
            PamusicError: the file cannot be read, or the tokenizer has none of its notes.

        >>> 5 < model.score(prime).nats_per_token < 12
        True
        """
        with in_python():
            performance = as_performance(music)
            ids = self.tokenizer.encode(performance)
            if not len(ids):
                raise PamusicError(f"the music has no note in the range of {self.tokenizer.name}; use music with notes")
            return likelihood.score_piece(
                partial(likelihood.score, self.checkpoint.model), self.tokenizer.vocabulary, ids,
                num_notes=len(performance), seconds=performance.duration,
            )  # fmt: skip

    def _request(
        self,
        prime: Performance | StrPath | None,
        request: SampleRequest | None,
        options: dict[str, object],
        *,
        is_live: bool = False,
    ) -> tuple[SampleRequest, Prime]:
        """Return the completed request for these options, and the prime.

        Raises:
            PamusicError, TypeError: As for `sample`.
        """
        for name in ("prime", "checkpoint", "device"):
            if name in options:
                raise TypeError(
                    f"{name!r} cannot be an option here; pass the prime as an argument, and the rest to load"
                )
        changes = {name: value for name, value in options.items() if value is not None}
        asked = SampleRequest.from_options({**(vars(request) if request is not None else {}), **changes})
        if "tracks" not in changes and isinstance(prime, MidiFile):
            asked = replace(asked, tracks=prime.tracks)
        completed = replace(asked, checkpoint=self._name, device=self._device).completed(is_live=is_live)
        read = as_prime(prime, completed.tracks)
        return replace(completed, prime=read.path), read


def load(name: StrPath | None = None, *, device: str = "auto") -> Model:
    """Load a model.

    Args:
        name: Name of a bundled model; the folder of a checkpoint or a run; `latest`, the newest run; None for the
            default.
        device: Device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        PamusicError: there is no such model, or it is broken; or there is no such device.

    >>> pamusic.load("nocturne")
    <pamusic.Model nocturne: 11,762,624 parameters, notes tokens>
    """
    if not isinstance(device, str):
        raise TypeError(f"device must be a str such as 'cpu', got {device!r}")
    with in_python():
        path = find_checkpoint(None if name is None else str(as_path(name)))
        checkpoint = load_checkpoint(path, choose_machine(device, "fp32", compile=False).device)
    return Model(checkpoint, path.name if name is None else str(name), device)


def _piece(composer: Composer, ids: Sequence[Position], prime: Prime, record: Provenance) -> Piece:
    midi, _ = composer.midi(ids, prime, record)
    request, tokenizer, before = composer.request, composer.checkpoint.tokenizer, prime.performance
    part, seconds = request.prime_range, request.max_seconds
    return Piece(
        ids=np.array(ids, np.int64),
        seed=(request.seed or 0) + record.row,
        midi=midi,
        performance=join(tokenizer, ids, prime=before, prime_range=part, seconds=seconds),
        continuation=continuation(tokenizer, ids, prime=before, prime_range=part, seconds=seconds),
    )
