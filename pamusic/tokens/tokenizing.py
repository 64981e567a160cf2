"""Sources -> corpus, on all cores.

Knows sources, performances, tokens and the corpus; reports through a callback. Each worker reads, parses and encodes a
file; one process writes, in the order of the sources, so that the corpus does not depend on who was first.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pamusic.errors import PamusicError
from pamusic.music.midi import Tracks, read_and_mend
from pamusic.tokens.corpus import check_corpus_place, writing_corpus
from pamusic.tokens.sources import SPLITS, Refusal, Source, find_sources, split_by_content
from pamusic.tokens.tokenizer import Tokenizer

CHUNK = 8  # files a worker takes at once
Encode = Callable[[list[Source]], list["Encoded | Refusal"]]


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a worker makes of a file."""

    ids: np.ndarray
    name: str
    split: str
    num_notes: int
    seconds: float
    sha256: str
    repairs: list[tuple[str, int, str]]


@dataclass
class SplitCount:
    """What a split holds."""

    num_files: int = 0
    num_notes: int = 0
    seconds: float = 0.0
    num_tokens: int = 0

    def add(self, piece: Encoded) -> None:
        self.num_files += 1
        self.num_notes += piece.num_notes
        self.seconds += piece.seconds
        self.num_tokens += len(piece.ids)


@dataclass
class Summary:
    """What became of the sources."""

    splits: dict[str, SplitCount] = field(default_factory=lambda: {split: SplitCount() for split in SPLITS})
    refused: list[Refusal] = field(default_factory=list)
    repaired: list[tuple[str, str]] = field(default_factory=list)  # name of the file, and words
    num_repairs: Counter[str] = field(default_factory=Counter)  # by kind

    def add_repairs(self, name: str, repairs: Iterable[tuple[str, int, str]]) -> None:
        """Counts what was mended in a file."""
        words = []
        for kind, count, said in repairs:
            self.num_repairs[kind] += count
            words.append(said)
        if words:
            self.repaired.append((name, "; ".join(words)))

    @property
    def in_all(self) -> SplitCount:
        """What all splits hold together."""
        counts = self.splits.values()
        return SplitCount(
            sum(count.num_files for count in counts),
            sum(count.num_notes for count in counts),
            sum(count.seconds for count in counts),
            sum(count.num_tokens for count in counts),
        )


