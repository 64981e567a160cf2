"""Writing a corpus: whole or not at all, and gone on with after an interruption.

Knows the corpus' files and the journal of a work that is not yet whole; knows no MIDI. A corpus is made in a hidden
folder beside its place and renamed when it is complete. A kill at any moment leaves the old corpus or the new one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np

from pamusic.corpus.corpus import DERIVED, FILES, FORMAT, ID, Piece, content_of
from pamusic.corpus.sources import SPLITS, Refusal
from pamusic.errors import PamusicError
from pamusic.files import TEMPORARY, folder_written_atomically, locked, recovered
from pamusic.tokens.tokenizer import Tokenizer

JOURNAL = "journal"
WRITTEN_OUT_EVERY = 1.0  # seconds of work that a kill may cost
KEEP_AFTER = 5.0  # seconds of work from which on it is worth leaving a folder behind


class CorpusWriter:
    """Takes pieces one by one, and what is refused between them; `close` completes the folder's files.

    Each is noted on a line of a journal, after its ids went to their file. So nothing is kept in memory, and a folder
    that a killed program left behind holds work that can be gone on with.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, work: str = "") -> None:
        """Open the files of a folder, with whatever they hold; `work` says what is being done there."""
        self._folder, self._tokenizer, self._work = folder, tokenizer, work
        self._ids: IO[bytes] = (folder / "tokens.bin").open("a+b")
        self._journal: IO[bytes] = (folder / JOURNAL).open("a+b")
        self._began = self._written_out = time.monotonic()
        self._num_tokens = 0
        self._position = ID.itemsize * len(tokenizer.vocabulary.fields)
        self.num_pieces = self.num_resumed = 0
        self.alone = locked(self._journal)

    def resumed(self) -> Iterator[Piece | Refusal]:
        """Yield what an earlier writer took or refused, in its order, if it did the same work.

        To be read to its end before anything is added. It ends before the first line that is not whole, or whose ids
        are not those that the line was written for.
        """
        self._journal.seek(0)
        self._ids.seek(0)
        num_bytes = 0
        if self._work and self._journal.readline() == self._first_line():
            num_bytes = self._journal.tell()
            while (entry := self._next_entry()) is not None:
                num_bytes = self._journal.tell()
                self.num_resumed += 1
                if isinstance(entry, Piece):
                    self.num_pieces += 1
                    self._num_tokens += entry.num_tokens
                yield entry
        self._ids.truncate(self._num_tokens * self._position)
        self._journal.truncate(num_bytes)
        if not num_bytes:
            self._journal.write(self._first_line())

    def _first_line(self) -> bytes:
        return f"work {self._work}\n".encode()

    def _next_entry(self) -> Piece | Refusal | None:
        line = self._journal.readline()
        kind, _, entry = line.partition(b" ")
        try:
            if kind == b"refused" and line.endswith(b"\n"):
                return Refusal(**json.loads(entry))
            piece = Piece(**json.loads(entry))
            ids = self._ids.read(piece.num_tokens * self._position)
            whole = piece.start == self._num_tokens and content_of(np.frombuffer(ids, ID)) == piece.content
            return piece if whole and line.endswith(b"\n") else None
        except (ValueError, TypeError):
            return None

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
    ) -> Piece:
        """Take a piece; its ids are `[num_tokens]` or `[num_tokens, num_fields]`."""
        assert split in SPLITS
        assert ids.shape[1:] == self._tokenizer.vocabulary.shape
        content = content_of(ids)
        piece = Piece(name, split, self._num_tokens, len(ids), num_notes, round(seconds, 3), sha256, content, repairs)
        self._ids.write(np.ascontiguousarray(ids, ID).tobytes())
        self._num_tokens += len(ids)
        self.num_pieces += 1
        self._note("piece", piece)
        return piece

    def refuse(self, refusal: Refusal) -> None:
        """Notes that a source did not become a piece."""
        self._note("refused", refusal)

    def _note(self, kind: str, entry: Piece | Refusal) -> None:
        self._journal.write(f"{kind} {json.dumps(asdict(entry))}\n".encode())
        if time.monotonic() - self._written_out > WRITTEN_OUT_EVERY:
            self._write_out()

    def _write_out(self) -> None:
        self._ids.flush()  # first, so that what the journal names is there
        self._journal.flush()
        self._written_out = time.monotonic()

    def worth_keeping(self, after: float) -> bool:
        """Whether what there is should outlive a failure: it has pieces, and took `after` seconds or was resumed."""
        return self.num_pieces > 0 and (self.num_resumed > 0 or time.monotonic() - self._began >= after)

    def close(self, *, to_validation: Piece | None = None, **about: object) -> None:
        """Complete the folder.

        Args:
            to_validation: a piece that was added, which changes its split.
            about: what else goes into `corpus.json`.
        """
        self._write_out()
        vocabulary = self._tokenizer.vocabulary
        (self._folder / "tokenizer.toml").write_text(vocabulary.toml(), encoding="utf-8")
        content = {
            "format": FORMAT,
            "tokenizer": vocabulary.name,
            "tokenizer_fingerprint": vocabulary.fingerprint,
            "num_tokens": self._num_tokens,
            **about,
        }
        with (self._folder / "corpus.json").open("wb") as file:  # each piece on its line of the journal
            file.write(json.dumps(content, indent=0).encode().removesuffix(b"\n}") + b',\n"pieces": [')
            self._journal.seek(0)
            separator = b"\n"
            for line in self._journal:
                kind, _, entry = line.rstrip().partition(b" ")
                if kind == b"piece":
                    file.write(separator + (entry if to_validation is None else _moved(entry, to_validation)))
                    separator = b",\n"
            file.write(b"\n]\n}\n")
        self.abandon()
        (self._folder / JOURNAL).unlink()

    def abandon(self) -> None:
        """Close the files; what they hold stays."""
        for file in (self._ids, self._journal):
            with suppress(OSError):
                file.close()


