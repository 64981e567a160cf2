"""Process sources on all cores, with results in the order of the sources.

Knows sources and processes; knows nothing of the results. A file that kills its worker process is refused, and the
other files continue.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from pamusic.corpus.sources import Refusal, Source

CHUNK = 8  # files per task of a worker
Made = TypeVar("Made")


def in_parallel(
    sources: list[Source], make: Callable[[Source], Made | Refusal], num_workers: int | None = None
) -> Generator[Made | Refusal, None, None]:
    """Yield the result for each source, in order, while only a few results are held in memory.

    Args:
        sources: Sources to process.
        make: Function for one source; another process must be able to import it.
        num_workers: Number of processes; by default the number of cores, or none for a few sources.
    """
    num_workers = min(num_workers or os.cpu_count() or 1, -(-len(sources) // CHUNK))
    if num_workers <= 1:
        for source in sources:
            yield make(source)
        return
    ahead = 4 * num_workers
    num_done = 0
    while num_done < len(sources):
        chunks = (sources[i : i + CHUNK] for i in range(num_done, len(sources), CHUNK))
        try:
            with _pool(num_workers) as pool:
                for results in _in_order(pool, chunks, make, ahead):
                    num_done += len(results)
                    yield from results
        except BrokenProcessPool:  # one of the files in progress killed its worker
            for source in sources[num_done : num_done + ahead * CHUNK]:
                num_done += 1
                yield _made_alone(source, make)


@contextmanager
def _pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_follow_parent) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _made_alone(source: Source, make: Callable[[Source], Made | Refusal]) -> Made | Refusal:
    """Process a file in a process of its own; refuse the file if it kills the process."""
    try:
        with _pool(1) as pool:
            ((result,),) = _in_order(pool, [[source]], make, ahead=1)
            return result
    except BrokenProcessPool:
        rule = "killed the process that read it (out of memory?)"
        return Refusal(source.name, f"{rule}; look at it in a sequencer, or leave it out", rule)


def _in_order(
    pool: ProcessPoolExecutor, chunks: Iterable[list[Source]], make: Callable[[Source], Made | Refusal], ahead: int
) -> Iterator[list[Made | Refusal]]:
    """Yield results in the order of the chunks, with at most `ahead` chunks in memory."""
    waiting: deque[Future[list[Made | Refusal]]] = deque()
    for chunk in chunks:
        with warnings.catch_warnings(), _signals_held_back():
            # Forking spares each worker the imports. Python 3.12 warns about forking with threads, and NumPy's library
            # has some. All workers are forked at once here, before we or a progress bar start a thread.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            waiting.append(pool.submit(_made_of_each, chunk, make))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block: a half-started pool could not be shut down.

    Workers that start in the block ignore Ctrl-C from their first instruction on.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow_parent() -> None:
    """Prepare a worker: ignore Ctrl-C, which the parent handles; end on SIGTERM and on any death of the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _made_of_each(sources: list[Source], make: Callable[[Source], Made | Refusal]) -> list[Made | Refusal]:
    return [make(source) for source in sources]
