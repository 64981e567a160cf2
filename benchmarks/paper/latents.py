"""Measure the claim of Perceiver AR that compute can be adapted at evaluation time.

    python benchmarks/paper/latents.py MAESTRO [FOLDER] [--smoke | --gpu]

Trains one model with a fixed number of latents and one with a random number (`min_latents`: all, a half, a quarter and
an eighth, each as often), at equal steps. Then both are evaluated with numbers of latents from an eighth to four times.
Measured: nats of a position, operations of a position, and positions scored a second, by `pamusic.evaluation.sweep`.
Every number of latents scores the same positions, in blocks of half its latents. Vocabulary: `notes`, plain.

A step with fewer latents predicts fewer positions, so the model with a random number has seen fewer: the column
`predicted_tokens` has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import PLAIN, Arm, Experiment, Row, Run, Scale, by_arm, corpus, run_experiment


def arms(scale: Scale, maestro: Path, folder: Path) -> list[Arm]:
    notes, latents = corpus(maestro, folder), scale.settings["num_latents"]
    shared = {**PLAIN, "context_length": 8 * latents}
    return [
        Arm(label="fixed number", corpus=notes, settings=shared),
        Arm(label="random number", corpus=notes, settings={**shared, "min_latents": latents // 8}),
    ]


def measure(run: Run) -> list[Row]:
    from pamusic.checkpoint import find_checkpoint, load_checkpoint
    from pamusic.corpus.corpus import open_corpus
    from pamusic.evaluation.sweep import sweep

    model = load_checkpoint(find_checkpoint(str(run.path))).model.eval()
    shape = model.config
    ways = [(shape.context_length, (shape.num_latents << k) >> 3) for k in range(6)]
    corpus = open_corpus(run.arm.corpus)
    return [
        {
            "num_latents_used": point.num_latents,
            "nats_per_token": round(point.nats_per_token, 4),
            "mflops_per_token": round(point.flops / 1e6, 3),
            "tokens_per_second": round(point.tokens_per_second),
            "num_tokens": point.num_tokens,
        }
        for point in sweep(model, corpus, "validation", ways, num_pieces=run.scale.num_pieces)
    ]


def draw(axes: Sequence[Any], rows: list[Row]) -> None:
    keys = {
        "num_latents_used": "latents used",
        "mflops_per_token": "MFLOP a position",
        "tokens_per_second": "positions/s",
    }
    for ax, (key, title) in zip(axes, keys.items(), strict=True):
        for label, of_arm in by_arm(rows).items():
            of_latents = by_arm(of_arm, "num_latents_used").values()
            mean = [
                [sum(float(row[name]) for row in group) / len(group) for name in (key, "nats_per_token")]
                for group in of_latents
            ]
            ax.plot(*zip(*mean, strict=True), marker="o", label=label)
        ax.set_xscale("log", base=2)
        ax.set(xlabel=title, ylabel="nats a position, validation")
        ax.legend()


if __name__ == "__main__":
    run_experiment(Experiment(name="latents", arms=arms, measure=measure, draw=draw, num_axes=3), __doc__)
