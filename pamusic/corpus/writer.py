"""Write a corpus completely or not at all, and resume after an interruption.

Knows the corpus' files and the journal of unfinished work; knows no MIDI. A corpus is made in a hidden folder next to
its final place and renamed when complete. A kill at any moment leaves the old corpus or the new one.
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
WRITTEN_OUT_EVERY = 1.0  # seconds of work that a kill may lose
KEEP_AFTER = 5.0  # seconds of work after which an unfinished folder is kept


class CorpusWriter:
    """A writer that takes pieces and refusals one at a time; `close` completes the files of the folder.

    Each is recorded in a line of a journal, after its ids went to their file. So nothing is kept in memory, and the
    folder of a killed program holds work that can be resumed.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, work: str = "") -> None:
        """Open the files of a folder with their present contents; `work` identifies the work done there."""
        self._folder, self._tokenizer, self._work = folder, tokenizer, work
        self._ids: IO[bytes] = (folder / "tokens.bin").open("a+b")
        self._journal: IO[bytes] = (folder / JOURNAL).open("a+b")
        self._began = self._written_out = time.monotonic()
        self._num_tokens = 0
        self._position = ID.itemsize * len(tokenizer.vocabulary.fields)
        self.num_pieces = self.num_resumed = 0
        self.alone = locked(self._journal)

    def resumed(self) -> Iterator[Piece | Refusal]:
        """Yield the pieces and refusals of an earlier writer, in its order, if it did the same work.

        Read to the end before adding anything. The iteration ends before the first line that is incomplete or does not
        match its ids.
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
        """Add a piece; its ids are `[num_tokens]` or `[num_tokens, num_fields]`."""
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
        """Record that a source did not become a piece."""
        self._note("refused", refusal)

    def _note(self, kind: str, entry: Piece | Refusal) -> None:
        self._journal.write(f"{kind} {json.dumps(asdict(entry))}\n".encode())
        if time.monotonic() - self._written_out > WRITTEN_OUT_EVERY:
            self._write_out()

    def _write_out(self) -> None:
        self._ids.flush()  # first, so that all ids named in the journal are in their file
        self._journal.flush()
        self._written_out = time.monotonic()

    def worth_keeping(self, after: float) -> bool:
        """Return whether the work should survive a failure: it has pieces, and took `after` seconds or was resumed."""
        return self.num_pieces > 0 and (self.num_resumed > 0 or time.monotonic() - self._began >= after)

    def close(self, *, to_validation: Piece | None = None, **about: object) -> None:
        """Complete the folder.

        Args:
            to_validation: A piece that was added and now moves to validation.
            about: Other entries of `corpus.json`.
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
        with (self._folder / "corpus.json").open("wb") as file:  # each piece in one line, as in the journal
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
        """Close the files; their contents stay."""
        for file in (self._ids, self._journal):
            with suppress(OSError):
                file.close()


def _moved(entry: bytes, to_validation: Piece) -> bytes:
    """Return a piece's journal line, with its new split if it is the piece that moves."""
    fields = json.loads(entry)
    if fields["start"] == to_validation.start:
        fields["split"] = "validation"
    return json.dumps(fields).encode()


@contextmanager
def writing_corpus(
    path: Path, tokenizer: Tokenizer, *, force: bool = False, work: str = "", keep_after: float = KEEP_AFTER
) -> Iterator[CorpusWriter]:
    """Yield a writer; its output becomes `path` if the block succeeds, and is removed if it fails.

    Args:
        path: Folder of the corpus.
        tokenizer: Tokenizer of the ids.
        force: Whether to replace an existing corpus.
        work: A line that identifies the work. With one, the work is done in `.NAME.unfinished` next to `path`. That
            folder stays if the program is killed, or if the block raises after `keep_after` seconds. The next writer
            for the same work resumes it (`CorpusWriter.resumed`); a writer for other work empties it.
        keep_after: See `work`.

    Raises:
        PamusicError: `path` exists and `force` is not given, the place cannot be written to, or another program is
            writing there.
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
                    f"{path}: another program is writing it; wait for its end, or use another place with --out"
                )
            yield writer
        finally:
            writer.abandon()


def num_unfinished(path: Path) -> int:
    """Return the number of sources done by an interrupted `writing_corpus`, from which the same work would resume."""
    try:
        with (_unfinished(path) / JOURNAL).open("rb") as journal:
            return max(0, sum(1 for _ in journal) - 1)
    except OSError:
        return 0


def _unfinished(path: Path) -> Path:
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.unfinished")


def check_corpus_place(path: Path, *, force: bool) -> None:
    """Raise an error if writing to this place would destroy other data.

    Raises:
        PamusicError: `path` exists and `force` is not given, or it is not a corpus, or has other files.
    """
    path = Path(os.path.realpath(path))
    if not recovered(path).exists():
        return
    names = {each.name for each in path.iterdir()} if path.is_dir() else set()
    if not path.is_dir() or (names and "corpus.json" not in names):
        raise PamusicError(f"{path}: exists and is not a corpus; use another place with --out")
    if others := sorted(name for name in names - FILES - DERIVED if not name.startswith(TEMPORARY)):
        raise PamusicError(
            f"{path}: has files that do not belong to a corpus ({', '.join(others[:3])}); "
            "move them away, or use another place with --out"
        )
    if not force and names:
        raise PamusicError(f"{path}: is a corpus already; replace it with --overwrite, or use another place with --out")
