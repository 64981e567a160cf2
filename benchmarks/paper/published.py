"""Measure the claim of Perceiver AR that it reaches the state of the art on MAESTRO: our number beside published ones.

    python benchmarks/paper/published.py MAESTRO [FOLDER] [--smoke]

Evaluates `small` under the official protocol: MAESTRO v3.0.0 with its splits, the 388 performance events with start and
end, each token predicted once from the context before it, the sum of nats divided by the number of tokens. The table
has the published numbers of the same vocabulary with their sources, and what differs. Numbers of another version of
MAESTRO, another vocabulary or another protocol are not comparable. `--smoke` scores 4 pieces of each split.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from common import RESULTS, add_rows, corpus, pamusic, read_rows

PAPER = "Hawthorne et al. 2022, arXiv:2202.07765"
PUBLISHED = [
    ("Music Transformer", "v1", "validation", 1.84, f"as reported by {PAPER}", "other version of MAESTRO"),
    ("Perceiver AR", "v1", "validation", 1.82, PAPER, "other version of MAESTRO"),
    ("Perceiver AR", "v1", "test", 1.82, PAPER, "other version of MAESTRO"),
    ("Perceiver AR", "v3", "validation", 1.90, PAPER, "about 166 M weights, a million steps, no augmentation"),
    ("Perceiver AR", "v3", "test", 1.91, PAPER, "about 166 M weights, a million steps, no augmentation"),
]
OURS = "6.0 M weights; transposition, stretch, ledger, recall in any key, mean of several runs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maestro", type=Path, help="MAESTRO: a folder or a zip archive")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/paper"), help="keep the corpus here")
    parser.add_argument("--smoke", action="store_true", help="4 pieces of each split")
    asked = parser.parse_args()

    from pamusic.compose.benchmark import machine

    path = RESULTS / ("published-smoke.csv" if asked.smoke else "published.csv")
    performance = corpus(asked.maestro, asked.folder, "performance")
    if not read_rows(path):
        add_rows(
            path,
            [
                {
                    "model": model, "maestro": version, "split": split, "nats_per_token": nats, "num_tokens": "",
                    "num_pieces": "", "source": source, "differs": differs, "date": "", "machine": "",
                }
                for model, version, split, nats, source, differs in PUBLISHED
            ],
        )  # fmt: skip
    for split in ("validation", "test"):
        if any(row["model"] == "small" and row["split"] == split for row in read_rows(path)):
            continue
        words = ["--max-pieces", 4] if asked.smoke else []
        told = json.loads(pamusic("evaluate", "small", performance, "--split", split, "--json", *words))
        add_rows(
            path,
            [
                {
                    "model": "small", "maestro": "v3", "split": split, "nats_per_token": told["nats_per_token"],
                    "num_tokens": told["num_tokens"], "num_pieces": told["num_pieces"], "source": "this command",
                    "differs": OURS, "date": datetime.date.today().isoformat(),
                    "machine": f"{machine()}, {told['precision']}",
                }
            ],
        )  # fmt: skip
    draw(path)
    print(f"{path}\n{path.with_suffix('.png')}")


def draw(path: Path) -> None:
    """Draw the numbers of MAESTRO v3 as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in read_rows(path) if row["maestro"] == "v3"]
    figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    names = [f"{row['model']}, {row['split']}" for row in rows]
    values = [float(row["nats_per_token"]) for row in rows]
    bars = ax.barh(names[::-1], values[::-1], color=["C0" if row["date"] else "C7" for row in rows[::-1]])
    ax.bar_label(bars, fmt="%.3f", padding=2)
    ax.set(xlabel="nats a token, MAESTRO v3, performance events", xlim=(min(values) - 0.1, max(values) + 0.05))
    figure.savefig(path.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
