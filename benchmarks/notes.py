"""The model of notes in a given time, on whatever machine: `python benchmarks/notes.py CORPUS OUT --seconds 480`.

For a GPU that is there for some minutes, or a core that works for hours. It measures the time of a step on the first
150 steps. Then it trains for as many steps as fit into the seconds that are left: three quarters at a constant rate,
one quarter decaying (`--decay`). Then it scores the averaged weights on the validation split. `notes.toml` describes
the model.

    pamusic tokenize maestro-v3.0.0-midi.zip --tokenizer notes --out notes
    python -m pytest -q -m gpu && python benchmarks/notes.py notes runs/notes --seconds 480

Compiling and measuring are part of the seconds; scoring is not. `pamusic train --resume OUT` continues a run that was
interrupted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from representations import seconds_a_step

RECIPE = Path(__file__).parent / "notes.toml"
MEASURED = 150  # steps


def pamusic(*words: object) -> None:
    """Run a command; if it fails, it has printed the reason."""
    if code := subprocess.run([sys.executable, "-m", "pamusic", *map(str, words)]).returncode:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--decay", type=float, default=0.25, help="share of the steps with a decaying rate")
    parser.add_argument(
        "--batch-size", type=int, default=32 if torch.cuda.is_available() else 4,
        help="windows a step (default: 32 on a GPU, else 4)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    pamusic(
        "train", asked.corpus, "--out", asked.out, "--config", RECIPE, "--batch-size", asked.batch_size, "--seed",
        asked.seed, "--steps", MEASURED, "--cooldown-steps", 0, "--compile",
    )  # fmt: skip
    took = time.monotonic() - began
    left = asked.seconds - 1.5 * took  # half of it: the model is compiled once more
    if left <= 0:
        sys.exit(f"measuring took {took:.0f} of {asked.seconds:.0f} seconds; give at least {2 * took:.0f}")
    steps = MEASURED + round(left / seconds_a_step(asked.out))
    decay = round(asked.decay * steps)
    pamusic("train", "--resume", asked.out, "--steps", steps, "--cooldown-steps", decay)
    pamusic("evaluate", asked.out, asked.corpus, "--split", "validation")


if __name__ == "__main__":
    main()
