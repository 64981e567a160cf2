"""How a command reads a MIDI file that it was given: from its place or from standard input, telling what was mended.

Knows streams and words.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pamusic.cli.output import STREAM
from pamusic.cli.terminal import say
from pamusic.errors import PamusicError

if TYPE_CHECKING:
    from pamusic.music.contents import Repair
    from pamusic.music.midi import Tracks
    from pamusic.music.performance import Performance


def read_telling(source: Path, tracks: Tracks) -> Performance:
    """The performance in a file, or in what comes from standard input; one line says what was mended in it.

    Raises:
        PamusicError: there is none.
    """
    return read_with_bytes(source, tracks)[0]


def read_with_bytes(source: Path, tracks: Tracks) -> tuple[Performance, bytes, tuple[Repair, ...]]:
    """As `read_telling`, with the file's bytes and what was mended."""
    from pamusic.music.contents import MAX_FILE_BYTES
    from pamusic.music.midi import file_bytes, read_and_mend

    name = "standard input" if source == STREAM else str(source)
    data = _streamed(MAX_FILE_BYTES + 1) if source == STREAM else file_bytes(source)
    performance, repairs = read_and_mend(data, name, tracks=tracks)
    if repairs:
        say(f"{name}: {'; '.join(repair.words for repair in repairs)}")
    return performance, data, repairs


def _streamed(most: int) -> bytes:
    """What comes from standard input, and of that no more bytes than these."""
    if sys.stdin is None:
        raise PamusicError("standard input is closed; give the name of a file in place of -")
    try:
        return sys.stdin.buffer.read(most)
    except OSError as error:
        raise PamusicError(f"standard input: cannot be read ({error.strerror}); give a MIDI file") from None
