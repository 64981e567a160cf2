"""Compile the blocks of a decode step for this machine, once, and keep the result: `inference/block.cpp`.

Knows the system's C++ compiler and the folder of kernels; knows no weights, so one kernel serves every checkpoint with
the same width of heads. Compiling takes a second or two. The result is kept in the user's cache folder
(`PAMUSIC_KERNELS`, else `XDG_CACHE_HOME`, else `~/.cache`), under a hash of source, compiler, processor and width.
Before its first use, a kernel is compared with the plain reference. If anything fails here, steps run without a kernel.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pamusic.errors import PamusicError
from pamusic.files import written_atomically
from pamusic.inference.int8 import (
    CacheView,
    ContextCacheView,
    Int8Block,
    Int8Matrix,
    Kernel,
    ReferenceKernel,
    Rotary,
    quantize_rows,
)
from pamusic.model.config import PERCEIVER_AR
from pamusic.model.sequence_model import SequenceModel

SOURCE = Path(__file__).with_name("block.cpp")
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# Tried in turn: not every compiler has OpenMP, and some name the processor with another flag.
MORE_FLAGS = (("-march=native", "-fopenmp"), ("-march=native", "-fopenmp-simd"), ("-mcpu=native", "-fopenmp-simd"))
PATIENCE = 60.0  # seconds to wait for the compiler


def kernel_for(
    model: SequenceModel, precision: str, told: Callable[[str], None] = lambda text: None
) -> CompiledKernel | None:
    """Return the kernel for a model's steps in a precision, `auto` included; None if they use no kernel.

    `told` is as for `kernel`.
    """
    config, like = model.config, model.head.weight
    is_fit = (
        config.architecture == PERCEIVER_AR
        and like.device.type == "cpu"
        and like.dtype == torch.float32
        and config.num_layers
    )
    is_fit = is_fit and (model.fields is None or config.cross_num_heads == config.num_heads)  # one width of heads
    if precision not in ("auto", "int8") or not is_fit:
        return None
    return kernel(config.d_model // config.num_heads, told=told)


def kernel(
    head_dim: int, folder: Path | None = None, told: Callable[[str], None] = lambda text: None
) -> CompiledKernel | None:
    """Return the kernel for heads of a width, compiling it if needed; None if that is impossible here.

    Args:
        head_dim: Width of the layers' heads.
        folder: Folder of kernels; the user's by default.
        told: Called with a message when compiling starts, or when it gives no usable kernel.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        path = kernel_path(head_dim, folder or default_folder())
        if not path.exists():
            told("compiling a kernel for this machine, once")
            _compile(compiler, head_dim, path)
        found = _load_verified(path, head_dim)
    except (PamusicError, OSError):
        found = None
    if found is None:
        told(f"{compiler[0]} gave no usable kernel; continuing without, slower (--no-compile skips this attempt)")
    return found


def kernel_path(head_dim: int, folder: Path) -> Path:
    """Return the path of the kernel for a width of heads."""
    told = [SOURCE.read_text(encoding="utf-8"), *map(str, (FLAGS, MORE_FLAGS, _compiler(), head_dim)), _processor()]
    return folder / f"{hashlib.sha256('|'.join(told).encode()).hexdigest()[:24]}.so"


def default_folder() -> Path:
    """Return the folder of kernels in the user's cache.

    Raises:
        PamusicError: The user has no home folder.
    """
    try:
        if chosen := os.environ.get("PAMUSIC_KERNELS"):
            return Path(chosen).expanduser()
        caches = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    except RuntimeError:
        raise PamusicError("no home folder found; set PAMUSIC_KERNELS to a folder for kernels") from None
    return Path(caches) / "pamusic" / "kernels"


