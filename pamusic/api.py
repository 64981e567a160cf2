"""The Python API: `pamusic.load("small").sample(seconds=60)`, and what belongs to it.

Does what the command line does, through the same requests, and returns values. Knows no terminal. Errors name options
as Python does; all of them are `PamusicError`s.

    >>> import pamusic
    >>> model = pamusic.load("small")
    >>> prime = pamusic.read_midi("intro.mid")
    >>> piece = model.sample(prime, seconds=5, seed=1)
    >>> piece.save("out.mid")
    PosixPath('out.mid')
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np

from pamusic.checkpoint import Checkpoint, check_corpus, find_checkpoint, load_checkpoint
from pamusic.compose.job import Composer, Prime
from pamusic.compose.provenance import Provenance
from pamusic.compose.request import RECORD_NAMES, SampleRequest
from pamusic.corpus import build
from pamusic.corpus.corpus import Corpus, open_corpus
from pamusic.device import choose_machine
from pamusic.errors import PamusicError, UsageError
from pamusic.evaluation import likelihood
from pamusic.evaluation.likelihood import Likelihood
from pamusic.files import written_atomically
from pamusic.music import synthesis
from pamusic.music.events import Event
from pamusic.music.midi import file_bytes, midi_bytes, parsed_tracks, read_and_mend
from pamusic.music.midi_contents import Repair
from pamusic.music.performance import Performance
from pamusic.tokens.continuation import Position, continuation, join
from pamusic.tokens.tokenizer import Tokenizer, load_tokenizer

StrPath = str | PathLike[str]
IN_MEMORY = Path("-")  # how a record names a prime that is no file, as it does for standard input


@contextmanager
def _in_python() -> Iterator[None]:
    """Name options as Python does in errors that speak of flags."""
    try:
        yield
    except PamusicError as error:
        words = re.sub(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)", lambda flag: _python_name(flag[1]), str(error))
        raise type(error)(words, rule=error.rule) from error.__cause__


def _python_name(flag: str) -> str:
    names = {record_name: name for name, record_name in RECORD_NAMES.items()}
    word = flag.replace("-", "_")
    return names.get(word, word)


@dataclass(frozen=True, eq=False)
class MidiFile(Performance):
    """A performance with the file that it was read from, so that a continuation keeps the file's own messages.

    Attributes:
        path: of the file.
        data: its bytes.
        repairs: what was mended in it.
        tracks: which of its parts were read.
    """

    path: Path = IN_MEMORY
    data: bytes = b""
    repairs: tuple[Repair, ...] = ()
    tracks: str = "piano"


def read_midi(path: StrPath, *, tracks: str = "piano") -> MidiFile:
    """Read the piano part of a Standard MIDI File, mended where it is broken.

    Args:
        path: the file; gzip is unpacked.
        tracks: `piano` (programs 0 to 7, no drums), `all` (except drums), or numbers of parts, like `1,3`.

    Returns:
        The performance: `.notes`, `[num_notes]` records of onset and offset in seconds, pitch, velocity; `.pedal`.

    Raises:
        PamusicError: the file cannot be read, is no MIDI file, or has no such part.

    >>> prime = pamusic.read_midi("intro.mid")
    >>> len(prime) > 0, prime.duration > 0
    (True, True)
    >>> higher = prime.transposed(2).cropped(0, 10)
    """
    with _in_python():
        data = file_bytes(Path(path))
        performance, repairs = read_and_mend(data, str(path), tracks=parsed_tracks(tracks))
    return MidiFile(performance.notes, performance.pedal, Path(path), data, repairs, tracks)


def write_midi(performance: Performance, path: StrPath) -> Path:
    """Write a performance as a Standard MIDI File, on a grid of milliseconds, and return the path.

    Raises:
        PamusicError: the file cannot be written.

    >>> pamusic.write_midi(pamusic.read_midi("intro.mid").cropped(0, 10), "ten-seconds.mid")
    PosixPath('ten-seconds.mid')
    """
    return _write(path, midi_bytes(performance))


def synthesize(performance: Performance, path: StrPath, *, soundfont: StrPath | None = None) -> Path:
    """Play a performance on a SoundFont, in a small room, into a 16-bit stereo WAV file, and return the path.

    Args:
        performance: with notes.
        path: of the WAV file.
        soundfont: an `.sf2` file; by default the best that is installed, else one that is always there.

    Raises:
        PamusicError: the performance is too long or empty, the SoundFont is broken, or the file cannot be written.

    >>> pamusic.synthesize(pamusic.read_midi("intro.mid").cropped(0, 5), "intro.wav")
    PosixPath('intro.wav')
    """
    with _in_python():
        sound = synthesis.synthesize(performance, soundfont=None if soundfont is None else Path(soundfont))
    return _write(path, synthesis.wav_bytes(sound))


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece that a model composed.

    Attributes:
        ids: the new tokens, `[num_tokens]`, or `[num_positions, fields]`, int64.
        seed: gives this piece again, with the same model and options.
        midi: the bytes of its MIDI file, which `pamusic replay` can make again.
        performance: the prime, up to where it was cut, and the new music.
        continuation: the new music alone, from time 0.
    """

    ids: np.ndarray
    seed: int
    midi: bytes
    performance: Performance
    continuation: Performance

    def save(self, path: StrPath) -> Path:
        """Write the MIDI file, the same bytes as `pamusic sample` writes, and return the path.

        Raises:
            PamusicError: it cannot be written.
        """
        return _write(path, self.midi)

    def synthesize(self, path: StrPath, *, soundfont: StrPath | None = None) -> Path:
        """Write `performance` as a WAV file; arguments and errors as of `pamusic.synthesize`."""
        return synthesize(self.performance, path, soundfont=soundfont)


