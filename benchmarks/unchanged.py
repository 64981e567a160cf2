"""Check that this tree computes what another commit computes.

    python benchmarks/unchanged.py COMMIT [--notes CHECKPOINT]

For changes that must change no result. Both trees run on this machine with one thread, the other one in a worktree of
its own. It compares corpora of `examples/` in three vocabularies, byte for byte; sampled files, message by message,
without texts (the record of how a file was made is a text); losses and gradient norms of 20 training steps, and
scores, to the last digit. Sampling covers `small` from nothing and from a prime, in float32 and int8, one piece and
several, with and without guard and ending, and past a refill. `--notes` adds a checkpoint with one position a note.
Prints a table, and exits with 1 if anything differs or fails.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import mido

ROOT = Path(__file__).parent.parent
PRIME = ROOT / "examples" / "nothing-1.mid"
TOKENIZERS = ("performance", "piano", "notes")
SAMPLES = {
    "from nothing, fp32": "--length 600 --precision fp32 --seed 1",
    "from nothing, int8": "--length 600 --precision int8 --seed 2",
    "from nothing, no kernel": "--length 300 --precision fp32 --no-compile --seed 3",
    "no filters": "--length 400 --precision fp32 --top-p 1 --let-go 0 --seed 4",
    "all filters": "--length 400 --precision fp32 --temperature 0.9 --top-k 40 --min-p 0.02 --typical-p 0.95 --seed 5",
    "temperatures of classes": "--length 400 --precision int8 --temperature-time 0.8 --temperature-pitch 1.1 --seed 6",
    "continued, fp32": f"--prime {PRIME} --prime-to 20 --length 600 --precision fp32 --seed 7",
    "continued, int8": f"--prime {PRIME} --length 400 --precision int8 --seed 8",
    "three pieces": "--num 3 --seconds 20 --precision fp32 --seed 9",
    "three pieces of a prime": f"--prime {PRIME} --prime-to 10 --num 3 --seconds 10 --precision int8 --seed 10",
    "an ending": "--seconds 25 --end --precision int8 --seed 11",
    "the best of three": "--best-of 3 --seconds 15 --precision int8 --seed 12",
    "few latents, short context": "--length 500 --num-latents 64 --context-length 256 --precision fp32 --seed 13",
    "refill all": "--length 200 --num-latents 32 --refill all --precision fp32 --seed 14",
}
SAMPLES_OF_NOTES = {
    "notes": "--length 400 --seed 1",
    "three pieces of notes": "--num 3 --seconds 30 --seed 2",
}
TRAINING = "--size tiny --steps 20 --batch-size 2 --no-compile --precision fp32 --device cpu --validate-every 10"


class Tree:
    """A checkout, and a folder in which its commands run."""

    def __init__(self, code: Path, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}

    def run(self, *words: object) -> bytes:
        """Return what a command of this tree prints on standard output.

        Raises:
            RuntimeError: it failed.
        """
        command = [sys.executable, "-m", "pamusic", *map(str, words)]
        done = subprocess.run(command, cwd=self.folder, env=self._environment, capture_output=True)
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace").strip().splitlines()[-1])
        return done.stdout


def corpus(tree: Tree, tokenizer: str) -> object:
    tree.run("tokenize", ROOT / "examples", "--tokenizer", tokenizer, "--out", f"corpus-{tokenizer}", "--workers", 1)
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((tree.folder / f"corpus-{tokenizer}").iterdir())
        if path.suffix != ".json"  # it says which version wrote it
    }


def music(tree: Tree, checkpoint: str, options: str) -> object:
    """Return all messages of all files except texts; the record is a text."""
    out = tree.folder / hashlib.sha256(f"{checkpoint} {options}".encode()).hexdigest()[:12]
    out.mkdir()
    tree.run("sample", "--checkpoint", checkpoint, *options.split(), "-o", out / "a.mid")
    return {
        path.name: [[str(m) for m in track if m.type != "text"] for track in mido.MidiFile(path).tracks]
        for path in sorted(out.iterdir())
    }


def losses(tree: Tree, tokenizer: str) -> object:
    tree.run("train", f"corpus-{tokenizer}", "--out", f"run-{tokenizer}", *TRAINING.split())
    with (tree.folder / f"run-{tokenizer}" / "metrics.csv").open(newline="") as file:
        return [(row["step"], row["split"], row["nats_per_token"], row["grad_norm"]) for row in csv.DictReader(file)]


def score(tree: Tree, checkpoint: str, tokenizer: str) -> object:
    words = "--split train --context-length 1024 --num-latents 128 --precision fp32 --json"
    said = json.loads(tree.run("evaluate", checkpoint, f"corpus-{tokenizer}", *words.split()))
    return {name: value for name, value in said.items() if name != "checkpoint"}


def checks(notes: str | None) -> dict[str, Callable[[Tree], object]]:
    """Return the compared values by name, in order."""
    found: dict[str, Callable[[Tree], object]] = {}
    for name in TOKENIZERS:
        found[f"corpus: {name}"] = lambda tree, name=name: corpus(tree, name)  # type: ignore[misc]
    for name in TOKENIZERS:
        found[f"20 steps: {name}"] = lambda tree, name=name: losses(tree, name)  # type: ignore[misc]
    found["score: small"] = lambda tree: score(tree, "small", "performance")
    for name, options in SAMPLES.items():
        found[f"sample: {name}"] = lambda tree, o=options: music(tree, "small", o)  # type: ignore[misc]
    if notes is not None:
        found["score: notes"] = lambda tree: score(tree, notes, "notes")
        for name, options in SAMPLES_OF_NOTES.items():
            found[f"sample: {name}"] = lambda tree, o=options: music(tree, notes, o)  # type: ignore[misc]
    return found


def found_by(check: Callable[[Tree], object], tree: Tree) -> tuple[object, str]:
    """Return the result of a check, or None and the reason of its failure."""
    try:
        return check(tree), ""
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        return None, f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--notes", help="a checkpoint with one position a note")
    parser.add_argument("--only", default="", help="checks with this in their name")
    asked = parser.parse_args()
    notes = None if asked.notes is None else str(Path(asked.notes).resolve())
    num_differing = 0
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", before, asked.commit], cwd=ROOT, check=True)
        try:
            there, here = Tree(before, Path(folder) / "there"), Tree(ROOT, Path(folder) / "here")
            print(f"| against {asked.commit} | |\n|---|---|", flush=True)
            for name, check in checks(notes).items():
                if asked.only not in name and not name.startswith("corpus"):
                    continue
                (was, why_not), (now, why) = found_by(check, there), found_by(check, here)
                same = was is not None and was == now
                num_differing += not same
                failed = "; ".join(f"{which}: {each}" for which, each in (("before", why_not), ("now", why)) if each)
                print(f"| {name} | {'same' if same else failed or 'DIFFERS'} |", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    return 1 if num_differing else 0


if __name__ == "__main__":
    sys.exit(main())
