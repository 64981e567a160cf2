"""Find the longest passage that music shares with the training set, in any key and at any tempo.

Task: find the passage of a piece that has the most notes in the same order in a piece of the training split.
Convention: notes are sorted by onset, and within a chord (onsets at most `CHORD` apart) from low to high. Only the
intervals between successive notes count, so key, tempo, touch and lengths do not matter. A passage begins where nine
notes in a row agree. It may skip up to six notes on either side if the next six agree. This covers ornaments, and notes
of a chord in another order. Figures that are in the training split more than `COMMON` times cannot begin a passage, but
can belong to one.
Metric: the number of notes that agree, without notes that only repeat a figure of the passage (trills, broken chords).
A note counts if the last five notes up to it are new. Held-out real pieces resemble the training set too, so the number
of them with as long a passage is reported beside it (`Reference`).

Knows corpora and performances; knows no model. The index is a sorted array of eight intervals each, packed into 64
bits.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pamusic.corpus.corpus import Corpus
from pamusic.errors import PamusicError
from pamusic.files import written_atomically
from pamusic.music.performance import CHORD, Performance
from pamusic.tokens.grid import GridNotes
from pamusic.tokens.tokenizer import Tokenizer

FORMAT = 1
STEPS = 8  # intervals that must agree for a passage to begin: one per byte of a 64-bit number
FIGURE = 4  # intervals of a figure; its repetitions do not count (docs/originality.md)
COMMON = 100  # occurrences above which eight intervals are a common figure rather than a copy of a work
# Measured (docs/originality.md): with fewer, planted copies fall into pieces; with more, no more of them are found.
MAX_MISMATCHES = 6
SKIPS = sorted(
    ((a, b) for a in range(MAX_MISMATCHES + 1) for b in range(MAX_MISMATCHES + 1) if a or b),
    key=lambda skip: (sum(skip), skip),
)
KEPT_INDEX, KEPT_REFERENCE = "originality.npz", "originality.json"  # two of `corpus.DERIVED`
REFERENCE_SECONDS = (60, 180)
NUM_EXCERPTS = 100


@dataclass(frozen=True, eq=False)
class NoteSequence:
    """Notes in the order of comparison: onsets in seconds and pitches (int16), `[num_notes]` each."""

    onset: np.ndarray
    pitch: np.ndarray

    def __len__(self) -> int:
        """Return the number of notes."""
        return len(self.pitch)


@dataclass(frozen=True, eq=False)
class Index:
    """The index of a corpus' training split.

    Attributes:
        start: Index of the first note of each piece, and the total number of notes, `[num_pieces + 1]`, int64.
        onset: Onsets in seconds, `[num_notes]`, float32.
        pitch: Pitches, `[num_notes]`, int16.
        gram: Sorted n-grams of `STEPS` intervals, `[num_grams]`, uint64.
        place: Index of the first note of each n-gram, `[num_grams]`, int32.
    """

    start: np.ndarray
    onset: np.ndarray
    pitch: np.ndarray
    gram: np.ndarray
    place: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Match:
    """A passage of a piece that is also in the training split.

    Attributes:
        notes: Number of notes that agree, without notes that only repeat a figure of the passage.
        repeating: Number of notes that agree, but only repeat a figure.
        differing: Number of notes of the passage that do not agree.
        start, end: Onsets of its first and last note in the piece, in seconds.
        piece: Name of the training piece.
        piece_start, piece_end: Onsets of its first and last note in the training piece, in seconds.
        transposed: Transposition relative to the training piece, in semitones.
        tempo: Tempo relative to the training piece.
    """

    notes: int
    repeating: int
    differing: int
    start: float
    end: float
    piece: str
    piece_start: float
    piece_end: float
    transposed: int
    tempo: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Reference:
    """The longest passages that held-out real pieces share with the training split.

    Attributes:
        split: Split of the held-out pieces.
        excerpt_seconds: Length of each excerpt.
        notes, seconds: Notes and seconds of each excerpt's longest passage; 0 if there is none.
    """

    split: str
    excerpt_seconds: int
    notes: tuple[int, ...]
    seconds: tuple[float, ...]

    def num_at_least(self, notes: int) -> int:
        """Return the number of excerpts that have a passage of at least `notes` notes."""
        return sum(each >= notes for each in self.notes)

    def numbers(self) -> dict[str, Any]:
        """Return the figures to report: median, 90th percentile and maximum of notes and of seconds."""
        return {
            "split": self.split,
            "excerpt_seconds": self.excerpt_seconds,
            "excerpts": len(self.notes),
            **{
                what: {
                    name: round(float(np.quantile(values, share)), 2)
                    for name, share in (("median", 0.5), ("90%", 0.9), ("maximum", 1.0))
                }
                for what, values in (("notes", self.notes), ("seconds", self.seconds))
            },
        }


def line(tokenizer: Tokenizer, performance: Performance) -> NoteSequence:
    """Return the notes of a performance in the order of comparison, on the grid of a corpus' tokenizer."""
    return _line(tokenizer, tokenizer.to_grid(performance))


