"""How the weights of a step are held: all of each number, half of it, or a byte. Knows matrices; knows no layers.

A step on a CPU multiplies every weight with one row, or a few, so its time is that of reading them. Activations, norms,
attention, caches and the head stay in the model's own numbers, float32, whatever the precision of the weights. Where a
C++ compiler is found, weights in bytes are multiplied by a kernel instead (`inference.int8`), and caches are bytes too.

- fp32: as they are. The only one that is equal to the model, up to the order of sums.
- bf16: 8 bits of mantissa, half as much to read.
- int8: a byte a weight and a scale a row, a quarter to read. For more than a few rows their product is slower than that
  of bf16, so then the same bytes are multiplied as bf16, or as fp32 where the CPU has no bf16 units.

The product with bytes is an operation whose name PyTorch does not promise. Without a compiler it makes a step 1.4 to
2.2 times as fast as the same bytes multiplied otherwise (`benchmarks/results/step-paths-*.md`); where this PyTorch does
not have it, or does not compute it, that is what is done. What each costs in likelihood:
`benchmarks/results/precision-*.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pamusic.device import has_fast_bf16
from pamusic.errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16", "int8")
MAX_BYTE_ROWS = 3  # rows up to which products with bytes are the faster ones: measured for 1 to 32 rows of 256 to 1,024

Product = Callable[[Tensor], Tensor]  # [rows, in] -> [rows, out], which may be in bfloat16


def resolve_precision(precision: str, device: torch.device | str, has_kernel: bool = False) -> str:
    """The precision that `auto` stands for on a device: int8 on a CPU with a kernel or bfloat16 products, else fp32.

    It depends on the machine alone, not on how busy that is: the same seed must give the same music tomorrow.

    Args:
        precision: one of `PRECISIONS`.
        device: of the model.
        has_kernel: whether a kernel computes steps (`inference.int8`).

    Raises:
        UsageError: there is no such precision, or the device does not have it.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    on_cpu = torch.device(device).type == "cpu"
    if precision == "int8" and not on_cpu:
        raise UsageError("precision int8 is for CPUs; take bf16 or fp32 here")
    if precision == "auto":
        return "int8" if on_cpu and (has_kernel or has_fast_bf16(device)) else "fp32"
    return precision


def product(weight: Tensor, precision: str) -> Product:
    """Return a product with a weight `[out, in]`, whose copy is held in a resolved precision."""
    if precision == "fp32":
        laid_out = _wide(weight)
        return lambda x: F.linear(x, laid_out)
    if precision == "bf16":
        halved = weight.bfloat16().contiguous()
        return lambda x: F.linear(x.bfloat16(), halved)
    return _Bytes(weight)


def num_bytes(precision: str, num_rows: int) -> int:
    """Return the bytes that a product with so many rows reads of each weight held in a resolved precision."""
    if precision == "int8" and num_rows > MAX_BYTE_ROWS:
        precision = "bf16" if has_fast_bf16("cpu") else "fp32"
    return {"fp32": 4, "bf16": 2, "int8": 1}[precision]


class _Bytes:
    """A byte a weight: `round(weight / scale)`, where the largest of a row is 127."""

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
    """Return a copy of a weight `[out, in]` for `F.linear`, laid out so that its longer side is contiguous."""
    is_tall = weight.shape[0] > weight.shape[1]
    laid_out = (weight.t() if is_tall else weight).clone(memory_format=torch.contiguous_format)
    return laid_out.t() if is_tall else laid_out


@cache
def _has_byte_product() -> bool:
    """Whether this torch has the product with bytes, and computes it: its name is not part of what torch promises."""
    weight, scale = torch.arange(-64, 64).to(torch.int8).view(4, 32).contiguous(), torch.tensor([1.0, 2, 4, 0.5])
    x = torch.ones(1, 32)
    try:
        found = torch._weight_int8pack_mm(x.bfloat16(), weight, scale.bfloat16())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.allclose(found.float(), F.linear(x, weight * scale[:, None]), rtol=0.01)
