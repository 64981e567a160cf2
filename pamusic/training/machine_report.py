"""What this machine is good for: found out by asking and by measuring. Knows torch and the system; trains nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable
from typing import Any

import torch

import pamusic
from pamusic.device import Machine, choose_machine, cpu_bf16_units, has_compiler, product_rates
from pamusic.model.config import PRESETS, LedgerConfig, preset
from pamusic.training.config import TrainingConfig
from pamusic.training.memory import available_memory, memory_needed

PRODUCT_SECONDS = 1.0  # for the products of each type
PERFORMANCE: dict[str, Any] = {  # what a model of 388 performance events and three borders knows of them
    "vocab_size": 391,
    "pad_id": 390,
    "ledger": LedgerConfig(num_slots=128, first_opening=0, first_closing=128, first_tick=256, num_ticks=100),
}
EXTRAS = {  # module -> what it is for
    "note_seq": "tokenize --engine note-seq",
    "tensorboard": "curves in TensorBoard",
    "rtmidi": "MIDI ports",
}


def checkup(device: str = "auto", on_step: Callable[[str], None] = lambda what: None) -> dict[str, str]:
    """Describe the machine: name -> value, for a person to read.

    Args:
        device: as for `choose_machine`.
        on_step: is called before what takes time.

    Raises:
        PamusicError: there is no such device.
    """
    machine = choose_machine(device, probe=True)
    where = machine.device
    found = {
        "pamusic": f"{pamusic.__version__}, Python {platform.python_version()}, torch {torch.__version__}",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "device": str(where),
        "precision": f"{machine.precision} ({machine.precision_reason})",
        "compiler": "found: models are compiled" if has_compiler() else "none: models are not compiled; install g++",
    }
    if where.type == "cpu":
        units = cpu_bf16_units()
        found["CPU"] = f"{torch.backends.cpu.get_cpu_capability()}, {f'{units} units' if units else 'no bf16 units'}"
    if where.type == "cuda":
        major, minor = torch.cuda.get_device_capability(where)
        found["card"] = f"{torch.cuda.get_device_name(where)}, compute capability {major}.{minor}"
        found["cards"] = f"{torch.cuda.device_count()}; all of them: torchrun --nproc-per-node gpu -m pamusic train"
    if where.type == "mps":
        found["Metal"] = "never tried by those who made this; fp32, no autocast, no compiling"
    available = available_memory(where)
    found["free memory"] = f"{available / 2**30:.1f} GiB" if available is not None else "not told"
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        on_step(f"matrix products in {name}")
        found[f"products in {name}"] = f"{product_rates(where, dtype, seconds=PRODUCT_SECONDS)[0] / 1e12:.3f} TFLOP/s"
    synthesizer = "found" if shutil.which("fluidsynth") else "not found: midirenderer plays instead"
    found["FluidSynth"] = synthesizer
    for module, purpose in EXTRAS.items():
        found[module] = f"{'installed' if importlib.util.find_spec(module) else 'not installed'} ({purpose})"
    return found


def what_fits(
    machine: Machine,
    sizes: dict[str, dict[str, Any]],
    training: TrainingConfig,
    on_step: Callable[[str], None] = lambda what: None,
) -> list[dict[str, str]]:
    """Predict the memory that training each size needs, and how many windows fit at once.

    Args:
        machine: where.
        sizes: names of presets, with changes to each.
        training: the settings; `batch_size` bounds what is at once.
        on_step: is called before what takes time.
    """
    available, rows = available_memory(machine.device), []
    for size, changes in sizes.items():
        on_step(f"memory of size {size}")
        model = preset(size, **PERFORMANCE, **changes)
        memory = memory_needed(model, training, machine)
        fits = None if available is None else memory.largest_micro_batch(available, training.batch_size)
        rows.append(
            {
                "size": size,
                "context": f"{model.context_length:,}",
                "latents": f"{model.num_latents:,}",
                "always": f"{memory.state / 2**20:,.0f} MiB",
                "a window at once": f"{memory.window / 2**20:,.0f} MiB",
                f"all {training.batch_size}": f"{memory.needed(training.batch_size) / 2**30:.1f} GiB",
                "fit here": "not known" if fits is None else f"{fits} of {training.batch_size}",
            }
        )
    return rows


def all_sizes() -> dict[str, dict[str, Any]]:
    """Every preset as it is."""
    return {size: {} for size in PRESETS}
