"""Count false alarms of the guard on real music, and measure its cost a token.

    python benchmarks/guard.py CORPUS [--split validation] [--pieces 100]

Pieces of a corpus, spread evenly over a split, are followed as if they were sampled. Each place where the guard would
go back is a false alarm. Further alarms within its look-back belong to the first one. Prints alarms an hour by kind and
CPU time a token, as Markdown, and each alarm to standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from pamusic.compose.token_stream import constraints_of
from pamusic.corpus.corpus import Corpus, open_corpus
from pamusic.sampling.constraints import Constraints
from pamusic.sampling.guard import DegenerationDetector, Detection, GuardConfig


def alarms_of(corpus: Corpus, piece: int, guard: GuardConfig, rules: Constraints) -> tuple[list[Detection], float]:
    """Return the false alarms of a piece, and its seconds."""
    watch = DegenerationDetector(guard, rules, [])
    alarms: list[Detection] = []
    latest = -np.inf
    for position in corpus.piece(piece).tolist():
        detection = watch.advance(position)
        if detection is not None:
            if detection.at > latest + guard.lookback_seconds:
                alarms.append(detection)
            latest = detection.at
    return alarms, watch.now


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--pieces", type=int, default=100)
    asked = parser.parse_args()

    corpus, guard = open_corpus(asked.corpus), GuardConfig()
    pieces = corpus.split(asked.split)
    pieces = [pieces[i] for i in np.unique(np.linspace(0, len(pieces) - 1, asked.pieces).round().astype(int))]
    rules = constraints_of(corpus.tokenizer.vocabulary)
    kinds, seconds, num_tokens, began = Counter[str](), 0.0, 0, time.process_time()
    for piece in pieces:
        alarms, lasts = alarms_of(corpus, piece, guard, rules)
        seconds, num_tokens = seconds + lasts, num_tokens + corpus.pieces[piece].num_tokens
        kinds.update(alarm.kind for alarm in alarms)
        for alarm in alarms:
            print(
                f"{corpus.pieces[piece].name}: {alarm.kind} from {alarm.since:.1f} to {alarm.at:.1f}", file=sys.stderr
            )
    hours, took = seconds / 3600, time.process_time() - began
    print(f"{len(pieces)} pieces of {asked.split}, {hours:.2f} hours, {took / num_tokens * 1e6:.1f} µs a token:\n")
    print("| detection | alarms | an hour |\n|---|---|---|")
    for kind in (*kinds, "in all"):
        count = kinds[kind] if kind in kinds else kinds.total()
        print(f"| {kind} | {count} | {count / hours:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
