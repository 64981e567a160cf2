"""Measure how fast a size trains, beside plainer ways to do the same: `python benchmarks/training.py`.

Each row is a process of its own: whole steps (forward, backward, clipping, optimisers) on random ids, after some
warm-up steps. The rows: as `pamusic train` does it; without prefix dropout; not compiled; not compiled in float32, the
plain way; and the same model with as many latents as context, a decoder-only Transformer, at 2,048, 8,192 and 32,768
tokens, where that fits.

Operations are those of `pamusic.model.flops`: products of matrices, only what causality leaves, backward twice the
forward; the optimiser is not counted. MFU is their rate over the rate of a large product of matrices in the same
precision, measured in the same process. With a corpus (`--corpus`) it also prints the share of a real run's time that
is spent waiting for batches. Prints a table in Markdown and writes it to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import pamusic
from pamusic.device import choose_machine, describe, product_rates
from pamusic.model.config import PRESETS, ModelConfig, preset
from pamusic.model.flops import training_flops
from pamusic.training.config import TrainingConfig
from pamusic.training.data import Batch
from pamusic.training.learner import Learner
from pamusic.training.machine_report import PERFORMANCE
from pamusic.training.memory import available_memory, memory_needed

RESULTS = Path(__file__).parent / "results"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOO_SLOW = 90  # seconds a step


def ways(size: str, batch: int) -> dict[str, dict]:
    """Name -> changed settings."""
    whole = {"prefix_dropout": 0.0}
    rows = {
        "as trained": {},
        "no prefix dropout": whole,
        "not compiled": {"compile": False},
        "plain: not compiled, fp32, no prefix dropout": {**whole, "compile": False, "precision": "fp32"},
    }
    for context in (2048, 8192, 32768):
        # As many tokens of context a step as the others have, at least one window.
        windows = max(1, batch * PRESETS[size]["context_length"] // context // 8)
        shape = {"context_length": context, "batch": windows}
        rows[f"Perceiver AR, {context:,} context"] = {**whole, **shape}
        rows[f"decoder-only, {context:,} context"] = {**whole, **shape, "num_latents": context}
    return rows


def measured(size: str, device: str, batch: int, way: dict, steps: int) -> dict:
    way = dict(way)
    machine = choose_machine(device, way.pop("precision", "auto"), way.pop("compile", None))
    batch, dropout = way.pop("batch", batch), way.pop("prefix_dropout", TrainingConfig.prefix_dropout)
    model = preset(size, **PERFORMANCE, **way)
    training = TrainingConfig(batch_size=batch, prefix_dropout=dropout, micro_batch=way.get("micro_batch"))
    needed, available = memory_needed(model, training, machine).needed(batch), available_memory(machine.device)
    if available is not None and needed > 0.9 * available:
        sys.exit(f"needs {needed / 2**30:.0f} GiB, there are {available / 2**30:.0f}")
    learner = Learner(model, training, machine)
    windows = random_batch(model, batch, dropout)
    times: list[float] = []
    for _ in range(3 + steps):
        wait(machine.device)
        began = time.perf_counter()
        learner.update(windows)
        wait(machine.device)
        times.append(time.perf_counter() - began)
        if times[-1] > TOO_SLOW and len(times) > 1:
            break
    seconds = statistics.median(times[3:] or times[1:])
    flops = batch * training_flops(model, prefix_dropout=dropout) / seconds
    if machine.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(machine.device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = product_rates(machine.device, DTYPES[machine.precision], seconds=2.0)[0]
    return {
        "windows": batch, "context": model.context_length, "latents": model.num_latents, "seconds": seconds,
        "precision": machine.precision, "compiled": learner.machine.compile, "flops": flops, "mfu": flops / peak,
        "peak": peak, "memory": memory,
    }  # fmt: skip


def random_batch(model: ModelConfig, batch: int, dropout: float) -> Batch:
    randomness = torch.Generator().manual_seed(0)
    prefix = model.context_length - model.num_latents

    def ids(length: int) -> Tensor:
        return torch.randint(0, 388, (batch, length), generator=randomness)

    kept = None
    if dropout:
        share = round(prefix * (1 - dropout))
        kept = torch.rand(batch, prefix, generator=randomness).topk(share).indices.sort().values
    return Batch(ids(model.context_length), ids(model.num_latents), kept)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def waited(size: str, device: str, corpus: Path, steps: int) -> float:
    """Return the share of a real run's time spent waiting for batches, with augmentation."""
    from pamusic.training.metrics import TRAIN, read_metrics
    from pamusic.training.run_plan import plan_new_run
    from pamusic.training.settings import RunRequest, RunSettings
    from pamusic.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = RunSettings(size=size, steps=steps, validate_every=10**9)
        request = RunRequest(settings=settings, corpus=corpus, out=run, device=device, compile=True)
        Trainer(plan_new_run(request)).train()
        rows = [row for row in read_metrics(run / "metrics.csv") if row.split == TRAIN]
    return statistics.mean(float(row.waited) for row in rows[len(rows) // 2 :])


def table(size: str, device: str, batch: int, steps: int, only: str | None) -> list[str]:
    lines = [
        "| what | windows x context, latents | precision | a step | latent tokens/s | context tokens/s | TFLOP/s | MFU"
        " | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    plain = None
    for name, way in ways(size, batch).items():
        if only and only not in name:
            continue
        words = [sys.executable, __file__, "--row", json.dumps(way), "--size", size, "--device", device]
        done = subprocess.run([*words, "--batch", str(batch), "--steps", str(steps)], capture_output=True, text=True)
        try:
            row = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            why = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
            lines.append(f"| {name} | did not run: {why[0][:90]} | | | | | | | |")
            print(lines[-1], file=sys.stderr)
            continue
        latents, context = (row["windows"] * row[each] / row["seconds"] for each in ("latents", "context"))
        plain = latents if name.startswith("plain") else plain
        lines.append(
            f"| {name} | {row['windows']} x {row['context']:,}, {row['latents']:,} | {row['precision']}"
            f"{', compiled' if row['compiled'] else ''} | {1000 * row['seconds']:,.0f} ms"
            f" | {latents:,.0f} | {context:,.0f} | {row['flops'] / 1e12:.3f}"
            f" | {100 * row['mfu']:.0f} % of {row['peak'] / 1e12:.2f}"
            f" | {row['memory'] / 2**20:,.0f} MiB |"
        )
        print(lines[-1], file=sys.stderr)
        if name == "as trained":
            trained = latents
    if plain and not only:
        lines += ["", f"As trained: {trained / plain:.1f} times the latent tokens a second of the plain way."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=PRESETS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--only", help="rows with this in their name")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.row:
        print(json.dumps(measured(words.size, words.device, words.batch, json.loads(words.row), words.steps)))
        return
    machine = replace(choose_machine(words.device), precision_reason="measured")
    date = datetime.date.today().isoformat()
    lines = [
        f"# Training, size {words.size}",
        "",
        f"`python benchmarks/training.py --size {words.size} --batch {words.batch}`, {date}, {platform.machine()},"
        f" {describe(machine)}, Python {platform.python_version()}, torch {torch.__version__}, pamusic"
        f" {pamusic.__version__}. Median of {words.steps} steps.",
        "",
        *table(words.size, words.device, words.batch, words.steps, words.only),
    ]
    if words.corpus:
        share = waited(words.size, words.device, words.corpus, 60)
        lines += ["", f"Waiting for batches, with augmentation: {100 * share:.2f} % of the time."]
    RESULTS.mkdir(exist_ok=True)
    kind = machine.device.type
    (RESULTS / f"training-{date}-{words.size}-{kind}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
