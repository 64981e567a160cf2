"""Measure the claim of Perceiver AR that it beats Transformer-XL at equal compute and at equal wall-clock time.

    python benchmarks/paper/architectures.py MAESTRO [FOLDER] [--smoke | --gpu]

Trains the three architectures with layers of equal number and width, hence about equal weights. A step of each
predicts the same number of positions: Perceiver AR predicts its latents, at the end of more and longer windows, the
others every position of fewer windows. Transformer-XL has segments as long as the latents. Each makes as many steps as
take the operations of Perceiver AR. Measured: validation loss
against operations (`pamusic.model.flops`) and against seconds of training, both without validation. Seconds are those
of an undisturbed machine: positions divided by the fastest tenth of the rates. The loss is of averaged weights on fixed
windows, where all score the same positions. The last row of each run has the score of `pamusic evaluate`.

All are plain: no convolution, offset copying, rotary time or prefix dropout. Vocabulary: `notes`. Learning rates are
those that suit Perceiver AR here; no rate was tuned for any of the three.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import (
    PLAIN,
    Arm,
    Experiment,
    Row,
    Run,
    Scale,
    by_arm,
    corpus,
    curve,
    means,
    run_experiment,
    with_equal_operations,
)


def arms(scale: Scale, maestro: Path, folder: Path) -> list[Arm]:
    notes = corpus(maestro, folder)
    latents, windows = scale.settings["num_latents"], scale.settings["batch_size"]
    context = 8 * latents  # of Perceiver AR
    window = 4 * latents  # of Transformer-XL, in training: four segments
    short = 2 * latents  # of the Transformer: as far as a segment of Transformer-XL sees directly
    found = [
        Arm(
            label="perceiver-ar",
            corpus=notes,
            settings={**PLAIN, "context_length": context, "prefix_dropout": 0.0},
        ),
        Arm(
            label="transformer-xl",
            corpus=notes,
            settings={"architecture": "transformer-xl", "context_length": window, "batch_size": windows // 4},
        ),
        Arm(
            label="transformer",
            corpus=notes,
            settings={"architecture": "transformer", "context_length": short, "batch_size": windows // 2},
        ),
    ]
    return with_equal_operations(found, scale)


def measure(run: Run) -> list[Row]:
    whole = run.evaluate()
    rows = [{**row, "evaluated_nats": ""} for row in curve(run)]
    steps = [{"steps": row.pop("step")} for row in rows]
    rows[-1]["evaluated_nats"] = whole["nats_per_token"]
    predicted = run.columns()["predicted_tokens"] / int(run.metrics("train")[-1]["step"])
    return [
        {**row, **step, "predicted_tokens": round(predicted * step["steps"])}
        for row, step in zip(rows, steps, strict=True)
    ]


def draw(axes: Sequence[Any], rows: list[Row]) -> None:
    for ax, (key, title) in zip(
        axes, {"tflops": "TFLOP of training", "seconds": "seconds of training"}.items(), strict=True
    ):
        for label, of_arm in by_arm(rows).items():
            seeds = list(by_arm(of_arm, "seed").values())
            for number, of_seed in enumerate(seeds):
                points = means(of_seed, key, "nats_per_token")
                color = ax.lines[-1].get_color() if number else None
                ax.plot(*zip(*points, strict=True), marker=".", color=color, label=None if number else label)
        lowest = min(float(row["nats_per_token"]) for row in rows)
        ax.set(xlabel=title, ylabel="nats a position, validation windows", ylim=(lowest - 0.1, lowest + 2.0))
        ax.legend()


if __name__ == "__main__":
    run_experiment(Experiment(name="architectures", arms=arms, measure=measure, draw=draw, num_axes=2), __doc__)
