"""How a command reads what MIDI it was given: from its places or from standard input, telling what was mended.

Knows streams and words.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from pamusic.cli.output import STREAM
from pamusic.cli.terminal import log
from pamusic.errors import PamusicError

if TYPE_CHECKING:
    from pamusic.music.midi import Tracks
    from pamusic.music.midi_contents import Repair
    from pamusic.music.performance import Performance

STREAM_NAME = "standard input"
MAX_NAMED = 3  # files of other kinds, of those that are left out


def read_telling(source: Path, tracks: Tracks) -> Performance:
    """Return the performance in a file, or in what comes from standard input; one line says what was mended in it.

    Raises:
        PamusicError: there is none.
    """
    return read_with_bytes(source, tracks)[0]


def read_with_bytes(source: Path, tracks: Tracks) -> tuple[Performance, bytes, tuple[Repair, ...]]:
    """As `read_telling`, with the file's bytes and what was mended."""
    from pamusic.music.midi import file_bytes, read_and_mend

    name = STREAM_NAME if source == STREAM else str(source)
    data = streamed() if source == STREAM else file_bytes(source)
    performance, repairs = read_and_mend(data, name, tracks=tracks)
    if repairs:
        log(f"{name}: {'; '.join(repair.words for repair in repairs)}")
    return performance, data, repairs


def read_all(paths: list[Path], tracks: Tracks) -> Iterator[tuple[str, Performance]]:
    """Yield each performance in files, folders and archives, and in standard input, with the place where it was found.

    Log and skip what cannot be read; log what was mended.

    Raises:
        PamusicError: a path does not exist, or nothing at all can be read.
    """
    from pamusic.corpus.sources import find_sources
    from pamusic.music.midi import read_and_mend

    named = [path for path in paths if path != STREAM]
    sources, refused, left_out = find_sources(named) if named else ([], [], [])
    print_left_out(left_out)
    for refusal in refused:
        log(f"{refusal.name}: {refusal.reason}")
    places = [(source.where, replace(source, name=source.where).read) for source in sources]
    if STREAM in paths:
        places.append((str(STREAM), streamed))
    unread: list[PamusicError] = []
    for place, read in places:
        name = STREAM_NAME if place == str(STREAM) else place
        try:
            performance, repairs = read_and_mend(read(), name, tracks=tracks)
        except PamusicError as error:
            unread.append(error)
            if len(unread) == len(places):
                raise
            log(error)
            continue
        if repairs:
            log(f"{name}: {'; '.join(repair.words for repair in repairs)}")
        yield place, performance


def print_left_out(names: Sequence[str]) -> None:
    """Tell what is left out, if anything."""
    if names:
        log(f"left out {left_out_words(names)}")


def left_out_words(names: Sequence[str]) -> str:
    """Return how many files of other kinds are left out, and the names of some."""
    kinds = Counter(PurePath(name).suffix.lower() or "without an ending" for name in names)
    counts = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    files = "1 file" if len(names) == 1 else f"{len(names):,} files"
    return f"{files} of other kinds ({counts}): {', '.join(names[:MAX_NAMED])}{more}"


def streamed() -> bytes:
    """Return what comes from standard input; if gzip has packed it, the unpacked bytes.

    Raises:
        PamusicError: it is closed, cannot be read, or is larger than any MIDI file of music.
    """
    from pamusic.music.foreign import read_file

    if sys.stdin is None:
        raise PamusicError(f"{STREAM_NAME} is closed; give the name of a file in place of -")
    try:
        return read_file(sys.stdin.buffer, STREAM_NAME)
    except OSError as error:
        raise PamusicError(f"{STREAM_NAME}: cannot be read ({error.strerror}); give a MIDI file") from None
