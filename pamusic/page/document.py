"""Write one HTML file that shows and plays performances, from disk and without other files.

Knows performances, bytes and HTML; knows no tokens, no checkpoints, no options. The browser's part is in the files next
to this one: `page.html` and `page.css`; `music.js` (decodes the notes, and tracks the playback position), `piano.js`
(sound), `roll.js` (pictures), `player.js` (buttons and keys). This module assembles them.

All data from users' files (names, texts, music) is embedded as JSON without a single `<`, and the script shows it only
as text. Should a browser still take any of it for a script, it does not run it: the page's policy allows our own
scripts by their hashes, and nothing else, no connections either.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pamusic.errors import PamusicError
from pamusic.music.pedal import sounding_offsets
from pamusic.music.performance import Performance

BESIDE = Path(__file__).parent
SCRIPTS = ("music.js", "piano.js", "roll.js", "player.js")  # in this order
MAX_BYTES = 64 * 2**20  # about 1,000 pieces of three minutes; larger pages open slowly


@dataclass(frozen=True, eq=False)
class Piece:
    """One piece of a page.

    Attributes:
        name: Name of the piece, and of its file for downloads.
        performance: Performance to show and play.
        midi: Bytes of its MIDI file, for downloads.
        new_from: Second from which the music is new, after a prime; None if it is not known.
        facts: More about it, each (label, value).
        commands: Commands that make it again, each (purpose, command).
    """

    name: str
    performance: Performance
    midi: bytes
    new_from: float | None = None
    facts: tuple[tuple[str, str], ...] = ()
    commands: tuple[tuple[str, str], ...] = ()


def document(pieces: Iterable[Piece], title: str) -> bytes:
    """Return the HTML file, UTF-8; equal pieces give equal files.

    Raises:
        PamusicError: the file would be too large for browsers.
    """
    told: list[str] = []
    for piece in pieces:
        told.append(_harmless(_about(piece)))
        if sum(map(len, told)) > MAX_BYTES:
            raise PamusicError(
                f"with piece {len(told)} the page has more than {MAX_BYTES / 2**20:.0f} MiB, which browsers take long "
                "to open; name fewer files"
            )
    style, script = _file("page.css"), "\n".join(map(_file, SCRIPTS))
    parts = {
        "TITLE": html.escape(title),
        "STYLE": style,
        "STYLE_HASH": _source_of(style),
        "SCRIPT": script,
        "SCRIPT_HASH": _source_of(script),
        "PIECES": f"[{','.join(told)}]",
    }
    page = re.sub(r"@@(\w+)@@", lambda mark: parts[mark[1]], _file("page.html"))
    return page.encode("utf-8", "replace")


def packed_notes(performance: Performance) -> bytes:
    """Return the notes in order, five numbers each: three times in milliseconds, pitch, velocity.

    The times are: from the last onset, until the key's release, and until the end of the sound. The last is 0 if the
    key has its next onset at once.
    """
    notes = performance.notes
    onset = _milliseconds(notes["onset"])
    key, sound = (_milliseconds(each) - onset for each in (notes["offset"], sounding_offsets(performance)))
    return _packed(np.diff(onset, prepend=0), key, sound, notes["pitch"], notes["velocity"])


def packed_pedal(performance: Performance) -> bytes:
    """Return the pedal movements in order, three numbers each: milliseconds since the last, control, value."""
    pedal = performance.pedal
    return _packed(np.diff(_milliseconds(pedal["time"]), prepend=0), pedal["control"], pedal["value"])


def _about(piece: Piece) -> dict[str, Any]:
    performance = piece.performance
    return {
        "name": piece.name,
        "seconds": round(performance.duration, 3),
        "newFrom": None if piece.new_from is None else round(piece.new_from, 3),
        "facts": piece.facts,
        "commands": piece.commands,
        "notes": _text(packed_notes(performance)),
        "pedal": _text(packed_pedal(performance)),
        "midi": _text(piece.midi),
    }


def _harmless(about: dict[str, Any]) -> str:
    """Return JSON that cannot end a script or begin a comment anywhere in HTML.

    The name of a file need not be valid text: halves of surrogate pairs become question marks, since they crash
    Chromium.
    """
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(*columns: np.ndarray) -> bytes:
    """Encode whole numbers from 0 to 2^28 row by row, seven bits per byte, low bits first; the last byte is < 128."""
    numbers = np.stack([column.astype(np.int64) for column in columns], axis=1).ravel()
    shifts = np.arange(0, 28, 7)
    in_use = (numbers[:, None] >> shifts > 0) | (shifts == 0)
    more_follow = np.append(in_use[:, 1:], np.zeros((len(numbers), 1), bool), axis=1)
    septets = (numbers[:, None] >> shifts & 0x7F) | more_follow * 0x80
    return septets[in_use].astype(np.uint8).tobytes()


def _milliseconds(seconds: np.ndarray) -> np.ndarray:
    return np.rint(seconds * 1000).astype(np.int64)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _file(name: str) -> str:
    return (BESIDE / name).read_text(encoding="utf-8")


def _source_of(text: str) -> str:
    """Return the hash that names a script or style in a policy (Content Security Policy Level 3, W3C)."""
    return f"sha256-{_text(hashlib.sha256(text.encode()).digest())}"
