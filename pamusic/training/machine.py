"""What this machine computes with: device, precision, compiler. Knows torch; knows no model."""

from __future__ import annotations

import ctypes
import shutil
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from textwrap import shorten

import torch

from pamusic.errors import PamusicError, UsageError
from pamusic.training.config import PRECISIONS


@dataclass(frozen=True)
class Machine:
    """The arithmetic of a run.

    Attributes:
        device: where tensors live.
        precision: bf16, fp16 or fp32, resolved.
        compile: whether the model is compiled.
        why: how the precision was chosen, for a person to read.
    """

    device: torch.device
    precision: str
    compile: bool
    why: str

    def about(self) -> dict[str, str | bool | int]:
        """What the arithmetic of a run depends on, for its record."""
        return {
            "device": str(self.device),
            "precision": self.precision,
            "compile": self.compile,
            "threads": torch.get_num_threads(),
        }

    def autocast(self) -> AbstractContextManager:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)


def choose_machine(device: str = "auto", precision: str = "auto", compile: bool | None = None) -> Machine:
    """Resolves what the user left open.

    Args:
        device: `auto` takes CUDA, else the CPU; Metal (`mps`), which we never tried, only where it is asked for.
        precision: `auto` takes bf16 where it is native or measured faster, fp16 on older CUDA cards, else fp32.
        compile: by default where a compiler is found.

    Raises:
        PamusicError: the device is not there, or cannot compute in this precision.
        UsageError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    where = torch.device(_best_device() if device == "auto" else _checked(device))
    if precision == "fp16" and where.type == "cpu":
        raise PamusicError("fp16 needs a GPU; on a CPU use --precision bf16 or fp32")
    if precision != "auto":
        chosen, why = precision, "as asked"
    elif where.type == "cuda":
        native = torch.cuda.get_device_capability(where) >= (8, 0)
        chosen, why = ("bf16", "native") if native else ("fp16", "with loss scaling; this card has no native bf16")
    elif where.type == "cpu":
        gain = _bf16_gain()
        chosen = "bf16" if gain > 1.2 else "fp32"
        why = f"a bf16 matrix product is {gain:.1f} times as fast as in fp32 here"
    else:
        chosen, why = "fp32", f"autocast on {where.type} is not relied on"
    if where.type == "cuda":
        # Who asks for fp32 gets it. Otherwise what autocast leaves in it may be multiplied with 10 bits of mantissa.
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    if compile is None:
        compile = where.type == "cuda" or (where.type == "cpu" and has_compiler())
    return Machine(where, chosen, compile, why)


def describe(machine: Machine) -> str:
    """One line: what we train on."""
    if machine.device.type == "cuda":
        what = torch.cuda.get_device_name(machine.device)
    else:
        what = (
            f"{torch.get_num_threads()} {machine.device.type} threads"
            if machine.device.type == "cpu"
            else machine.device.type
        )
    return f"{what}, {machine.precision} ({machine.why}), {'compiled' if machine.compile else 'not compiled'}"


def keep_freed_memory() -> None:
    """Tells glibc not to give freed memory back: on a CPU, each step would fault it in again, page by page."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        mmap_max, trim_threshold, top_pad = -4, -1, -2  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 256 * 2**20)
    except (OSError, AttributeError):
        return  # not glibc: nothing to tell


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _checked(device: str) -> str:
    try:
        torch.zeros(1, device=device).tolist()  # `meta` makes tensors too, but cannot say what is in them
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        reason = shorten(str(error).splitlines()[0], 100, placeholder=" …")
        raise PamusicError(f"device {device!r} cannot be used ({reason}); this machine has {_best_device()}") from None
    return device


def has_compiler() -> bool:
    """Whether `torch.compile` will find one for the CPU."""
    return any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++", "cl"))


def _bf16_gain() -> float:
    """How many times as fast as in fp32 a matrix product is in bf16, measured in some milliseconds."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(1024, 512).to(dtype), torch.randn(512, 512).to(dtype)
        left @ right
        times = []
        for _ in range(5):
            start = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]