class CompiledKernel:
    """An `inference.int8.Kernel` from a library compiled from `inference/block.cpp`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._step, self._finish, self._share = library.step, library.finish, library.share
        self._step.argtypes = [POINTER(_Block), c_int, c_void_p, c_void_p, POINTER(_Seen), POINTER(_Turn), c_int]
        self._finish.argtypes = [POINTER(_Block), c_int, c_void_p, c_void_p, c_int]
        self._share.argtypes = [POINTER(_Context), c_int, c_int, c_void_p, c_void_p, c_void_p, c_int]
        self._step.restype = self._finish.restype = self._share.restype = None
        self._blocks: WeakKeyDictionary[Int8Block, _Block] = WeakKeyDictionary()

    def step(
        self, block: Int8Block, x: Tensor, seen: CacheView, rotary: Rotary, source: Tensor | None = None
    ) -> Tensor:
        """Compute `Kernel.step`."""
        source = x if source is None else source
        assert x.is_contiguous()
        assert source.is_contiguous()
        own, partners, partner = rotary
        tensors = (seen.keys, seen.values, seen.key_scales, seen.value_scales)
        held = _Seen(*(each.data_ptr() for each in tensors), seen.keys.shape[2], seen.first, seen.n)
        of_row = own[0].numel() if own.dim() == 4 and len(own) > 1 else 0
        by = _Turn(own.data_ptr(), partners.data_ptr(), partner.data_ptr(), of_row)
        threads = torch.get_num_threads()
        self._step(self._block(block), len(x), source.data_ptr(), x.data_ptr(), byref(held), byref(by), threads)
        return x

    def finish(self, block: Int8Block, x: Tensor, heads: Tensor | None) -> Tensor:
        """Compute `Kernel.finish`."""
        assert x.is_contiguous()
        heads = None if heads is None else heads.contiguous()
        of_heads = None if heads is None else heads.data_ptr()
        self._finish(self._block(block), len(x), of_heads, x.data_ptr(), torch.get_num_threads())
        return x

    def share(self, queries: Tensor, of_ids: Tensor, context: ContextCacheView) -> Tensor:
        """Compute `Kernel.share`."""
        tensors = (context.ids, context.turned, context.scales)
        rows, heads, room, num_turned = context.turned.shape
        held = _Context(
            *(each.data_ptr() for each in tensors), room, context.first, context.n, num_turned, of_ids.shape[-1]
        )
        queries, of_ids = queries.contiguous(), of_ids.contiguous()
        shares, threads = torch.empty_like(of_ids), torch.get_num_threads()
        self._share(byref(held), rows, heads, queries.data_ptr(), of_ids.data_ptr(), shares.data_ptr(), threads)
        return shares

    def _block(self, block: Int8Block) -> _Block:
        """Return a block in the form that the library takes."""
        if block not in self._blocks:
            matrices = (block.project, block.output, block.up, block.down)
            self._blocks[block] = _Block(*map(_matrix, matrices), block.least, block.least_of_heads)
        return self._blocks[block]


class _Matrix(Structure):
    _fields_ = (("bytes", c_void_p), ("scales", c_void_p), ("out", c_int32), ("in", c_int32))


class _Block(Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("project", "output", "up", "down")),
        ("least", c_float),
        ("least_of_heads", c_float),
    )


class _Seen(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, c_int64) for name in ("room", "first", "n")),
    )


class _Context(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("ids", "turned", "scales")),
        *((name, c_int64) for name in ("room", "first", "n")),
        *((name, c_int32) for name in ("num_turned", "vocab")),
    )


class _Turn(Structure):
    _fields_ = (*((name, c_void_p) for name in ("own", "partners", "partner")), ("row", c_int64))


def _matrix(matrix: Int8Matrix) -> _Matrix:
    return _Matrix(matrix.bytes.data_ptr(), matrix.scales.data_ptr(), *matrix.bytes.shape)


def _compiler() -> list[str] | None:
    """Return the command of the compiler: `CXX`, which may include a wrapper, else the first compiler found."""
    chosen = os.environ.get("CXX", "").strip()
    for words in ([chosen], chosen.split()) if chosen else ([name] for name in COMPILERS):
        if found := shutil.which(words[0]):
            return [found, *words[1:]]
    return None


def _compile(compiler: list[str], head_dim: int, path: Path) -> None:
    """Compile the kernel into a file, or leave no file.

    Raises:
        PamusicError: The file cannot be written, or the compiler cannot be called or does not finish.
    """
    for more in MORE_FLAGS:
        with suppress(_CompilerError), written_atomically(path) as temporary:
            words = [*compiler, *FLAGS, *more, f"-DHEAD_DIM={head_dim}", str(SOURCE), "-o", str(temporary)]
            try:
                done = subprocess.run(
                    words, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise PamusicError(f"{compiler[0]} failed ({error}); set CXX to another compiler") from None
            if done.returncode:
                raise _CompilerError
            return


class _CompilerError(Exception):
    """An error of the compiler."""


def _load_verified(path: Path, head_dim: int) -> CompiledKernel | None:
    """Load a kernel from a file; return None if it does not load or does not match the reference."""
    try:
        found = CompiledKernel(ctypes.CDLL(str(path)))
    except (OSError, AttributeError):
        return None
    return found if _matches_reference(found, head_dim) else None


@torch.inference_mode()
def _matches_reference(found: Kernel, head_dim: int) -> bool:
    """Return whether a kernel matches the reference on a small block."""
    rows, heads, room, draws = 5, 2, 40, torch.Generator().manual_seed(0)
    width = heads * head_dim

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws)

    sizes = {
        "project": (3 * width, width),
        "output": (width, width),
        "up": (4 * width, width),
        "down": (width, 4 * width),
    }
    matrices = {name: Int8Matrix.of(drawn(*size) / size[1] ** 0.5) for name, size in sizes.items()}
    block = Int8Block(**matrices, least=1e-3, least_of_heads=1e-3)
    memory = [*quantize_rows(drawn(rows, heads, room, head_dim)), *quantize_rows(drawn(rows, heads, room, head_dim))]
    partner = torch.arange(head_dim).roll(1)
    rotary = (drawn(2, 1, head_dim), drawn(2, 1, head_dim), partner)
    of_rows = (drawn(rows, 2, 1, head_dim), drawn(rows, 2, 1, head_dim), partner)
    x, source, results, vocab = drawn(rows, width), drawn(rows, width), [], 7
    context = ContextCacheView(
        2, room - 5, torch.arange(rows * room).view(rows, room) % vocab, *quantize_rows(drawn(rows, heads, room, 6))
    )
    queries, of_ids = drawn(rows, heads, 6), drawn(rows, heads, vocab)
    for candidate in (found, ReferenceKernel()):
        own = [each.clone() for each in memory]
        after = candidate.step(block, x.clone(), CacheView(3, room - 7, *own), rotary)
        again = candidate.step(block, x.clone(), CacheView(4, room - 7, *own), of_rows, source)
        shares = candidate.share(queries, of_ids, context)
        third = candidate.finish(block, x.clone(), None)
        results.append([after, again, third, own[0] * own[1][..., None], own[2] * own[3][..., None], shares])
    # The last bit of a sum can flip a rounding, which changes an int8 value by one.
    return all(torch.allclose(one, other, rtol=1e-3, atol=0.05) for one, other in zip(*results, strict=True))


def _processor() -> str:
    """Return a description of the processor, because a kernel compiled for another one may not run here."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "|".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{sys.platform} {platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
