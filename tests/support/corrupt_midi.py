"""Files that no sequencer would write, for the tests and `benchmarks/fuzz.py` to share: a number makes a file.

Knows the bytes of Standard MIDI Files, and what holds for all that is read from them.
"""

import random
import struct
from functools import lru_cache

import numpy as np
from builders import random_midi, tune

from pamusic.music.midi import MAX_SECONDS
from pamusic.music.performance import PEDALS

INTERESTING = (0x00, 0x01, 0x2F, 0x51, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xB0, 0xC0, 0xF0, 0xF7, 0xF8, 0xFF)
MARKS = (b"MThd", b"MTrk", b"RIFF", b"\xff\x2f\x00", b"\xff\x51\x03", b"\xff\xff\xff\x7f", b"\xf0", b"\0\0\0\0")


def hostile(seed, number, real=()):
    """The file of a number: an odd one, a damaged one, or both; of `real` ones, given as bytes, some are damaged."""
    rng = random.Random(seed << 40 | number)
    kind = rng.random()
    if kind < 0.35:
        data = odd_file(rng)
    else:
        origins = real if kind > 0.96 and real else sound_files()
        data = rng.choice(origins)
    return data if rng.random() < 0.15 else damaged(data, rng)


@lru_cache
def sound_files():
    """Files with nothing wrong, small and many: half of them with strokes that overlap."""
    tunes = [tune(seed, num_notes=1 + seed % 40) for seed in range(300)]
    return tunes + [random_midi(seed, num_events=1 + seed % 80) for seed in range(300)]


def odd_file(rng):
    """A file of messages in any order, with headers, lengths and divisions that are often wrong."""
    tracks = [odd_track(rng) for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 20]))]
    division = rng.choice([0, 1, 96, 384, 480, 32767, 0xE728, 0xE364, 0xE250, 0xE808, 0x8000, 0xFFFF])
    said = len(tracks) if rng.random() < 0.7 else rng.randrange(2**16)
    header_length = 6 if rng.random() < 0.9 else rng.randrange(2**31)
    parts = [b"MThd", struct.pack(">IHHH", header_length, rng.randrange(4), said, division)]
    for track in tracks:
        length = len(track)
        if rng.random() < 0.3:
            length = rng.choice([0, 1, length // 2, length + 7, 2**32 - 1])
        parts += [b"MTrk" if rng.random() < 0.95 else b"XFIH", struct.pack(">I", length), track]
        if rng.random() < 0.05:
            parts.append(rng.randbytes(rng.randrange(1, 30)))
    data = b"".join(parts)
    if rng.random() < 0.1:
        data = b"RIFF" + struct.pack("<I", len(data) + 12) + b"RMIDdata" + struct.pack("<I", len(data)) + data
    return data


def odd_track(rng):
    """Messages on few keys and channels; most of them well-formed."""
    parts = []
    channel = 0
    for _ in range(rng.choice([0, 1, 5, 30, 100])):
        parts.append(delta(rng))
        what = rng.random()
        if rng.random() < 0.1:
            channel = rng.choice([0, 1, 9])
        key, value = rng.choice([0, 60, 61, 108, 127]), rng.choice([0, 1, 64, 127])
        if what < 0.35:
            parts.append(bytes([0x90 + channel, key, value]))
        elif what < 0.55:
            parts.append(bytes([0x80 + channel, key, value]))
        elif what < 0.65:
            parts.append(bytes([key, value]))  # running status
        elif what < 0.75:
            parts.append(bytes([0xB0 + channel, rng.choice([64, 66, 67, 7]), value]))
        elif what < 0.8:
            parts.append(bytes([0xC0 + channel, rng.randrange(128)]))
        elif what < 0.88:
            parts.append(bytes([0xFF, 0x51, 3]) + rng.randbytes(3))
        elif what < 0.95:
            text = rng.randbytes(rng.randrange(9))
            length = len(text) if rng.random() < 0.9 else rng.randrange(128)
            parts.append(
                bytes([0xFF, rng.choice([1, 3, 0x20, 0x21, 0x2F, 0x51, 0x58, 0x59, 0x7F, 0xFF]), length]) + text
            )
        elif what < 0.98:
            text = rng.randbytes(rng.randrange(9))
            parts.append(bytes([rng.choice([0xF0, 0xF7]), len(text) + rng.randrange(2)]) + text)
        else:
            parts.append(rng.randbytes(rng.randrange(1, 5)))
    if rng.random() < 0.9:
        parts.append(b"\0\xff\x2f\0")
    return b"".join(parts)


def delta(rng):
    size = rng.random()
    if size < 0.4:
        return b"\0"
    if size < 0.97:
        return bytes([rng.randrange(1, 128)])
    return bytes(rng.randrange(0x80, 0x100) for _ in range(rng.choice([1, 2, 3, 5]))) + bytes([rng.randrange(128)])


def damaged(data, rng):
    """The same file with some bytes changed, lost, doubled or put in."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 10])):
        size = len(data)
        at = rng.randrange(min(size, 40) if rng.random() < 0.3 else size) if size else 0
        length = rng.choice([1, 2, 3, 20])
        kind = rng.randrange(8)
        if kind == 0 and size:
            data[at] = rng.randrange(256)
        elif kind == 1 and size:
            data[at] = rng.choice(INTERESTING)
        elif kind == 2 and size:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = rng.randbytes(length)
        elif kind == 5:
            data[at:at] = data[at : at + length * 10]
        elif kind == 6:
            data[at:at] = rng.choice(MARKS)
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def check_performance(performance):
    """Holds a performance to what is true of all.

    Raises:
        AssertionError: it is not.
    """
    notes, pedal = performance.notes, performance.pedal
    assert len(notes)
    assert (notes["offset"] > notes["onset"]).all()
    assert notes["onset"].min() >= 0
    assert (np.diff(notes["onset"]) >= 0).all()
    assert (np.diff(pedal["time"]) >= 0).all()
    assert notes["velocity"].min() >= 1
    assert max(notes["velocity"].max(), notes["pitch"].max(), *pedal["value"], 0) <= 127
    assert np.isin(pedal["control"], PEDALS).all()
    assert performance.duration <= MAX_SECONDS


def check_refusal(error):
    """Holds a refusal to one line that has a rule.

    Raises:
        AssertionError: it is something else.
    """
    assert len(str(error).splitlines()) == 1
    assert error.rule
    assert error.rule not in ("", str(error))