class Model:
    """A model that composes and scores; `load` makes one.

    Attributes:
        checkpoint: network, tokenizer, and how they came to be.
        tokenizer: what its ids mean.
    """

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        """Take a checkpoint; `name` is how a record names it."""
        self.checkpoint, self._name = checkpoint, name
        self.tokenizer: Tokenizer = checkpoint.tokenizer

    def __repr__(self) -> str:
        num_parameters = self.checkpoint.model.num_parameters()
        return f"<pamusic.Model {self._name}: {num_parameters:,} parameters, {self.tokenizer.name} tokens>"

    def sample(
        self,
        prime: Performance | StrPath | None = None,
        *,
        seconds: float | None = None,
        seed: int | None = None,
        **options: object,
    ) -> Piece:
        """Continue a prime, or compose from nothing.

        Args:
            prime: what was played so far: from `read_midi`, the path of a MIDI file, or any performance.
            seconds: of new music; 60 without `length`.
            seed: the same seed gives the same music; a new one by default.
            options: fields of `pamusic.SampleRequest`, such as `temperature`, `top_p`, `length`, `best_of`.

        Raises:
            PamusicError: the prime cannot be continued, or an option makes no sense.
            TypeError: there is no such option.

        >>> piece = model.sample(prime, seconds=5, seed=1, top_p=0.98)
        >>> piece.continuation.duration <= 5
        True
        >>> bool((piece.ids == model.sample(prime, seconds=5, seed=1, top_p=0.98).ids).all())
        True
        """
        return self.sample_many(prime, seconds=seconds, seed=seed, **options)[0]

    def sample_many(
        self,
        prime: Performance | StrPath | None = None,
        *,
        seconds: float | None = None,
        seed: int | None = None,
        **options: object,
    ) -> list[Piece]:
        """Compose several pieces at once, with a seed and the next ones: `num_samples`, or the best of `best_of`.

        Arguments and errors are `sample`'s. Of several pieces the best come first where they are ranked.

        >>> [piece.seed for piece in model.sample_many(seconds=3, seed=7, num_samples=2)]
        [7, 8]
        """
        with _in_python():
            request, known = self._request(prime, {"seconds": seconds, "seed": seed, **options})
            composer = Composer(request, checkpoint=self.checkpoint)
            collector = composer.collector()
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
        *,
        seconds: float | None = None,
        seed: int | None = None,
        **options: object,
    ) -> Iterator[Event]:
        """Return an iterator over what is played, as soon as it is known: notes begin and end, pedals move.

        Arguments and errors are `sample`'s, for one piece; the guard is off unless `guard=True`, for it would hold
        everything back for 30 seconds of music.

        Returns:
            Events `(time, action, number, value)`; times in seconds from the end of the prime.

        >>> events = list(model.stream(prime, seconds=3, seed=1))
        >>> all(before.time <= after.time for before, after in zip(events, events[1:]))
        True
        """
        with _in_python():
            request, known = self._request(prime, {"seconds": seconds, "seed": seed, **options}, is_live=True)
            if not request.is_one_piece:
                raise UsageError(f"a stream is of one piece, not {request.num_drawn}; leave out --num and --best-of")
            if self.tokenizer.vocabulary.shape:
                raise UsageError(f"{self._name} has several ids a position, which cannot be streamed yet; use sample")
            composer = Composer(request, checkpoint=self.checkpoint, is_live=True)
            drawn = composer.stream(known, composer.collector())
            decoder = composer.decoder(known)

        def events() -> Iterator[Event]:
            with _in_python():
                for (id,) in drawn:
                    if isinstance(id, int):
                        yield from decoder.follow(id)
                yield from decoder.end()

        return events()

    def score(self, music: Performance | StrPath) -> Likelihood:
        """Return what a performance costs the model, token by token, each given those before it.

        Args:
            music: a performance, or the path of a MIDI file.

        Returns:
            `.nats_per_token`, `.bits_per_note`, `.num_tokens`, and more. The end token counts.

        Raises:
            PamusicError: the file cannot be read, or the tokenizer knows none of its notes.

        >>> 1 < model.score(prime).nats_per_token < 4
        True
        """
        with _in_python():
            performance = _performance(music)
            ids = self.tokenizer.encode(performance)
            if not len(ids):
                raise PamusicError(f"there is no note that {self.tokenizer.name} knows; give music with notes")
            return likelihood.score_piece(
                partial(likelihood.score, self.checkpoint.model), self.tokenizer.vocabulary, ids,
                num_notes=len(performance), seconds=performance.duration,
            )  # fmt: skip

    def _request(
        self, prime: Performance | StrPath | None, options: dict[str, object], *, is_live: bool = False
    ) -> tuple[SampleRequest, Prime]:
        """Return the request that options are, and the prime, read.

        Raises:
            PamusicError: as for `sample`.
            TypeError: there is no such option.
        """
        known = {each.name for each in fields(SampleRequest)} - {"prime", "checkpoint", "device"}
        for name in options.keys() - known:
            close = get_close_matches(name, known, 1)
            hint = f"; do you mean {close[0]}?" if close else ""
            raise TypeError(f"there is no option {name!r}{hint} (pamusic.SampleRequest has them all)")
        read = _prime(prime)
        if isinstance(prime, MidiFile):
            options = {"tracks": prime.tracks, **options}
        record = {RECORD_NAMES[name]: value for name, value in options.items()}
        request = SampleRequest.from_record({**record, "checkpoint": self._name}).completed(is_live=is_live)
        return replace(request, prime=read.path), read


