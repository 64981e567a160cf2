"""Several processes that train one model: which of them this is, and what they tell each other.

Knows torch.distributed; knows no model, no run. Processes are started by PyTorch's own `torchrun`, which says in the
environment who is who. Without it there is one rank, and nothing here costs anything.
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

LONGEST_WAIT = timedelta(minutes=10)  # for another rank, before it counts as lost


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: its number; 0 alone writes and speaks.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, batch_size: int) -> range:
        """The rows of a batch that are this rank's: equally many for each."""
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def summed(self, value: Tensor) -> Tensor:
        """The sum over all ranks, on each."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def least(self, number: int, device: torch.device) -> int:
        """The least of what the ranks have: the same answer on each."""
        if self.size == 1:
            return number
        shared = torch.tensor(number, device=device)
        dist.all_reduce(shared, op=dist.ReduceOp.MIN)
        return int(shared.item())

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on some rank: the same answer on each."""
        if self.size == 1:
            return flag
        return bool(self.summed(torch.tensor(float(flag), device=device)).item())


ALONE = Ranks()


def rank_from_environment() -> Ranks:
    """What `torchrun` said about this process; one rank alone without it."""
    return Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def ranks_on_this_machine() -> int:
    """How many processes share this machine's memory, as `torchrun` said."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_about_ranks(error: BaseException) -> bool:
    """Whether what failed is the talk between ranks: gloo's errors are known by their words alone."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))


def local_device(device: torch.device) -> torch.device:
    """Of a machine's several cards, this rank's own."""
    card = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(card)) if str(device) == "cuda" and card is not None else device


def join(ranks: Ranks, device: torch.device) -> None:
    """Lets the ranks reach each other, until `joined` ends: NCCL between cards, else gloo."""
    if ranks.size == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Within the block the ranks can reach each other. If it raises, the others may be gone."""
    join(ranks, device)
    yield
    if ranks.size > 1:
        dist.destroy_process_group()
