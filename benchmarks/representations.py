"""Compare events, compound events and notes: the same music, the same size of model, the same training time.

    python benchmarks/representations.py corpora maestro-v3.0.0-midi.zip FOLDER
    python benchmarks/representations.py train FOLDER ARM SEED [--seconds 1133] [--config plain.toml]
    python benchmarks/representations.py sample FOLDER ARM SEED [--num-samples 32]
    python benchmarks/representations.py table maestro-v3.0.0-midi.zip FOLDER

There are six arms, in two groups. The arms of a group decode to the same music on a grid of 10 ms, in 32 velocity
bins:

- events-folded, compound-folded, notes-folded: the sustain pedal is folded into the notes' lengths.
- events, compound, notes: keys and pedals as played.

`corpora` makes a corpus for each arm. In all of them the notes of one step are ordered by pitch. In note-seq's order,
events would carry more information than the others. `train` trains a model of size `small`, with 2,048 positions of
context and 512 latents, for the given seconds of one core: three quarters at a constant rate, one quarter falling. It
measures the time of a step on its own first 400 steps, and takes the fastest tenth of them. On a core with other work
this is still too slow, and the run gets too few steps: run nothing else. Events have their ledger. `sample` makes
pieces of three minutes from nothing, without release bias and guard. Models of compound events and notes have the
default additions of `pamusic train`; `--config benchmarks/plain.toml` leaves them out. `table` prints for each run:
notes a second in training, notes seen, bits per note on 24 pieces of the validation split, by field, and the `pamusic
compare` of the pieces with the test split.

Train with `OMP_NUM_THREADS=1`. A budget must be longer than the first 400 steps take.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

VOCABULARIES = Path(__file__).parent / "vocabularies"
ARMS = {
    "events-folded": "performance",
    "compound-folded": str(VOCABULARIES / "compound-folded.toml"),
    "notes-folded": str(VOCABULARIES / "notes-folded.toml"),
    "events": str(VOCABULARIES / "events.toml"),
    "compound": str(VOCABULARIES / "compound.toml"),
    "notes": "notes",
}
CONTEXT, LATENTS, BATCH = 2048, 512, 4
LEVEL = 0.74  # share of the time at a level rate
FIRST_STEPS = 400  # on which the speed is measured
SAMPLED_AT_ONCE, FIRST_SEED = 16, 1000
VALIDATION_PIECES = 24


def pamusic(*words: object) -> str:
    """Return the standard output of a command."""
    done = subprocess.run([sys.executable, "-m", "pamusic", *map(str, words)], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def make_corpora(maestro: Path, folder: Path) -> None:
    from pamusic.corpus.corpus import open_corpus
    from pamusic.corpus.writer import writing_corpus
    from pamusic.music.midi import read_and_mend
    from pamusic.tokens.tokenizer import load_tokenizer

    for arm, tokenizer in ARMS.items():
        if arm != "events-folded":
            pamusic("tokenize", maestro, "--tokenizer", tokenizer, "--out", folder / arm)
    archive, tokenizer = zipfile.ZipFile(maestro), load_tokenizer(ARMS["events-folded"])
    with writing_corpus(folder / "events-folded", tokenizer) as writer:
        for piece in open_corpus(folder / "notes-folded").pieces:
            performance, _ = read_and_mend(archive.read(piece.name), piece.name)
            ids = tokenizer.encode(tokenizer.decode(tokenizer.encode(performance)))
            writer.add(
                ids, name=piece.name, split=piece.split, num_notes=piece.num_notes, seconds=piece.seconds,
                sha256=piece.sha256,
            )  # fmt: skip
        writer.close()


def rates(run: Path) -> list[float]:
    """Positions a second, of every ten steps but the first hundred."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train" and int(row["step"]) > 100]
    return [float(row["tokens_per_second"]) for row in rows]


def seconds_a_step(run: Path) -> float:
    """Return the time of a step on a core without other work: the fastest tenth of the rates."""
    with (run / "metrics.csv").open(newline="") as file:
        last = [row for row in csv.DictReader(file) if row["split"] == "train"][-1]
    return int(last["latent_tokens"]) / int(last["step"]) / float(np.percentile(rates(run), 90))


