"""Build a corpus from sources, on all cores.

Knows sources, performances, tokens and the corpus; reports through a callback. Each worker reads, parses and encodes a
file. One process writes, in the order of the sources, so that the corpus does not depend on timing.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pamusic import __version__
from pamusic.corpus.corpus import Piece, content_of
from pamusic.corpus.parallel import in_parallel
from pamusic.corpus.sources import (
    MIN_PIECES_TO_VALIDATE,
    SPLITS,
    Refusal,
    Source,
    find_sources,
    nearest_to_validation,
    split_by_content,
)
from pamusic.corpus.writer import KEEP_AFTER, CorpusWriter, check_corpus_place, writing_corpus
from pamusic.errors import PamusicError, UsageError
from pamusic.music.midi import Tracks, read_and_mend
from pamusic.music.performance import Performance
from pamusic.tokens.grid import GridNotes
from pamusic.tokens.note_seq_reference import check_reference, difference, ids_by_note_seq
from pamusic.tokens.positions import num_clipped
from pamusic.tokens.tokenizer import NOTE_ON, Tokenizer

ENGINES = ("pamusic", "note-seq")
OUTSIDE = "outside the pitches"
LONG, RESTS = "notes or pedals", "rests"
TOO_LONG = {LONG, RESTS}  # for the vocabulary; the file is not damaged
# Repairs that select notes or set their lengths. They do not apply where note-seq reads a file differently.
OF_THE_MUSIC = {
    OUTSIDE,
    LONG,
    RESTS,
    "tracks beyond the header's",
    "second file",
    "notes without an end",
    "notes without length",
    "patterns",
    "other instruments",
    "pedals of channels",
    "pedals without notes",
}


@dataclass(frozen=True, eq=False)
class Encoded:
    """A file as encoded by a worker."""

    ids: np.ndarray
    name: str
    split: str
    num_notes: int
    seconds: float
    sha256: str
    repairs: list[tuple[str, int, str]]


@dataclass
class SplitCount:
    """Totals of a split."""

    num_files: int = 0
    num_notes: int = 0
    seconds: float = 0.0
    num_tokens: int = 0

    def add(self, piece: Piece, times: int = 1) -> None:
        """Count a piece; `times` -1 removes it again."""
        self.num_files += times
        self.num_notes += times * piece.num_notes
        self.seconds += times * piece.seconds
        self.num_tokens += times * piece.num_tokens


@dataclass(frozen=True)
class Duplicate:
    """A piece with the same notes as an earlier one; `name` and `split`, and those of the earlier piece."""

    name: str
    split: str
    of: str
    of_split: str

    @property
    def crosses_splits(self) -> bool:
        return self.split != self.of_split


@dataclass
class Summary:
    """Result of tokenizing the sources.

    Attributes:
        num_resumed: Number of sources done before an interruption.
        left_out: Names of files of other kinds.
        num_official: Number of pieces with an official split.
    """

    splits: dict[str, SplitCount] = field(default_factory=lambda: {split: SplitCount() for split in SPLITS})
    refused: list[Refusal] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    num_resumed: int = 0
    num_official: int = 0
    repaired: list[tuple[str, str]] = field(default_factory=list)  # name of the file, and words of its repairs
    shortened: list[tuple[str, str]] = field(default_factory=list)  # the same, if all it has is too long for the bins
    num_repairs: Counter[str] = field(default_factory=Counter)  # by kind
    # Pieces without an official split, in order, as long as validation is empty.
    _pieces: list[Piece] = field(default_factory=list)
    _first: dict[int, tuple[str, str]] = field(default_factory=dict)  # content -> name and split of its first piece
    _doubled: set[int] = field(default_factory=set)  # contents of more than one piece

    @property
    def in_all(self) -> SplitCount:
        """Totals of all splits together."""
        counts = self.splits.values()
        return SplitCount(
            sum(count.num_files for count in counts),
            sum(count.num_notes for count in counts),
            sum(count.seconds for count in counts),
            sum(count.num_tokens for count in counts),
        )

    def _add_repairs(self, name: str, repairs: Iterable[tuple[str, int, str]]) -> None:
        """Count the repairs of a file."""
        words, kinds = [], set()
        for kind, count, said in repairs:
            self.num_repairs[kind] += count
            kinds.add(kind)
            words.append(said)
        if words:
            (self.shortened if kinds <= TOO_LONG else self.repaired).append((name, "; ".join(words)))

    def first_like(self, ids: np.ndarray) -> str | None:
        """Return the name of an earlier piece with these ids; None if there is none."""
        first = self._first.get(int(content_of(ids), 16))
        return first and first[0]

    def move_one_to_validation(self) -> Piece | None:
        """Move a piece to an empty validation split, from `MIN_PIECES_TO_VALIDATE` pieces on, and return it, or None.

        Three kinds of pieces never move: a piece with an official split; a piece with the notes of another piece, since
        training would see them; and the only piece to train on.
        """
        is_only_one = self.splits["train"].num_files == 1
        free = [
            piece
            for piece in self._pieces
            if int(piece.content, 16) not in self._doubled and not (is_only_one and piece.split == "train")
        ]
        is_due = not self.splits["validation"].num_files and self.in_all.num_files >= MIN_PIECES_TO_VALIDATE
        if not is_due or not free:
            return None
        piece = free[nearest_to_validation([each.sha256 for each in free], [each.split for each in free])]
        self.splits[piece.split].add(piece, -1)
        self.splits["validation"].add(piece)
        return piece

    def take(self, entry: Piece | Refusal, source: Source) -> None:
        """Count the piece or refusal that was written for a source."""
        if isinstance(entry, Refusal):
            self.refused.append(entry)
            return
        self.splits[entry.split].add(entry)
        if source.split is not None:
            self.num_official += 1
        elif not self.splits["validation"].num_files:
            self._pieces.append(entry)
        self._add_repairs(entry.name, entry.repairs)
        this = entry.name, sys.intern(entry.split)
        first = self._first.setdefault(int(entry.content, 16), this)
        if first is not this:
            self._doubled.add(int(entry.content, 16))
            self.duplicates.append(Duplicate(*this, *first))


def tokenize(
    paths: list[Path],
    out: Path,
    tokenizer: Tokenizer,
    *,
    tracks: Tracks = "piano",
    engine: str = ENGINES[0],
    drop_duplicates: bool = False,
    force: bool = False,
    num_workers: int | None = None,
    keep_after: float = KEEP_AFTER,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Summary:
    """Build a corpus from all MIDI files under `paths`.

    After an interruption (Ctrl-C, SIGTERM, a kill, a full disk), the same call resumes the work if the files are
    unchanged: see `writing_corpus`. The corpus is then byte for byte the same as without the interruption.

    Args:
        paths: Folders, zip archives, MIDI files.
        out: Folder of the corpus.
        tokenizer: Tokenizer of the corpus.
        tracks: Parts of a file to read, see `read_and_mend`; the engine note-seq supports only the default.
        engine: Encoder, one of `ENGINES`.
        drop_duplicates: Whether to leave out a piece with the same ids as an earlier one.
        force: Whether to replace an existing corpus.
        num_workers: Number of processes; by default the number of cores.
        keep_after: Seconds of work after which an interruption keeps the finished part.
        progress: Callback with (files done, files in all), from the first file on; all processes have started by then.

    Raises:
        PamusicError: there is nothing to tokenize, every file is refused, `out` cannot be written, or the engine does
            not support the tokenizer.
    """
    check_corpus_place(out, force=force)
    if engine == "note-seq":
        check_reference(tokenizer)
        if tracks != "piano":
            raise UsageError("--engine note-seq cannot select tracks; leave out --tracks")
    sources, refused, left_out = find_sources(paths)
    summary = Summary(refused=list(refused), left_out=left_out)
    work = _work_on(sources, tokenizer, tracks, engine, drop_duplicates)
    with (
        _terminated_in_order(),
        writing_corpus(out, tokenizer, force=force, work=work, keep_after=keep_after) as writer,
    ):
        for entry, source in zip(writer.resumed(), sources, strict=False):
            summary.take(entry, source)
        summary.num_resumed = writer.num_resumed
        encode = partial(_encode, tokenizer=tokenizer, tracks=tracks, engine=engine)
        rest = sources[writer.num_resumed :]
        with closing(in_parallel(rest, encode, num_workers)) as results:
            for done, (source, result) in enumerate(zip(rest, results, strict=True), start=writer.num_resumed + 1):
                if drop_duplicates and isinstance(result, Encoded) and (first := summary.first_like(result.ids)):
                    result = Refusal(result.name, f"has the same notes as {first}", "same notes as another")
                summary.take(_written(result, writer), source)
                progress(done, len(sources))
        if not summary.in_all.num_files:
            raise PamusicError(why_nothing(summary.refused))
        writer.close(
            to_validation=summary.move_one_to_validation(),
            sources=[str(path) for path in paths],
            tracks=tracks,
            refused=[[refusal.name, refusal.reason] for refusal in summary.refused],
            duplicates=[[each.name, each.of] for each in summary.duplicates],
        )
    return summary


def _work_on(sources: list[Source], tokenizer: Tokenizer, *options: object) -> str:
    """Return a hash that is equal if unchanged files are to become the same corpus."""
    digest = hashlib.sha256(repr((__version__, tokenizer.name, tokenizer.fingerprint, options)).encode())
    archives: dict[str, tuple[int, int]] = {}
    for source in sources:
        if source.container is None:
            state = _state(source.path)
        else:
            state = archives.get(source.container) or archives.setdefault(source.container, _state(source.container))
        digest.update(repr((source.container, source.path, source.name, source.split, state)).encode())
    return digest.hexdigest()


def _state(path: str) -> tuple[int, int]:
    """Return the size and modification time of a file; zeros if it does not exist."""
    try:
        about = os.stat(path)
    except OSError:
        return (0, 0)
    return about.st_size, about.st_mtime_ns


def _written(result: Encoded | Refusal, writer: CorpusWriter) -> Piece | Refusal:
    if isinstance(result, Refusal):
        writer.refuse(result)
        return result
    return writer.add(
        result.ids,
        name=result.name,
        split=result.split,
        num_notes=result.num_notes,
        seconds=result.seconds,
        sha256=result.sha256,
        repairs=result.repairs,
    )


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """Make SIGTERM end the program like Ctrl-C, with workers and files cleaned up; exit status 143."""
    if threading.current_thread() is not threading.main_thread():  # other threads receive no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _terminate(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def why_nothing(refused: list[Refusal]) -> str:
    """Return why all files are refused: the most frequent rule, with an example."""
    if len(refused) == 1:
        return f"{refused[0].name}: {refused[0].reason}"
    rule, how_many = Counter(refusal.rule or refusal.reason for refusal in refused).most_common(1)[0]
    example = next(refusal for refusal in refused if (refusal.rule or refusal.reason) == rule)
    return (
        f"all {len(refused):,} files were refused; {how_many:,} of them by the rule \u201c{rule}\u201d, "
        f"such as {example.name}: {example.reason}"
    )


def _encode(source: Source, tokenizer: Tokenizer, tracks: Tracks, engine: str) -> Encoded | Refusal:
    try:
        data = source.read()
        performance, repairs = read_and_mend(data, source.name, tracks=tracks)
        on_grid = tokenizer.to_grid(performance)
        ids = tokenizer.ids_from_grid(on_grid)
        num_notes, seconds = len(performance), performance.duration
        told = [
            *_outside(performance, tokenizer),
            *(_clipped(on_grid, tokenizer) if tokenizer.vocabulary.shape else []),
            *((repair.kind, repair.count, repair.words) for repair in repairs),
        ]
        if engine == "note-seq":
            ours, ids = ids, ids_by_note_seq(data)
            num_notes = _num_notes(ids, tokenizer)
            if differs := difference(ours, ids):
                seconds = tokenizer.decode(ids).duration
                told = [each for each in told if each[0] not in OF_THE_MUSIC]
                told.append(("read differently by note-seq", 1, differs))
    except PamusicError as error:
        return Refusal(source.name, str(error).removeprefix(f"{source.name}: "), error.rule)
    if not len(ids):
        return Refusal(source.name, f"has no note within the pitches of the tokenizer {tokenizer.name}")
    return Encoded(
        ids=ids,
        name=source.name,
        split=source.split or split_by_content(data),
        num_notes=num_notes,
        seconds=seconds,
        sha256=hashlib.sha256(data).hexdigest(),
        repairs=told,
    )


def _num_notes(ids: np.ndarray, tokenizer: Tokenizer) -> int:
    """Return the number of onsets in ids."""
    return int(np.count_nonzero(tokenizer.vocabulary.kind_of_id[ids] == NOTE_ON))


def _outside(performance: Performance, tokenizer: Tokenizer) -> list[tuple[str, int, str]]:
    """Return the number of notes outside the vocabulary's pitches, as a repair; an empty list if there are none."""
    pitch, keys = performance.notes["pitch"], tokenizer.vocabulary.range("note_on")
    num_outside = int(np.count_nonzero((pitch < keys.first) | (pitch > keys.last)))
    if not num_outside:
        return []
    notes = "1 note" if num_outside == 1 else f"{num_outside:,} notes"
    words = f"{notes} outside pitches {keys.first} to {keys.last} of {tokenizer.name}, left out"
    return [(OUTSIDE, num_outside, words)]


def _clipped(grid: GridNotes, tokenizer: Tokenizer) -> list[tuple[str, int, str]]:
    """Return the numbers of notes or pedals, and of rests, too long for the vocabulary, as repairs; without zeros."""
    vocabulary, told = tokenizer.vocabulary, []
    num_notes, num_rests = num_clipped(grid, vocabulary)
    for kind, what, one, count in (
        ("length", LONG, "note or pedal", num_notes),
        ("time_shift", RESTS, "rest", num_rests),
    ):
        if count:
            longest = vocabulary.range(kind).last * vocabulary.time_step_ms / 1000
            which = one if count == 1 else what
            told.append((what, count, f"{count:,} {which} longer than {longest:g} seconds, cut short"))
    return told
