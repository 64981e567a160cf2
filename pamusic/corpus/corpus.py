"""Many pieces of ids on disk, memory-mapped, with their splits.

Knows ids and pieces; knows no MIDI, no model. A corpus is a folder: `tokens.bin` (all ids, uint16, little-endian, one
piece behind the other, without start and end; of several fields position by position), `tokenizer.toml` (the vocabulary
it was made with) and `corpus.json` (everything else). It is there entirely or not at all: `writer.py` sees to that.
Whoever makes something of it that takes long may keep that in the folder, too (`DERIVED`); no fingerprint knows of it,
and it goes with the corpus.
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
AT_ONCE = 1 << 20  # ids that are counted at a time
FILES = {"tokens.bin", "tokenizer.toml", "corpus.json"}
DERIVED = {"originality.npz", "originality.json"}  # can be deleted: they are made anew


@dataclass(frozen=True, slots=True)
class Piece:
    """One work or take.

    Attributes:
        name: its source file's.
        split: train, validation or test.
        start, num_tokens: where it lies in `tokens.bin`, in positions.
        num_notes, seconds: how many notes it has and how long it lasts.
        sha256: of the source file.
        content: a hash of its ids, the same for pieces with the same notes (`content_of`); early corpora have none.
        repairs: what was mended in it and left out: (kind, how often, words) each.
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
    """An opened corpus.

    Attributes:
        ids: `[num_positions]`, or of several fields `[num_positions, num_fields]`: a view of the file, not of memory.
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
            PamusicError: what stands there are no ids of its tokenizer.
        """
        piece = self.pieces[index]
        ids = self.ids[piece.start : piece.start + piece.num_tokens]
        if ids.max(initial=0) >= len(self.tokenizer.vocabulary):
            raise PamusicError(
                f"{self.path}: tokens.bin is broken ({piece.name} has id {ids.max()}, {self.tokenizer.name} knows"
                f" {len(self.tokenizer.vocabulary)}); make the corpus anew: pamusic tokenize"
            )
        for column, field in zip(ids.T, self.tokenizer.vocabulary.fields, strict=True) if ids.ndim == 2 else ():
            if column.min(initial=field.start) < field.start or column.max(initial=0) >= field.start + field.size:
                raise PamusicError(
                    f"{self.path}: tokens.bin is broken ({piece.name} has ids of other fields in {field.name});"
                    " make the corpus anew: pamusic tokenize"
                )
        return ids

    def split(self, name: str) -> list[int]:
        """Indices of the pieces of a split."""
        return [index for index, piece in enumerate(self.pieces) if piece.split == name]

    def count_of_kinds(self) -> dict[str, int]:
        """Return how many of its ids are of each kind of event."""
        count = np.zeros(len(self.tokenizer.vocabulary), np.int64)
        for start in range(0, len(self.ids), AT_ONCE):
            count += np.bincount(self.ids[start : start + AT_ONCE].ravel(), minlength=len(count))
        return {
            events.kind: int(count[events.start : events.start + len(events)].sum())
            for events in self.tokenizer.vocabulary.ranges
        }

    @cached_property
    def fingerprint(self) -> str:
        """A hash of which pieces it holds, in which order, by which tokenizer."""
        digest = hashlib.sha256(self.tokenizer.fingerprint.encode())
        for piece in self.pieces:
            digest.update(f"{piece.split} {piece.sha256} {piece.num_tokens}\n".encode())
        return digest.hexdigest()[:16]


def content_of(ids: np.ndarray) -> str:
    """Return a hash of ids, the same for the same ids."""
    return hashlib.blake2b(np.ascontiguousarray(ids, ID).tobytes(), digest_size=8).hexdigest()


def open_corpus(path: Path) -> Corpus:
    """Open a corpus.

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
    shape = tokenizer.vocabulary.shape
    position = ID.itemsize * len(tokenizer.vocabulary.fields)
    if size != num_ids * position:
        raise PamusicError(
            f"{path}: tokens.bin has {size} bytes, not {num_ids * position}; make the corpus anew: pamusic tokenize"
        )
    ids = np.memmap(file, ID, mode="r", shape=(num_ids, *shape)) if num_ids else np.empty((0, *shape), ID)
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