def train(folder: Path, arm: str, seed: int, seconds: float, config: Path | None) -> None:
    run = folder / f"{arm}-{seed}"
    more = [] if config is None else ["--config", config]
    pamusic(
        "train", folder / arm, "--out", run, "--size", "small", "--context-length", CONTEXT, "--num-latents", LATENTS,
        "--batch-size", BATCH, "--seed", seed, "--steps", FIRST_STEPS, "--cooldown-steps", 0, *more,
    )  # fmt: skip
    step = seconds_a_step(run)
    level, falling = round(LEVEL * seconds / step), round((1 - LEVEL) * seconds / step)
    pamusic("train", "--resume", run, "--steps", level + falling, "--cooldown-steps", falling)
    (run / "state.pt").unlink(missing_ok=True)


def sample(folder: Path, arm: str, seed: int, num: int) -> None:
    music = folder / f"{arm}-{seed}-music"
    music.mkdir(exist_ok=True)
    for first in range(0, num, SAMPLED_AT_ONCE):
        num_samples = min(SAMPLED_AT_ONCE, num - first)
        pamusic(
            "sample", "--checkpoint", folder / f"{arm}-{seed}", "--num-samples", num_samples, "--minutes", 3, "--seed",
            FIRST_SEED * seed + first, "--release-bias", 0, "--no-guard", "--out", music / f"from-{first}.mid",
        )  # fmt: skip


def about(maestro: Path, folder: Path, run: Path) -> dict[str, object]:
    """Return the figures of a run."""
    from pamusic.corpus.corpus import open_corpus

    arm, _, seed = run.name.rpartition("-")
    corpus = open_corpus(folder / arm)
    positions = sum(piece.num_tokens for piece in corpus.pieces) / sum(piece.num_notes for piece in corpus.pieces)
    with (run / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    scored = json.loads(
        pamusic("evaluate", run, folder / arm, "--split", "validation", "--max-pieces", VALIDATION_PIECES, "--json")
    )
    told: dict[str, object] = {
        "arm": arm,
        "seed": seed,
        "positions a note": round(positions, 3),
        "notes/s in training": round(np.percentile(rates(run), 90) / positions),
        "steps": last["step"],
        "million notes seen": round(int(last["latent_tokens"]) / positions / 1e6, 2),
        "bits per note": round(scored["bits_per_note"], 2),
    }
    told |= {
        name.removeprefix("bits_per_note_"): round(bits, 2)
        for name, bits in scored.items()
        if name.startswith("bits_per_note_")
    }
    music = folder / f"{run.name}-music"
    if music.is_dir():
        compared = json.loads(
            pamusic("compare", maestro, music, "--split", "test", "--seconds", 180, "--json", "--workers", 1)
        )
        means = {row["statistic"]: row["generated"] for row in compared["statistics"]}
        told["overlap"] = compared["overlap"]
        told |= {name: round(means[name]["mean"], 3) for name in ("density", "polyphony", "silence")}
        told["repetition, %"] = " / ".join(f"{100 * each:.2f}" for each in compared["repetition"]["generated"].values())
    return told


def print_table(maestro: Path, folder: Path) -> None:
    order = list(ARMS)
    runs = [
        path for path in folder.glob("*-*") if (path / "finished").is_file() and path.name.rpartition("-")[0] in ARMS
    ]
    rows = [
        about(maestro, folder, run)
        for run in sorted(runs, key=lambda r: (order.index(r.name.rpartition("-")[0]), r.name))
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row.get(name, "")) for name in names) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (("corpora", ("maestro", "folder")), ("table", ("maestro", "folder"))):
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word, type=Path)
    for name in ("train", "sample"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.add_argument("arm", choices=ARMS)
        command.add_argument("seed", type=int)
        if name == "train":
            command.add_argument("--seconds", type=float, default=1133)
            command.add_argument("--config", type=Path)
        else:
            command.add_argument("--num-samples", type=int, default=32)
    asked = parser.parse_args()
    if asked.command == "corpora":
        make_corpora(asked.maestro, asked.folder)
    elif asked.command == "train":
        train(asked.folder, asked.arm, asked.seed, asked.seconds, asked.config)
    elif asked.command == "sample":
        sample(asked.folder, asked.arm, asked.seed, asked.num)
    else:
        print_table(asked.maestro, asked.folder)


if __name__ == "__main__":
    main()
