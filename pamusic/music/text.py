"""Decode the bytes of a text in a MIDI file.

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
NOT_DASHES = re.compile(rb"[\x82\x83]|[\x81-\x9f][\x80-\xfc]")  # kana, or a second byte that is not an ASCII letter
ASCII_LETTER = re.compile(rb"[A-Za-z]")

# Half-width katakana have one byte each; in CP1251 the bytes from 0xC0 on are capital letters. Two signs of Japanese:
# bytes before 0xC0, and a voice mark (dakuten, handakuten; in CP1251 the letters Ю and Я) directly after a letter that
# takes one. Russian also has Ю or Я after such a letter, as in ЛЮДИ. But such a word has other vowels, and none of the
# rare letters that small kana would be.
HALF_KATAKANA = re.compile(rb"[\xa1-\xdf]{2,}")
MARK_OF_VOICE = re.compile(rb"[\xde\xdf]")
VOICED = re.compile(rb"[\xb3\xb6-\xc4\xca-\xce]\xde|[\xca-\xce]\xdf")  # ｳ, and the rows of ka, sa, ta and ha
VOICED_AND_SMALL = re.compile(rb"(?:%b)[\xa7-\xab]" % VOICED.pattern)  # as in ﾃﾞｨ
CYRILLIC_VOWEL = re.compile(rb"[\xc0\xc5\xc8\xce\xd3]")  # А Е И О У

CYRILLIC_WORD = re.compile(rb"[\xc0-\xff\xa8\xb8]{3,}")  # no Latin word has three accented letters in a row


def readable(text: bytes, most: int | None = MAX_LETTERS) -> str:
    """Return the printable characters of a text, at most the first `most`."""
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
    """Return whether most non-ASCII bytes are common Shift-JIS characters, or half-width katakana."""
    rest, num_common = COMMON.subn(b"", text)
    if num_common:
        rest, num_rare = RARE.subn(b"", rest)
        num_other = sum(byte > 0x7F for byte in rest)
        is_run = any(NOT_DASHES.search(run) for run in RUN.findall(text)) or not ASCII_LETTER.search(rest)
        return is_run and num_common >= num_rare + num_other
    num_other = sum(byte > 0x7F for byte in rest)
    half = b"".join(HALF_KATAKANA.findall(text))
    if not len(half) == num_other > 0:
        return False
    num_signs = sum(0xB0 <= byte <= 0xBF for byte in half)
    num_voiced = len(VOICED.findall(half))
    if len(half) > 2 and num_voiced == len(MARK_OF_VOICE.findall(half)) and not CYRILLIC_VOWEL.search(half):
        num_signs += num_voiced
    return 4 * num_signs >= len(half) or bool(VOICED_AND_SMALL.search(text))
