"""Choose device, precision and compilation for a machine. Knows torch; knows no model.

Only this module decides whether a device multiplies bfloat16 fast (`has_fast_bf16`). A CPU without bfloat16 units uses
a reference kernel for such products: 0.7 to 3 GFLOP/s, while float32 reaches 50 to 100.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from textwrap import shorten

import torch

from pamusic.errors import PamusicError, UsageError

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
# Settings of ONEDNN_MAX_CPU_ISA under which oneDNN does not use bf16 units, even if the processor has them.
ISAS_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
PROBE_SECONDS = 0.2  # limit for the products that `choose_machine` times
TRIES = 4  # runs of each timed product
SLOW_INT8 = (
    "this CPU has no bf16 units, and no kernel is compiled: int8 weights are held in fp32 for over 3 pieces at once"
)
SLOW_BF16 = (
    "this CPU has no bf16 units: large products in bf16 take 20 to 100 times as long as in fp32; leave out --precision"
)


@dataclass(frozen=True)
class Machine:
    """The device and arithmetic of a run.

    Attributes:
        device: Device of the tensors.
        precision: Resolved precision: bf16, fp16 or fp32.
        compile: Whether the model is compiled.
        precision_reason: Reason for the precision, for people.
    """

    device: torch.device
    precision: str
    compile: bool
    precision_reason: str

    def about(self) -> dict[str, str | bool | int]:
        """Return everything that the arithmetic of a run depends on, for its record."""
        return {
            "device": str(self.device),
            "precision": self.precision,
            "compile": self.compile,
            "threads": torch.get_num_threads(),
        }

    def autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)


def choose_machine(
    device: str = "auto", precision: str = "auto", compile: bool | None = None, *, probe: bool = False
) -> Machine:
    """Resolve the settings that the user left open.

    Args:
        device: `auto` uses CUDA, else the CPU. Metal (`mps`), which is untested, is used only on request.
        precision: `auto` uses bf16 if the device has units for it, fp16 on older CUDA cards, else fp32.
        compile: Whether to compile; by default if a compiler is found.
        probe: Whether to time products on a CPU with bf16 units, for at most 0.2 s, for `precision_reason`. The result
            does not affect the choice: a resumed run, and each of several processes, must choose the same.

    Raises:
        PamusicError: the device does not exist, or cannot compute in this precision.
        UsageError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    where = torch.device(_best_device() if device == "auto" else _checked(device))
    if precision == "fp16" and where.type == "cpu":
        raise PamusicError("fp16 needs a GPU; on a CPU use --precision bf16 or fp32")
    if precision != "auto":
        chosen, why = precision, cost_of(precision, where) or "as asked"
    elif where.type == "cuda":
        is_fast = has_fast_bf16(where)
        chosen, why = ("bf16", "native") if is_fast else ("fp16", "with loss scaling; this card has no native bf16")
    elif where.type == "cpu":
        chosen, why = _cpu_precision(probe)
    else:
        chosen, why = "fp32", f"autocast on {where.type} is not relied on"
    if where.type == "cuda":
        # With fp32 on request, keep full precision. Otherwise float32 products under autocast may use TF32 (10 bits).
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    if compile is None:
        compile = where.type == "cuda" or (where.type == "cpu" and has_compiler())
    return Machine(where, chosen, compile, why)


def describe(machine: Machine) -> str:
    """Return one line that describes device, precision and compilation."""
    if machine.device.type == "cuda":
        what = torch.cuda.get_device_name(machine.device)
    else:
        what = (
            f"{torch.get_num_threads()} {machine.device.type} threads"
            if machine.device.type == "cpu"
            else machine.device.type
        )
    compiled = "compiled" if machine.compile else "not compiled"
    return f"{what}, {machine.precision} ({machine.precision_reason}), {compiled}"


def has_fast_bf16(device: torch.device | str) -> bool:
    """Return whether a device multiplies bfloat16 matrices in dedicated units.

    The answer depends on the processor and on the settings of PyTorch and oneDNN, never on a measurement, so that
    results are the same tomorrow.
    """
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.get_device_capability(where) >= (8, 0)
    return where.type == "cpu" and bool(cpu_bf16_units())


