"""Inspect this machine, measure it, and estimate which models it can train.

Knows torch and the system; trains nothing. The command line formats the report.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pamusic.device import Machine, choose_machine, cpu_bf16_units, has_compiler, product_rates
from pamusic.model.config import PERCEIVER_AR, PRESETS, LedgerConfig, preset
from pamusic.training.config import TrainingConfig
from pamusic.training.memory import Memory, available_memory, memory_needed

PRODUCT_SECONDS = 1.0  # time to measure products of each type
PERFORMANCE: dict[str, Any] = {  # the part of a model's shape that depends on the 388 performance events and 3 borders
    "vocab_size": 391,
    "pad_id": 390,
    "ledger": LedgerConfig(num_slots=128, first_opening=0, first_closing=128, first_tick=256, num_ticks=100),
}
OPTIONAL_MODULES = ("note_seq", "tensorboard", "rtmidi")


@dataclass(frozen=True, kw_only=True)
class Card:
    """The CUDA GPU of a machine.

    Attributes:
        name: Name from the driver.
        compute_capability: Major and minor number.
        num_cards: Number of GPUs in the machine.
    """

    name: str
    compute_capability: tuple[int, int]
    num_cards: int


@dataclass(frozen=True, kw_only=True)
class MachineReport:
    """The facts about a machine that matter for training.

    Attributes:
        machine: Choice of `choose_machine`.
        system: Names of system and processor.
        num_cores: Cores of the processor, or None if unknown.
        num_threads: Threads that PyTorch uses.
        has_compiler: True if `torch.compile` finds a compiler.
        cpu_capability: Vector instructions that PyTorch uses; None if the device is not a CPU.
        cpu_bf16_units: Name of the CPU's bf16 units; empty if it has none or the device is not a CPU.
        card: CUDA GPU; None for other devices.
        free_memory: Free memory in bytes; None if unknown.
        product_rates: Operations per second of matrix products, by the name of their type.
        has_fluidsynth: True if the program is installed.
        has_module: True for installed modules, by the names of `OPTIONAL_MODULES`.
    """

    machine: Machine
    system: str
    num_cores: int | None
    num_threads: int
    has_compiler: bool
    cpu_capability: str | None
    cpu_bf16_units: str
    card: Card | None
    free_memory: int | None
    product_rates: Mapping[str, float]
    has_fluidsynth: bool
    has_module: Mapping[str, bool]


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """The memory that training a model of some size needs.

    Attributes:
        size: Name of the preset.
        context_length, num_latents: Shape of the model.
        memory: Memory that training needs.
        batch_size: Windows per step.
        fits: Number of windows that fit at once; None if the free memory is unknown.
    """

    size: str
    context_length: int
    num_latents: int
    memory: Memory
    batch_size: int
    fits: int | None


def inspect_machine(device: str = "auto", on_step: Callable[[str], None] = lambda what: None) -> MachineReport:
    """Inspect and measure this machine, which takes some seconds.

    Args:
        device: Device, as for `choose_machine`.
        on_step: Called with a name before each measurement.

    Raises:
        PamusicError: The device is missing.
    """
    machine = choose_machine(device, probe=True)
    where, rates = machine.device, {}
    is_cpu = where.type == "cpu"
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        on_step(f"matrix products in {name}")
        (rates[name],) = product_rates(where, dtype, seconds=PRODUCT_SECONDS)
    return MachineReport(
        machine=machine,
        system=f"{platform.system()} {platform.machine()}",
        num_cores=os.cpu_count(),
        num_threads=torch.get_num_threads(),
        has_compiler=has_compiler(),
        cpu_capability=torch.backends.cpu.get_cpu_capability() if is_cpu else None,
        cpu_bf16_units=cpu_bf16_units() if is_cpu else "",
        card=_card(where) if where.type == "cuda" else None,
        free_memory=available_memory(where),
        product_rates=rates,
        has_fluidsynth=shutil.which("fluidsynth") is not None,
        has_module={name: importlib.util.find_spec(name) is not None for name in OPTIONAL_MODULES},
    )


def estimate_memory(
    machine: Machine,
    sizes: dict[str, dict[str, Any]],
    training: TrainingConfig,
    on_step: Callable[[str], None] = lambda what: None,
) -> list[MemoryEstimate]:
    """Estimate the memory that training each size needs, and the number of windows that fit at once.

    Args:
        machine: Machine that trains.
        sizes: Names of presets, with changes to each.
        training: Settings of training; `batch_size` limits the windows at once.
        on_step: Called with a name before each estimate.

    Raises:
        ValueError: A size is unknown, or its changes do not fit together.
    """
    available, estimates = available_memory(machine.device), []
    for size, changes in sizes.items():
        on_step(f"memory of size {size}")
        is_plain = changes.get("architecture", PERCEIVER_AR) != PERCEIVER_AR  # without a ledger
        model = preset(size, **{**PERFORMANCE, **({"ledger": None} if is_plain else {}), **changes})
        memory = memory_needed(model, training, machine)
        estimates.append(
            MemoryEstimate(
                size=size,
                context_length=model.context_length,
                num_latents=model.num_latents,
                memory=memory,
                batch_size=training.batch_size,
                fits=None if available is None else memory.largest_micro_batch(available, training.batch_size),
            )
        )
    return estimates


def all_sizes() -> dict[str, dict[str, Any]]:
    """Return every preset, without changes."""
    return {size: {} for size in PRESETS}


def _card(device: torch.device) -> Card:
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return Card(name=name, compute_capability=(major, minor), num_cards=torch.cuda.device_count())
