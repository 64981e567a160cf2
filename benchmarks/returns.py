"""Measure how often earlier passages are continued: `python benchmarks/returns.py samples/ [maestro/ --split test]`.

A passage matches an earlier one if the last keys are the same, in the same order (by onset, then by pitch). For each
note the longest match counts, the nearest of equals. The table shows, by the length and the lag of the match, how many
notes have one, and the chance that the note is the one that followed then. Music that returns has high chances: matches
begin by chance, and are continued on purpose. Prints a table in Markdown, and the share of notes that are part of long
exact matches.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pamusic.corpus.sources import find_sources
from pamusic.music.midi import read_midi

LAGS = ((0.0, 2.0), (2.0, 12.0), (12.0, 60.0), (60.0, np.inf))  # seconds
LENGTHS = ((3, 4), (5, 7), (8, 12), (13, 10**9))  # keys in a row


def counts_of(onset: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return `[lags, lengths, 2]`: notes with a match, and those of them that continue it.

    Args:
        onset: Onsets in seconds, `[n]`, sorted.
        keys: Pitches, `[n]`.
    """
    counts = np.zeros((len(LAGS), len(LENGTHS), 2), np.int64)
    length = np.zeros(len(keys), np.int64)  # of the match that ends before each earlier note
    for i in range(1, len(keys)):
        same = keys[: i - 1] == keys[i - 1]
        length[1:i] = np.where(same, length[: i - 1] + 1, 0)
        if length[1:i].max(initial=0) >= LENGTHS[0][0]:
            j = i - 1 - int(length[1:i][::-1].argmax())
            row = next(place for place, (_, longest) in enumerate(LAGS) if onset[i] - onset[j] <= longest)
            column = next(place for place, (_, most) in enumerate(LENGTHS) if length[j] <= most)
            counts[row, column] += 1, int(keys[j] == keys[i])
    return counts


def num_in_long_matches(onset: np.ndarray, keys: np.ndarray) -> int:
    """Return the number of notes that are part of a match of the longest class, 2 to 60 seconds ago."""
    least, is_inside = LENGTHS[-1][0], np.zeros(len(keys), bool)
    length = np.zeros(len(keys), np.int64)  # of the match that ends with each earlier note
    for i in range(1, len(keys)):
        longer = np.concatenate([[0], length[: i - 1]]) + 1
        length[:i] = np.where(keys[:i] == keys[i], longer, 0)
        longest = int(length[:i].max())
        j = i - 1 - int(length[:i][::-1].argmax())
        if longest >= least and 2.0 < onset[i] - onset[j] <= 60.0:
            is_inside[i - longest + 1 : i + 1] = True
    return int(is_inside.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--split", help="of a folder with MAESTRO's table")
    parser.add_argument("--seconds", type=float, default=180, help="read of each piece")
    words = parser.parse_args()
    counts, num_notes, num_pieces, num_inside = np.zeros((len(LAGS), len(LENGTHS), 2), np.int64), 0, 0, 0
    for source in find_sources(words.folder)[0]:
        if words.split is not None and source.split != words.split:
            continue
        notes = read_midi(source.read(), source.name).notes
        notes = np.sort(notes[notes["onset"] < words.seconds], order=["onset", "pitch"])
        counts += counts_of(notes["onset"], notes["pitch"])
        num_inside += num_in_long_matches(notes["onset"], notes["pitch"])
        num_notes, num_pieces = num_notes + len(notes), num_pieces + 1
    names = [f"{least} to {most}" if most < 10**9 else f"{least} and more" for least, most in LENGTHS]
    print(f"{num_pieces} pieces, {num_notes:,} notes; chance to continue (share of notes with such a match)\n")
    print("| seconds ago | " + " | ".join(f"{name} keys" for name in names) + " |")
    print("|---" * (len(LENGTHS) + 1) + "|")
    for (shortest, longest), row in zip(LAGS, counts, strict=True):
        shares = [(hits / max(found, 1), 100 * found / num_notes) for found, hits in row.tolist()]
        cells = [f"{chance:.2f} ({share:.2f} %)" if share else "– (0 %)" for chance, share in shares]
        name = f"{shortest:g} to {longest:g}" if longest < np.inf else f"more than {shortest:g}"
        print(f"| {name} | {' | '.join(cells)} |")
    share = 100 * num_inside / max(1, num_notes)
    print(f"\nNotes in exact matches of {LENGTHS[-1][0]} keys and more, 2 to 60 seconds ago: {share:.2f} %")


if __name__ == "__main__":
    main()
