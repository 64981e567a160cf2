"""Read a command's MIDI input from paths or standard input, and log repairs.

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
MAX_NAMED = 3  # names of left-out files in a message


def read_telling(source: Path, tracks: Tracks) -> Performance:
    """Return the performance of a file or of standard input; log repairs in one line.

    Raises:
        PamusicError: it cannot be read, or has no music.
    """
    return read_with_bytes(source, tracks)[0]


def read_with_bytes(source: Path, tracks: Tracks) -> tuple[Performance, bytes, tuple[Repair, ...]]:
    """Return the result of `read_telling`, the bytes of the file, and its repairs."""
    from pamusic.music.midi import file_bytes, read_and_mend

    name = STREAM_NAME if source == STREAM else str(source)
    data = streamed() if source == STREAM else file_bytes(source)
    performance, repairs = read_and_mend(data, name, tracks=tracks)
    if repairs:
        log(f"{name}: {'; '.join(repair.words for repair in repairs)}")
    return performance, data, repairs


def read_all(paths: list[Path], tracks: Tracks) -> Iterator[tuple[str, Performance]]:
    """Yield each performance in files, folders, archives and standard input, with the place where it was found.

    Log and skip what cannot be read; log repairs.

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
    """Log the files that are left out, if any."""
    if names:
        log(f"left out {left_out_words(names)}")


def left_out_words(names: Sequence[str]) -> str:
    """Return the number of left-out files of other kinds, and some of their names."""
    kinds = Counter(PurePath(name).suffix.lower() or "without an ending" for name in names)
    counts = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    files = "1 file" if len(names) == 1 else f"{len(names):,} files"
    return f"{files} of other kinds ({counts}): {', '.join(names[:MAX_NAMED])}{more}"


def streamed() -> bytes:
    """Return the bytes of standard input, unpacked if gzip has packed them.

    Raises:
        PamusicError: it is closed, cannot be read, or is larger than any MIDI file of music.
    """
    from pamusic.music.foreign import read_file

    if sys.stdin is None:
        raise PamusicError(f"{STREAM_NAME} is closed; pass the name of a file instead of -")
    try:
        return read_file(sys.stdin.buffer, STREAM_NAME)
    except OSError as error:
        raise PamusicError(f"{STREAM_NAME}: cannot be read ({error.strerror}); use a MIDI file") from None
