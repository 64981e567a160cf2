"""The bytes of a text in a MIDI file -> what a person reads.

Knows encodings; knows no files. A file does not name the encoding of its texts, so it is inferred from the bytes: a
byte order mark (UTF-8, UTF-16), then valid UTF-8, then patterns that are typical of Shift-JIS (Japanese) and CP1251
(Cyrillic), else CP1252, which contains the letters of Latin-1. A text of one or two letters may be inferred wrongly.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE

MARKS = ((BOM_UTF8, "utf-8"), (BOM_UTF16_LE, "utf-16-le"), (BOM_UTF16_BE, "utf-16-be"))
MAX_LETTERS = 40

# Characters of two bytes in Shift-JIS: their first byte is 0x81 to 0x9F for punctuation, kana and the common kanji, and
# these bytes are no letters of CP1251 and CP1252 that a text has many of.
JAPANESE = re.compile(rb"[\x81-\x9f][\x40-\x7e\x80-\xfc]")
RARE_KANJI = re.compile(rb"[\xe0-\xef][\x40-\x7e\x80-\xfc]")
HALF_KATAKANA = re.compile(rb"[\xa1-\xdf]{2,}")  # of one byte each; letters of CP1251 are from 0xC0 on
CYRILLIC_WORD = re.compile(rb"[\xc0-\xff\xa8\xb8]{3,}")  # so many accented letters in a row no Latin word has


def readable(text: bytes, most: int | None = MAX_LETTERS) -> str:
    """Return a text without what cannot be printed; `most` says how many letters of it."""
    decoded = _decoded(text).rstrip("\0")
    return "".join(letter if letter.isprintable() else " " for letter in decoded[:most]).strip()


def _decoded(text: bytes) -> str:
    for mark, encoding in MARKS:
        if text.startswith(mark):
            return text[len(mark) :].decode(encoding, errors="replace")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        pass
    if _seems_japanese(text):
        try:
            return text.decode("cp932")
        except UnicodeDecodeError:
            pass
    try:
        return text.decode("cp1251" if CYRILLIC_WORD.search(text) else "cp1252")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _seems_japanese(text: bytes) -> bool:
    """Whether most of what is not ASCII is common characters of Shift-JIS, or katakana of half width."""
    rest, num_common = JAPANESE.subn(b"", text)
    rest, num_rare = RARE_KANJI.subn(b"", rest) if num_common else (rest, 0)
    num_other = sum(byte > 0x7F for byte in rest)
    if num_common:
        return num_common >= num_rare + num_other
    half = b"".join(HALF_KATAKANA.findall(text))
    return len(half) == num_other > 0 and 4 * sum(0xB0 <= byte <= 0xBF for byte in half) >= len(half)
