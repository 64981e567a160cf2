"""Measure how long `pamusic tokenize` takes for MAESTRO: the whole command, and single files beside other tokenizers.

    python benchmarks/tokenizing.py maestro-v3.0.0-midi.zip --repeats 5 --files 40

The command: wall time from the start of the interpreter to its end, CPU time of all its processes, and peak memory.
The memory is the sum of the resident sets (RSS), shared pages counted once for each process, sampled every 20 ms;
Linux only.

Single files: from the bytes of a file to its ids, on one core, in CPU time, so that other work on the machine matters
little. For each tokenizer it is the best of all repeats over the same files, drawn at random. note-seq and MidiTok
are left out if they are not installed.

The comparison is as fair as possible. note-seq makes the same ids. MidiTok's MIDILike has the same grid, shifts and
velocity bins, but does not fold the pedal, which is less work. Each tokenizer uses its usual parser.
"""

import argparse
import datetime
import importlib.util
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import symusic

import pamusic
from pamusic.corpus.sources import find_sources
from pamusic.music.midi import read_midi
from pamusic.tokens.tokenizer import load_tokenizer

PACKAGES = ("numpy", "symusic", "note-seq", "pretty_midi", "miditok")


def resident_bytes(process: int) -> int:
    """RSS of a process and its children, from /proc; 0 where there is none."""
    try:
        resident = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError, ValueError):
        return 0
    return resident + sum(resident_bytes(int(child)) for child in children)


def command(archive: str, workers: int | None) -> tuple[float, float, int, int]:
    """Return (seconds, CPU seconds, peak bytes of memory, bytes of the corpus) of one run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "corpus"
        words = [sys.executable, "-m", "pamusic", "tokenize", archive, "--out", str(out)]
        words += ["--workers", str(workers)] if workers else []
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(0.02)
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            sys.exit(process.communicate()[1])
        process.communicate()
        processors = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return seconds, processors, peak, sum(file.stat().st_size for file in out.iterdir())


def tokenizers() -> dict[str, Callable[[bytes], object]]:
    """Return the compared tokenizers, from the bytes of a file to ids, with everything loaded."""
    ours = load_tokenizer("performance")
    found: dict[str, Callable[[bytes], object]] = {
        "pamusic": lambda data: ours.encode(read_midi(data)),
        "symusic, parsing alone": symusic.Score.from_midi,
    }
    if importlib.util.find_spec("note_seq"):
        from pamusic.tokens.note_seq_reference import ids_by_note_seq

        found["note-seq"] = ids_by_note_seq
    if importlib.util.find_spec("miditok"):
        from miditok import MIDILike, TokenizerConfig

        unused = ("chords", "rests", "tempos", "time_signatures", "programs", "sustain_pedals", "pitch_bends")
        config = TokenizerConfig(
            pitch_range=(0, 127),
            beat_res={(0, 2): 50},  # MAESTRO has 120 quarters a minute: a fiftieth is 10 ms, and two are a second
            num_velocities=32,
            **{f"use_{name}": False for name in unused},
        )
        midilike = MIDILike(config)
        found["MidiTok, MIDILike"] = lambda data: midilike(symusic.Score.from_midi(data))
    return found


def seconds_a_file(encode: Callable[[bytes], object], files: list[bytes], repeats: int) -> float:
    """Processor time of one file, on average: the best of some repeats."""
    encode(files[0])
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        for data in files:
            encode(data)
        best = min(best, time.process_time() - began)
    return best / len(files)


def versions() -> str:
    """Return the versions of what is installed and compared."""
    told = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            told.append(f"{package} {version(package)}")
    return ", ".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", default=os.environ.get("PAMUSIC_MAESTRO"), help="MAESTRO's zip")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, help="processes; one for each core by default")
    parser.add_argument("--files", type=int, default=40, help="compared one by one; 0 for none")
    arguments = parser.parse_args()
    if not arguments.archive:
        parser.error("name MAESTRO's zip, or set PAMUSIC_MAESTRO")

    runs = [command(arguments.archive, arguments.workers) for _ in range(arguments.repeats)]
    seconds = sorted(run[0] for run in runs)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print("| what | |\n|---|---|")
    print(f"| date | {datetime.date.today()} |")
    print(f"| machine | {platform.machine()}, {os.cpu_count()} cores, {platform.system()}; load {load:.1f} |")
    print(f"| versions | pamusic {pamusic.__version__}, Python {platform.python_version()}, {versions()} |")
    print(f"| archive | {Path(arguments.archive).name}, {Path(arguments.archive).stat().st_size / 1e6:.0f} MB |")
    print(f"| workers | {arguments.workers or os.cpu_count()} |")
    print(f"| wall time | best {seconds[0]:.1f} s, median {seconds[len(seconds) // 2]:.1f} s of {len(runs)} |")
    print(f"| processor time | best {min(run[1] for run in runs):.1f} s |")
    print(f"| peak memory, all processes | {max(run[2] for run in runs) / 2**20:.0f} MiB |")
    print(f"| corpus | {runs[0][3] / 1e6:.1f} MB |")
    if not arguments.files:
        return

    sources, _, _ = find_sources([Path(arguments.archive)])
    chosen = random.Random(0).sample(sources, min(arguments.files, len(sources)))
    files = [source.read() for source in chosen]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    took = {}
    for name, encode in tokenizers().items():
        slow = name in ("note-seq", "MidiTok, MIDILike")
        took[name] = seconds_a_file(encode, files, min(arguments.repeats, 2) if slow else 3 * arguments.repeats)
    print(f"\n| one core, {len(files)} files | a file | times pamusic's | all {len(sources):,} files, one core |")
    print("|---|---|---|---|")
    for name, each in sorted(took.items(), key=lambda pair: pair[1]):
        ratio = each / took["pamusic"]
        print(f"| {name} | {1000 * each:.2f} ms | {ratio:.2f} | {each * len(sources):.1f} s |")
    print("\n| the whole of it | seconds | times pamusic's |\n|---|---|---|")
    print(f"| `pamusic tokenize`, {arguments.workers or os.cpu_count()} processes, wall | {seconds[0]:.1f} | 1 |")
    for name in ("note-seq", "MidiTok, MIDILike"):
        if name in took:
            whole = took[name] * len(sources)
            print(f"| {name}, one core, extrapolated | {whole:.0f} | {whole / seconds[0]:.0f} |")


if __name__ == "__main__":
    main()
