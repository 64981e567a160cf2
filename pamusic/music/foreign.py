"""Recognise files that are not Standard MIDI Files, and say what to do with them. Unpack a MIDI file packed by gzip.

Knows how formats begin; knows nothing of MIDI but its first four letters.
"""

from __future__ import annotations

import re
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from typing import BinaryIO

from pamusic.errors import PamusicError
from pamusic.music.midi_contents import MAX_FILE_BYTES, check_size

GZIP, ZIP = b"\x1f\x8b", b"PK\3\4"
LOOKED_AT = 4096  # bytes that are searched for markup
SMALL_PIECE = 64  # first bytes of a gzip member to unpack; the smallest member has 20
EXPORT = "export it as MIDI in a notation program, such as MuseScore"
TRANSCRIBE = "transcribe it with other software, or use a MIDI file of the piece"
FETCH = "download the file itself again"
UNPACK = "unpack it and pass the file inside"
GIVE_ARCHIVE = "pass it to a command that reads folders"

# First bytes of a file -> its format, and what to do with it.
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
# The same for markup: a pattern for its first words.
MARKUPS = (
    (rb"<score-(partwise|timewise)|<!doctype\s+score-", "MusicXML, a score", EXPORT),
    (rb"<musescore", "a score of MuseScore", EXPORT),
    (rb"<mei[\s>]", "MEI, a score", EXPORT),
    (rb"<!doctype\s+html|<html|<head[\s>]|<body[\s>]", "a web page", FETCH),
    (rb"^\s*<\?xml", "XML", FETCH),
)


def read_file(file: BinaryIO, name: str) -> bytes:
    """Return the bytes of an open file, unpacked if gzip has packed them. Every MIDI file is read by this function.

    Raises:
        PamusicError: the file is larger than any MIDI file of music, or broken.
        OSError: the file cannot be read.
    """
    return unpacked(file.read(MAX_FILE_BYTES + 1), name)


def unpacked(data: bytes, name: str) -> bytes:
    """Return the bytes of a file, unpacked if gzip has packed them; the result is never packed.

    Raises:
        PamusicError: the file is broken, packed more than once, or larger than any MIDI file of music.
    """
    check_size(len(data), name)
    if not data.startswith(GZIP):
        return data
    try:
        whole = _members(data, name)
    except zlib.error as error:
        raise PamusicError(
            f"{name}: is a broken gzip file ({error}); download it again", rule="a broken gzip file"
        ) from None
    if whole.startswith(GZIP):
        raise PamusicError(
            f"{name}: is not a MIDI file but packed by gzip more than once; {UNPACK}", rule="not a MIDI file"
        )
    return whole


def _members(data: bytes, name: str) -> bytes:
    """Return the contents of the members of a gzip file, one after another.

    The length of a member is known only after reading it, and bytes read beyond its end are copied. So each member is
    read in pieces that start small and grow, which takes time in proportion to the bytes.
    """
    whole, view, at = bytearray(), memoryview(data), 0
    while data.startswith(GZIP, at):
        member, num_bytes = zlib.decompressobj(wbits=31), SMALL_PIECE
        while not member.eof:
            piece = view[at : at + num_bytes]
            if not piece:
                raise zlib.error("it is cut off")
            whole += member.decompress(piece, MAX_FILE_BYTES + 1 - len(whole))
            check_size(len(whole), name)
            at, num_bytes = at + len(piece), 2 * num_bytes
        at -= len(member.unused_data)
    return bytes(whole)


def check_is_midi(data: bytes, name: str, *, far: int) -> None:
    """Raise an error if the data is not a MIDI file; the error names the format and says what to do.

    Args:
        data: Bytes of the file.
        name: Name of the file in errors.
        far: Largest number of bytes before the header.

    Raises:
        PamusicError: the data is not a MIDI file.
    """
    kind = _archive(data, name)
    if not kind and data.find(b"MThd", 0, None if is_riff(data) else far) >= 0:
        return
    what, remedy = kind or _kind(data)
    raise PamusicError(f"{name}: is not a MIDI file {what}; {remedy}", rule="not a MIDI file")


def is_riff(data: bytes) -> bool:
    """Return whether the data is a MIDI file in Microsoft's RIFF wrapping (.rmi)."""
    return data[:4] == b"RIFF" and data[8:12] == b"RMID"


def _archive(data: bytes, name: str) -> tuple[str, str] | None:
    """Return the kind of an archive and what to do with it; None for any other file, which may be a MIDI file."""
    if not data.startswith(ZIP):
        return None
    if b".mscx" in data:
        return "but a score of MuseScore (.mscz)", EXPORT
    if b"META-INF/container.xml" in data:
        return "but compressed MusicXML (.mxl), a score", EXPORT
    is_named_so = name.lower().endswith(".zip")
    return "but a zip archive", f"unpack it, or {'' if is_named_so else 'name it .zip and '}{GIVE_ARCHIVE}"


def _kind(data: bytes) -> tuple[str, str]:
    """Return the kind of a file that is neither a MIDI file nor an archive, and what to do with it."""
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
    return f"(it begins with {data[:4]!r}, not b'MThd')", "use a Standard MIDI File (.mid)"
