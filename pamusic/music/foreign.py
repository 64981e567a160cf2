"""Files that are no Standard MIDI Files: what each is, and what to do about it. A packed MIDI file is unpacked.

Knows how formats begin; knows nothing of MIDI but its first four letters.
"""

from __future__ import annotations

import re
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE

from pamusic.errors import PamusicError
from pamusic.music.contents import MAX_FILE_BYTES, check_size

GZIP, ZIP = b"\x1f\x8b", b"PK\3\4"
LOOKED_AT = 4096  # bytes, for words of markup
EXPORT = "export it as MIDI in a notation program, such as MuseScore"
TRANSCRIBE = "transcribe it with other software, or take a MIDI file of the piece"
FETCH = "fetch the file itself anew"
UNPACK = "unpack it and give what is in it"

# What such files begin with -> what they are, and what to do.
BEGINNINGS = (
    (b"SMF2CLIP", "a MIDI 2.0 clip", "save it as a Standard MIDI File of MIDI 1.0"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"BZh", "packed by bzip2", UNPACK),
    (b"\xfd7zXZ\0", "packed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", UNPACK),
    (b"%PDF", "a PDF document", TRANSCRIBE),
    (b"\x89PNG", "a picture", TRANSCRIBE),
    (b"\xff\xd8\xff", "a picture", TRANSCRIBE),
    (b"ID3", "a sound recording (MP3)", TRANSCRIBE),
    (b"fLaC", "a sound recording (FLAC)", TRANSCRIBE),
    (b"OggS", "a sound recording (Ogg)", TRANSCRIBE),
    (b"MUS\x1a", "a MUS file of a game", "convert it to MIDI"),
    (b"\x18FICHIER GUITAR PRO", "a Guitar Pro tablature", "export it as MIDI in Guitar Pro or TuxGuitar"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with git lfs pull"),
)
# The same of markup: an expression for its first words.
MARKUPS = (
    (rb"<score-(partwise|timewise)|<!doctype\s+score-", "MusicXML, a score", EXPORT),
    (rb"<musescore", "a score of MuseScore", EXPORT),
    (rb"<mei[\s>]", "MEI, a score", EXPORT),
    (rb"<!doctype\s+html|<html|<head[\s>]|<body[\s>]", "a web page", FETCH),
    (rb"^\s*<\?xml", "XML", FETCH),
)


def unpacked(data: bytes, name: str) -> bytes:
    """Return a file as it is, or what gzip has packed.

    Raises:
        PamusicError: it is broken, or larger than any MIDI file of music.
    """
    if not data.startswith(GZIP):
        return data
    whole = b""
    try:
        while data.startswith(GZIP) and len(whole) <= MAX_FILE_BYTES:  # a file may have several members
            member = zlib.decompressobj(wbits=31)
            whole += member.decompress(data, MAX_FILE_BYTES + 1 - len(whole))
            if not member.eof and len(whole) <= MAX_FILE_BYTES:
                raise zlib.error("it is cut off")
            data = member.unused_data
    except zlib.error as error:
        raise PamusicError(
            f"{name}: is a broken gzip file ({error}); fetch it anew", rule="a broken gzip file"
        ) from None
    check_size(len(whole), name)
    return whole


def check_is_midi(data: bytes, name: str, *, far: int) -> None:
    """Refuse what is no MIDI file, with what it is and what to do.

    Args:
        data: the file.
        name: how to call it in an error.
        far: how many bytes may stand before its header.

    Raises:
        PamusicError: it is none.
    """
    kind = _packed_kind(data)
    if not kind and data.find(b"MThd", 0, None if is_riff(data) else far) >= 0:
        return
    what, remedy = kind or _kind(data)
    raise PamusicError(f"{name}: is not a MIDI file {what}; {remedy}", rule="not a MIDI file")


def is_riff(data: bytes) -> bool:
    """Whether it is a MIDI file in Microsoft's wrapping (.rmi)."""
    return data[:4] == b"RIFF" and data[8:12] == b"RMID"


def _packed_kind(data: bytes) -> tuple[str, str] | None:
    """What an archive is and what to do; None for what is no archive, in which a MIDI file may stand as it is."""
    if data.startswith(GZIP):
        return "but packed by gzip more than once", UNPACK
    if not data.startswith(ZIP):
        return None
    if b".mscx" in data:
        return "but a score of MuseScore (.mscz)", EXPORT
    if b"META-INF/container.xml" in data:
        return "but compressed MusicXML (.mxl), a score", EXPORT
    return "but a zip archive", "unpack it, or name it .zip and give it to a command that takes folders"


def _kind(data: bytes) -> tuple[str, str]:
    for beginning, what, remedy in BEGINNINGS:
        if data.startswith(beginning):
            return f"but {what}", remedy
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "but a sound recording (WAV)", TRANSCRIBE
    if data[:4] == b"FORM" and data[8:12] == b"XDIR":
        return "but an XMI file of a game", "convert it to MIDI"
    if not data.strip(b"\0"):
        return "but zeros alone", FETCH
    words = data[:LOOKED_AT]
    if words.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        words = words.replace(b"\0", b"")[2:]
    words = words.removeprefix(BOM_UTF8).lower()
    if words.lstrip().startswith(b"<"):
        for words_of_it, what, remedy in MARKUPS:
            if re.search(words_of_it, words):
                return f"but {what}", remedy
    return f"(it begins with {data[:4]!r}, not b'MThd')", "give a Standard MIDI File (.mid)"
