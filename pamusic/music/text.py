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

# Characters of two bytes in Shift-JIS. Their first byte is 0x81 to 0x9F for punctuation, kana and the common kanji. In
# CP1251 and CP1252 these bytes are dashes, quotation marks and rare letters, so two characters in a row are Japanese.
TRAIL = rb"[\x40-\x7e\x80-\xfc]"
COMMON = re.compile(rb"[\x81-\x9f]" + TRAIL)
RARE = re.compile(rb"[\xe0-\xef]" + TRAIL)
RUN = re.compile(rb"(?:[\x81-\x9f\xe0-\xef]%b){2,}" % TRAIL)
NOT_DASHES = re.compile(rb"[\x82\x83]|[\x81-\x9f][\x80-\xfc]")  # kana, or a second byte that is no letter of ASCII
ASCII_LETTER = re.compile(rb"[A-Za-z]")
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
    rest, num_common = COMMON.subn(b"", text)
    if num_common:
        rest, num_rare = RARE.subn(b"", rest)
        num_other = sum(byte > 0x7F for byte in rest)
        is_run = any(NOT_DASHES.search(run) for run in RUN.findall(text)) or not ASCII_LETTER.search(rest)
        return is_run and num_common >= num_rare + num_other
    num_other = sum(byte > 0x7F for byte in rest)
    half = b"".join(HALF_KATAKANA.findall(text))
    return len(half) == num_other > 0 and 4 * sum(0xB0 <= byte <= 0xBF for byte in half) >= len(half)