def tokenize(
    paths: list[Path],
    out: Path,
    tokenizer: Tokenizer,
    *,
    tracks: Tracks = "piano",
    force: bool = False,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Summary:
    """Makes a corpus of all MIDI files under `paths`.

    Args:
        paths: folders, zip archives, MIDI files.
        out: the corpus' folder.
        tracks: which parts of a file to take, see `read_and_mend`.
        force: replace a corpus that is there.
        num_workers: processes; as many as the machine's cores by default.
        progress: called with (files done, files in all), from the first file on; by then all processes have started.

    Raises:
        PamusicError: nothing to tokenize, every file refused, or `out` cannot be written.
    """
    check_corpus_place(out, force=force)
    sources, refused = find_sources(paths)
    summary = Summary(refused=list(refused))
    with (
        writing_corpus(out, tokenizer, force=force) as writer,
        closing(_encode_all(sources, tokenizer, tracks, num_workers)) as results,
    ):
        for done, result in enumerate(results, start=1):
            if isinstance(result, Refusal):
                summary.refused.append(result)
            else:
                summary.splits[result.split].add(result)
                summary.add_repairs(result.name, result.repairs)
                writer.add(
                    result.ids,
                    name=result.name,
                    split=result.split,
                    num_notes=result.num_notes,
                    seconds=result.seconds,
                    sha256=result.sha256,
                    repairs=result.repairs,
                )
            progress(done, len(sources))
        if not summary.in_all.num_files:
            raise PamusicError(_why_nothing(summary.refused))
        writer.close(
            sources=[str(path) for path in paths],
            tracks=tracks,
            refused=[[refusal.name, refusal.reason] for refusal in summary.refused],
        )
    return summary


def _why_nothing(refused: list[Refusal]) -> str:
    if len(refused) == 1:
        return f"{refused[0].name}: {refused[0].reason}"
    rule, how_many = Counter(refusal.rule or refusal.reason for refusal in refused).most_common(1)[0]
    example = next(refusal for refusal in refused if (refusal.rule or refusal.reason) == rule)
    return f"none of {len(refused)} files could be taken; {how_many} of them as {example.name}: {example.reason}"


def _encode_all(
    sources: list[Source], tokenizer: Tokenizer, tracks: Tracks, num_workers: int | None
) -> Generator[Encoded | Refusal, None, None]:
    num_workers = min(num_workers or os.cpu_count() or 1, -(-len(sources) // CHUNK))
    encode = partial(_encode_chunk, tokenizer=tokenizer, tracks=tracks)
    if num_workers <= 1:
        for source in sources:
            yield from encode([source])
        return
    ahead = 4 * num_workers
    num_done = 0
    while num_done < len(sources):
        chunks = (sources[i : i + CHUNK] for i in range(num_done, len(sources), CHUNK))
        try:
            with _pool(num_workers) as pool:
                for results in _in_order(pool, chunks, encode, ahead):
                    num_done += len(results)
                    yield from results
        except BrokenProcessPool:  # one of those at work killed its worker
            for source in sources[num_done : num_done + ahead * CHUNK]:
                num_done += 1
                yield _encode_alone(source, encode)


@contextmanager
def _pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_leave_interrupts_to_parent) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _encode_alone(source: Source, encode: Encode) -> Encoded | Refusal:
    """Encodes a file in a process of its own; a file that kills it is refused."""
    try:
        with _pool(1) as pool:
            ((result,),) = _in_order(pool, [[source]], encode, ahead=1)
            return result
    except BrokenProcessPool:
        rule = "killed the process that read it (out of memory?)"
        return Refusal(source.name, f"{rule}; look at it in a sequencer, or leave it out", rule)


def _in_order(
    pool: ProcessPoolExecutor, chunks: Iterable[list[Source]], encode: Encode, ahead: int
) -> Iterator[list[Encoded | Refusal]]:
    """Results in the order of the chunks, never more than `ahead` chunks in memory."""
    waiting: deque[Future[list[Encoded | Refusal]]] = deque()
    for chunk in chunks:
        with warnings.catch_warnings(), _interrupts_held_back():
            # Forking spares each worker the imports. Python 3.12 warns of it where there are threads, as NumPy's
            # library has some; all workers are forked at once here, before a thread of ours or a bar's is started.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            waiting.append(pool.submit(encode, chunk))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C reaches us after the block; workers started in it never hear of it, from their first instruction on."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _encode_chunk(sources: list[Source], tokenizer: Tokenizer, tracks: Tracks) -> list[Encoded | Refusal]:
    return [_encode(source, tokenizer, tracks) for source in sources]


def _encode(source: Source, tokenizer: Tokenizer, tracks: Tracks) -> Encoded | Refusal:
    try:
        data = source.read()
        performance, repairs = read_and_mend(data, source.name, tracks=tracks)
    except PamusicError as error:
        return Refusal(source.name, str(error).removeprefix(f"{source.name}: "), error.rule)
    ids = tokenizer.encode(performance)
    if not len(ids):
        return Refusal(source.name, f"no note of it is within the pitches of the tokenizer {tokenizer.name}")
    return Encoded(
        ids=ids,
        name=source.name,
        split=source.split or split_by_content(data),
        num_notes=len(performance),
        seconds=performance.duration,
        sha256=hashlib.sha256(data).hexdigest(),
        repairs=[(repair.kind, repair.count, repair.words) for repair in repairs],
    )
