"""Store the weights of a decode step in fp32, bf16 or int8. Knows matrices; knows no layers.

A step on a CPU multiplies every weight with one or a few rows, so its time is the time to read the weights.
Activations, norms, attention, caches and the head stay in float32, whatever the precision of the weights. With a C++
compiler, a kernel multiplies int8 weights instead (`inference.int8`), and caches are int8 too.

- fp32: unchanged. The only precision that equals the model, up to the order of sums.
- bf16: 8 bits of mantissa; half the memory traffic.
- int8: one byte a weight and one scale a row; a quarter of the memory traffic. For more than a few rows, int8 products
  are slower than bf16 ones. The same int8 values are then multiplied as bf16, or as fp32 on a CPU without bf16 units.

PyTorch's int8 product is a private operation. Without a compiler, it makes a step 1.4 to 2.2 times as fast as the other
products with the same int8 values (`benchmarks/results/step-paths-*.md`). Those are the fallback if this PyTorch lacks
the operation or computes it wrongly. Costs in likelihood: `benchmarks/results/precision-*.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pamusic.device import has_fast_bf16
from pamusic.errors import UsageError
from pamusic.model.config import PERCEIVER_AR

PRECISIONS = ("auto", "fp32", "bf16", "int8")
MAX_BYTE_ROWS = 3  # rows up to which int8 products are faster: measured for 1 to 32 rows and widths of 256 to 1,024

Product = Callable[[Tensor], Tensor]  # [rows, in] -> [rows, out], which may be in bfloat16


def resolve_precision(
    precision: str, device: torch.device | str, has_kernel: bool = False, architecture: str = PERCEIVER_AR
) -> str:
    """Resolve `auto` to a precision: int8 on a CPU with a kernel or bfloat16 products, else fp32.

    Only a Perceiver AR has steps in int8.

    The result depends only on the machine, not on its load: the same seed must give the same music tomorrow.

    Args:
        precision: One of `PRECISIONS`.
        device: Device of the model.
        has_kernel: True if a kernel computes the steps (`inference.int8`).
        architecture: Architecture of the model.

    Raises:
        UsageError: The precision is unknown, or the device or the architecture does not support it.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    on_cpu = torch.device(device).type == "cpu"
    if precision == "int8" and not on_cpu:
        raise UsageError("precision int8 is for CPUs; use bf16 or fp32 here")
    if architecture != PERCEIVER_AR:
        if precision == "int8":
            raise UsageError(f"precision int8 is for {PERCEIVER_AR}, not for {architecture}; use auto, bf16 or fp32")
        return "fp32" if precision == "auto" else precision
    if precision == "auto":
        return "int8" if on_cpu and (has_kernel or has_fast_bf16(device)) else "fp32"
    return precision


def product(weight: Tensor, precision: str) -> Product:
    """Return a function that multiplies by a weight `[out, in]`, copied in a resolved precision."""
    if precision == "fp32":
        laid_out = _wide(weight)
        return lambda x: F.linear(x, laid_out)
    if precision == "bf16":
        halved = weight.bfloat16().contiguous()
        return lambda x: F.linear(x.bfloat16(), halved)
    return _Bytes(weight)


def num_bytes(precision: str, num_rows: int) -> int:
    """Return the bytes that a product with `num_rows` rows reads per weight in a resolved precision."""
    if precision == "int8" and num_rows > MAX_BYTE_ROWS:
        precision = "bf16" if has_fast_bf16("cpu") else "fp32"
    return {"fp32": 4, "bf16": 2, "int8": 1}[precision]


class _Bytes:
    """A product with int8 weights: `round(weight / scale)`, with a row's largest magnitude at 127."""

    def __init__(self, weight: Tensor) -> None:
        scale = (weight.abs().amax(1).clamp(min=1e-12) / 127).bfloat16()
        self._scale = scale
        self._bytes = (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
        self._is_direct = _has_byte_product()
        self._many: Product | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] <= MAX_BYTE_ROWS and self._is_direct:
            return torch._weight_int8pack_mm(x.bfloat16(), self._bytes, self._scale)
        if self._many is None:
            weight = self._bytes * self._scale[:, None]
            self._many = product(weight.to(x.dtype), "bf16" if has_fast_bf16(x.device) else "fp32")
        return self._many(x)


def _wide(weight: Tensor) -> Tensor:
    """Return a copy of a weight `[out, in]` for `F.linear`, with its longer side contiguous."""
    is_tall = weight.shape[0] > weight.shape[1]
    laid_out = (weight.t() if is_tall else weight).clone(memory_format=torch.contiguous_format)
    return laid_out.t() if is_tall else laid_out


@cache
def _has_byte_product() -> bool:
    """Return whether this PyTorch has a working int8 product, a private operation."""
    weight, scale = torch.arange(-64, 64).to(torch.int8).view(4, 32).contiguous(), torch.tensor([1.0, 2, 4, 0.5])
    x = torch.ones(1, 32)
    try:
        found = torch._weight_int8pack_mm(x.bfloat16(), weight, scale.bfloat16())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.allclose(found.float(), F.linear(x, weight * scale[:, None]), rtol=0.01)
