"""Measure the claim of Perceiver AR that a longer context helps.

    python benchmarks/paper/context.py MAESTRO [FOLDER] [--smoke | --gpu]

Trains Perceiver AR with the same number of latents and steps, and contexts from the latents alone to 8,192 positions.
So the layers and the predictions are the same, and only the cross-attention sees more. Each context is tried in two
forms: plain, as in the paper, and with what a model of notes has here (convolution, offset copying and rotary time).
Vocabulary: `notes`, where 8,192 positions are about 11 minutes. The claim does not depend on the vocabulary. Measured:
nats of a position on the validation split, overall and from position 2,048 of a piece on, where every context up to
that is full.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import PLAIN, Arm, Experiment, Row, Run, Scale, by_arm, corpus, means, run_experiment

FAR = 2048


def arms(scale: Scale, maestro: Path, folder: Path) -> list[Arm]:
    notes = corpus(maestro, folder)
    latents = scale.settings["num_latents"]
    contexts = scale.pick(
        smoke=(latents, 512, 2048), reported=(latents, 1024, 2048, 8192), gpu=(latents, 2048, 4096, 8192, 16384)
    )
    kinds = [("plain", PLAIN), ("as here", {})]
    return [
        Arm(label=f"{kind} {n}", corpus=notes, settings={**parts, "context_length": n}, columns={"kind": kind})
        for n in contexts
        for kind, parts in kinds
    ]


def measure(run: Run) -> list[Row]:
    whole = run.evaluate()
    far = [row for row in whole["by_position"] if row["from"] >= FAR]
    tokens = sum(row["tokens"] for row in far)
    return [
        {
            "nats_per_token": whole["nats_per_token"],
            "bits_per_note": whole["bits_per_note"],
            "num_tokens": whole["num_tokens"],
            "nats_per_token_far": round(sum(row["nats_per_token"] * row["tokens"] for row in far) / tokens, 4),
            "num_tokens_far": tokens,
        }
    ]


def draw(axes: Sequence[Any], rows: list[Row]) -> None:
    titles = {"nats_per_token": "all positions", "nats_per_token_far": f"from position {FAR:,} on"}
    for ax, (value, title) in zip(axes, titles.items(), strict=True):
        for kind, of_kind in by_arm(rows, "kind").items():
            ax.plot(*zip(*means(of_kind, "context_length", value), strict=True), marker="o", label=kind)
        ax.set_xscale("log")
        ax.set(xlabel="context, positions", ylabel="nats a position, validation", title=title)
        ax.legend()


if __name__ == "__main__":
    run_experiment(Experiment(name="context", arms=arms, measure=measure, draw=draw, num_axes=2), __doc__)
