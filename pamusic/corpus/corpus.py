"""Open a corpus: many pieces of ids on disk, memory-mapped, with their splits.

Knows ids and pieces; knows no MIDI, no model. A corpus is a folder: `tokens.bin` (the ids of all pieces in sequence,
uint16, little-endian, without start and end; with several fields, position by position), `tokenizer.toml` (its
vocabulary) and `corpus.json` (everything else). The folder is complete or absent: `writer.py` ensures this. Results
that take long to derive from the corpus may be stored in the folder, too (`DERIVED`). No fingerprint covers them, and
they are deleted with the corpus.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pamusic.corpus.sources import SPLITS
from pamusic.errors import PamusicError
from pamusic.files import recovered
from pamusic.tokens.tokenizer import Tokenizer
from pamusic.tokens.vocabulary import load_vocabulary

FORMAT = 1
ID = np.dtype("<u2")
AT_ONCE = 1 << 20  # ids counted at a time
FILES = {"tokens.bin", "tokenizer.toml", "corpus.json"}
DERIVED = {"originality.npz", "originality.json"}  # can be deleted: they are made again


@dataclass(frozen=True, slots=True)
class Piece:
    """One work or take.

    Attributes:
        name: Name of the source file.
        split: Split: train, validation or test.
        start, num_tokens: Place and length in `tokens.bin`, in positions.
        num_notes, seconds: Number of notes, and duration.
        sha256: Hash of the source file.
        content: Hash of the ids, equal for pieces with the same notes (`content_of`); empty in early corpora.
        repairs: Repairs and omissions, each (kind, count, words).
    """

    name: str
    split: str
    start: int
    num_tokens: int
    num_notes: int
    seconds: float
    sha256: str
    content: str = ""
    repairs: Sequence[tuple[str, int, str]] = ()


@dataclass(frozen=True, eq=False)
class Corpus:
    """An open corpus.

    Attributes:
        ids: `[num_positions]`, or with several fields `[num_positions, num_fields]`; a memory map of the file.
    """

    path: Path
    tokenizer: Tokenizer
    pieces: tuple[Piece, ...]
    ids: np.ndarray

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self.pieces)

    def piece(self, index: int) -> np.ndarray:
        """Return the ids of a piece, `[num_tokens]` or `[num_tokens, num_fields]`, uint16, without start and end.

        Raises:
            PamusicError: the file holds ids that the tokenizer does not have.
        """
        piece = self.pieces[index]
        ids = self.ids[piece.start : piece.start + piece.num_tokens]
        if ids.max(initial=0) >= len(self.tokenizer.vocabulary):
            raise PamusicError(
                f"{self.path}: tokens.bin is broken ({piece.name} has id {ids.max()}, {self.tokenizer.name} has"
                f" {len(self.tokenizer.vocabulary)} ids); make it again with pamusic tokenize"
            )
        for column, field in zip(ids.T, self.tokenizer.vocabulary.fields, strict=True) if ids.ndim == 2 else ():
            if column.min(initial=field.start) < field.start or column.max(initial=0) >= field.start + field.size:
                raise PamusicError(
                    f"{self.path}: tokens.bin is broken ({piece.name} has ids of other fields in {field.name});"
                    " make it again with pamusic tokenize"
                )
        return ids

    def split(self, name: str) -> list[int]:
        """Return the indices of the pieces of a split."""
        return [index for index, piece in enumerate(self.pieces) if piece.split == name]

    def count_of_kinds(self) -> dict[str, int]:
        """Return the number of ids of each kind of event."""
        count = np.zeros(len(self.tokenizer.vocabulary), np.int64)
        for start in range(0, len(self.ids), AT_ONCE):
            count += np.bincount(self.ids[start : start + AT_ONCE].ravel(), minlength=len(count))
        return {
            events.kind: int(count[events.start : events.start + len(events)].sum())
            for events in self.tokenizer.vocabulary.ranges
        }

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pieces, their order and the tokenizer."""
        digest = hashlib.sha256(self.tokenizer.fingerprint.encode())
        for piece in self.pieces:
            digest.update(f"{piece.split} {piece.sha256} {piece.num_tokens}\n".encode())
        return digest.hexdigest()[:16]


def content_of(ids: np.ndarray) -> str:
    """Return a hash of ids; equal ids have equal hashes."""
    return hashlib.blake2b(np.ascontiguousarray(ids, ID).tobytes(), digest_size=8).hexdigest()


def open_corpus(path: Path) -> Corpus:
    """Open a corpus.

    Raises:
        PamusicError: there is no corpus, or it is broken or has another format.
    """
    if not (recovered(path) / "corpus.json").is_file():
        raise PamusicError(f"{path}: no corpus there; make one with pamusic tokenize FOLDER --out {path}")
    try:
        about = json.loads((path / "corpus.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise PamusicError(
                f"{path}: corpus format must be {FORMAT}, got {about['format']}; make it again with pamusic tokenize"
            )
        pieces = tuple(Piece(**piece) for piece in about["pieces"])
        num_ids, fingerprint = int(about["num_tokens"]), str(about["tokenizer_fingerprint"])
        _check_pieces(pieces, num_ids)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PamusicError(f"{path}: corpus.json is broken ({error}); make it again with pamusic tokenize") from None
    tokenizer = Tokenizer(load_vocabulary(path / "tokenizer.toml"))
    if tokenizer.fingerprint != fingerprint:
        raise PamusicError(
            f"{path}: tokenizer.toml was changed after the corpus was made; make it again with pamusic tokenize"
        )
    file = path / "tokens.bin"
    size = file.stat().st_size if file.is_file() else 0
    shape = tokenizer.vocabulary.shape
    position = ID.itemsize * len(tokenizer.vocabulary.fields)
    if size != num_ids * position:
        raise PamusicError(
            f"{path}: tokens.bin must have {num_ids * position} bytes, got {size}; make it again with pamusic tokenize"
        )
    ids = np.memmap(file, ID, mode="r", shape=(num_ids, *shape)) if num_ids else np.empty((0, *shape), ID)
    return Corpus(path, tokenizer, pieces, ids)


def _check_pieces(pieces: tuple[Piece, ...], num_ids: int) -> None:
    """Check that the pieces fill the file without gaps.

    Raises:
        ValueError: they do not, or a split is not in `SPLITS`.
    """
    at = 0
    for piece in pieces:
        if piece.split not in SPLITS:
            raise ValueError(f"split of {piece.name} must be one of {', '.join(SPLITS)}, got {piece.split!r}")
        if piece.start != at or piece.num_tokens < 0:
            raise ValueError(f"{piece.name} must begin at {at}, got {piece.start}")
        at += piece.num_tokens
    if at != num_ids:
        raise ValueError(f"pieces must have {num_ids} tokens in all, got {at}")
