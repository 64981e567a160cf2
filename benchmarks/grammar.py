"""Check that the grammar allows every sequence that the encoder writes for MAESTRO, and measure its cost a token.

    python benchmarks/grammar.py maestro-v3.0.0-midi.zip

Every piece is encoded by both vocabularies and followed by the grammar to its end, many pieces at a time. A masked id
is a violation and is printed. Then the time of a token is measured as the sampler uses the grammar: compute the mask,
then advance by one id. It is CPU time on one thread, for one row and for sixteen, the best of several runs, because
other programs may be running. Prints a table in Markdown and writes it to `benchmarks/results/`. Exits with 1 if
there is a violation.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pamusic import __version__
from pamusic.corpus.sources import Source, find_sources
from pamusic.music.midi import read_midi
from pamusic.sampling.constraints import GrammarTables
from pamusic.sampling.grammar_state import BatchGrammarState, GrammarState
from pamusic.tokens.grammar import grammar_arrays
from pamusic.tokens.tokenizer import Tokenizer, load_tokenizer

NAMES = ("performance", "piano")
TOGETHER = 128  # pieces followed at a time
TIMED_TOKENS, REPEATS = 4000, 5
RESULTS = Path(__file__).parent / "results"


def select_pieces(source: Source) -> tuple[int, float, list[np.ndarray]]:
    """Return (notes, seconds, the ids in each vocabulary with their end)."""
    performance = read_midi(source.read(), source.name)
    tokenizers = [load_tokenizer(name) for name in NAMES]
    return (
        len(performance),
        performance.duration,
        [np.append(each.encode(performance), each.vocabulary.id("end")) for each in tokenizers],
    )


def violations(name: str, pieces: list[np.ndarray]) -> list[tuple[int, int, tuple[str, int]]]:
    """Return (piece, place, event) of each id that is masked at its place."""
    torch.set_num_threads(1)
    vocabulary = load_tokenizer(name).vocabulary
    rows = BatchGrammarState(GrammarTables(**grammar_arrays(vocabulary)), len(pieces))
    padded = torch.full((len(pieces), max(map(len, pieces))), vocabulary.id("pad"))
    for row, ids in enumerate(pieces):
        padded[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    lengths = torch.tensor([len(ids) for ids in pieces])
    found = []
    for place, ids in enumerate(padded.T.contiguous()):
        broken = rows.forbidden().gather(1, ids[:, None])[:, 0] & (place < lengths)
        if broken.any():
            found += [(int(row), place, vocabulary.event(int(ids[row]))) for row in broken.nonzero()]
        rows.advance(ids)
    return found


def microseconds_of_row(tokenizer: Tokenizer, ids: list[int]) -> float:
    rules, best = GrammarTables(**grammar_arrays(tokenizer.vocabulary)), float("inf")
    for _ in range(REPEATS):
        row = GrammarState(rules)
        begun = time.process_time()
        for id in ids:
            row.forbidden()
            row.advance((id,))
        best = min(best, time.process_time() - begun)
    return best / len(ids) * 1e6


def microseconds_of_rows(tokenizer: Tokenizer, ids: torch.Tensor) -> float:
    """Return the seconds of a token of `[tokens, rows]`."""
    rules, best = GrammarTables(**grammar_arrays(tokenizer.vocabulary)), float("inf")
    for _ in range(REPEATS):
        rows = BatchGrammarState(rules, ids.shape[1])
        begun = time.process_time()
        for column in ids:
            rows.forbidden()
            rows.advance(column)
        best = min(best, time.process_time() - begun)
    return best / ids.numel() * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", default=os.environ.get("PAMUSIC_MAESTRO"), help="MAESTRO's zip")
    parser.add_argument("--files", type=int, help="number of pieces; all by default")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    words = parser.parse_args()
    if not words.archive:
        parser.error("name MAESTRO's zip, or set PAMUSIC_MAESTRO")

    sources = find_sources([Path(words.archive)])[0][: words.files]
    rows, num_violations = [], 0
    torch.set_num_threads(1)
    with ProcessPoolExecutor(words.processes) as pool:
        read = list(pool.map(select_pieces, sources, chunksize=8))
        notes, seconds = sum(piece[0] for piece in read), sum(piece[1] for piece in read)
        for index, name in enumerate(NAMES):
            pieces = sorted((piece[2][index] for piece in read), key=len)
            chunks = [pieces[i : i + TOGETHER] for i in range(0, len(pieces), TOGETHER)]
            found = [each for chunk in pool.map(partial(violations, name), chunks[::-1]) for each in chunk]
            for piece, place, event in found:
                print(f"{name}: {event} is barred as id {place} of piece {piece} of its chunk", file=sys.stderr)
            num_violations += len(found)
            tokens = sum(map(len, pieces)) - len(pieces)
            rows.append([name, f"{len(pieces):,}", f"{tokens:,}", f"{tokens / notes:.3f}", f"{tokens / seconds:.1f}"])
            rows[-1].append(f"**{len(found)}**")
            print(f"{name}: {tokens:,} tokens, {len(found)} violations", file=sys.stderr)
    for row, name in zip(rows, NAMES, strict=True):
        tokenizer = load_tokenizer(name)
        longest = sorted((piece[2][NAMES.index(name)] for piece in read), key=len)[-16:]
        length = min(TIMED_TOKENS, *map(len, longest))
        ids = torch.from_numpy(np.stack([piece[:length] for piece in longest]).astype(np.int64)).T.contiguous()
        one, many = microseconds_of_row(tokenizer, ids[:, 0].tolist()), microseconds_of_rows(tokenizer, ids)
        row += [f"{one:.1f}", f"{many:.1f}", f"{many * ids.shape[1]:.0f}"]
    lines = [
        "# The grammar against all that the encoder writes",
        "",
        f"`python benchmarks/grammar.py {Path(words.archive).name}`, {datetime.date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"pamusic {__version__}. "
        "Microseconds of CPU time.",
        "",
        "| vocabulary | pieces | tokens | a note | a second | violations | µs a token, 1 row | 16 rows | step of 16 |",
        "|---|---|---|---|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    if not words.files:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"grammar-{datetime.date.today()}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 1 if num_violations else 0


if __name__ == "__main__":
    sys.exit(main())
