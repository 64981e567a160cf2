"""Measure how Perceiver AR and a Transformer improve with their number of weights.

    python benchmarks/paper/scale.py MAESTRO [FOLDER] [--smoke | --gpu]

Trains four widths of each at equal steps and equal predictions a step: Perceiver AR with eight times its latents as
context, the Transformer with twice as many positions, in half as many windows. Both are plain and without prefix
dropout. Measured: nats of a position on the validation split. Vocabulary: `notes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import PLAIN, Arm, Experiment, Row, Run, Scale, by_arm, corpus, means, run_experiment


def arms(scale: Scale, maestro: Path, folder: Path) -> list[Arm]:
    notes = corpus(maestro, folder)
    latents, windows = scale.settings["num_latents"], scale.settings["batch_size"]
    found = []
    for width in scale.pick(smoke=(16, 32, 64, 96), reported=(64, 96, 128, 192), gpu=(256, 384, 512, 768)):
        heads = {"d_model": width, "num_heads": scale.pick(smoke=2, reported=4, gpu=8)}
        forms = {
            "perceiver-ar": {
                **PLAIN,
                "context_length": 8 * latents,
                "prefix_dropout": 0.0,
                "cross_num_heads": heads["num_heads"],
            },
            "transformer": {"architecture": "transformer", "context_length": 2 * latents, "batch_size": windows // 2},
        }
        found += [
            Arm(label=f"{name} {width}", corpus=notes, settings={**heads, **form}) for name, form in forms.items()
        ]
    return found


def measure(run: Run) -> list[Row]:
    whole = run.evaluate()
    return [{name: whole[name] for name in ("nats_per_token", "bits_per_note", "num_tokens")}]


def draw(axes: Sequence[Any], rows: list[Row]) -> None:
    for ax, (key, title) in zip(
        axes, {"num_parameters": "weights", "tflops": "TFLOP of training"}.items(), strict=True
    ):
        for label, of_kind in by_arm(rows, "architecture").items():
            ax.plot(*zip(*means(of_kind, key, "nats_per_token"), strict=True), marker="o", label=label)
        ax.set_xscale("log")
        ax.set(xlabel=title, ylabel="nats a position, validation")
        ax.legend()


if __name__ == "__main__":
    run_experiment(Experiment(name="scale", arms=arms, measure=measure, draw=draw, num_axes=2), __doc__)
