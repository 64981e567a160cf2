"""Compare attention on a CPU, forward and backward: ours, compiled, and PyTorch's fused one.

    python benchmarks/attention.py

The shapes are those of training: 512 latents attend to themselves and to a context, 8 windows at a time, in bfloat16.
Prints a table in Markdown and writes it to `benchmarks/results/`. Operations are those that causality leaves, forward
once and backward twice: 12 x batch x heads x head_dim x (queries x keys - queries² / 2).
"""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from pamusic.device import keep_freed_memory
from pamusic.model.attention import attend, causal_mask

SHAPES = [(8, 4, 512, 512, 64), (8, 2, 512, 2048, 128), (8, 2, 512, 8192, 128), (4, 4, 1024, 3072, 128)]
REPEATS = 7
RESULTS = Path(__file__).parent / "results"


def milliseconds(step: Callable[[], None]) -> float:
    """Return the median of several runs, after two warm-up runs."""
    step(), step()
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1000


def row(batch: int, heads: int, n: int, m: int, head_dim: int) -> str:
    torch.manual_seed(0)
    queries, keys, values = (
        torch.randn(batch, heads, length, head_dim, dtype=torch.bfloat16, requires_grad=True) for length in (n, m, m)
    )
    mask = causal_mask(n, m)
    torch.compiler.reset()
    ours = torch.compile(attend, dynamic=False)

    def fused() -> None:
        F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).sum().backward()

    def blocked() -> None:
        ours(queries, keys, values).sum().backward()

    operations = 12 * batch * heads * head_dim * (n * m - n * n / 2)
    took = {name: milliseconds(step) for name, step in (("fused", fused), ("blocked", blocked))}
    rates = [f"{took[name]:.0f} ms, {operations / took[name] / 1e9:.3f} TFLOP/s" for name in took]
    ratio = f"{took['fused'] / took['blocked']:.1f}"
    return "| " + " | ".join([f"{batch} x {heads} x {head_dim}", f"{n} on {m:,}", *rates, ratio]) + " |"


def main() -> None:
    keep_freed_memory()
    date = datetime.date.today().isoformat()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    lines = [
        "# Attention on a CPU, forward and backward, bfloat16",
        "",
        f"`python benchmarks/attention.py`, {date}, {machine}, Python {platform.python_version()}, "
        f"torch {torch.__version__}; median of {REPEATS}.",
        "",
        "| batch x heads x head_dim | queries on keys | PyTorch, fused, masked | ours, compiled | ratio |",
        "|---|---|---|---|---|",
        *(row(*shape) for shape in SHAPES),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"attention-{date}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
