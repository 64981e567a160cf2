"""Measure the claim of Perceiver AR that it is less sensitive to the order of generation.

    python benchmarks/paper/order.py MAESTRO [FOLDER] [--smoke | --gpu]

Music leaves the order open only where events are simultaneous. Here the same music is written in four orders of the
onsets, and of the releases, of one step of 10 ms: as note-seq writes them (by onset before rounding), from low to high,
from high to low, and shuffled once for each piece. Perceiver AR and a Transformer learn each, at equal steps, without
stretch (which would put the notes in order again). A Perceiver AR that is less sensitive differs less between orders.

Vocabulary: `performance`, the paper's. Both are plain, without a ledger. Measured: nats of a token on the validation
split, and the overlap of generated music with the statistics of the test split.

The orders carry different information, so equal losses are not to be expected. Low to high and high to low carry none
that the set of notes does not determine. A shuffled order costs at most `order_nats_per_token` more: the sum of log k!
over all groups of k simultaneous onsets or releases. Note-seq's order reveals which of two onsets in a step was first.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import Arm, Experiment, Row, Run, Scale, by_arm, corpus, pamusic, run_experiment

ORDERS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray] | None] = {
    "as written": None,
    "low to high": lambda pitch, rng: pitch,
    "high to low": lambda pitch, rng: -pitch,
    "shuffled": lambda pitch, rng: rng.random(len(pitch)),
}  # name -> number of each note, by which notes of a step are sorted


def reordered(source: Path, order: str) -> Path:
    """Return a corpus with the same music in another order, made if it is not there."""
    from pamusic.corpus.corpus import open_corpus
    from pamusic.corpus.writer import writing_corpus

    rank = ORDERS[order]
    path = source.with_name(f"{source.name}-{order.replace(' ', '-')}")
    if rank is None or path.is_dir():
        return source if rank is None else path
    opened = open_corpus(source)
    with writing_corpus(path, opened.tokenizer) as writer:
        for index, piece in enumerate(opened.pieces):
            grid = opened.tokenizer.grid_from_ids(opened.piece(index))
            rng = np.random.default_rng(index)
            notes = np.lexsort((rank(grid.pitch, rng), grid.onset))
            names = ("onset", "offset", "pitch", "velocity_bin")
            grid = replace(grid, **{name: getattr(grid, name)[notes] for name in names})
            writer.add(
                opened.tokenizer.ids_from_grid(grid), name=piece.name, split=piece.split, num_notes=piece.num_notes,
                seconds=piece.seconds, sha256=piece.sha256,
            )  # fmt: skip
        writer.close()
    return path


def order_nats(path: Path, num_pieces: int) -> float:
    """Return the largest entropy of the order of simultaneous events, in nats per token of the scored pieces."""
    from pamusic.corpus.corpus import open_corpus
    from pamusic.evaluation.likelihood import select_pieces

    opened = open_corpus(path)
    nats, num_tokens = 0.0, 0
    for index in select_pieces(opened, "validation", num_pieces):
        grid = opened.tokenizer.grid_from_ids(opened.piece(index))
        groups = np.concatenate([np.unique(times, return_counts=True)[1] for times in (grid.onset, grid.offset)])
        nats += sum(math.lgamma(count + 1) for count in groups.tolist())
        num_tokens += opened.pieces[index].num_tokens + 1  # the end
    return nats / num_tokens


def arms(scale: Scale, maestro: Path, folder: Path) -> list[Arm]:
    written = corpus(maestro, folder, "performance")
    latents, windows = scale.settings["num_latents"], scale.settings["batch_size"]
    forms: dict[str, dict[str, Any]] = {
        "perceiver-ar": {"context_length": 8 * latents, "ledger": False, "prefix_dropout": 0.0},
        "transformer": {
            "architecture": "transformer", "context_length": 2 * latents, "batch_size": windows // 2, "ledger": False,
        },
    }  # fmt: skip
    return [
        Arm(
            label=f"{name}, {order}",
            corpus=reordered(written, order),
            settings={**form, "stretch": 0.0},
            columns={"order": order},
        )
        for order in ORDERS
        for name, form in forms.items()
    ]


def measure(run: Run) -> list[Row]:
    whole = run.evaluate()
    num, seconds = run.scale.pick(smoke=(4, 20), reported=(16, 60), gpu=(64, 180))
    music = run.path / "music"
    shutil.rmtree(music, ignore_errors=True)
    pamusic(
        "sample", "--checkpoint", run.path, "--num-samples", num, "--seconds", seconds, "--seed", 1000, "--no-guard",
        "--out", music / "piece.mid",
    )  # fmt: skip
    compared = json.loads(
        pamusic("compare", run.maestro, music, "--split", "test", "--seconds", seconds, "--workers", 1, "--json")
    )
    return [
        {
            "nats_per_token": whole["nats_per_token"],
            "num_tokens": whole["num_tokens"],
            "order_nats_per_token": round(order_nats(run.arm.corpus, run.scale.num_pieces), 4),
            "overlap": compared["overlap"],
            "num_samples": num,
            "sampled_seconds": seconds,
        }
    ]


def draw(axes: Sequence[Any], rows: list[Row]) -> None:
    places = {order: place for place, order in enumerate(ORDERS)}
    for ax, (value, title) in zip(
        axes,
        {"nats_per_token": "nats a token, validation", "overlap": "overlap with the test split"}.items(),
        strict=True,
    ):
        for number, (architecture, of_kind) in enumerate(by_arm(rows, "architecture").items()):
            of_order = by_arm(of_kind, "order")
            heights = [sum(float(row[value]) for row in group) / len(group) for group in of_order.values()]
            left = [places[order] + 0.4 * number - 0.2 for order in of_order]
            ax.bar(left, heights, width=0.4, label=architecture)
        found = [float(row[value]) for row in rows]
        margin = 0.3 * (max(found) - min(found)) + 0.01
        ax.set(title=title, ylim=(min(found) - margin, max(found) + margin))
        ax.set_xticks(list(places.values()), list(places), fontsize=8)
        ax.legend()


if __name__ == "__main__":
    run_experiment(Experiment(name="order", arms=arms, measure=measure, draw=draw, num_axes=2), __doc__)
