"""Measure whether a continuation stays with its prime: `python benchmarks/continuations.py maestro/ [CHECKPOINT]`.

Each of the first 100 test pieces that last two minutes is cut after 60 seconds and continued for 20. Three changes from
the 20 seconds before the cut to the 20 after it are measured, and compared with the same change where the pianist
continues, at a cut in every 20 seconds of all test pieces:

- density: the ratio of notes a second, as the size of its logarithm to the base 2;
- velocity: the difference of the means;
- key: half the sum of differences of the two distributions over pitch classes, by time held (0: the same; 1: disjoint).

The table has the 90th percentile of each change in real music, and how many continuations stay within it. Real music at
the same 100 cuts is the reference: with all three together, fewer than 90 in 100 stay within. Prints a table in
Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import pamusic
from pamusic.corpus.sources import find_sources
from pamusic.music.midi import read_midi
from pamusic.music.performance import Performance

NUM_PRIMES, CUT, SPAN = 100, 60.0, 20.0  # seconds
CHANGES = ("density", "velocity", "key")


def changes_at(music: Performance, cut: float) -> np.ndarray | None:
    """Return the three changes at a cut, `[3]`; None where a side has no notes."""
    onset, sides = music.notes["onset"], []
    for start in (cut - SPAN, cut):
        notes = music.notes[(onset >= start) & (onset < start + SPAN)]
        if not len(notes):
            return None
        held = np.minimum(notes["offset"], start + SPAN) - notes["onset"]
        classes = np.bincount(notes["pitch"] % 12, weights=held, minlength=12)
        sides.append((len(notes), notes["velocity"].mean(), classes / classes.sum()))
    (count, velocity, classes), (count_after, velocity_after, classes_after) = sides
    key = np.abs(classes_after - classes).sum() / 2
    return np.array([abs(np.log2(count_after / count)), abs(velocity_after - velocity), key])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maestro", type=Path)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--returns", default="auto")
    given = parser.parse_args()

    test = [source for source in find_sources([given.maestro])[0] if source.split == "test"]
    pieces = [read_midi(source.read(), source.name) for source in sorted(test, key=lambda source: source.name)]
    cuts = [(piece, cut) for piece in pieces for cut in np.arange(SPAN, piece.duration - SPAN, SPAN)]
    real = np.array([change for piece, cut in cuts if (change := changes_at(piece, cut)) is not None])
    limits = np.percentile(real, 90, axis=0)

    primes = [piece for piece in pieces if piece.duration >= 2 * CUT][:NUM_PRIMES]
    model, found = pamusic.load(given.checkpoint), []
    for seed, piece in enumerate(primes):
        longer = model.sample(piece, prime_end=CUT, seconds=SPAN, seed=seed, returns=given.returns).performance
        found.append(changes_at(longer, CUT))
    as_played = [changes_at(piece, CUT) for piece in primes]

    print(f"{model}, {len(primes)} continuations of {SPAN:.0f} s after {CUT:.0f} s, returns {given.returns}\n")
    print("| change | 90th percentile, real | within it, continued | within it, as played |\n|---|---|---|---|")
    within = [
        np.array([np.zeros(3, bool) if change is None else change <= limits for change in each])
        for each in (found, as_played)
    ]
    for place, name in enumerate(CHANGES):
        counts = [int(each[:, place].sum()) for each in within]
        print(f"| {name} | {limits[place]:.2f} | {counts[0]} of {len(primes)} | {counts[1]} of {len(primes)} |")
    counts = [int(each.all(1).sum()) for each in within]
    print(f"| all three | | {counts[0]} of {len(primes)} | {counts[1]} of {len(primes)} |")


if __name__ == "__main__":
    main()
