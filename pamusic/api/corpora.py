"""Build and open corpora, load tokenizers, and evaluate a model on a corpus. Knows their folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike

from pamusic.api.border import StrPath, as_path, in_python
from pamusic.api.model import Model
from pamusic.checkpoint import check_corpus
from pamusic.corpus import build
from pamusic.corpus import corpus as corpora
from pamusic.corpus.corpus import Corpus
from pamusic.errors import UsageError
from pamusic.evaluation import likelihood
from pamusic.evaluation.likelihood import Likelihood
from pamusic.music.midi import parsed_tracks
from pamusic.resources import DEFAULT_TOKENIZER
from pamusic.tokens import tokenizer as tokenizers
from pamusic.tokens.tokenizer import Tokenizer


def tokenize(
    paths: StrPath | Sequence[StrPath],
    *,
    out: StrPath = "corpus",
    tokenizer: str = DEFAULT_TOKENIZER,
    tracks: str = "piano",
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Corpus:
    """Build a corpus of tokens from MIDI files, with splits. The same call resumes an interrupted one.

    Args:
        paths: Folders, zip archives or MIDI files; MAESTRO keeps its splits.
        out: Folder of the corpus.
        tokenizer: Name of a bundled tokenizer, or the path of a TOML file. The default checkpoint reads the default.
        tracks: As for `read_midi`.
        overwrite: Whether to replace an existing corpus.
        on_progress: Callback with (files done, files in all).

    Raises:
        PamusicError: nothing can be tokenized, or `out` cannot be written.

    >>> corpus = pamusic.tokenize("midi/", out="corpus")
    >>> len(corpus.pieces)
    3
    """
    listed = [paths] if isinstance(paths, str | PathLike) else list(paths)
    with in_python():
        if not listed:
            raise UsageError("there is no path to tokenize; pass a folder, a zip archive or a MIDI file")
        build.tokenize(
            [as_path(path) for path in listed], as_path(out), tokenizers.load_tokenizer(tokenizer),
            tracks=parsed_tracks(str(tracks)), force=overwrite, progress=on_progress,
        )  # fmt: skip
        return corpora.open_corpus(as_path(out))


def open_corpus(path: StrPath) -> Corpus:
    """Open a corpus that `tokenize` made.

    Returns:
        `.pieces`, `.split(name)`, and `.piece(index)`, uint16 ids `[n]` or `[n, fields]`.

    Raises:
        PamusicError: there is no corpus, or it is broken.

    >>> corpus = pamusic.open_corpus("corpus")
    >>> corpus.piece(0).dtype
    dtype('uint16')
    """
    with in_python():
        return corpora.open_corpus(as_path(path))


def load_tokenizer(name: StrPath) -> Tokenizer:
    """Load a tokenizer.

    Args:
        name: Name of a bundled tokenizer, or the path of a TOML file.

    Raises:
        PamusicError: there is no such tokenizer, or the file is wrong.

    >>> tokenizer = pamusic.load_tokenizer("performance")
    >>> ids = tokenizer.encode(prime)
    >>> len(tokenizer.decode(ids)) > 0
    True
    """
    with in_python():
        return tokenizers.load_tokenizer(str(as_path(name)))


def evaluate(
    model: Model, corpus: Corpus | StrPath, *, split: str = "test", max_pieces: int | None = None
) -> Likelihood:
    """Score every token of a split once, given all tokens before it up to the context length.

    Args:
        model: Model with the corpus' tokenizer.
        corpus: Corpus from `tokenize` or `open_corpus`, or its folder.
        split: Split: train, validation or test.
        max_pieces: Largest number of pieces to score, spread evenly over the split.

    Returns:
        `.nats_per_token`, `.bits_per_note`, `.num_tokens`, and more.

    Raises:
        PamusicError: the split is empty, or the corpus has another tokenizer.

    >>> pamusic.evaluate(model, "corpus", split="train", max_pieces=1).num_pieces
    1
    """
    with in_python():
        if not isinstance(model, Model):
            raise TypeError(f"model must come from pamusic.load, got {model!r}")
        opened = corpus if isinstance(corpus, Corpus) else corpora.open_corpus(as_path(corpus))
        check_corpus(model.checkpoint, opened)
        return likelihood.evaluate(model.checkpoint.model, opened, split, num_pieces=max_pieces)
