"""Connect the processes that train one model together, and exchange values between them.

Knows torch.distributed; knows no model and no run. PyTorch's `torchrun` starts the processes and numbers them in the
environment. Without it there is one process, and nothing here costs time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

MAX_WAIT = timedelta(minutes=10)  # time to wait for another process before it counts as lost


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, and the number of this one.

    Attributes:
        rank: Number of this process; only rank 0 writes files and messages.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True for rank 0."""
        return self.rank == 0

    def rows(self, batch_size: int) -> range:
        """Return the rows of a batch that belong to this rank; every rank has the same number."""
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place, and return it; every rank gets the same sum."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def min(self, number: int, device: torch.device) -> int:
        """Return the smallest number over all ranks; every rank gets the same answer."""
        if self.size == 1:
            return number
        shared = torch.tensor(number, device=device)
        dist.all_reduce(shared, op=dist.ReduceOp.MIN)
        return int(shared.item())

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is set on any rank; every rank gets the same answer."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)).item())


SINGLE_PROCESS = ProcessGroup()


def rank_from_environment() -> ProcessGroup:
    """Return the process group that `torchrun` set in the environment; without it, a single process."""
    return ProcessGroup(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def ranks_on_this_machine() -> int:
    """Return the number of processes that share this machine's memory, as `torchrun` set it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_about_ranks(error: BaseException) -> bool:
    """Return whether communication between ranks failed; errors of gloo differ only in their text."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))


def local_device(device: torch.device) -> torch.device:
    """Return the GPU of this rank on a machine with several; any other device stays as it is."""
    card = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(card)) if str(device) == "cuda" and card is not None else device


def join(ranks: ProcessGroup, device: torch.device) -> None:
    """Connect the ranks until `joined` ends: with NCCL between GPUs, else with gloo."""
    if ranks.size == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=MAX_WAIT)


@contextmanager
def joined(ranks: ProcessGroup, device: torch.device) -> Iterator[None]:
    """Connect the ranks within the block. If the block raises, the connection stays: other ranks may be gone."""
    join(ranks, device)
    yield
    if ranks.size > 1:
        dist.destroy_process_group()
