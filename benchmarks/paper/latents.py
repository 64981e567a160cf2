"""Measure the claim of Perceiver AR that compute can be adapted at evaluation time.

    python benchmarks/paper/latents.py MAESTRO [FOLDER] [--smoke | --gpu]

Trains one model with a fixed number of latents and two with a random number (`min_latents`: all, a half, a quarter or
an eighth, each as often). A step with fewer latents predicts fewer positions. So one of these two has as many steps as
the fixed one, and the other as many predictions. Then each is evaluated with an eighth of the latents to twice as many.
Measured: nats of a position, operations of a position, and positions scored a second. Vocabulary: `notes`, plain.

Every number of latents scores the same positions, in blocks of a sixteenth of the latents of training, so that more
latents are more computation. In blocks of half the latents, as in the official protocol, every number would cost about
the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import PLAIN, Arm, Experiment, Row, Run, Scale, by_arm, corpus, run_experiment

from pamusic.checkpoint import find_checkpoint, load_checkpoint
from pamusic.corpus.corpus import open_corpus
from pamusic.evaluation.likelihood import evaluate
from pamusic.model.flops import scoring_flops


def arms(scale: Scale, maestro: Path, folder: Path) -> list[Arm]:
    notes, latents = corpus(maestro, folder), scale.settings["num_latents"]
    shared = {**PLAIN, "context_length": 8 * latents}
    varied = {**shared, "min_latents": latents // 8}
    mean_share = (1 + 1 / 2 + 1 / 4 + 1 / 8) / 4  # of the latents that predict
    longer = {**varied, "steps": round(scale.settings["steps"] / mean_share)}
    return [
        Arm(label="fixed number", corpus=notes, settings=shared),
        Arm(label="random, as many steps", corpus=notes, settings=varied),
        Arm(label="random, as many predictions", corpus=notes, settings=longer),
    ]


def measure(run: Run) -> list[Row]:
    shape = run.shape()
    block = max(1, shape.num_latents // 16)
    model, opened = load_checkpoint(find_checkpoint(str(run.path))).model.eval(), open_corpus(run.arm.corpus)
    rows = []
    for k in range(5):
        used = (shape.num_latents << k) >> 3
        began = time.perf_counter()
        told = evaluate(model, opened, "validation", block=block, num_latents=used, num_pieces=run.scale.num_pieces)
        took = time.perf_counter() - began
        flops = scoring_flops(shape.resized(num_latents=used), block=block)
        rows.append(
            {
                "num_latents_used": used,
                "block": block,
                "nats_per_token": round(told.nats_per_token, 4),
                "mflops_per_token": round(flops / 1e6, 3),
                "tokens_per_second": round(told.num_tokens / took),
                "num_tokens": told.num_tokens,
            }
        )
    return rows


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
        ax.set_xscale("log")
        ax.set(xlabel=title, ylabel="nats a position, validation")
        ax.legend(fontsize=8)


if __name__ == "__main__":
    run_experiment(Experiment(name="latents", arms=arms, measure=measure, draw=draw, num_axes=3), __doc__)