def longest_match(index: Index, corpus: Corpus, music: NoteSequence) -> Match | None:
    """Return the passage of music with the most notes that is also in the training split; None if there is none."""
    note, place, run = _seeds(index, music)
    is_open = np.ones(len(note), bool)
    figure = _figures(music.pitch)
    best, num_agreeing, found = 0, 0, None
    for seed in np.argsort(-run, kind="stable").tolist():
        if not is_open[seed]:
            continue
        i, j = int(note[seed]), int(place[seed])
        piece = int(np.searchsorted(index.start, j, side="right")) - 1
        begin, end = index.start[piece : piece + 2].tolist()
        transposed = int(music.pitch[i]) - int(index.pitch[j])
        ours, theirs = music.pitch, index.pitch[begin:end] + np.int16(transposed)
        after, theirs_after = _agreement(ours[i:], theirs[j - begin :])
        before, theirs_before = _agreement(ours[:i][::-1], theirs[: j - begin][::-1])
        agreeing = np.concatenate([i - 1 - before[::-1], i + after])
        first, last = int(agreeing[0]), int(agreeing[-1]) + 1
        there, there_last = j - theirs_before, j + theirs_after
        is_open &= (note < first) | (note >= last) | (place < there) | (place >= there_last)
        counted = FIGURE + len(np.unique(figure[agreeing[agreeing >= first + FIGURE]]))
        if counted > best:
            best, num_agreeing = counted, len(agreeing)
            found = piece, first, last, there, there_last, transposed
    if found is None:
        return None
    piece, first, last, there, there_last, transposed = found
    start, end, piece_start, piece_end = (
        round(float(onset), 3) for onset in (*music.onset[[first, last - 1]], *index.onset[[there, there_last - 1]])
    )
    return Match(
        notes=best,
        repeating=num_agreeing - best,
        differing=last - first - num_agreeing,
        start=start,
        end=end,
        piece=corpus.pieces[corpus.split("train")[piece]].name,
        piece_start=piece_start,
        piece_end=piece_end,
        transposed=transposed,
        tempo=round((piece_end - piece_start) / max(end - start, 1e-3), 3),
    )


def make_index(corpus: Corpus, progress: Callable[[int, int], None] = lambda done, of: None) -> Index:
    """Build the index of a corpus' training split.

    Raises:
        PamusicError: The training split is empty.
    """
    pieces = corpus.split("train")
    if not pieces:
        raise PamusicError(f"{corpus.path}: has no training pieces that music could copy; use another corpus")
    lines, grams, places, start = [], [], [], [0]
    for done, piece in enumerate(pieces):
        lines.append(_line(corpus.tokenizer, corpus.tokenizer.grid_from_ids(corpus.piece(piece))))
        grams.append(_grams(lines[-1].pitch))
        places.append(np.arange(start[-1], start[-1] + len(grams[-1]), dtype=np.int32))
        start.append(start[-1] + len(lines[-1]))
        progress(done + 1, len(pieces))
    gram, place = np.concatenate(grams), np.concatenate(places)
    order = np.argsort(gram, kind="stable")
    gram, place = gram[order], place[order]
    _, which, count = np.unique(gram, return_inverse=True, return_counts=True)
    rare = count[which] <= COMMON
    onset = np.concatenate([each.onset for each in lines]).astype(np.float32)
    return Index(np.array(start), onset, np.concatenate([each.pitch for each in lines]), gram[rare], place[rare])