def _moved(entry: bytes, to_validation: Piece) -> bytes:
    """Return a piece's line of the journal, with its new split if it is the piece that is moved."""
    fields = json.loads(entry)
    if fields["start"] == to_validation.start:
        fields["split"] = "validation"
    return json.dumps(fields).encode()


@contextmanager
def writing_corpus(
    path: Path, tokenizer: Tokenizer, *, force: bool = False, work: str = "", keep_after: float = KEEP_AFTER
) -> Iterator[CorpusWriter]:
    """Give a writer; what it wrote becomes `path` when the block ends well, and vanishes when it does not.

    Args:
        path: the corpus' folder.
        tokenizer: the ids'.
        force: replace a corpus that is there.
        work: a line that says what is done. With one, work is done in `.NAME.unfinished` beside `path`. That folder
            stays behind when the program is killed, or when the block raises after `keep_after` seconds; the writer of
            the same work finds it and goes on from it (`CorpusWriter.resumed`), the writer of any other empties it.
        keep_after: see `work`.

    Raises:
        PamusicError: something is there already and `force` is not given, or the place cannot be written to, or
            another program is writing there.
    """
    check_corpus_place(path, force=force)
    writer: CorpusWriter | None = None

    def worth_keeping() -> bool:
        return writer is not None and bool(work) and (not writer.alone or writer.worth_keeping(keep_after))

    unfinished = _unfinished(path) if work else None
    with folder_written_atomically(path, unfinished=unfinished, worth_keeping=worth_keeping) as folder:
        writer = CorpusWriter(folder, tokenizer, work)
        try:
            if not writer.alone:
                raise PamusicError(
                    f"{path}: another program is writing it; let it end, or choose another place with --out"
                )
            yield writer
        finally:
            writer.abandon()


def num_unfinished(path: Path) -> int:
    """Return how many sources an interrupted `writing_corpus` had done, that the same work would go on from."""
    try:
        with (_unfinished(path) / JOURNAL).open("rb") as journal:
            return max(0, sum(1 for _ in journal) - 1)
    except OSError:
        return 0


def _unfinished(path: Path) -> Path:
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.unfinished")


def check_corpus_place(path: Path, *, force: bool) -> None:
    """Refuse a place where something precious lies.

    Raises:
        PamusicError: `path` exists and `force` is not given, or is no corpus at all, or has other files in it.
    """
    path = Path(os.path.realpath(path))
    if not recovered(path).exists():
        return
    names = {each.name for each in path.iterdir()} if path.is_dir() else set()
    if not path.is_dir() or (names and "corpus.json" not in names):
        raise PamusicError(f"{path}: exists and is not a corpus; choose another place with --out")
    if others := sorted(name for name in names - FILES - DERIVED if not name.startswith(TEMPORARY)):
        raise PamusicError(
            f"{path}: has other files in it than a corpus ({', '.join(others[:3])}); "
            "move them away, or choose another place with --out"
        )
    if not force and names:
        raise PamusicError(
            f"{path}: there is a corpus already; replace it with --overwrite, or choose another place with --out"
        )
