"""List runs and their progress. Knows run folders; opens no weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from pamusic.training.metrics import AVERAGED, VALIDATION, draw_curves, read_metrics


@dataclass(frozen=True)
class RunSummary:
    """The summary of a run.

    Attributes:
        path: Folder of the run.
        num_parameters, context_length, num_latents: Size of its model.
        tokenizer: Name of its tokenizer.
        step, steps: Number of updates made, and planned.
        latent_tokens, seconds: Latent tokens trained, and time spent.
        best_nats: Best validation on fixed windows, in nats per token; None if there was none.
        state: "finished", "stopped", or "running or killed".
    """

    path: Path
    num_parameters: int
    context_length: int
    num_latents: int
    tokenizer: str
    step: int
    steps: int
    latent_tokens: int
    seconds: float
    best_nats: float | None
    state: str


def list_runs(folder: Path) -> list[RunSummary]:
    """Return the runs in a folder, or the run in the folder itself, best first, without broken ones."""
    summaries = []
    is_run = (folder / "run.json").is_file()
    for path in [folder / "run.json"] if is_run else sorted(folder.glob("*/run.json")):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            rows = read_metrics(path.parent / "metrics.csv")
            nats = [row.nats_per_token for row in rows if row.split in (VALIDATION, AVERAGED)]
            step, steps = max((row.step for row in rows), default=0), about["training"]["steps"]
            ended = (path.parent / "finished").is_file()
            summaries.append(
                RunSummary(
                    path=path.parent,
                    num_parameters=about["num_parameters"],
                    context_length=about["model"]["context_length"],
                    num_latents=about["model"]["num_latents"],
                    tokenizer=about["corpus"]["tokenizer"],
                    step=step,
                    steps=steps,
                    latent_tokens=max((row.latent_tokens for row in rows), default=0),
                    seconds=max((row.seconds for row in rows), default=0.0),
                    best_nats=min(nats, default=None),
                    state="running or killed" if not ended else "finished" if step >= steps else "stopped",
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(summaries, key=lambda summary: math.inf if summary.best_nats is None else summary.best_nats)


def draw_runs(runs: list[RunSummary], path: Path) -> None:
    """Draw the curves of runs from their metrics, as a PNG picture."""
    draw_curves({run.path.name: read_metrics(run.path / "metrics.csv") for run in runs}, path)
