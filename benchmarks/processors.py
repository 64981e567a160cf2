"""Measure the speed of `small` on this processor and, where it has bf16 units, as on one without.

Run: `python benchmarks/processors.py`, on an idle machine; about 8 minutes. Each column is a process
of its own. The settings that stand in for an older processor (AVX2, no bf16) are `OLDER`: they bind ATen, oneDNN and
the compiler of the sampling kernel; clock rate and memory stay those of this machine. Prints a table in Markdown and
keeps it in `benchmarks/results/`.

What is measured:

- start-up: `pamusic sample --length 10` as a whole process, less `import torch`; median of 3;
- training: a step of 8 windows of 512 latents as `pamusic train` makes it, and the share of the rate of a large product
  in the same precision that its operations reach (MFU, `pamusic.model.flops`);
- sampling: tokens a second between two refills, the refill included, after a prime that fills the context;
- prefill: seconds to the first token after a prime of 8,000 tokens;
- evaluation: 10,000 tokens with the full context, as `pamusic evaluate` scores them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
NEWER: dict[str, str] = {}
OLDER = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "CXX": "g++ -mno-avx512f -mno-avxvnni",
    "PAMUSIC_KERNELS": str(Path(tempfile.gettempdir()) / "pamusic-kernels-avx2"),
}
TRAINING_STEPS = 8
SPEEDS = [(256, 1), (256, 16), (8192, 1), (8192, 16)]  # context, pieces at once


def startup() -> float:
    """Seconds of a whole `pamusic sample` beyond `import torch`, the kernel already compiled."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/a.mid"
        sample = [sys.executable, "-m", "pamusic", "sample", "--checkpoint", "small", "--length", "10", "-o", out]
        torch = [sys.executable, "-c", "import torch"]
        return statistics.median(elapsed(sample) for _ in range(4)) - statistics.median(
            elapsed(torch) for _ in range(4)
        )


def elapsed(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - began


def training() -> dict[str, float]:
    from training import measured  # the script beside this one

    found = measured("small", "cpu", 8, {}, TRAINING_STEPS)
    return {"step": found["seconds"], "tokens": 8 * found["latents"] / found["seconds"], "mfu": found["mfu"]} | {
        "peak": found["peak"], "precision": found["precision"], "compiled": found["compiled"],
    }  # fmt: skip


def sampling() -> dict[str, float]:
    from pamusic.checkpoint import find_checkpoint, load_checkpoint
    from pamusic.compose.benchmark import speed
    from pamusic.inference.native_kernel import kernel_for
    from pamusic.inference.precision import resolve_precision

    checkpoint = load_checkpoint(find_checkpoint("small"))
    kernel = kernel_for(checkpoint.model, "auto")
    precision = resolve_precision("auto", "cpu", kernel is not None)
    how = {"bandwidth": 1e10, "precision": precision, "kernel": kernel}
    found: dict[str, float] = {"precision": precision + (", kernel" if kernel else "")}
    for context, num in SPEEDS:
        each = speed(checkpoint, context_length=context, num=num, **how)
        found[f"{context} {num}"] = each.tokens_per_second
    found["prefill"] = speed(
        checkpoint, context_length=8192, num=1, prime_length=8000, tokens=1, **how
    ).first_token_seconds
    return found


def evaluation() -> dict[str, float]:
    import torch

    from pamusic.checkpoint import find_checkpoint, load_checkpoint
    from pamusic.device import choose_machine
    from pamusic.evaluation.likelihood import costs

    machine = choose_machine("cpu", compile=False)
    model = load_checkpoint(find_checkpoint("small")).model
    model = model.bfloat16() if machine.precision == "bf16" else model.float()
    piece = torch.randint(0, 388, (10_001,), generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    costs(model, piece)
    return {"seconds": time.perf_counter() - began, "precision": machine.precision}


def measure() -> dict[str, object]:
    """Everything, under the settings of this process."""
    import torch

    from pamusic.compose.benchmark import machine
    from pamusic.device import cpu_bf16_units

    return {
        "machine": machine(), "threads": torch.get_num_threads(), "units": cpu_bf16_units(),
        "capability": torch.backends.cpu.get_cpu_capability(), "startup": startup(), "sampling": sampling(),
        "evaluation": evaluation(), "training": training(),
    }  # fmt: skip


def rows(found: dict) -> dict[str, str]:
    """Name -> value of one column, as they are printed."""
    train, sample, evaluate = found["training"], found["sampling"], found["evaluation"]
    return {
        "vector units": f"{found['capability']}, {found['units'] or 'no bf16'}",
        "start-up beyond `import torch`, s": f"{found['startup']:.2f}",
        "training: precision": train["precision"] + (", compiled" if train["compiled"] else ""),
        "training: a step of 4,096 latent tokens, s": f"{train['step']:.2f}",
        "training: latent tokens/s": f"{train['tokens']:,.0f}",
        "training: peak of a large product, GFLOP/s": f"{train['peak'] / 1e9:.0f}",
        "training: MFU": f"{train['mfu']:.0%}",
        "sampling: weights": sample["precision"],
        **{
            f"sampling: {context:,} context, {num} at once, tokens/s": f"{sample[f'{context} {num}']:,.0f}"
            for context, num in SPEEDS
        },
        "prefill of 8,000 tokens, s": f"{sample['prefill']:.2f}",
        "evaluation of 10,000 tokens, s": f"{evaluate['seconds']:.1f} ({evaluate['precision']})",
    }


def column(settings: dict[str, str]) -> dict:
    """Return the measurements of a process under these settings."""
    words = [sys.executable, __file__, "--here"]
    done = subprocess.run(words, env={**os.environ, **settings}, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    if parser.parse_args().here:
        print(json.dumps(measure()))
        return
    columns = {"this processor": column(NEWER)}
    if columns["this processor"]["units"]:
        columns["as an older one (AVX2)"] = column(OLDER)
    tables = {name: rows(found) for name, found in columns.items()}
    first, today = next(iter(columns.values())), datetime.date.today()
    lines = [
        f"# Speed of `small`, {today}", "", f"{first['machine']}, {first['threads']} threads.", "",
        f"| | {' | '.join(tables)} |", f"|---|{'---|' * len(tables)}",
        *(f"| {name} | {' | '.join(table[name] for table in tables.values())} |" for name in rows(first)),
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    (RESULTS / f"processors-{today}.md").write_text(text)


if __name__ == "__main__":
    main()
