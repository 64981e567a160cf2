"""Run `pamusic inspect`: describe MIDI files, a corpus or a checkpoint. Knows which is which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pamusic.cli.midi_input import STREAM_NAME, streamed
from pamusic.cli.output import STREAM
from pamusic.cli.terminal import console, one_line, result
from pamusic.errors import PamusicError, UsageError

PIANO = "piano"


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="Inspect this MIDI file (- is stdin), folder, zip, corpus or checkpoint.",
            show_default=False,
        ),
    ],
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(help="Measure what this tokenizer keeps; repeatable. (default: all bundled)"),
    ] = None,
    tracks: Annotated[str, typer.Option(help="Read these tracks: piano, all (no drums), or numbers.")] = PIANO,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a MIDI file holds and what each tokenizer keeps of it, or describe a corpus or checkpoint."""
    about = _about(path, tokenizer, tracks)
    if as_json:
        result(json.dumps(about, indent=2))
        return
    from pamusic.cli.reports.inspect import tables

    result(one_line(about["name"]))
    for table in tables(about):
        console(stderr=False).print(table)


def _about(path: str, tokenizers: list[str] | None, tracks: str) -> dict[str, Any]:
    from pamusic.cli.reports import inspect as reports
    from pamusic.files import recovered

    place = Path(path)
    if place != STREAM and (recovered(place) / "corpus.json").is_file():
        from pamusic.corpus.corpus import open_corpus

        _refuse_options_of_midi("a corpus", tokenizers, tracks)
        return reports.about_corpus(open_corpus(place))
    if place != STREAM and _is_checkpoint(path):
        from pamusic.checkpoint import find_checkpoint, load_checkpoint

        _refuse_options_of_midi("a checkpoint", tokenizers, tracks)
        return reports.about_checkpoint(load_checkpoint(find_checkpoint(path)))

    from pamusic.music.midi import parsed_tracks
    from pamusic.tokens.tokenizer import load_tokenizer, shipped_tokenizers

    taken = parsed_tracks(tracks)
    measured = [load_tokenizer(name) for name in tokenizers or shipped_tokenizers()]
    if place == STREAM:
        return reports.about_midi(streamed(), STREAM_NAME, measured, taken)
    if not place.exists():
        raise PamusicError(f"{path}: no such file, folder or bundled checkpoint; check the name")
    from pamusic.corpus.sources import find_sources

    sources, refused, left_out = find_sources([place])
    if place.is_file() and [source.path for source in sources] == [str(place)]:
        return reports.about_midi(sources[0].read(), path, measured, taken)
    return reports.about_many(path, sources, refused, measured, taken) | {"left_out": left_out}


def _refuse_options_of_midi(what: str, tokenizers: list[str] | None, tracks: str) -> None:
    if tokenizers or tracks != PIANO:
        raise UsageError(f"--tokenizer and --tracks need MIDI files, got {what}; leave them out")


def _is_checkpoint(path: str) -> bool:
    """Return whether `find_checkpoint` would find a checkpoint, without loading torch."""
    from pamusic.resources import checkpoints_folder

    place = Path(path)
    parts = [checkpoints_folder() / path, place, place / "best", place / "last"]
    return bool(place.name) and any((part / "config.json").is_file() for part in parts)
