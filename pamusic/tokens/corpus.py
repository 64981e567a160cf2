"""Many pieces of ids on disk, memory-mapped, with their splits.

Knows ids and pieces; knows no MIDI, no model. A corpus is a folder: `tokens.bin` (all ids, uint16, little-endian, one
piece behind the other, without start and end), `tokenizer.toml` (the vocabulary it was made with) and `corpus.json`
(everything else). It is written beside its place and renamed when whole, so it is there entirely or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from pamusic.errors import PamusicError
from pamusic.files import folder_written_atomically, recovered
from pamusic.tokens.sources import SPLITS
from pamusic.tokens.tokenizer import Tokenizer
from pamusic.tokens.vocabulary import load_vocabulary

FORMAT = 1
ID = np.dtype("<u2")
FILES = {"tokens.bin", "tokenizer.toml", "corpus.json"}


@dataclass(frozen=True)
class Piece:
    """One work or take.

    Attributes:
        name: its source file's.
        split: train, validation or test.
        start, num_tokens: where its ids lie in `tokens.bin`, in ids.
        num_notes, seconds: how many notes it has and how long it lasts.
        sha256: of the source file.
        repairs: what was mended in it and left out: (kind, how often, words) each.
    """

    name: str
    split: str
    start: int
    num_tokens: int
    num_notes: int
    seconds: float
    sha256: str
    repairs: Sequence[tuple[str, int, str]] = ()


@dataclass(frozen=True, eq=False)
class Corpus:
    """An opened corpus; `ids` is a view of the file, not of memory."""

    path: Path
    tokenizer: Tokenizer
    pieces: tuple[Piece, ...]
    ids: np.ndarray

    def __len__(self) -> int:
        """The number of pieces."""
        return len(self.pieces)

    def piece(self, index: int) -> np.ndarray:
        """The ids `[num_tokens]` of a piece, uint16, without start and end."""
        piece = self.pieces[index]
        return self.ids[piece.start : piece.start + piece.num_tokens]

    def split(self, name: str) -> list[int]:
        """Indices of the pieces of a split."""
        return [index for index, piece in enumerate(self.pieces) if piece.split == name]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of which pieces it holds, in which order, by which tokenizer."""
        import hashlib

        digest = hashlib.sha256(self.tokenizer.fingerprint.encode())
        for piece in self.pieces:
            digest.update(f"{piece.split} {piece.sha256} {piece.num_tokens}\n".encode())
        return digest.hexdigest()[:16]


def open_corpus(path: Path) -> Corpus:
    """Opens a corpus.

    Raises:
        PamusicError: there is none, or it is broken or of another format.
    """
    if not (recovered(path) / "corpus.json").is_file():
        raise PamusicError(f"{path}: no corpus there; make one: pamusic tokenize FOLDER --out {path}")
    try:
        about = json.loads((path / "corpus.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise PamusicError(
                f"{path}: is a corpus of format {about['format']}, we read {FORMAT}; make it anew: pamusic tokenize"
            )
        pieces = tuple(Piece(**piece) for piece in about["pieces"])
        num_ids, fingerprint = int(about["num_tokens"]), str(about["tokenizer_fingerprint"])
        _check_pieces(pieces, num_ids)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PamusicError(f"{path}: corpus.json is broken ({error}); make the corpus anew: pamusic tokenize") from None
    tokenizer = Tokenizer(load_vocabulary(path / "tokenizer.toml"))
    if tokenizer.fingerprint != fingerprint:
        raise PamusicError(
            f"{path}: tokenizer.toml was changed after the corpus was made; make it anew: pamusic tokenize"
        )
    file = path / "tokens.bin"
    size = file.stat().st_size if file.is_file() else 0
    if size != num_ids * ID.itemsize:
        raise PamusicError(
            f"{path}: tokens.bin has {size} bytes, not {num_ids * ID.itemsize}; make the corpus anew: pamusic tokenize"
        )
    ids = np.memmap(file, ID, mode="r") if num_ids else np.empty(0, ID)
    return Corpus(path, tokenizer, pieces, ids)


def _check_pieces(pieces: tuple[Piece, ...], num_ids: int) -> None:
    """Pieces lie one behind the other and fill the file.

    Raises:
        ValueError: they do not, or a split is none of `SPLITS`.
    """
    at = 0
    for piece in pieces:
        if piece.split not in SPLITS:
            raise ValueError(f"{piece.name} is in no split, but in {piece.split!r}")
        if piece.start != at or piece.num_tokens < 0:
            raise ValueError(f"{piece.name} begins at {piece.start}, not at {at}")
        at += piece.num_tokens
    if at != num_ids:
        raise ValueError(f"its pieces have {at} tokens, not {num_ids}")


class CorpusWriter:
    """Takes pieces one by one; `close` completes the folder's files."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._file: IO[bytes] = (folder / "tokens.bin").open("wb")
        self._pieces: list[Piece] = []
        self._num_tokens = 0

    def add(
        self,
        ids: np.ndarray,
        *,
        name: str,
        split: str,
        num_notes: int,
        seconds: float,
        sha256: str,
        repairs: Sequence[tuple[str, int, str]] = (),
    ) -> None:
        assert split in SPLITS
        self._file.write(np.ascontiguousarray(ids, ID).tobytes())
        self._pieces.append(
            Piece(name, split, self._num_tokens, len(ids), num_notes, round(seconds, 3), sha256, repairs)
        )
        self._num_tokens += len(ids)

    def close(self, **about: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        vocabulary = self._tokenizer.vocabulary
        (self._folder / "tokenizer.toml").write_text(vocabulary.toml(), encoding="utf-8")
        content = {
            "format": FORMAT,
            "tokenizer": vocabulary.name,
            "tokenizer_fingerprint": vocabulary.fingerprint,
            "num_tokens": self._num_tokens,
            **about,
            "pieces": [asdict(piece) for piece in self._pieces],
        }
        (self._folder / "corpus.json").write_text(json.dumps(content, indent=0), encoding="utf-8")

    def abandon(self) -> None:
        self._file.close()


@contextmanager
def writing_corpus(path: Path, tokenizer: Tokenizer, *, force: bool = False) -> Iterator[CorpusWriter]:
    """Gives a writer; what it wrote becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        PamusicError: something is there already and `force` is not given, or the place cannot be written to.
    """
    check_corpus_place(path, force=force)
    with folder_written_atomically(path) as folder:
        writer = CorpusWriter(folder, tokenizer)
        try:
            yield writer
        finally:
            writer.abandon()


def check_corpus_place(path: Path, *, force: bool) -> None:
    """Refuses a place where something precious lies.

    Raises:
        PamusicError: `path` exists and `force` is not given, or is no corpus at all, or has other files in it.
    """
    path = Path(os.path.realpath(path))
    if not recovered(path).exists():
        return
    names = {each.name for each in path.iterdir()} if path.is_dir() else set()
    if not path.is_dir() or (names and "corpus.json" not in names):
        raise PamusicError(f"{path}: exists and is not a corpus; choose another place with --out")
    if others := sorted(names - FILES):
        raise PamusicError(
            f"{path}: has other files in it than a corpus ({', '.join(others[:3])}); "
            "move them away, or choose another place with --out"
        )
    if not force and names:
        raise PamusicError(
            f"{path}: there is a corpus already; replace it with --force, or choose another place with --out"
        )
