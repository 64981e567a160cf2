"""`pamusic tokenize`: MIDI files to a corpus."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pamusic.cli.terminal import log, progress, result
from pamusic.errors import PamusicError

if TYPE_CHECKING:
    from tqdm import tqdm


class Engine(StrEnum):
    pamusic = "pamusic"
    note_seq = "note-seq"


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
    engine: Annotated[
        Engine, typer.Option(help="note-seq: the reference itself, a hundred times slower; tells where it differs.")
    ] = Engine.pamusic,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Leave out what has the same notes as a file before it.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.", show_default="as many as there are cores")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a corpus that is there.")] = False,
) -> None:
    """Turns MIDI files into a corpus of tokens to train on, split into train, validation and test.

    Interrupted, it goes on where it was when the same command is given again.
    """
    import time

    from pamusic.cli.reports.corpus import print_corpus
    from pamusic.corpus.build import tokenize as make_corpus
    from pamusic.corpus.writer import num_unfinished
    from pamusic.music.midi import parsed_tracks
    from pamusic.tokens.tokenizer import load_tokenizer

    began = time.perf_counter()
    bars: list[tqdm] = []  # made at the first file: a bar has a thread, and workers are best forked without

    def show(done: int, of: int) -> None:
        if not bars:
            bars.append(progress(total=of, what="tokenizing", unit="file"))
        bars[0].update(done - bars[0].n)

    try:
        summary = make_corpus(
            sources,
            out,
            load_tokenizer(tokenizer),
            tracks=parsed_tracks(tracks),
            engine=engine.value,
            drop_duplicates=drop_duplicates,
            force=force,
            num_workers=workers,
            progress=show,
        )
    except (KeyboardInterrupt, SystemExit, PamusicError):
        if bars and (num_done := num_unfinished(out)):
            bars[0].close()
            log(f"{num_done:,} of {bars[0].total:,} files are done; the same command goes on from there")
        raise
    finally:
        for bar in bars:
            bar.close()
    print_corpus(summary, out)
    log(f"{time.perf_counter() - began:.1f} seconds")
    result(out)
