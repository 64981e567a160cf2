"""Run `pamusic doctor`: report the machine's hardware, and the models that fit. Knows options and words."""

from __future__ import annotations

import json
from typing import Annotated

from typer import Option

from pamusic.cli.terminal import load_torch, log, result, table
from pamusic.errors import UsageError


def doctor(
    size: Annotated[str | None, Option(help="Check only this model size. (default: all)")] = None,
    architecture: Annotated[str, Option(help="Assume perceiver-ar, transformer or transformer-xl.")] = "perceiver-ar",
    context_length: Annotated[int | None, Option(help="Assume this context length. (default: the size's)")] = None,
    num_latents: Annotated[int | None, Option(help="Assume this many latents. (default: the size's)")] = None,
    batch_size: Annotated[int, Option(min=1, help="Assume this many windows per update.")] = 8,
    prefix_dropout: Annotated[
        float | None, Option(help="Assume this fraction of dropped prefix. (default: 0.7)")
    ] = None,
    recompute: Annotated[bool, Option("--activation-checkpointing", help="Assume recomputed layers.")] = False,
    device: Annotated[str, Option(help="Compute on: auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[str, Option(help="Compute in: auto, bf16, fp16, fp32.")] = "auto",
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report hardware, the memory that training needs, and what fits."""

    def on_step(what: str) -> None:
        log(f"measuring: {what}")

    from pamusic.device import choose_machine

    load_torch()
    from pamusic.cli.reports.machine import machine_lines, memory_rows
    from pamusic.model.config import PERCEIVER_AR
    from pamusic.training.config import TrainingConfig
    from pamusic.training.machine_report import all_sizes, estimate_memory, inspect_machine

    changes = {"architecture": architecture, "context_length": context_length, "num_latents": num_latents}
    if prefix_dropout and architecture != PERCEIVER_AR:
        raise UsageError(f"--prefix-dropout is for {PERCEIVER_AR}, not for {architecture}; leave it out")
    dropout = prefix_dropout
    if dropout is None:
        dropout = TrainingConfig.prefix_dropout if architecture == PERCEIVER_AR else 0.0
    try:
        training = TrainingConfig(batch_size=batch_size, prefix_dropout=dropout, recompute=recompute)
        sizes = {name: changes for name in all_sizes() if name == size or size is None}
        machine = choose_machine(device, precision)
        fits = memory_rows(estimate_memory(machine, sizes or {str(size): changes}, training, on_step))
    except ValueError as error:
        raise UsageError(str(error)) from None
    found = machine_lines(inspect_machine(device, on_step))
    if as_json:
        result(json.dumps({"machine": found, "fits": fits}))
        return
    for name, value in found.items():
        log(f"{name}: {value}")
    table(fits, "Training, not compiled; compiled takes less")
