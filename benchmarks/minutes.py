"""Measure whether music stays even over minutes: `python benchmarks/minutes.py samples/ [maestro/ --split test]`.

For each of the first minutes of MIDI files: the number of sounding notes (0 in silence) and of onsets a second, as
medians and means over the pieces; and the share of all these minutes with more sounding notes than the densest 5 % of
real minutes of the test split (`MANY`). Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pamusic.corpus.sources import find_sources
from pamusic.evaluation.statistics import STEP, PerformanceFeatures
from pamusic.music.midi import read_midi

MANY = 9.2  # strings at once, on average over a minute


def minutes(paths: list[Path], split: str | None, num_minutes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sounding notes and onsets a second, `[pieces, minutes]` each; NaN after a piece's last whole minute."""
    strings, notes = [], []
    a_minute = round(60 / STEP)
    for source in find_sources(paths)[0]:
        if split is not None and source.split != split:
            continue
        heard = PerformanceFeatures(read_midi(source.read(), source.name))
        at_once = (heard.roll > 0).sum(1)
        there = min(num_minutes, len(at_once) // a_minute)
        rest = [np.nan] * (num_minutes - there)
        strings.append([*(at_once[i * a_minute : (i + 1) * a_minute].mean() for i in range(there)), *rest])
        notes.append(
            [*(((heard.onset >= 60 * i) & (heard.onset < 60 * i + 60)).sum() / 60 for i in range(there)), *rest]
        )
    return np.array(strings), np.array(notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--split", help="of a folder with MAESTRO's table")
    parser.add_argument("--minutes", type=int, default=3)
    words = parser.parse_args()
    numbers = range(1, words.minutes + 1)
    print("| | " + " | ".join(f"minute {number}" for number in numbers) + f" | minutes with more than {MANY} |")
    print("|---" * (words.minutes + 2) + "|")
    strings, notes = minutes(words.folder, words.split, words.minutes)
    many = (strings[~np.isnan(strings)] > MANY).mean()
    for what, table in ((f"strings at once, {len(strings)} pieces: median (mean)", strings), ("notes a second", notes)):
        cells = [f"{np.nanmedian(column):.1f} ({np.nanmean(column):.1f})" for column in table.T]
        print(f"| {what} | {' | '.join(cells)} | {f'{100 * many:.0f} %' if table is strings else ''} |")
    print(f"\nFullest twentieth: above {np.nanquantile(strings, 0.95):.1f} strings at once.")


if __name__ == "__main__":
    main()
