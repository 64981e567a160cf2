"""Run `pamusic page`: write an HTML file that shows and plays MIDI files. Knows options and words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from pamusic.cli.output import STREAM, check_apart, check_kind, output
from pamusic.cli.terminal import log, progress
from pamusic.errors import PamusicError

if TYPE_CHECKING:
    from pamusic.music.midi import Tracks
    from pamusic.page.document import Piece


def page(
    files: Annotated[
        list[Path], Argument(help="Show these MIDI files, folders or zips; - is stdin.", show_default=False)
    ],
    out: Annotated[
        Path | None, Option("--out", "-o", help="Write here; - is stdout. (default: page.html or a free name)")
    ] = None,
    title: Annotated[str, Option(help="Set the title.")] = "Piano music",
    tracks: Annotated[str, Option(help="Read these tracks: piano, all (no drums), or numbers.")] = "piano",
) -> None:
    """Make one HTML file that shows MIDI files as piano rolls and plays them in any browser, offline.

    For files of pamusic sample it shows the command, and where the prime ends.
    """
    from pamusic.music.midi import parsed_tracks
    from pamusic.page.document import document

    taken = parsed_tracks(tracks)
    check_kind(out, "HTML", (".html", ".htm", ""))
    if out is not None and out != STREAM:
        for file in files:
            check_apart(out, file)
    lengths: list[float] = []
    with output(out, Path("page.html"), sources=[], kind="page") as place:
        made = document(_pieces(files, taken, lengths), title)
        place.write(made)
    what = "piece" if len(lengths) == 1 else "pieces"
    log(f"{len(lengths)} {what}, {sum(lengths):.1f} seconds, {len(made) / 1000:,.0f} kB")


def _pieces(files: list[Path], tracks: Tracks, lengths: list[float]) -> Iterator[Piece]:
    """Yield the pieces of files, in order; for folders and archives skip unreadable files, with a log line for each.

    It yields one at a time, so that a page that becomes too large is refused before all files are read.

    Args:
        files: Paths from the user; standard input comes first.
        tracks: Tracks to read from each file.
        lengths: List that receives the seconds of each piece.

    Raises:
        PamusicError: a file given by path cannot be read, or there is no piece.
    """
    from pamusic.cli.midi_input import print_left_out, read_with_bytes
    from pamusic.cli.reports.provenance import piece_of
    from pamusic.corpus.sources import find_sources
    from pamusic.music.midi import read_midi

    if STREAM in files:
        performance, data, _ = read_with_bytes(STREAM, tracks)
        lengths.append(performance.duration)
        yield piece_of("standard input", data, performance)
    named = [file for file in files if file != STREAM]
    sources, refused, left_out = find_sources(named) if named else ([], [], [])
    print_left_out(left_out)
    for refusal in refused:
        log(f"{refusal.name}: {refusal.reason}; left out")
    before = len(lengths)
    for source in progress(sources, what="page", unit="file"):
        try:
            data = source.read()
            piece = piece_of(source.name, data, read_midi(data, source.name, tracks=tracks))
        except PamusicError as error:
            if Path(source.path) in named:
                raise
            log(f"{error}; left out")
        else:
            lengths.append(piece.performance.duration)
            yield piece
    if sources and len(lengths) == before:
        raise PamusicError(f"{', '.join(map(str, named))}: none of the {len(sources)} MIDI files can be shown")
