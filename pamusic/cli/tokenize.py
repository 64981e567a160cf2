"""`pamusic tokenize`: MIDI files to a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pamusic.cli.terminal import console, progress, result, say

if TYPE_CHECKING:
    from tqdm import tqdm

    from pamusic.tokens.tokenizing import SplitCount, Summary

MOST_TOLD = 20  # repaired and refused files told on a terminal; all of them stand in the corpus


def tokenize(
    sources: Annotated[
        list[Path],
        typer.Argument(help="Folders, zip archives or MIDI files; MAESTRO keeps its splits.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The corpus: a folder.")] = Path("corpus"),
    tokenizer: Annotated[
        str, typer.Option(help="One that ships, by name, or a .toml file of your own.")
    ] = "performance",
    tracks: Annotated[str, typer.Option(help="piano; all (but drums); or numbers, like 1,3.")] = "piano",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.", show_default="as many as there are cores")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a corpus that is there.")] = False,
) -> None:
    """Turns MIDI files into a corpus of tokens to train on, split into train, validation and test."""
    import time

    from pamusic.music.midi import parsed_tracks
    from pamusic.tokens.tokenizer import load_tokenizer
    from pamusic.tokens.tokenizing import tokenize

    began = time.perf_counter()
    bars: list[tqdm] = []  # made at the first file: a bar has a thread, and workers are best forked without

    def show(done: int, of: int) -> None:
        if not bars:
            bars.append(progress(total=of, what="tokenizing", unit="file"))
        bars[0].update(done - bars[0].n)

    try:
        summary = tokenize(
            sources, out, load_tokenizer(tokenizer), tracks=parsed_tracks(tracks), force=force, num_workers=workers,
            progress=show,
        )  # fmt: skip
    finally:
        for bar in bars:
            bar.close()
    _tell(summary, out)
    say(f"{time.perf_counter() - began:.1f} seconds")
    result(out)


def _tell(summary: Summary, out: Path) -> None:
    from rich.table import Table

    table = Table()
    for column in ("split", "files", "notes", "hours", "tokens", "tokens a note"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, count in summary.splits.items():
        table.add_row(split, *_columns(count))
    table.add_section()
    table.add_row("in all", *_columns(summary.in_all))
    console().print(table)

    _tell_some([f"repaired: {name}: {words}" for name, words in summary.repaired], out)
    _tell_some([f"refused: {refusal.name}: {refusal.reason}" for refusal in summary.refused], out)
    if summary.num_repairs:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in summary.num_repairs.most_common())
        say(f"repaired in {len(summary.repaired):,} of {summary.in_all.num_files:,} files: {counts}")


def _tell_some(lines: list[str], out: Path) -> None:
    for line in lines[:MOST_TOLD]:
        say(line)
    if len(lines) > MOST_TOLD:
        say(f"… and {len(lines) - MOST_TOLD} more, in {out / 'corpus.json'}")


def _columns(count: SplitCount) -> list[str]:
    ratio = f"{count.num_tokens / count.num_notes:.2f}" if count.num_notes else "–"
    return [
        f"{count.num_files:,}",
        f"{count.num_notes:,}",
        f"{count.seconds / 3600:.2f}",
        f"{count.num_tokens:,}",
        ratio,
    ]
