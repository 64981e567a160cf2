"""Measure the claim of Perceiver AR that it reads longer inputs at about the same cost.

    python benchmarks/paper/cost.py [--size small] [--threads N] [--smoke]

Trains each architecture at equal settings on windows of 1,024 to 131,072 random ids, and measures seconds of a training
step and the peak of memory. Each row is a process of its own, because memory is a peak of a process. A step is one
window, forward, backward and update, not compiled, without prefix dropout. A Perceiver AR predicts its latents only;
the others predict all positions, so the table also has the time of a predicted token.

Rows go to `benchmarks/results/paper/cost.csv` as they are measured. A row that is there is not measured again, so an
interrupted run continues by the same command. Rows that need more than `--max-gib`, by the prediction of the trainer,
are left out. The figure is drawn from all rows. `--smoke` takes `tiny` and short contexts, in files of its own, and
takes a few minutes on one core.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from common import RESULTS, add_rows, read_rows

CONTEXTS = [2**k for k in range(10, 18)]
SMOKE_CONTEXTS = [512, 1024, 2048, 4096]
ARCHITECTURES = ("perceiver-ar", "transformer", "transformer-xl")
STEPS, MOST_SECONDS = 3, 60.0  # timed steps of a row; a row ends earlier after so many seconds
PATIENCE = 900.0  # seconds of a row after which it is given up, and longer contexts of its architecture too
KEY = ("size", "architecture", "context_length", "threads", "machine")
VOCABULARY = {"vocab_size": 391, "pad_id": 390}  # of `performance`


def measured(size: str, architecture: str, context_length: int, threads: int, max_gib: float) -> dict[str, object]:
    """Return a row, measured in this process; without times if it would need more than `max_gib`."""
    import torch

    from pamusic.compose.benchmark import machine
    from pamusic.device import choose_machine
    from pamusic.model.config import preset
    from pamusic.model.flops import training_flops
    from pamusic.training.config import TrainingConfig
    from pamusic.training.data import Batch
    from pamusic.training.learner import Learner
    from pamusic.training.memory import memory_needed

    torch.set_num_threads(threads)
    where = choose_machine("cpu", "auto", compile=False, probe=True)
    shape = preset(size, architecture=architecture, context_length=context_length, **VOCABULARY)
    training = TrainingConfig(batch_size=1, prefix_dropout=0.0)
    row: dict[str, object] = {
        "size": size, "architecture": architecture, "context_length": context_length,
        "num_latents": shape.num_latents, "gflops_of_step": round(training_flops(shape) / 1e9, 2),
        "precision": where.precision, "threads": threads, "date": datetime.date.today().isoformat(),
        "machine": machine(),
    }  # fmt: skip
    needed = memory_needed(shape, training, where).needed(1) / 2**30
    if needed > max_gib:
        return {**row, "skipped": f"needs {needed:.1f} GiB"}
    before = peak_mib()
    learner = Learner(shape, training, where)
    ids = torch.randint(0, 388, (1, context_length + 1), generator=torch.Generator().manual_seed(1))
    batch = Batch(ids[:, :-1], ids[:, -shape.num_targets :], None)
    learner.update(batch)
    times: list[float] = []
    while len(times) < STEPS and sum(times) < MOST_SECONDS:
        begun = time.perf_counter()
        learner.update(batch)
        times.append(time.perf_counter() - begun)
    return {
        **row,
        "num_parameters": learner.model.num_parameters(),
        "seconds_of_step": round(min(times), 4),
        "microseconds_of_predicted_token": round(min(times) / shape.num_targets * 1e6, 2),
        "peak_mib": round(peak_mib()),
        "mib_before": round(before),
    }


def peak_mib() -> float:
    """Return the largest memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def missing(rows: list[dict[str, str]], wanted: dict[str, object], contexts: list[int]) -> Iterator[tuple[str, int]]:
    """Yield architectures and contexts without a row, short contexts first."""
    have = {tuple(row[name] for name in KEY) for row in rows}
    for context in contexts:
        for architecture in ARCHITECTURES:
            row = {**wanted, "architecture": architecture, "context_length": context}
            if tuple(str(row[name]) for name in KEY) not in have:
                yield architecture, context


def in_a_process(asked: argparse.Namespace, architecture: str, context: int) -> dict[str, object] | None:
    """Return a row, measured in a process of its own; None if that failed or took too long."""
    words = [sys.executable, __file__, "--one", architecture, str(context), "--size", asked.size]
    words += ["--threads", str(asked.threads), "--max-gib", str(asked.max_gib)]
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        print(f"{architecture} {context:,}: given up after {PATIENCE:.0f} seconds", flush=True)
        return None
    if told.returncode:
        print(f"{architecture} {context:,}: {(told.stderr.splitlines() or ['killed'])[-1]}", flush=True)
        return None
    row: dict[str, object] = json.loads(told.stdout.splitlines()[-1])
    return row


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Draw seconds and memory against the length of the context."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    panels = (
        ("seconds_of_step", "seconds of a training step, one window"),
        ("microseconds_of_predicted_token", "microseconds of a predicted token"),
        ("peak_mib", "peak memory of the process, MiB"),
    )
    for ax, (column, title) in zip(axes, panels, strict=True):
        for architecture in ARCHITECTURES:
            points = sorted(
                (int(row["context_length"]), float(row[column])) for row in rows if row["architecture"] == architecture
            )
            ax.plot(*zip(*points, strict=True) if points else ((), ()), marker="o", label=architecture)
        ax.set(xscale="log", yscale="log", xlabel="context, tokens", title=title)
        ax.set_xscale("log", base=2)
        ax.grid(alpha=0.3)
    axes[0].legend()
    last = rows[-1]
    weights = {f"{int(row['num_parameters']) / 1e6:.2f}" for row in rows}
    figure.supxlabel(
        f"{last['size']}, {' to '.join(sorted({min(weights), max(weights)}))} M weights, {last['precision']},"
        f" {last['threads']} threads, {last['machine']}, {last['date']}", fontsize=7,
    )  # fmt: skip
    figure.savefig(path, dpi=130, metadata={"Software": f"matplotlib, Python {platform.python_version()}"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-gib", type=float, default=10.0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("ARCHITECTURE", "CONTEXT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measured(asked.size, asked.one[0], int(asked.one[1]), asked.threads, asked.max_gib)))
        return

    from pamusic.compose.benchmark import machine

    name, contexts = "cost", CONTEXTS
    if asked.smoke:
        name, contexts, asked.size = "cost-smoke", SMOKE_CONTEXTS, "tiny"
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.csv"
    given_up = set[str]()
    wanted = {"size": asked.size, "threads": asked.threads, "machine": machine()}
    for architecture, context in missing(read_rows(path), wanted, contexts):
        if architecture in given_up:
            continue
        row = in_a_process(asked, architecture, context)
        if row is None or "skipped" in row:
            given_up.add(architecture)
            print(f"{architecture} {context:,}: {'no row' if row is None else row['skipped']}", flush=True)
            continue
        add_rows(path, [row])
        print(f"{architecture} {context:,}: {row['seconds_of_step']} s, {row['peak_mib']} MiB", flush=True)
    rows = [row for row in read_rows(path) if row["size"] == asked.size and row["machine"] == wanted["machine"]]
    if rows:
        draw(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
