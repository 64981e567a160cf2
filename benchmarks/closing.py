"""Measure where `--end-near-length` would close real pieces, and where it closed sampled ones.

    python benchmarks/closing.py CORPUS [--split validation] [--seconds 60 180]
    python benchmarks/closing.py SAMPLES --composed --seconds 60

Pieces of a split are followed as if they were sampled with a wanted length. Closing begins in a pause. The length of
this pause, and the number of pauses of the same length or longer in the tolerated time after the wanted length, show
how good the place is. The first pause after the wanted length is printed for comparison. Prints medians (and the
middle 80 %) over the pieces that are long enough, as Markdown.

For MIDI files that were sampled with `--end-near-length` it prints the last onset and the end of the sound, as shares
of the wanted length, and the seconds of sound after the last onset.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from pamusic.corpus.corpus import Corpus, open_corpus
from pamusic.corpus.sources import find_sources
from pamusic.evaluation.statistics import PerformanceFeatures
from pamusic.music.midi import read_midi
from pamusic.sampling.constraints import GrammarTables
from pamusic.sampling.ending import EndingConfig, Pauses
from pamusic.tokens.grammar import grammar_arrays


def closing_at(
    ids: np.ndarray, pauses: Pauses, seconds_of_id: np.ndarray, ending: EndingConfig, wanted: float
) -> float:
    """Return the second in which closing begins; infinite if the piece ends before."""
    now = 0.0
    for id in ids.tolist():
        pauses.advance(torch.tensor([id]))
        now += seconds_of_id[id]
        share = torch.tensor([now / wanted], dtype=torch.float64)
        if ending.closes(share, pauses.waited(), pauses.longest()):
            return now
    return float("inf")


def table(corpus: Corpus, split: str, wanted: float) -> list[str]:
    """Return the rows of one wanted length."""
    vocabulary, ending = corpus.tokenizer.vocabulary, EndingConfig()
    rules, seconds_of_id = GrammarTables(**grammar_arrays(vocabulary)), vocabulary.seconds_of_id
    found: dict[str, list[tuple[float, float, float]]] = {"at a breath": [], "at the first pause": []}
    for index in corpus.split(split):
        ids = corpus.piece(index)
        passed = np.cumsum(seconds_of_id[ids])
        opens = (ids >= rules.first_opening) & (ids < rules.first_opening + rules.num_slots)
        onsets = np.unique(passed[opens].round(3))
        if not len(onsets) or onsets[-1] < wanted * ending.deadline:
            continue
        tolerated = np.diff(onsets)[(onsets[:-1] > wanted) & (onsets[:-1] < wanted * ending.closing)]
        at = closing_at(ids, Pauses(rules, seconds_of_id.tolist(), [], 1), seconds_of_id, ending, wanted)
        for how, second in (("at a breath", at), ("at the first pause", wanted)):
            upcoming = int(np.searchsorted(onsets, second - 1e-3))  # which the last time shift may have reached
            pause = onsets[upcoming] - onsets[max(0, upcoming - 1)]
            found[how].append((second / wanted, pause, (tolerated >= pause - 1e-6).sum()))

    lines = []
    for how, rows in found.items():
        lines.append(f"| {wanted:g} | {len(rows)} | {how} | {' | '.join(cells(np.array(rows), (3, 2, 0)))} |")
    return lines


def cells(rows: np.ndarray, digits: tuple[int, ...]) -> list[str]:
    """Return the median of each column of `[pieces, columns]`, and its middle 80 %."""
    return [
        f"{middle:.{n}f} ({low:.{n}f} to {high:.{n}f})"
        for (low, middle, high), n in zip(np.quantile(rows, [0.1, 0.5, 0.9], axis=0).T, digits, strict=True)
    ]


def composed(folder: Path, wanted: float) -> str:
    """Return the row of the files of a folder."""
    found = []
    for source in find_sources([folder])[0]:
        heard = PerformanceFeatures(read_midi(source.read(), source.name))
        last, end = heard.onset.max(), heard.offset.max()
        found.append((last / wanted, end / wanted, end - last))
    return f"| {wanted:g} | {len(found)} | {' | '.join(cells(np.array(found), (3, 3, 1)))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0, 180.0])
    parser.add_argument("--composed", action="store_true", help="the inputs are sampled MIDI files")
    words = parser.parse_args()
    if words.composed:
        print("| seconds wanted | pieces | last stroke, share | end of sound, share | seconds it rings |")
        print("|---" * 5 + "|")
        for wanted in words.seconds:
            print(composed(words.corpus, wanted))
        return
    print("| seconds wanted | pieces | closing | share of them | seconds of the pause | pauses as long or longer |")
    print("|---" * 6 + "|")
    for wanted in words.seconds:
        print("\n".join(table(open_corpus(words.corpus), words.split, wanted)))


if __name__ == "__main__":
    main()
