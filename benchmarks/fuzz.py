"""Check that any file, however damaged, is read or refused in one line: no crash, no hang, bounded memory.

    python benchmarks/fuzz.py --inputs 200000 --processes 2 maestro-v3.0.0-midi.zip

An input is a number. The number and `--seed` generate the file (`tests/support/corrupt_midi.py`). Files are read in
child processes, one batch each, so that a crash in C++ is found. If a batch crashes, its inputs are read again, one in
each process. With MAESTRO's zip, some of the inputs are damaged files of it. Exits with 1 if a result is neither a
performance nor a `PamusicError`.
"""

import argparse
import datetime
import multiprocessing
import os
import platform
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

BATCH = 1000  # inputs a child reads
MOST_SECONDS = 20  # for one input; a child that takes longer is a hang
MOST_MEBIBYTES = 1024  # for a child, interpreter and libraries included
PACKAGES = ("numpy", "symusic")
NUM_REAL = 8


@dataclass
class Count:
    """Results of inputs."""

    inputs: int = 0
    parsed: int = 0
    notes: int = 0
    repaired: Counter[str] = field(default_factory=Counter)  # files, by kind
    refused: Counter[str] = field(default_factory=Counter)  # files, by rule
    slowest: tuple[float, int] = (0.0, -1)  # seconds, input
    peak_mebibytes: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)  # input -> what happened

    def add(self, other: "Count") -> None:
        self.inputs += other.inputs
        self.parsed += other.parsed
        self.notes += other.notes
        self.repaired += other.repaired
        self.refused += other.refused
        self.slowest = max(self.slowest, other.slowest)
        self.peak_mebibytes = max(self.peak_mebibytes, other.peak_mebibytes)
        self.failures.update(other.failures)


def read(data: bytes, count: Count) -> None:
    """Read one file and check the result.

    Raises:
        AssertionError: a performance that there cannot be.
    """
    from corrupt_midi import check_performance, check_refusal

    from pamusic.errors import PamusicError
    from pamusic.music.midi import read_and_mend

    try:
        performance, repairs = read_and_mend(data, "input", tracks="all")
    except PamusicError as error:
        check_refusal(error)
        count.refused[error.rule] += 1
        return
    check_performance(performance)
    count.parsed += 1
    count.notes += len(performance)
    count.repaired.update({repair.kind for repair in repairs})


def read_batch(seed: int, numbers: list[int], real: tuple[bytes, ...], out: multiprocessing.Queue) -> None:
    """Read inputs in a child process and send the results."""
    from corrupt_midi import hostile

    count = Count()
    for number in numbers:
        data = hostile(seed, number, real)
        signal.alarm(MOST_SECONDS)  # kills the child
        began = time.perf_counter()
        try:
            read(data, count)
        except Exception:
            count.failures[number] = traceback.format_exc(limit=-3)
        count.inputs += 1
        count.slowest = max(count.slowest, (time.perf_counter() - began, number))
        signal.alarm(0)
    count.peak_mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if count.peak_mebibytes > MOST_MEBIBYTES:
        count.failures[numbers[0]] = f"{count.peak_mebibytes:.0f} MiB of memory in the batch from here on"
    out.put(count)


def counted(seed: int, numbers: list[int], real: tuple[bytes, ...]) -> Count:
    """Return the results of a batch, read in a child process; if that died, of each input in a child of its own."""
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    child = context.Process(target=read_batch, args=(seed, numbers, real, out))
    child.start()
    child.join()
    if child.exitcode == 0:
        return out.get()
    if len(numbers) == 1:
        died = signal.Signals(-child.exitcode).name if child.exitcode < 0 else f"exit {child.exitcode}"
        return Count(inputs=1, failures={numbers[0]: died})
    total = Count()
    for number in numbers:
        total.add(counted(seed, [number], real))
    return total


def real_files(archive: str | None) -> tuple[bytes, ...]:
    """Return the smallest files of an archive."""
    from pamusic.corpus.sources import find_sources

    if not archive:
        return ()
    sources, _, _ = find_sources([Path(archive)])
    return tuple(sorted((source.read() for source in sources), key=len)[:NUM_REAL])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", default=os.environ.get("PAMUSIC_MAESTRO"), help="MAESTRO's zip")
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()

    from multiprocessing.pool import ThreadPool

    real = real_files(arguments.archive)
    batches = [range(i, min(i + BATCH, arguments.inputs)) for i in range(0, arguments.inputs, BATCH)]
    total, began = Count(), time.perf_counter()
    with ThreadPool(arguments.processes) as pool:
        for done, count in enumerate(
            pool.imap_unordered(lambda batch: counted(arguments.seed, list(batch), real), batches), start=1
        ):
            total.add(count)
            if sys.stderr.isatty():
                print(f"\r{done} of {len(batches)} batches", end="", file=sys.stderr)
    seconds = time.perf_counter() - began

    for number, what in sorted(total.failures.items()):
        print(f"input {number}: {what}", file=sys.stderr)
    print("| what | |\n|---|---|")
    print(f"| date | {datetime.date.today()} |")
    print(f"| machine | {platform.machine()}, {os.cpu_count()} cores, {platform.system()} |")
    print(f"| versions | Python {platform.python_version()}, {', '.join(f'{p} {version(p)}' for p in PACKAGES)} |")
    print(f"| inputs | {total.inputs:,} (seed {arguments.seed}; {len(real)} files of MAESTRO among their origins) |")
    print(f"| neither read nor refused | **{len(total.failures)}** |")
    print(f"| read | {total.parsed:,} ({total.notes:,} notes) |")
    print(f"| refused | {sum(total.refused.values()):,} |")
    print(f"| slowest input | {1000 * total.slowest[0]:.0f} ms (number {total.slowest[1]}) |")
    print(f"| peak memory of a process | {total.peak_mebibytes:.0f} MiB |")
    print(f"| wall time | {seconds:.0f} s, {arguments.processes} processes |")
    for what, counter in (("repaired", total.repaired), ("refused", total.refused)):
        print(f"\n| {what} | files |\n|---|---|")
        for kind, number in counter.most_common():
            print(f"| {kind} | {number:,} |")
    return 1 if total.failures or total.inputs != arguments.inputs else 0


if __name__ == "__main__":
    sys.exit(main())
