"""Count the files of MAESTRO for which pamusic and note-seq give the same ids.

    python benchmarks/parity.py maestro-v3.0.0-midi.zip --files 100 --processes 2

note-seq runs as in `pamusic tokenize --engine note-seq`: half a second a file. Exits with 1 if any file differs.
Files other than MAESTRO's may differ on purpose: pamusic reads as players do (`docs/explanation/reading-midi.md`
lists where).
"""

import argparse
import datetime
import os
import platform
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("numpy", "symusic", "note-seq", "pretty_midi", "mido")


def compared(archive: str, name: str) -> tuple[str, int, str, float, float]:
    """(name, number of our ids, what differs, if anything, seconds of ours, seconds of note-seq's)."""
    from pamusic.corpus.sources import Source
    from pamusic.music.midi import read_midi
    from pamusic.tokens.note_seq_reference import difference, ids_by_note_seq
    from pamusic.tokens.tokenizer import load_tokenizer

    data = Source(archive, name, name).read()
    began = time.perf_counter()
    ours = load_tokenizer("performance").encode(read_midi(data, name))
    between = time.perf_counter()
    theirs = ids_by_note_seq(data)
    ended = time.perf_counter()
    return name, len(ours), difference(ours, theirs), between - began, ended - between


def main() -> int:
    from pamusic.corpus.sources import find_sources
    from pamusic.tokens.note_seq_reference import check_reference
    from pamusic.tokens.tokenizer import load_tokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", default=os.environ.get("PAMUSIC_MAESTRO"), help="MAESTRO's zip")
    parser.add_argument("--files", type=int, help="number of files, drawn at random; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.archive:
        parser.error("name MAESTRO's zip, or set PAMUSIC_MAESTRO")

    check_reference(load_tokenizer("performance"))
    sources, _, _ = find_sources([Path(arguments.archive)])
    names = sorted(source.path for source in sources)
    if arguments.files:
        names = sorted(random.Random(arguments.seed).sample(names, min(arguments.files, len(names))))
    num_equal = num_tokens = 0
    seconds_ours = seconds_theirs = 0.0
    began = time.perf_counter()
    with ProcessPoolExecutor(arguments.processes) as pool:
        for name, length, differs, ours, theirs in pool.map(partial(compared, arguments.archive), names, chunksize=4):
            num_equal += not differs
            num_tokens += length
            seconds_ours += ours
            seconds_theirs += theirs
            if differs:
                print(f"{name}: {differs}", file=sys.stderr)

    print("| what | |\n|---|---|")
    print(f"| date | {datetime.date.today()} |")
    print(f"| machine | {platform.machine()}, {os.cpu_count()} cores, {platform.system()} |")
    print(f"| versions | Python {platform.python_version()}, {', '.join(f'{p} {version(p)}' for p in PACKAGES)} |")
    print(f"| files compared | {len(names)} of {len(sources)} (seed {arguments.seed}) |")
    print(f"| equal to the last token | **{num_equal} of {len(names)}** ({num_tokens:,} tokens) |")
    print(f"| pamusic, read and encode | {1000 * seconds_ours / len(names):.1f} ms a file |")
    print(f"| note-seq, read and encode | {1000 * seconds_theirs / len(names):.1f} ms a file |")
    print(f"| wall time | {time.perf_counter() - began:.0f} s, {arguments.processes} processes |")
    return 0 if num_equal == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
