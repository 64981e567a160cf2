"""Compare the ways to compute a decode step on this machine: `python benchmarks/step_paths.py [--older]`.

A step multiplies every weight with one row, or a few. Weights are held in fp32, bf16 or int8. int8 weights are
multiplied by our kernel. Without a C++ compiler they are multiplied by an undocumented operation of PyTorch
(`torch._weight_int8pack_mm`), or converted and multiplied by `F.linear`. Above a width of 256 one row uses one thread
or all, by timing (`inference/threads.py`). Beside other programs this choice decides the speed.

For `small` and for a model of the size `medium` it prints milliseconds a step, the median of several measurements that
take turns. `--older` imitates a CPU without AVX-512 and without bf16 units, in a process of its own. Run nothing else
meanwhile.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from statistics import median
from unittest.mock import patch

import torch

from pamusic.checkpoint import find_checkpoint, load_checkpoint
from pamusic.compose.benchmark import machine
from pamusic.inference import precision as precisions
from pamusic.inference.native_kernel import kernel_for
from pamusic.inference.session import InferenceConfig, InferenceSession
from pamusic.model.config import preset
from pamusic.model.perceiver_ar import PerceiverAR

OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
TURNS, STEPS = 5, 24


class Fixed:
    """In place of `Threads`: always one, or always all."""

    def __init__(self, is_single: bool) -> None:
        self._is_single = is_single

    def chosen(self) -> ExitStack:
        stack, before = ExitStack(), torch.get_num_threads()
        torch.set_num_threads(1 if self._is_single else before)
        stack.callback(torch.set_num_threads, before)
        return stack


def sessions(model: PerceiverAR, num_rows: int) -> dict[str, InferenceSession]:
    """Sessions by the way that they compute a step, with a prime read."""
    kernel = kernel_for(model, "int8")
    ways = {
        "fp32": ("fp32", None, {}),
        "bf16": ("bf16", None, {}),
        "int8, private operation": ("int8", None, {"_has_byte_product": True}),
        "int8, F.linear": ("int8", None, {"_has_byte_product": False}),
        **({"int8, our kernel": ("int8", kernel, {})} if kernel else {}),
    }
    found = {}
    for name, (precision, by, has) in ways.items():
        with ExitStack() as stack:
            for part, answer in has.items():
                if answer and not getattr(precisions, part)():
                    break
                stack.enter_context(patch.object(precisions, part, lambda answer=answer: answer))
            else:
                session = InferenceSession(model, InferenceConfig(precision=precision), by)
                session.prefill(torch.randint(0, 300, (2000,)).tolist())
                session.select([0] * num_rows)
                found[name] = session
    if num_rows == 1 and model.config.d_model > 256:
        for name in ("fp32", "int8, our kernel"):
            for is_single in (True, False) if name in found else ():
                session = InferenceSession(model, InferenceConfig(precision=name.split(",")[0]),
                                           kernel if "kernel" in name else None)  # fmt: skip
                session._chooser = Fixed(is_single)  # type: ignore[assignment]
                session.prefill(torch.randint(0, 300, (2000,)).tolist())
                found[f"{name}, {'one thread' if is_single else 'all threads'}"] = session
    return found


def milliseconds(found: dict[str, InferenceSession], num_rows: int) -> dict[str, float]:
    """Time a step of each, in turns, without refills."""
    ids = [60] * num_rows
    took: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(TURNS + 1):
        for name, session in found.items():
            for _ in range(8 if turn else 40):  # what the first steps make, and the trials of threads
                session.step(ids)
            began = time.perf_counter()
            for _ in range(STEPS):
                session.step(ids)
            if turn:
                took[name].append((time.perf_counter() - began) / STEPS * 1000)
    return {name: median(each) for name, each in took.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--older", action="store_true")
    asked = parser.parse_args()
    if asked.older and not all(os.environ.get(name) == value for name, value in OLDER.items()):
        return subprocess.run([sys.executable, *sys.argv], env={**os.environ, **OLDER}).returncode
    torch.manual_seed(0)
    small = load_checkpoint(find_checkpoint("small")).model
    medium = PerceiverAR(preset("medium", vocab_size=small.config.vocab_size, pad_id=small.config.pad_id)).eval()
    print(f"{time.strftime('%Y-%m-%d')}; {machine()}; {torch.get_num_threads()} threads"
          f"{'; as without AVX-512 and bf16 units' if asked.older else ''}\n")  # fmt: skip
    columns = {("small", 1): small, ("small", 4): small, ("medium", 1): medium, ("medium", 4): medium}
    times = {key: milliseconds(sessions(model, key[1]), key[1]) for key, model in columns.items()}
    print("| ms a step | " + " | ".join(f"{size}, {rows} row{'s'[: rows > 1]}" for size, rows in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in {name: None for each in times.values() for name in each}:
        print(
            f"| {name} | " + " | ".join(f"{each[name]:.2f}" if name in each else "" for each in times.values()) + " |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
