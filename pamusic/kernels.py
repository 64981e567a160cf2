"""Kernels compiled for this machine, once, and kept: `model.heads.gathered`, for the caches of one shape.

Knows the compiler that torch brings (AOTInductor, which needs a C++ compiler) and where it puts what it makes; knows
no weights, so a kernel serves every checkpoint of a shape. It is made in a process of its own, some 20 seconds of one
core, and kept in the user's cache folder (`PAMUSIC_KERNELS`, else `XDG_CACHE_HOME`, else `~/.cache`) under a name that
tells this torch, processor and function. Whatever fails here, steps are taken without it: before its first use a kernel
is held to the plain function.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

import torch
from torch import Tensor

from pamusic.errors import PamusicError
from pamusic.files import written_atomically
from pamusic.model.heads import MOST, Gather, Shape, as_bytes, gathered, kept, turned, unit
from pamusic.training.machine import has_compiler

AFTER = 4096  # steps; a kernel is ordered after three quarters of them, so that pieces of a minute make none
PATIENCE = 300.0  # seconds until a compiler that has not finished is given up
EXAMPLE = 16  # positions
PARTS = (gathered, as_bytes, turned, unit, kept)  # what is compiled


class Kernels:
    """Makes kernels, or finds those that were made; a `model.heads.Forge`."""

    def __init__(
        self,
        after: int = AFTER,
        folder: Path | None = None,
        told: Callable[[str], None] = lambda text: None,
        early: bool = False,
    ) -> None:
        """Has made none yet.

        Args:
            after: as many steps they are used.
            folder: keeps them; by default the user's.
            told: hears of a wait.
            early: orders them at the first step, for whoever must not wait: they take some 20 seconds.
        """
        self.after, self._folder, self._told = after, folder or default_folder(), told
        self.order_at = 0 if early else after * 3 // 4
        self._making: dict[Shape, subprocess.Popen[bytes]] = {}
        self._made: dict[Shape, Gather | None] = {}

    @property
    def is_used(self) -> bool:
        """Whether a kernel was made, or found, and asked for."""
        return any(each is not None for each in self._made.values())

    def order(self, shape: Shape) -> None:
        """Begins to make a kernel, unless there is one."""
        if shape in self._made or shape in self._making or self.path(shape).exists() or not has_compiler():
            return
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        # One thread: whoever waits for tokens meanwhile needs the rest of the machine.
        alone = {"PYTHONPATH": paths, "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "pamusic.kernels", *map(str, map(int, astuple(shape))), str(self.path(shape))]
        with suppress(OSError):
            self._making[shape] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, **alone},
            )  # fmt: skip

    def made(self, shape: Shape) -> Gather | None:
        """The kernel that was ordered, waited for if need be; None if none can be made here."""
        if shape not in self._made:
            self.order(shape)
            if (process := self._making.pop(shape, None)) is not None:
                if process.poll() is None:
                    self._told("compiling for this machine, once; then it goes on, faster")
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
            self._made[shape] = _loaded(self.path(shape), shape)
        return self._made[shape]

    def path(self, shape: Shape) -> Path:
        """Where the kernel of a shape is kept, or will be."""
        told = [
            *(inspect.getsource(part) for part in (*PARTS, compile_kernel)),
            torch.__version__,
            platform.machine(),
            _processor(),
            *map(str, astuple(shape)),
        ]
        return self._folder / f"{hashlib.sha256('|'.join(told).encode()).hexdigest()[:24]}.pt2"


def default_folder() -> Path:
    """The user's own, for what can be made again."""
    if chosen := os.environ.get("PAMUSIC_KERNELS"):
        return Path(chosen)
    caches = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(caches) / "pamusic" / "kernels"


def compile_kernel(shape: Shape, path: Path) -> None:
    """Compiles `gathered` for a shape into a file.

    Raises:
        PamusicError: the file cannot be written.
    """
    n = torch.export.Dim("n", min=2, max=shape.room - 1)
    rows = {0: torch.export.Dim("rows", min=2, max=4096)} if shape.is_batch else {}
    dynamic = (rows, None, None, None, None, *({**rows, 2: n} for _ in range(4)))
    example = _example(shape, num_rows=3 if shape.is_batch else 1, num_seen=max(2, min(EXAMPLE, shape.room - 2)))
    with torch.no_grad(), written_atomically(path) as temporary:
        program = torch.export.export(_Gathered(), example, dynamic_shapes=dynamic)
        options = {"cpp.dynamic_threads": True}  # else it would keep to the number of threads it was compiled with
        torch._inductor.aoti_compile_and_package(program, package_path=str(temporary), inductor_configs=options)


class _Gathered(torch.nn.Module):
    """`gathered` as a compiler takes it."""

    def forward(
        self, projected: Tensor, least: Tensor, own: Tensor, partners: Tensor, partner: Tensor,
        keys: Tensor, values: Tensor, key_scales: Tensor, value_scales: Tensor,
    ) -> Tensor:  # fmt: skip
        return gathered(projected, least, own, partners, partner, keys, values, key_scales, value_scales)


def _loaded(path: Path, shape: Shape) -> Gather | None:
    """The kernel in a file, if there is one that computes what `gathered` does."""
    if not path.exists():
        return None
    try:
        run = torch._inductor.aoti_load_package(str(path)).loader.run
        example = _example(shape, num_rows=2 if shape.is_batch else 1, num_seen=max(2, shape.room // 2))
        twin = tuple(each.clone() for each in example)
        with torch.inference_mode():
            (found,) = run(list(example))
            same = torch.allclose(found, gathered(*twin), rtol=1e-3, atol=1e-4)
            for written, expected in zip(example[5:7], twin[5:7], strict=True):  # a sum's last bit can turn a rounding
                same = same and bool(((written.int() - expected.int()).abs() <= 1).all())
    except (RuntimeError, AttributeError, OSError, ImportError, TypeError, ValueError):
        return None
    return (lambda *arguments: run(list(arguments))[0]) if same else None


def _example(shape: Shape, num_rows: int, num_seen: int) -> tuple[Tensor, ...]:
    """Arguments of `gathered` that say anything at all, the last four parts of a cache with room for more."""
    draws, heads, width = torch.Generator().manual_seed(0), shape.num_heads, shape.head_dim
    projected = torch.randn(num_rows, 3 * heads * width, generator=draws).bfloat16()
    turn = (*torch.randn(2, 2, 1, width, generator=draws), torch.arange(width).roll(1))
    bytes = torch.randint(-MOST, MOST, (2, num_rows, heads, shape.room, width), generator=draws).to(torch.int8)
    scales = torch.rand(2, num_rows, heads, shape.room, generator=draws) / MOST
    seen = [each[:, :, :num_seen] for each in (*bytes, *scales)]
    return projected, torch.full((1,), 1e-3), *turn, *seen


def _processor() -> str:
    """What this machine can compute with: a kernel made for another may not run here."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "|".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


def main(words: list[str]) -> None:
    """Of a process of its own: the numbers of a shape, and a path."""
    num_heads, head_dim, room, is_batch = map(int, words[:4])
    with suppress(AttributeError, OSError):
        os.nice(10)
    shape = Shape(num_heads=num_heads, head_dim=head_dim, room=room, is_batch=bool(is_batch))
    with suppress(PamusicError):
        compile_kernel(shape, Path(words[4]))


if __name__ == "__main__":
    main(sys.argv[1:])
