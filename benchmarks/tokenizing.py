"""How long `pamusic tokenize` takes for MAESTRO, as the command as a whole, and how much memory.

    python benchmarks/tokenizing.py maestro-v3.0.0-midi.zip --repeats 3

Wall time from starting the interpreter to its end. Peak memory is the sum of what the command and its workers hold,
each page that they share counted in full (RSS), looked at every 20 ms; Linux alone tells it.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pamusic

PACKAGES = ("numpy", "symusic")


def resident_bytes(process: int) -> int:
    """RSS of a process and its children, from /proc; 0 where there is none."""
    try:
        resident = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError, ValueError):
        return 0
    return resident + sum(resident_bytes(int(child)) for child in children)


def measured(archive: str, workers: int | None) -> tuple[float, int, int]:
    """(seconds, peak bytes of memory, bytes of the corpus) of one run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "corpus"
        command = [sys.executable, "-m", "pamusic", "tokenize", archive, "--out", str(out)]
        command += ["--workers", str(workers)] if workers else []
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        if process.returncode:
            sys.exit(process.communicate()[1])
        process.communicate()
        return seconds, peak, sum(file.stat().st_size for file in out.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", default=os.environ.get("PAMUSIC_MAESTRO"), help="MAESTRO's zip")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, help="processes; as many as there are cores by default")
    arguments = parser.parse_args()
    if not arguments.archive:
        parser.error("name MAESTRO's zip, or set PAMUSIC_MAESTRO")

    runs = [measured(arguments.archive, arguments.workers) for _ in range(arguments.repeats)]
    seconds = sorted(run[0] for run in runs)
    print("| what | |\n|---|---|")
    print(f"| date | {datetime.date.today()} |")
    print(f"| machine | {platform.machine()}, {os.cpu_count()} cores, {platform.system()} |")
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    print(f"| versions | pamusic {pamusic.__version__}, Python {platform.python_version()}, {versions} |")
    print(f"| archive | {Path(arguments.archive).name}, {Path(arguments.archive).stat().st_size / 1e6:.0f} MB |")
    print(f"| workers | {arguments.workers or os.cpu_count()} |")
    print(f"| wall time | best {seconds[0]:.1f} s, median {seconds[len(seconds) // 2]:.1f} s of {len(runs)} |")
    print(f"| peak memory, all processes | {max(run[1] for run in runs) / 2**20:.0f} MiB |")
    print(f"| corpus | {runs[0][2] / 1e6:.1f} MB |")


if __name__ == "__main__":
    main()
