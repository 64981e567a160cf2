"""Measure minutes of real performances: the figures with which `evaluation/ranking.py` compares pieces.

    python benchmarks/typical.py maestro-v3.0.0-midi.zip [--checkpoint small --corpus corpus]

Each performance of MAESTRO's training split is cut into minutes from its first note on; an incomplete minute at its end
is left out. Prints a `ReferenceStatistic` for each statistic with one value: mean, standard deviation over all minutes,
and the root mean square of the difference between a minute and the next one of the same performance. With a checkpoint
and a corpus made by its tokenizer it also prints the mean nats per token of validation pieces, and the standard
deviation over pieces, on the first 4,096 tokens of each.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from pamusic.corpus.parallel import in_parallel
from pamusic.corpus.sources import Source, find_sources
from pamusic.evaluation.statistics import STATISTICS, Statistics, statistics
from pamusic.music.midi import read_midi

MINUTE = 60.0
TOKENS = 4096


def minutes_of(source: Source) -> list[Statistics]:
    """Return the statistics of each minute."""
    music = read_midi(source.read(), source.name)
    start = float(music.notes["onset"][0])
    starts = np.arange(start, music.duration - MINUTE, MINUTE).tolist()
    return [statistics(music.cropped(second, second + MINUTE)) for second in starts]


def print_typical(maestro: Path) -> None:
    sources = [source for source in find_sources([maestro])[0] if source.split == "train"]
    performances = [each for each in in_parallel(sources, minutes_of) if isinstance(each, list) and each]
    minutes = [minute for each in performances for minute in each]
    print(f"# {len(minutes):,} minutes of {len(performances):,} performances")
    for name in STATISTICS:
        if len(minutes[0][name]) == 1:
            values = np.array([minute[name][0] for minute in minutes])
            steps = np.concatenate([np.diff([minute[name][0] for minute in each]) for each in performances])
            drift = np.sqrt(np.mean(steps**2))
            print(f'    "{name}": ReferenceStatistic({values.mean():.4g}, {values.std():.4g}, {drift:.4g}),')


def print_nats(checkpoint: str, corpus: Path) -> None:
    from pamusic.checkpoint import find_checkpoint, load_checkpoint
    from pamusic.corpus.corpus import open_corpus
    from pamusic.evaluation.likelihood import score

    model, opened = load_checkpoint(find_checkpoint(checkpoint)).model, open_corpus(corpus)
    start = opened.tokenizer.vocabulary.id("start")
    nats = [
        score(model, np.concatenate([[start], opened.piece(index)[:TOKENS].astype(np.int64)]))[0].mean()
        for index in opened.split("validation")
    ]
    print(f"# {len(nats)} pieces: {np.mean(nats):.3f} nats per token, standard deviation {np.std(nats):.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maestro", type=Path, help="MAESTRO's folder or zip")
    parser.add_argument("--checkpoint", help="by name or folder")
    parser.add_argument("--corpus", type=Path, default=Path("corpus"), help="made with its tokenizer")
    asked = parser.parse_args()
    print_typical(asked.maestro)
    if asked.checkpoint:
        print_nats(asked.checkpoint, asked.corpus)
    return 0


if __name__ == "__main__":
    sys.exit(main())
