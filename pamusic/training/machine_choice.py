"""Choose precision, micro-batch and device of a run, from all processes, the memory, and the record of the run.

Knows machines, processes and memory; builds no model. `device.choose_machine` chooses for one process alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pamusic.device import PRECISIONS, Machine, choose_machine, has_fast_bf16
from pamusic.errors import UsageError
from pamusic.model.config import ModelConfig
from pamusic.training.config import TrainingConfig
from pamusic.training.distributed import ProcessGroup, join, ranks_on_this_machine
from pamusic.training.memory import available_memory, memory_needed

NOT_EVEN_ONE = -1  # less than any number of windows


def agree_on_precision(machine: Machine, ranks: ProcessGroup) -> Machine:
    """Return the machine with a precision that all ranks support, because ranks may have different processors."""
    if ranks.size == 1:
        return machine
    join(ranks, machine.device)
    precision = PRECISIONS[-1 - ranks.min(PRECISIONS[::-1].index(machine.precision), machine.device)]
    if precision == machine.precision:
        return machine
    return replace(machine, precision=precision, precision_reason="as the others")


def fitting_micro_batch(
    model: ModelConfig, training: TrainingConfig, machine: Machine, ranks: ProcessGroup
) -> int | None:
    """Return the number of windows that a rank computes at once; None for all, or if the memory is unknown.

    Raises:
        UsageError: Not even one window fits into the memory of some rank.
    """
    if training.batch_size % ranks.size:
        return None  # the learner raises an error for this
    available, batch_size = available_memory(machine.device), training.batch_size // ranks.size
    fits, needed = batch_size, "more memory than one process has"
    if available is not None:
        shared = ranks_on_this_machine() if machine.device.type == "cpu" else 1
        memory, available = memory_needed(model, training, machine), available // shared
        fits = memory.largest_micro_batch(available, batch_size)
        if (least := memory.least(machine.compile)) > available:
            fits, needed = NOT_EVEN_ONE, f"at least {least / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free"
    join(ranks, machine.device)
    fits = ranks.min(fits, machine.device)  # ranks that share weights must take the same micro-steps
    if fits == NOT_EVEN_ONE:
        raise UsageError(
            f"training on a window of {model.context_length:,} tokens needs {needed}; use a shorter --context-length,"
            " a smaller --size or --activation-checkpointing"
        )
    return None if fits == batch_size else max(1, fits)


def machine_as_before(
    before: Mapping[str, Any], device: str, precision: str | None, asked_before: str, compile: bool | None
) -> Machine:
    """Choose the machine of a resumed run, like the earlier one unless the caller asks for something else.

    A requested precision is kept. `auto` is the fastest precision of this machine, which may differ from the earlier
    one. Requested half precision is dropped if it is slow or missing here.

    Args:
        before: Entry `machine` of `run.json`.
        device: Device, as for `choose_machine`.
        precision: Precision requested now, or None.
        asked_before: Precision requested when the run began, or `auto`.
        compile: Requested choice of compiling, or None.

    Raises:
        PamusicError: The device is missing, or cannot compute in this precision.
        UsageError: The precision is unknown.
    """
    torch.set_num_threads(min(before.get("threads") or torch.get_num_threads(), os.cpu_count() or 1))
    if compile is None and not before["compile"]:
        compile = False
    if device == "auto" and before["device"] == "cpu":
        device = "cpu"
    if precision is not None:
        return choose_machine(device, precision, compile)
    machine = choose_machine(device, "auto", compile)
    is_possible = asked_before == "fp32" or (asked_before == "bf16" and has_fast_bf16(machine.device))
    is_possible = is_possible or (asked_before == "fp16" and machine.device.type != "cpu")
    return choose_machine(device, asked_before, compile) if is_possible else machine
