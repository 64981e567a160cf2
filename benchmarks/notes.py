"""The model of notes in a given time, on whatever machine: `python benchmarks/notes.py CORPUS OUT --seconds 480`.

On a GPU that is lent for some minutes, or on one core that works for hours. It measures how long a step takes, then
trains for as many steps as fit: three quarters at a level rate, one quarter falling (`--falling`). Then it scores the
average of the weights on the validation split. The model is that of `notes.toml`. `--batch-size` is 4 windows a step on
a CPU and 32 on a GPU; with 32 the rates stay what they are, so take fewer only where memory asks for it.

    pamusic tokenize maestro-v3.0.0-midi.zip --tokenizer notes --out notes
    python -m pytest -q -m gpu && python benchmarks/notes.py notes runs/notes --seconds 480

Of the seconds, what compiling and measuring took is gone; what evaluating takes is not counted. Interrupted, it goes on
with `pamusic train --resume OUT`.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

RECIPE = Path(__file__).parent / "notes.toml"
MEASURED = 150  # steps on which the speed is measured; a model is compiled only where it pays


def pamusic(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "pamusic", *map(str, words)], check=True)


def seconds_a_step(run: Path) -> float:
    """The fastest tenth, of all reports but the first ones."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    positions = int(rows[-1]["latent_tokens"]) / int(rows[-1]["step"])
    return positions / float(np.percentile([float(row["tokens_per_second"]) for row in rows[3:]], 90))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--falling", type=float, default=0.25, help="share of the steps at a falling rate")
    parser.add_argument("--batch-size", type=int, default=32 if torch.cuda.is_available() else 4)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    pamusic(
        "train", asked.corpus, "--out", asked.out, "--config", RECIPE, "--batch-size", asked.batch_size, "--seed",
        asked.seed, "--steps", MEASURED, "--cooldown-steps", 0, "--compile",
    )  # fmt: skip
    left = asked.seconds - 1.5 * (time.monotonic() - began)  # the half: it is compiled once more
    steps = MEASURED + max(0, round(left / seconds_a_step(asked.out)))
    falling = round(asked.falling * steps)
    pamusic("train", "--resume", asked.out, "--steps", steps, "--cooldown-steps", falling)
    pamusic("evaluate", asked.out, asked.corpus, "--split", "validation")


if __name__ == "__main__":
    main()
