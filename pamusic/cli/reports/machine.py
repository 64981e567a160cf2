"""Describe a machine, and what fits on it, in words. Knows reports and words; measures nothing."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pamusic.training.machine_report import MachineReport, MemoryEstimate

PURPOSES = {  # of optional modules
    "note_seq": "tokenize --engine note-seq",
    "tensorboard": "curves in TensorBoard",
    "rtmidi": "MIDI ports",
}


def machine_lines(report: MachineReport) -> dict[str, str]:
    """Return a description of the machine, as names and values in order."""
    import torch

    import pamusic

    machine, card = report.machine, report.card
    lines = {
        "pamusic": f"{pamusic.__version__}, Python {platform.python_version()}, torch {torch.__version__}",
        "system": f"{report.system}, {report.num_cores} cores",
        "threads": str(report.num_threads),
        "device": str(machine.device),
        "precision": f"{machine.precision} ({machine.precision_reason})",
        "compiler": (
            "found: models are compiled" if report.has_compiler else "none: models are not compiled; install g++"
        ),
    }
    if report.cpu_capability is not None:
        units = f"{report.cpu_bf16_units} units" if report.cpu_bf16_units else "no bf16 units"
        lines["CPU"] = f"{report.cpu_capability}, {units}"
    if card is not None:
        lines["card"] = f"{card.name}, compute capability {'.'.join(map(str, card.compute_capability))}"
        lines["cards"] = f"{card.num_cards}; all of them: torchrun --nproc-per-node gpu -m pamusic train"
    if machine.device.type == "mps":
        lines["Metal"] = "never tested by the authors; fp32, no autocast, no compiling"
    memory = report.free_memory
    lines["free memory"] = f"{memory / 2**30:.1f} GiB" if memory is not None else "not known"
    for name, rate in report.product_rates.items():
        lines[f"products in {name}"] = f"{rate / 1e12:.3f} TFLOP/s"
    lines["FluidSynth"] = "found" if report.has_fluidsynth else "not found: midirenderer plays instead"
    for module, is_installed in report.has_module.items():
        lines[module] = f"{'installed' if is_installed else 'not installed'} ({PURPOSES[module]})"
    return lines


def memory_rows(estimates: list[MemoryEstimate]) -> list[dict[str, str]]:
    """Return the rows of a table of training memory, and of what fits."""
    return [
        {
            "size": each.size,
            "context": f"{each.context_length:,}",
            "latents": f"{each.num_latents:,}",
            "always": f"{each.memory.state / 2**20:,.0f} MiB",
            "a window at once": f"{each.memory.window / 2**20:,.0f} MiB",
            f"all {each.batch_size}": f"{each.memory.needed(each.batch_size) / 2**30:.1f} GiB",
            "fit here": "not known" if each.fits is None else f"{each.fits} of {each.batch_size}",
        }
        for each in estimates
    ]
