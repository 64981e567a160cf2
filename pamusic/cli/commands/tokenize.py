"""Run `pamusic tokenize`: build a corpus from MIDI files. Knows options and words."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pamusic.cli.terminal import log, progress, result
from pamusic.errors import PamusicError
from pamusic.resources import DEFAULT_TOKENIZER

if TYPE_CHECKING:
    from tqdm import tqdm


class Engine(StrEnum):
    pamusic = "pamusic"
    note_seq = "note-seq"


def tokenize(
    sources: Annotated[
        list[Path],
        typer.Argument(help="Tokenize these folders, zip archives or MIDI files.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the corpus to this folder.")] = Path("corpus"),
    tokenizer: Annotated[str, typer.Option(help="Use this tokenizer: a name or a .toml file.")] = DEFAULT_TOKENIZER,
    tracks: Annotated[str, typer.Option(help="Read these tracks: piano, all (no drums), or numbers.")] = "piano",
    engine: Annotated[
        Engine, typer.Option(help="Tokenize by pamusic, or by note-seq, 100 times slower.")
    ] = Engine.pamusic,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Skip files with the notes of an earlier file.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Use this many processes.", show_default="as many as there are cores")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the corpus in the output folder.")] = False,
) -> None:
    """Turn MIDI files into a corpus of tokens, split into train, validation and test.

    MAESTRO keeps its own splits. To resume an interrupted run, give the same command again.
    """
    import time

    from pamusic.cli.reports.corpus import print_corpus
    from pamusic.corpus.build import tokenize as make_corpus
    from pamusic.corpus.writer import num_unfinished
    from pamusic.music.midi import parsed_tracks
    from pamusic.tokens.tokenizer import load_tokenizer

    began = time.perf_counter()
    bars: list[tqdm] = []  # created at the first file: a bar has a thread, and workers are best forked without threads

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
            force=overwrite,
            num_workers=workers,
            progress=show,
        )
    except (KeyboardInterrupt, SystemExit, PamusicError):
        if bars and (num_done := num_unfinished(out)):
            bars[0].close()
            log(f"{num_done:,} of {bars[0].total:,} files are done; give the same command to resume")
        raise
    finally:
        for bar in bars:
            bar.close()
    print_corpus(summary, out)
    log(f"{time.perf_counter() - began:.1f} seconds")
    result(out)
