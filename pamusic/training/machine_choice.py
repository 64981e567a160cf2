"""Decide what a run computes with: what all processes have, what fits into memory, what it had before.

Knows machines, processes and memory; builds no model. `device.choose_machine` answers for one process alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pamusic.device import PRECISIONS, Machine, choose_machine, has_fast_bf16
from pamusic.model.config import ModelConfig
from pamusic.training.config import TrainingConfig
from pamusic.training.distributed import ProcessGroup, join, ranks_on_this_machine
from pamusic.training.memory import available_memory, memory_needed


def agree_on_precision(machine: Machine, ranks: ProcessGroup) -> Machine:
    """Return the machine with a precision that all ranks have: they may be on different processors."""
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
    """Return how many windows each rank computes at once; None for all, also where the memory is not known."""
    if training.batch_size % ranks.size:
        return None  # the learner refuses that
    available, batch_size = available_memory(machine.device), training.batch_size // ranks.size
    fits = batch_size
    if available is not None:
        shared = ranks_on_this_machine() if machine.device.type == "cpu" else 1
        fits = memory_needed(model, training, machine).largest_micro_batch(available // shared, batch_size)
    join(ranks, machine.device)
    fits = ranks.min(fits, machine.device)  # those that share weights compute in step
    return None if fits == batch_size else max(1, fits)


def machine_as_before(
    before: Mapping[str, Any], device: str, precision: str | None, asked_before: str, compile: bool | None
) -> Machine:
    """Choose the machine that a run was on, as far as it is there and nothing else is asked.

    A precision that was asked for is kept. `auto` is the fastest of this machine, which may differ from the last one's.
    Half precision that was asked for is given up where it is slow or missing.

    Args:
        before: what `run.json` has under `machine`.
        device: as for `choose_machine`.
        precision: the one asked for now, if any.
        asked_before: the one asked for when the run began, or `auto`.
        compile: whether to compile, if that was asked for.

    Raises:
        PamusicError: the device is not there, or cannot compute in this precision.
        UsageError: there is no such precision.
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
