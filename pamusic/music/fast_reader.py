"""Read a plain MIDI file into its parts, in ticks, with symusic, in about a millisecond.

Knows messages by their bytes; knows no seconds and no pianos. Whether a file is plain is checked, never assumed. All
other files go to `lenient_reader.py`, which takes a microsecond per byte. The tests hold the two readers to the same
result.

Symusic keeps neither track nor channel. So each channel of each track gets one extra note after the end: its pitch is
the channel, its length is the track number plus 1.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import symusic

from pamusic.music.channels import pedals_by_line
from pamusic.music.midi_contents import MAX_PARTS, NUM_CHANNELS, Contents, Part
from pamusic.music.performance import PEDALS
from pamusic.music.text import readable

# Deltas and messages as bytes of a file, and the tick that four of the longest deltas lead to.
LONGEST_DELTA, EMPTY_TEXT, END_OF_TRACK = b"\xff\xff\xff\x7f", b"\xff\x01\x00", b"\xff\x2f\x00"
SIGN = "end of a track, as pamusic marks it"  # a marker (meta message 6)
NEVER = 4 * (2**28 - 1)
NOTE_ON, CONTROL, PROGRAM, PRESSURE = 0x90, 0xB0, 0xC0, 0xD0
META, PORT, SET_TEMPO = 0xFF, 0x21, 0x51
IS_PEDAL = np.isin(np.arange(256), PEDALS)  # by control number
UNREADABLE = "\ufffd"  # symusic's replacement for a byte that is not UTF-8

# A run of channel messages, each after its delta, with running status; and one message of another kind.
NUMBER, DATA = rb"[\x80-\xff]{0,3}+[\0-\x7f]", rb"[\0-\x7f]"
OF_TWO, OF_ONE = rb"[\x80-\xbf\xe0-\xef]%b{2}(?:%b%b{2})*+" % (DATA, NUMBER, DATA), rb"[\xd0-\xdf]%b" % DATA
COMMON_MESSAGES = re.compile(rb"(?:%b(?:%b|%b))*+" % (NUMBER, OF_TWO, OF_ONE))
OTHER_MESSAGE = re.compile(rb"%b(?:([\xc0-\xcf])(%b)|\xff(%b)(%b))" % (NUMBER, DATA, DATA, NUMBER))

Programs = dict[int, int]  # program of each channel in a track that sets one


def read_plain(data: bytes) -> Contents | None:
    """Return the contents of a plain file; None if symusic refuses it, or does not report all that we need.

    Symusic pairs each release with the oldest open note of its key; pretty_midi ends all notes that began earlier. So
    overlapping notes of a key are paired again as in pretty_midi. All keys are released after the end, so that no note
    is lost.
    """
    plain = _marked(data)
    if plain is None:
        return None
    marked, programs = plain
    try:
        score = symusic.Score.from_midi(marked, sanitize_data=False)
    except Exception:  # symusic raises plain RuntimeErrors and ValueErrors, and MemoryErrors of its own
        return None
    signs = [marker.time for marker in score.markers if marker.text == SIGN]
    if len(signs) != len(programs) or not all(0 <= tick < NEVER // 2 for tick in signs):
        return None  # a message extends beyond the end of its track, or ticks exceed symusic's counter
    tempos = score.tempos.numpy()
    if np.any((np.diff(tempos["time"]) == 0) & (np.diff(tempos["mspq"]) != 0)) or not np.all(tempos["mspq"]):
        return None  # symusic sorts tempi, and from about twenty on reorders those of one tick
    parts: list[Part] = []
    pedals: list[dict[int, np.ndarray]] = [{} for _ in programs]
    for track in score.tracks:
        part = _part(track)
        if part is None or part.channel in pedals[part.track]:
            return None
        controls = track.controls.numpy()
        of_pedals = IS_PEDAL[controls["number"]]
        columns = [controls[name][of_pedals] for name in ("time", "number", "value")]
        pedals[part.track][part.channel] = np.array(columns, np.int64).T
        if len(part):
            parts.append(part)
    if len(parts) > MAX_PARTS or not _has_programs_of_its_own(parts, programs):
        return None
    parts.sort(key=lambda part: (part.track, part.channel))
    times = list(zip(tempos["time"].tolist(), tempos["mspq"].tolist(), strict=True))
    return Contents(score.tpq, times, parts, pedals_by_line(pedals))


def _part(track: symusic.core.TrackTick) -> Part | None:
    """Return the notes of one channel of a track; None if its mark is missing or its notes cannot be paired."""
    columns = track.notes.numpy()
    onset, duration, pitch = (columns[name].astype(np.int64) for name in ("time", "duration", "pitch"))
    if not len(onset) or onset[-1] < NEVER or UNREADABLE in track.name:
        return None
    channel, number = int(pitch[-1]), int(duration[-1]) - 1
    onset, pitch = onset[:-1], pitch[:-1]
    offset = _released(onset, onset + duration[:-1], pitch)
    if offset is None:
        return None
    heard = (onset, offset, pitch, columns["velocity"][:-1].astype(np.int64))
    name = readable(track.name.encode()) if len(onset) else ""
    return Part(track.program, track.is_drum, name, *heard, port=0, channel=channel, track=number)


def _has_programs_of_its_own(parts: list[Part], programs: list[Programs]) -> bool:
    """Return whether each program change affects only notes of its own track; every channel starts with program 0."""
    for channel in range(NUM_CHANNELS):
        sets = [(number, track[channel]) for number, track in enumerate(programs) if channel in track]
        if any(program for _, program in sets):
            playing = {part.track for part in parts if part.channel == channel}
            if playing and (len(sets) > 1 or playing != {sets[0][0]}):
                return False
    return True


def _marked(data: bytes) -> tuple[bytes, list[Programs]] | None:
    """Return the file with marks after the end of each track, and the programs of its tracks; None if it is not plain.

    A plain file has a header and exactly the number of tracks that it states. Each track has one end of track, at its
    end. It has no sysex and no tempo of a wrong length, since symusic misreads both; only port 0; and at most one
    program per channel of a track.
    """
    division = int.from_bytes(data[12:14], "big")
    if data[:9] != b"MThd\0\0\0\6\0" or data[9:10] > b"\1" or not 0 < division < 0x8000:
        return None
    sign = b"\xff\x06" + bytes([len(SIGN)]) + SIGN.encode()
    parts, programs, at = [data[:14]], [], 14
    for number in range(int.from_bytes(data[10:12], "big")):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
        chunk = data[at + 8 : end]
        if data[at : at + 4] != b"MTrk" or end > len(data):
            return None
        its_programs = _programs_at_a_glance(chunk)
        if its_programs is None:
            its_programs = _programs(chunk)
        if its_programs is None:
            return None
        marks = []
        for channel in range(NUM_CHANNELS):
            if bytes([NOTE_ON + channel]) in chunk:
                marks.append(_all_keys_released(channel) + _mark(channel, number))
            elif bytes([CONTROL + channel]) in chunk:
                marks.append(_mark(channel, number))
        chunk = chunk[:-3] + sign + (LONGEST_DELTA + EMPTY_TEXT) * 4 + b"\0" + b"".join(marks) + END_OF_TRACK
        parts += [b"MTrk", len(chunk).to_bytes(4, "big"), chunk]
        programs.append(its_programs)
        at = end
    # Symusic may read a few bytes beyond the end.
    return (b"".join([*parts, bytes(16)]), programs) if at == len(data) else None


def _programs_at_a_glance(chunk: bytes) -> Programs | None:
    """Return the programs of a plain track from one scan of its bytes; None if a delta or a name makes this unsafe.

    A delta can look like a program change, so the result may contain extra programs. No other message may follow a
    program change by running status.
    """
    if chunk[-3:] != END_OF_TRACK:
        return None
    data = np.frombuffer(chunk, np.uint8)
    high = np.flatnonzero(data >= PROGRAM)
    metas, programs = high[data[high] >= 0xF0], high[data[high] < PRESSURE]
    if not np.all(data[metas] == META) or metas[-1] != len(data) - 3:
        return None
    kind, length, value = (data[metas[:-1] + place] for place in (1, 2, 3))
    is_odd = (kind == END_OF_TRACK[1]) | ((kind == SET_TEMPO) & (length != 3))
    is_odd |= (kind == PORT) & ((length != 1) | (value != 0))
    delta, status = data[programs + 2], data[programs + 3]
    is_unclear = (delta >= 0x80) | (status < 0x80) | (status >= 0xF0)
    found = dict(zip((data[programs] - PROGRAM).tolist(), data[programs + 1].tolist(), strict=True))
    return None if np.any(is_odd) or np.any(is_unclear) or len(found) < len(programs) else found


def _programs(chunk: bytes) -> Programs | None:
    """Return the programs of a plain track, read message by message; None if it is not plain."""
    at, programs = 0, Programs()
    while True:
        if (common := COMMON_MESSAGES.match(chunk, at)) and (message := OTHER_MESSAGE.match(chunk, common.end())):
            at = message.end()
        else:
            return None
        status, program, kind, length = message.groups()
        if status:
            if status[0] - PROGRAM in programs:
                return None  # a second program: its notes may belong to either
            programs[status[0] - PROGRAM] = program[0]
        elif kind[0] == END_OF_TRACK[1]:
            return programs if length == b"\0" and at == len(chunk) else None
        elif (kind[0] == SET_TEMPO and length != b"\3") or (
            kind[0] == PORT and (length != b"\1" or chunk[at : at + 1] != b"\0")
        ):
            return None
        else:
            at += _value(length)


def _value(number: bytes) -> int:
    """Return the value of a variable-length number (seven bits per byte)."""
    value = 0
    for byte in number:
        value = value << 7 | byte & 0x7F
    return value


@lru_cache(maxsize=16)
def _all_keys_released(channel: int) -> bytes:
    return b"".join(bytes([0x80 + channel, pitch, 0, 0]) for pitch in range(128))  # message, then the next one's delta


@lru_cache(maxsize=256)
def _mark(channel: int, track: int) -> bytes:
    """Return a note with the channel as its pitch and the track number plus 1 as its length, then the next delta."""
    length = track + 1
    delta = bytes([0x80 | length >> 14, 0x80 | length >> 7 & 0x7F, length & 0x7F])
    return bytes([NOTE_ON + channel, channel, 1]) + delta + bytes([0x80 + channel, channel, 0, 0])


def _released(onset: np.ndarray, offset: np.ndarray, pitch: np.ndarray) -> np.ndarray | None:
    """Return the offsets `[num_notes]` as pretty_midi pairs them, from symusic's; None if these do not determine them.

    A release ends all notes of its key that began earlier, so each note ends with the first release after its onset.
    """
    if not len(onset):
        return offset
    if not (0 <= onset.min() and (offset > onset).all() and offset.max() < NEVER):
        return None
    struck, released = pitch * NEVER + onset, pitch * NEVER + offset
    order = np.argsort(pitch.astype(np.uint8), kind="stable")  # symusic has them by onset
    struck = struck[order]
    if not (struck[1:] >= struck[:-1]).all():
        return None
    if (struck[1:] >= released[order[:-1]]).all():
        return offset  # no two notes of a key overlap
    released.sort()
    ends = released[np.searchsorted(released, struck, side="right")]
    at_a_release = struck[np.isin(struck, released)]
    released_twice = released[1:][released[1:] == released[:-1]]
    if (
        np.any(struck[1:] == struck[:-1])
        or np.isin(at_a_release, released_twice).any()
        or not np.isin(at_a_release, ends).all()
    ):
        return None  # it depends on the order within a tick
    offset = np.empty_like(offset)
    offset[order] = ends - pitch[order] * NEVER
    return offset