def load(name: StrPath | None = None, *, device: str = "auto") -> Model:
    """Load a model.

    Args:
        name: the name of one that ships; the folder of a checkpoint or a run; `latest`, the newest run; None for the
            default.
        device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        PamusicError: there is none, or it is broken; or there is no such device.

    >>> pamusic.load("small")
    <pamusic.Model small: 6,038,273 parameters, performance tokens>
    """
    with _in_python():
        path = find_checkpoint(None if name is None else str(name))
        checkpoint = load_checkpoint(path, choose_machine(device, "fp32", compile=False).device)
    return Model(checkpoint, path.name if name is None else str(name))


def tokenize(
    paths: StrPath | Sequence[StrPath],
    *,
    out: StrPath = "corpus",
    tokenizer: str = "performance",
    tracks: str = "piano",
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Corpus:
    """Make a corpus of tokens of MIDI files, split into train, validation and test. Interrupted, the same call goes on.

    Args:
        paths: folders, zip archives or MIDI files; MAESTRO keeps its splits.
        out: the corpus' folder.
        tokenizer: one that ships, by name, or the path of a TOML file.
        tracks: as for `read_midi`.
        overwrite: replace a corpus that is there.
        on_progress: is called with how many files are done, and of how many.

    Raises:
        PamusicError: nothing can be tokenized, or `out` cannot be written.

    >>> corpus = pamusic.tokenize("midi/", out="corpus")
    >>> len(corpus.pieces)
    3
    """
    listed = [paths] if isinstance(paths, str | PathLike) else paths
    with _in_python():
        build.tokenize(
            [Path(path) for path in listed], Path(out), load_tokenizer(tokenizer), tracks=parsed_tracks(tracks),
            force=overwrite, progress=on_progress,
        )  # fmt: skip
        return open_corpus(Path(out))


def evaluate(
    model: Model, corpus: Corpus | StrPath, *, split: str = "test", max_pieces: int | None = None
) -> Likelihood:
    """Score every token of a split once, with all that precedes it up to the context.

    Args:
        model: made with the corpus' tokenizer.
        corpus: from `tokenize` or `open_corpus`, or its folder.
        split: train, validation or test.
        max_pieces: score only so many, spread evenly over the split.

    Returns:
        `.nats_per_token`, `.bits_per_note`, `.num_tokens`, and more.

    Raises:
        PamusicError: the split is empty, or the corpus is of another tokenizer.

    >>> pamusic.evaluate(model, "corpus", split="train", max_pieces=1).num_pieces
    1
    """
    with _in_python():
        opened = corpus if isinstance(corpus, Corpus) else open_corpus(Path(corpus))
        check_corpus(model.checkpoint, opened)
        return likelihood.evaluate(model.checkpoint.model, opened, split, num_pieces=max_pieces)


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


def _prime(prime: Performance | StrPath | None) -> Prime:
    """Return a prime with a file: that which it was read from, or one that is made of it."""
    if prime is None:
        return Prime()
    if not isinstance(prime, Performance):
        prime = read_midi(prime)
    if isinstance(prime, MidiFile):
        return Prime(prime, prime.data, prime.repairs, prime.path)
    data = midi_bytes(prime)
    performance, repairs = read_and_mend(data, "the prime")
    return Prime(performance, data, repairs, IN_MEMORY)


def _performance(music: Performance | StrPath) -> Performance:
    return music if isinstance(music, Performance) else read_midi(music)


def _write(path: StrPath, data: bytes) -> Path:
    with written_atomically(Path(path)) as file:
        file.write_bytes(data)
    return Path(path)
