"""Run `pamusic runs`: list runs, and plot their curves. Knows options and words."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pamusic.cli.output import picture
from pamusic.cli.progress import duration
from pamusic.cli.terminal import console, log, result
from pamusic.errors import PamusicError


def runs(
    folder: Annotated[Path, Argument(help="List the runs in this folder, or this run.")] = Path("runs"),
    plot: Annotated[Path | None, Option(help="Write a PNG figure of their curves here.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """List runs, the best validation first."""
    from pamusic.training.run_list import draw_runs, list_runs

    if not folder.is_dir() and folder != Path("runs"):
        raise PamusicError(f"{folder}: is not a folder; pass the folder of the runs")
    with picture(plot) as drawn:
        found = list_runs(folder)
        if drawn is not None:
            if not found:
                raise PamusicError(f"{folder}: no runs there, so there is nothing to plot")
            draw_runs(found, drawn)
    if as_json:
        result(json.dumps([{**asdict(run), "path": str(run.path)} for run in found]))
        return
    if not found:
        log(f"{folder}: no runs there; train one with pamusic train")
        return
    from rich.table import Table

    table = Table("run", "model", "step", "M latent tokens", "time", "best nats per token", "state")
    for run in found:
        table.add_row(
            str(run.path),
            f"{run.num_parameters / 1e6:.1f} M, {run.context_length:,} / {run.num_latents:,}, {run.tokenizer}",
            f"{run.step:,} of {run.steps:,}",
            f"{run.latent_tokens / 1e6:.1f}",
            duration(run.seconds),
            "–" if run.best_nats is None else f"{run.best_nats:.4f}",
            run.state,
        )
    console().print(table)
    for run in found:
        result(run.path)
