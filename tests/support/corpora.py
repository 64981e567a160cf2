"""Small corpora for tests, made of nothing."""

from pathlib import Path

import numpy as np

from pamusic.corpus.corpus import Corpus, open_corpus
from pamusic.corpus.writer import writing_corpus
from pamusic.tokens.grid import GridNotes
from pamusic.tokens.tokenizer import load_tokenizer


def random_grid(num_notes: int, seed: int = 0) -> GridNotes:
    """Notes on the grid, as an encoder could have seen them: no key is struck while it sounds."""
    rng = np.random.default_rng(seed)
    onset = np.cumsum(rng.integers(0, 30, num_notes))
    offset, pitch = onset + rng.integers(1, 80, num_notes), rng.integers(40, 80, num_notes)
    order = np.lexsort((pitch, onset))
    onset, offset, pitch = onset[order], offset[order], pitch[order]
    free = [not np.any((pitch[:i] == pitch[i]) & (offset[:i] > onset[i])) for i in range(num_notes)]
    return GridNotes(onset[free], offset[free], pitch[free], rng.integers(10, 30, num_notes)[free])


def small_corpus(
    folder: Path,
    *,
    notes_of_pieces=(120, 300, 40),
    splits=("train", "train", "validation"),
    tokenizer="performance",
) -> Corpus:
    """A corpus of random pieces."""
    tokenizer = load_tokenizer(tokenizer)
    with writing_corpus(folder, tokenizer) as writer:
        for index, (num_notes, split) in enumerate(zip(notes_of_pieces, splits, strict=True)):
            grid = random_grid(num_notes, seed=index)
            ids = tokenizer.ids_from_grid(grid)
            seconds = float(grid.offset.max()) / 100
            writer.add(
                ids, name=f"{index}.mid", split=split, num_notes=num_notes, seconds=seconds, sha256=f"{index:064x}"
            )
        writer.close(sources=[], refused=[])
    return open_corpus(folder)
