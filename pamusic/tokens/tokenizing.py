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
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pamusic.errors import PamusicError
from pamusic.music.midi import read_midi
from pamusic.tokens.corpus import check_corpus_place, writing_corpus
from pamusic.tokens.sources import SPLITS, Refusal, Source, find_sources, split_by_content
from pamusic.tokens.tokenizer import Tokenizer

CHUNK = 8  # files a worker takes at once


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a worker makes of a file."""

    ids: np.ndarray
    name: str
    split: str
    num_notes: int
    seconds: float
    sha256: str


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
    force: bool = False,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Summary:
    """Makes a corpus of all MIDI files under `paths`.

    Args:
        paths: folders, zip archives, MIDI files.
        out: the corpus' folder.
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
        closing(_encode_all(sources, tokenizer, num_workers)) as results,
    ):
        for done, result in enumerate(results, start=1):
            if isinstance(result, Refusal):
                summary.refused.append(result)
            else:
                summary.splits[result.split].add(result)
                writer.add(
                    result.ids,
                    name=result.name,
                    split=result.split,
                    num_notes=result.num_notes,
                    seconds=result.seconds,
                    sha256=result.sha256,
                )
            progress(done, len(sources))
        if not summary.in_all.num_files:
            raise PamusicError(_why_nothing(summary.refused))
        writer.close(
            sources=[str(path) for path in paths],
            refused=[[refusal.name, refusal.reason] for refusal in summary.refused],
        )
    return summary


def _why_nothing(refused: list[Refusal]) -> str:
    if len(refused) == 1:
        return f"{refused[0].name}: {refused[0].reason}"
    reason, how_many = Counter(refusal.reason for refusal in refused).most_common(1)[0]
    example = next(refusal.name for refusal in refused if refusal.reason == reason)
    return f"none of {len(refused)} files could be taken; {how_many} of them, as {example}: {reason}"


def _encode_all(
    sources: list[Source], tokenizer: Tokenizer, num_workers: int | None
) -> Generator[Encoded | Refusal, None, None]:
    num_workers = min(num_workers or os.cpu_count() or 1, -(-len(sources) // CHUNK))
    chunks = [sources[i : i + CHUNK] for i in range(0, len(sources), CHUNK)]
    if num_workers <= 1:
        for chunk in chunks:
            yield from _encode_chunk(chunk, tokenizer)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_leave_interrupts_to_parent) as pool:
        try:
            yield from _in_order(pool, chunks, tokenizer, ahead=4 * num_workers)
        except BrokenProcessPool:
            raise PamusicError("a worker died at its work (out of memory?); try fewer: --workers 1") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, chunks: Iterable[list[Source]], tokenizer: Tokenizer, ahead: int
) -> Iterator[Encoded | Refusal]:
    """Results in the order of the chunks, never more than `ahead` chunks in memory."""
    waiting: deque[Future[list[Encoded | Refusal]]] = deque()
    for chunk in chunks:
        with warnings.catch_warnings():
            # Forking spares each worker the imports. Python 3.12 warns of it where there are threads, as NumPy's
            # library has some; all workers are forked at once here, before a thread of ours or a bar's is started.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            waiting.append(pool.submit(_encode_chunk, chunk, tokenizer))
        if len(waiting) >= ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _encode_chunk(sources: list[Source], tokenizer: Tokenizer) -> list[Encoded | Refusal]:
    return [_encode(source, tokenizer) for source in sources]


def _encode(source: Source, tokenizer: Tokenizer) -> Encoded | Refusal:
    try:
        data = source.read()
        performance = read_midi(data, source.name)
    except PamusicError as error:
        return Refusal(source.name, str(error).removeprefix(f"{source.name}: "))
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
    )