def cost_of(precision: str, device: torch.device | str, has_kernel: bool = True) -> str | None:
    """Return one line on the cost of a precision that the device has no units for; None if there is no cost.

    Args:
        precision: Requested precision.
        device: Device that computes.
        has_kernel: Whether a compiled kernel multiplies int8 weights.
    """
    if torch.device(device).type != "cpu" or has_fast_bf16(device):
        return None
    if precision == "int8" and not has_kernel:
        return SLOW_INT8
    return SLOW_BF16 if precision == "bf16" else None


@cache
def cpu_bf16_units() -> str:
    """Return the name of the CPU's units for bfloat16 products, or "" if it has none or PyTorch does not use them.

    ATen and oneDNN must both allow them (`ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA` can forbid it), and the
    processor must have them: oneDNN also accepts bfloat16 on AVX-512 without such units, and emulates it.
    """
    try:
        is_supported = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build without oneDNN
        return ""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    if not is_supported or limit.upper() in ISAS_WITHOUT_BF16:
        return ""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "Arm bf16"
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return ""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512 bf16" if torch.cpu._is_avx512_bf16_supported() else ""


def product_rates(
    device: torch.device, *dtypes: torch.dtype, seconds: float, max_side: int = 2048
) -> tuple[float, ...]:
    """Return operations per second of square matrix products in each type, measured in about `seconds`.

    Sides double from 64 as long as the next size is expected to fit into the remaining time, so that a slow kernel
    never gets a large product. All types are measured at the same sides. A product of side `n` counts `2 n³`
    operations. Each rate is the fastest of several runs, since other programs may run.
    """
    for dtype in dtypes:  # the first product of a type also includes one-time preparation
        _product_seconds(device, dtype, 64)
    began, best, side = time.perf_counter(), [0.0] * len(dtypes), 64
    while True:
        taken = [_product_seconds(device, dtype, side) for dtype in dtypes]
        best = [max(rate, 2 * side**3 / each) for rate, each in zip(best, taken, strict=True)]
        side *= 2
        if side > max_side or time.perf_counter() - began + TRIES * 8 * sum(taken) > seconds:
            return tuple(best)


def keep_freed_memory() -> None:
    """Tell glibc not to return freed memory to the system: on a CPU, each step would fault it in again page by page."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        mmap_max, trim_threshold, top_pad = -4, -1, -2  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 256 * 2**20)
    except (OSError, AttributeError):
        return  # not glibc: nothing to set


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _checked(device: str) -> str:
    try:
        torch.zeros(1, device=device).tolist()  # `meta` also creates tensors, but their values cannot be read
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        reason = shorten(str(error).splitlines()[0], 100, placeholder=" …")
        raise PamusicError(f"device {device!r} cannot be used ({reason}); this machine has {_best_device()}") from None
    return device


def has_compiler() -> bool:
    """Return whether `torch.compile` will find a compiler for the CPU."""
    return any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++", "cl"))


def _cpu_precision(probe: bool) -> tuple[str, str]:
    """Return the precision for a CPU, and the reason."""
    units = cpu_bf16_units()
    if not units:
        return "fp32", "this CPU has no bf16 units"
    if not probe:
        return "bf16", f"{units} units"
    speedup = _measure_bf16_speedup(torch.device("cpu"))
    advice = "" if speedup > 1 else "; try --precision fp32"
    return "bf16", f"{units} units: {speedup:.1f} times the products of fp32{advice}"


def _measure_bf16_speedup(device: torch.device) -> float:
    """Return how many times faster a device multiplies in bf16 than in fp32, measured within `PROBE_SECONDS`."""
    bf16, fp32 = product_rates(device, torch.bfloat16, torch.float32, seconds=PROBE_SECONDS)
    return bf16 / fp32


def _product_seconds(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return the shortest time of several products of two square matrices, in seconds."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    taken = []
    for _ in range(TRIES):
        _synchronize(device)
        start = time.perf_counter()
        left @ right
        _synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
