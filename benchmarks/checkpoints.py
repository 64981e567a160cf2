"""Compare the speed of two checkpoints in notes a second: `python benchmarks/checkpoints.py [small nocturne]`.

Tokens a second do not compare across vocabularies: a note takes four events, or one position. So this counts the notes
in the files that `pamusic sample` writes with its default settings, by the seconds that it prints (loading excluded).
The checkpoints take turns, and each figure is the median of the turns. The first note is timed through
`pamusic.load().stream`, after a prime of 8,000 notes. Both are measured with one and with two threads, on this
processor and, where it has bf16 units, as on an older one (`processors.OLDER`). About 10 minutes on an idle machine.
Prints a table in Markdown and writes it to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from processors import NEWER, OLDER, RESULTS

PIECES = {1: 60, 16: 20}  # at once -> seconds of music of each
TURNS = 3
PRIME_NOTES = 8000


def notes_a_second(checkpoint: str, num: int, seed: int) -> float:
    """Generate pieces from nothing and return their notes for each second of sampling."""
    from pamusic import read_midi

    with tempfile.TemporaryDirectory() as folder:
        words = ["--checkpoint", checkpoint, "--num-samples", num, "--seconds", PIECES[num], "--seed", seed]
        sample = [sys.executable, "-m", "pamusic", "sample", "--no-guard", *map(str, words), "-o", f"{folder}/a.mid"]
        said = subprocess.run(sample, check=True, capture_output=True, text=True).stderr
        found = re.search(r" in ([\d.,]+) seconds", " ".join(said.split()))
        assert found, said
        num_notes = sum(len(read_midi(path)) for path in Path(folder).glob("*.mid"))
    return num_notes / float(found[1].replace(",", ""))


def first_note_seconds(checkpoint: str) -> float:
    """Return the seconds from a prime of 8,000 notes to the first new one, the model loaded and warm."""
    import numpy as np

    import pamusic

    rng = np.random.default_rng(1)
    onsets = np.arange(PRIME_NOTES) * 0.1
    pitches = 60 + np.cumsum(rng.integers(-2, 3, PRIME_NOTES)) % 24
    prime = pamusic.Performance.from_arrays(onsets, onsets + 0.3, pitches, rng.integers(40, 90, PRIME_NOTES))
    model, seconds = pamusic.load(checkpoint), []
    for seed in range(TURNS):
        began = time.perf_counter()
        next(iter(model.stream(prime, seed=seed)))
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def measure(checkpoints: list[str]) -> dict[str, dict[str, float]]:
    """Return the rows of each checkpoint under the settings of this process."""
    rows: dict[str, dict[str, float]] = {name: {} for name in checkpoints}
    for num in PIECES:
        turns = [[notes_a_second(name, num, 1 + turn) for name in checkpoints] for turn in range(TURNS)]
        for name, found in zip(checkpoints, zip(*turns, strict=True), strict=True):
            rows[name][str(num)] = median(found)
    for name in checkpoints:
        rows[name]["first"] = first_note_seconds(name)
    return rows


def column(checkpoints: list[str], settings: dict[str, str], threads: int) -> dict[str, dict[str, float]]:
    """Return the measurements of a process under these settings, on as many cores as threads."""
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    words = [sys.executable, __file__, "--here", *checkpoints]
    done = subprocess.run(
        words,
        env={**os.environ, **settings, "OMP_NUM_THREADS": str(threads)},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", default=["small", "nocturne"])
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.checkpoints)))
        return
    from pamusic.compose.benchmark import machine
    from pamusic.device import cpu_bf16_units

    kinds = {"this processor": NEWER} | ({"as an older one (AVX2)": OLDER} if cpu_bf16_units() else {})
    before, after = given.checkpoints
    today = datetime.date.today()
    lines = [
        f"# Notes a second of `{before}` and `{after}`, {today}", "", f"{machine()}. Median of {TURNS} turns.", "",
        f"| processor | threads | pieces at once | {before} | {after} | ratio |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    firsts = ["", f"Seconds to the first note after a prime of {PRIME_NOTES:,} notes:", "",
              f"| processor | threads | {before} | {after} |", "|---|---|---|---|"]  # fmt: skip
    for kind, settings in kinds.items():
        for threads in (1, 2):
            found = column(given.checkpoints, settings, threads)
            for num in map(str, PIECES):
                of = [found[name][num] for name in (before, after)]
                lines.append(f"| {kind} | {threads} | {num} | {of[0]:,.0f} | {of[1]:,.0f} | {of[1] / of[0]:.2f} |")
            firsts.append(f"| {kind} | {threads} | {found[before]['first']:.2f} | {found[after]['first']:.2f} |")
            print("\n".join(lines[-2:] + firsts[-1:]), file=sys.stderr, flush=True)
    text = "\n".join(lines + firsts) + "\n"
    print(text)
    (RESULTS / f"checkpoints-{today}.md").write_text(text)


if __name__ == "__main__":
    main()
