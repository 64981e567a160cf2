"""Estimate the memory that training needs. Knows the model's shape and the machine; trains nothing.

The memory for the backward pass is counted, not guessed. The model runs on fake tensors without data, and the sizes of
all tensors that autograd would keep are added up. A compiled model needs less, because it recomputes cheap results.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pamusic.device import Machine
from pamusic.model.architectures import build_model
from pamusic.model.config import ModelConfig
from pamusic.model.sequence_model import SequenceModel
from pamusic.training.config import TrainingConfig
from pamusic.training.optimizers import freeze_all_but, split_parameters

# Factor for the buffers of the backward pass. Measured on two CPU cores, size small, not compiled: a window takes
# 173 MiB in bf16 and keeps 117 MiB; in fp32 it takes 192 MiB and keeps 134 MiB. Compiled, it takes 64 MiB.
BACKWARD = 1.5
COMPILED = 0.35  # share of the memory of a window that a compiled model takes at least, by the same measurement
USABLE = 0.8  # share of the free memory; the rest is for PyTorch, the compiler, and fragmentation


@dataclass(frozen=True)
class Memory:
    """The memory that training needs, in bytes.

    Attributes:
        state: Permanent memory: weights, gradients, optimiser and average.
        window: Memory for the forward and backward pass of each window at once.
    """

    state: int
    window: int

    def needed(self, micro_batch: int) -> int:
        """Return the total for `micro_batch` windows at once."""
        return self.state + micro_batch * self.window

    def largest_micro_batch(self, available: int, batch_size: int) -> int:
        """Return the number of windows that fit at once, a divisor of the batch size; 0 if none fits."""
        fitting = (available * USABLE - self.state) // self.window
        return max((size for size in range(1, batch_size + 1) if batch_size % size == 0 and size <= fitting), default=0)

    def least(self, compiled: bool) -> int:
        """Return what one window at once needs in any case: without the factor of the backward pass, or compiled."""
        return self.state + round(self.window * (COMPILED if compiled else 1 / BACKWARD))


def memory_needed(model: ModelConfig, training: TrainingConfig, machine: Machine) -> Memory:
    """Count the memory that training needs."""
    with FakeTensorMode(), machine.device:
        built = build_model(model).train()
        built.recompute = training.recompute
        freeze_all_but(built, training.only)
        inner, outer = (sum(parameter.numel() for parameter in part) for part in split_parameters(built))
        one, two = (_kept_for_backward(built, training, machine, windows) for windows in (1, 2))
    copies = inner * 3 + outer * 4  # weight, gradient, and Muon's momentum or AdamW's two moments
    averaged = inner + outer if training.ema_decay else 0
    kept = two - one  # the rest, such as weights in another precision, counts as state
    return Memory(state=4 * (copies + averaged) + one - kept, window=round(BACKWARD * kept))


def _kept_for_backward(model: SequenceModel, training: TrainingConfig, machine: Machine, windows: int) -> int:
    """Return the bytes that autograd keeps after a forward pass over some windows, without the weights."""
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # kept alive, so that no other storage gets its address
        return tensor

    config = model.config
    fields = (len(config.field_sizes),) if config.field_sizes else ()
    tokens = torch.zeros(windows, config.context_length, *fields, dtype=torch.long, device=machine.device)
    prefix = round((config.context_length - config.num_latents) * (1 - training.prefix_dropout))
    seen = torch.zeros(windows, prefix, dtype=torch.long, device=machine.device) if training.prefix_dropout else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), machine.autocast():
        following = tokens[:, -config.num_targets :] if fields else None
        model(tokens, prefix_indices=seen, following=following).float().logsumexp(-1).sum()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


def available_memory(device: torch.device) -> int | None:
    """Return the free bytes on a device; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    told = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        told += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        limit = Path("/sys/fs/cgroup/memory.max")  # the limit of a container
        if limit.is_file() and limit.read_text().strip().isdigit():
            told.append(int(limit.read_text()) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    if not told and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        told.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(told, default=None)