def kept_index(
    corpus: Corpus,
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
    tell: Callable[[str], None] = lambda words: None,
) -> Index:
    """Return the index from a corpus' folder; build it and write it there if it is missing or outdated.

    Args:
        corpus: The corpus.
        progress: Called after each piece with (pieces done, pieces in all).
        tell: Called with a message if the index cannot be written.
    """
    path = corpus.path / KEPT_INDEX
    try:
        with np.load(path) as kept:
            if str(kept["of"]) == _of(corpus):
                return Index(*(kept[name] for name in ("start", "onset", "pitch", "gram", "place")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # missing or broken
    index = make_index(corpus, progress)
    try:
        with written_atomically(path) as temporary:
            np.savez(temporary, of=np.array(_of(corpus)), **vars(index))
    except PamusicError as error:
        tell(f"the index is not kept: {error}")
    return index


def excerpts(corpus: Corpus, split: str, seconds: float, num: int) -> Iterator[NoteSequence]:
    """Yield fixed excerpts of some length, each from another piece, spread over the split."""
    step_seconds = corpus.tokenizer.vocabulary.time_step_ms / 1000
    long_enough = [piece for piece in corpus.split(split) if corpus.pieces[piece].seconds > seconds]
    num = min(num, len(long_enough))
    randomness = np.random.default_rng(0)
    for number in range(num):
        grid = corpus.tokenizer.grid_from_ids(corpus.piece(long_enough[number * len(long_enough) // num]))
        room = max(0.0, float(grid.onset.max(initial=0)) * step_seconds - seconds)
        begin = randomness.uniform(0, room) / step_seconds
        inside = (grid.onset >= begin) & (grid.onset < begin + seconds / step_seconds)
        yield _line(
            corpus.tokenizer,
            GridNotes(grid.onset[inside], grid.offset[inside], grid.pitch[inside], grid.velocity_bin[inside]),
        )


def make_reference(
    index: Index,
    corpus: Corpus,
    seconds: int,
    *,
    num: int = NUM_EXCERPTS,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Reference | None:
    """Return the longest passages that held-out excerpts share with the training split; None without such pieces.

    Excerpts come from the test split, or from the validation split if no test piece is long enough.
    """
    for split in ("test", "validation"):
        found = []
        for done, excerpt in enumerate(excerpts(corpus, split, seconds, num)):
            found.append(longest_match(index, corpus, excerpt))
            progress(done + 1, num)
        if found:
            notes = tuple(0 if match is None else match.notes for match in found)
            lengths = tuple(0.0 if match is None else round(match.seconds, 3) for match in found)
            return Reference(split, seconds, notes, lengths)
    return None


def kept_reference(
    index: Index, corpus: Corpus, seconds: int, progress: Callable[[int, int], None] = lambda done, of: None
) -> Reference | None:
    """Return the reference from a corpus' folder; compute it and write it there if it is missing."""
    path = corpus.path / KEPT_REFERENCE
    kept: dict[str, Any] = {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        kept = about["references"] if about["of"] == _of(corpus) else {}
        if str(seconds) in kept:
            fields = kept[str(seconds)]
            return Reference(**{**fields, "notes": tuple(fields["notes"]), "seconds": tuple(fields["seconds"])})
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or broken
    made = make_reference(index, corpus, seconds, progress=progress)
    if made is not None:
        try:
            with written_atomically(path) as temporary:
                text = json.dumps({"of": _of(corpus), "references": {**kept, str(seconds): asdict(made)}})
                temporary.write_text(text + "\n", encoding="utf-8")
        except PamusicError:
            pass  # the index could not be written either, which was reported
    return made


def nearest_reference_seconds(seconds: float) -> int:
    """Return the excerpt length to compare a piece with, because longer pieces have longer passages by chance."""
    return min(REFERENCE_SECONDS, key=lambda each: max(each / max(seconds, 1), max(seconds, 1) / each))


def _line(tokenizer: Tokenizer, grid: GridNotes) -> NoteSequence:
    step_ms = tokenizer.vocabulary.time_step_ms
    by_onset = np.argsort(grid.onset, kind="stable")
    onset, pitch = grid.onset[by_onset], grid.pitch[by_onset]
    chord = np.cumsum(np.diff(onset, prepend=onset[:1]) * step_ms > 1000 * CHORD)
    order = np.lexsort((pitch, chord))
    return NoteSequence(onset[order] * step_ms / 1000, pitch[order].astype(np.int16))


def _grams(pitch: np.ndarray) -> np.ndarray:
    """Return the n-grams of `STEPS` intervals, one byte each, `[num_notes - STEPS]`, uint64."""
    steps = (np.diff(pitch) + 128).astype(np.uint8)
    if len(steps) < STEPS:
        return np.empty(0, np.uint64)
    return np.ascontiguousarray(sliding_window_view(steps, STEPS)).view("<u8")[:, 0].astype(np.uint64)


def _figures(pitch: np.ndarray) -> np.ndarray:
    """Return the last `FIGURE` intervals up to each note, fewer for the first notes, `[num_notes]`, uint64."""
    steps = (np.diff(pitch, prepend=pitch[:1]) + 128).astype(np.uint64)
    figures = np.zeros(len(pitch), np.uint64)
    for back in range(min(FIGURE, len(pitch))):
        figures[back:] |= steps[: len(pitch) - back] << np.uint64(8 * back)
    return figures


def _seeds(index: Index, music: NoteSequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return possible beginnings of passages: notes of the music, notes of the index, and equal n-grams in a row."""
    gram = _grams(music.pitch)
    first, last = (np.searchsorted(index.gram, gram, side=side) for side in ("left", "right"))
    count = last - first
    note = np.repeat(np.arange(len(gram)), count)
    nth = np.arange(len(note)) - np.repeat(np.cumsum(count) - count, count)
    place = index.place[np.repeat(first, count) + nth].astype(np.int64)
    # Merge matches that are consecutive on both sides.
    order = np.lexsort((note, place - note))
    note, place = note[order], place[order]
    is_first = np.append(True, (np.diff(note) != 1) | (np.diff(place) != 1))[: len(note)]
    begins = np.flatnonzero(is_first)
    return note[begins], place[begins], np.diff(np.append(begins, len(note)))


def _agreement(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the indices of our notes that agree, from the beginnings on, and the number of their notes passed."""
    runs, i, j = [np.empty(0, np.int64)], 0, 0
    while True:
        run = _run(ours[i:], theirs[j:])
        runs.append(np.arange(i, i + run))
        i, j = i + run, j + run
        for a, b in SKIPS:
            behind = ours[i + a : i + a + MAX_MISMATCHES]
            if len(behind) == MAX_MISMATCHES and np.array_equal(behind, theirs[j + b : j + b + MAX_MISMATCHES]):
                i, j = i + a, j + b
                break
        else:
            return np.concatenate(runs), j


def _run(ours: np.ndarray, theirs: np.ndarray, at_once: int = 64) -> int:
    """Return the number of notes that agree before the first that differs."""
    length, run = min(len(ours), len(theirs)), 0
    while run < length:
        until = min(run + at_once, length)
        differ = np.flatnonzero(ours[run:until] != theirs[run:until])
        if len(differ):
            return run + int(differ[0])
        run = until
    return run


def _of(corpus: Corpus) -> str:
    """Return a key of everything that an index and a reference depend on."""
    return f"{corpus.fingerprint} {FORMAT} {STEPS} {CHORD} {COMMON} {MAX_MISMATCHES} {FIGURE} {NUM_EXCERPTS}"
