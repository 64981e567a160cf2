"""Standard MIDI File -> its parts, in ticks: the reader that refuses little and says what it mended.

Knows a file message by message; knows no seconds and no pianos. It stands behind the fast reader of `midi.py`, which
takes plain files alone, and gives the same `Contents`: choice of tracks, tempo map and all that follows are one
mechanism. It is also that reader's plain twin: on a plain file both give the same, and the tests hold them together.

Why not mend the bytes and hand them to the fast reader: which stroke a release ends depends on the order within a
tick, and that reader does not keep it. Why not mido: it refuses a file as a whole where one chunk is cut, and tells
nobody what it clipped.

What players do, we do: a chunk of wrong length goes on to the next chunk, a message too short ends its track, running
status goes on across meta messages and sysex, what lies outside the tracks is passed over. Strokes are paired as
pretty_midi pairs them: a release closes all strokes of its key that are open and began earlier, and forgets those of
its own tick. Unlike pretty_midi we keep a stroke that is never released: it ends where its key is struck anew, or with
its track. And a note belongs to the program it is struck with. Tracks of format 2 are patterns of their own: each
begins where the one before it ends, at the tempo of the standard. Frames of SMPTE become ticks, whatever the tempo: 30
of them last a second, in drop frame (29.97) 1.001.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np

from pamusic.errors import PamusicError
from pamusic.music.contents import KINDS, MAX_PARTS, OUR_TEXT, Contents, Part, Repair, readable
from pamusic.music.performance import PEDALS

MAX_TRACKS = 65_535  # what a header can speak of
MAX_TICK = 2**40  # beyond any music; far below where the arithmetic would end
FORMATS = (0, 1, 2)
DRUMS = 9  # the channel, counted from 0

FAR_BEFORE_HEADER = 4096  # MacBinary puts 128 bytes before it, mail and web servers some lines
DEFAULT_TEMPO = 500_000  # microseconds a quarter, of the standard
NOTE_OFF, NOTE_ON, CONTROL, PROGRAM = HEARD = (0x80, 0x90, 0xB0, 0xC0)
META, SYSEX = 0xFF, (0xF0, 0xF7)
TEXT, TRACK_NAME, END_OF_TRACK, SET_TEMPO = 0x01, 0x03, 0x2F, 0x51
UNDEFINED = (0xF4, 0xF5, 0xF9, 0xFD)
LENGTHS_OF_COMMON = {0xF1: 2, 0xF2: 3, 0xF3: 2}  # messages of live MIDI that have no place in a file
# Frames a second as they stand in the division -> (frames that we call a quarter, microseconds these take).
SMPTE = {24: (24, 1_000_000), 25: (25, 1_000_000), 29: (30, 1_001_000), 30: (30, 1_000_000)}


def read_leniently(data: bytes, name: str) -> Contents:
    """What a file holds, however it is broken.

    Args:
        data: the file.
        name: how to call it in an error.

    Raises:
        PamusicError: there is no header, or none that tells how long a tick is; or there are too many tracks or ticks.
    """
    log = _Log()
    data, at = _from_header_on(data, name, log)
    kind, num_tracks, division = (int.from_bytes(data[i : i + 2], "big") for i in (8, 10, 12))
    has_patterns = kind == 2
    ticks_per_quarter, smpte_tempo = _time_base(division, name)
    tracks: list[_Track] = []
    num_parts = 0
    for start, end, is_whole in _track_spans(data, at, log):
        if len(tracks) == MAX_TRACKS:
            raise PamusicError(
                f"{name}: has more than {MAX_TRACKS:,} tracks; merge them in a sequencer", rule="too many tracks"
            )
        tick = tracks[-1].end if has_patterns and tracks else 0
        tracks.append(_Track(data[start:end], is_whole, log, tick))
        num_parts += tracks[-1].num_parts
        if num_parts > MAX_PARTS:
            raise PamusicError(
                f"{name}: has more than {MAX_PARTS:,} instruments; merge them in a sequencer", rule="too many tracks"
            )
        if tracks[-1].end > MAX_TICK:
            raise PamusicError(
                f"{name}: lasts more than {MAX_TICK:.0e} ticks, longer than music; cut it in a sequencer",
                rule="too long",
            )
    if len(tracks) != num_tracks:
        log.add("number of tracks", len(tracks))
    if has_patterns and len(tracks) > 1:
        log.add("patterns", len(tracks))
    parts = [part for number, track in enumerate(tracks) for part in track.parts(number) if len(part)]
    tempos = dict(sorted((tempo for track in tracks for tempo in track.tempos), key=itemgetter(0)))
    return Contents(
        ticks_per_quarter,
        [(0, smpte_tempo)] if smpte_tempo else list(tempos.items()),
        parts,
        log.repairs(),
        format=kind if kind in FORMATS else 1,
        has_smpte_time=smpte_tempo is not None,
        our_text=next((track.our_text for track in tracks if track.our_text), ""),
    )


@dataclass
class _Log:
    """What was mended so far."""

    counts: dict[str, int] = field(default_factory=dict)
    cut_tick: int | None = None

    def add(self, kind: str, count: int = 1) -> None:
        assert kind in KINDS
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count

    def cut(self, tick: int) -> None:
        self.add("cut off")
        self.cut_tick = tick if self.cut_tick is None else min(tick, self.cut_tick)

    def repairs(self) -> tuple[Repair, ...]:
        return tuple(
            Repair.of(kind, self.counts[kind], self.cut_tick if kind == "cut off" else None)
            for kind in KINDS
            if kind in self.counts
        )


def _from_header_on(data: bytes, name: str, log: _Log) -> tuple[bytes, int]:
    """The data from the header on, and where in it the first chunk begins."""
    is_riff = data[:4] == b"RIFF" and data[8:12] == b"RMID"  # Microsoft's wrapping, .rmi
    start = data.find(b"MThd", 0, None if is_riff else FAR_BEFORE_HEADER)
    if start < 0:
        raise PamusicError(
            f"{name}: is not a MIDI file (it begins with {data[:4]!r}, not b'MThd'); give a Standard MIDI File (.mid)",
            rule="not a MIDI file",
        )
    if is_riff and data[start - 8 : start - 4] == b"data":
        data = data[: start + int.from_bytes(data[start - 4 : start], "little")]
    elif start:
        log.add("bytes before the header", start)
    data = data[start:]
    if len(data) < 14:
        raise PamusicError(
            f"{name}: is cut off within its header ({len(data)} bytes of 14); fetch it anew", rule="cut off"
        )
    length = int.from_bytes(data[4:8], "big")
    if length < 6 or length > len(data) or data[8] or data[9] > 2:
        log.add("broken header")
        length = 6
    return data, 8 + length


def _time_base(division: int, name: str) -> tuple[int, int | None]:
    """Ticks in a quarter; and microseconds in a quarter, where the division alone tells them."""
    if division == 0:
        raise PamusicError(f"{name}: has no ticks in a quarter; save it anew in a sequencer", rule="no time base")
    if division < 0x8000:
        return division, None
    frames, ticks = 256 - (division >> 8), division & 0xFF
    if frames not in SMPTE or not ticks:
        raise PamusicError(
            f"{name}: counts {ticks} ticks in a frame and {frames} frames a second, not 24, 25, 29 or 30; "
            "save it anew in a sequencer",
            rule="no time base",
        )
    frames, tempo = SMPTE[frames]
    return frames * ticks, tempo


def _track_spans(data: bytes, at: int, log: _Log) -> list[tuple[int, int, bool]]:
    """(first byte, end, whether its length was as said) of each track.

    A chunk's length is believed where the file, a track's last message or another chunk stands at its end; else the
    chunk goes on to the next track.
    """
    spans = []
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        end = at + 8 + size
        if data[at : at + 4] == b"MTrk" and at + 8 <= len(data):
            is_whole = (
                end == len(data) or (end < len(data) and data[end - 3 : end] == b"\xff\x2f\x00") or _is_chunk(data, end)
            )
            if not is_whole:
                following = data.find(b"MTrk", at + 8)
                end = following if following >= 0 else len(data)
            spans.append((at + 8, end, is_whole))
        elif _is_chunk(data, at):
            log.add("foreign chunks")
        else:
            following = data.find(b"MTrk", at + 1)
            end = following if following >= 0 else len(data)
            log.add("bytes outside tracks", end - at)
        at = end
    return spans


def _is_chunk(data: bytes, at: int) -> bool:
    """Whether a chunk begins here that ends within the file."""
    kind = data[at : at + 4]
    if kind == b"MTrk":
        return True
    fits = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big") <= len(data)
    return fits and len(kind) == 4 and all(0x20 < byte < 0x7F for byte in kind)


class _Track:
    """A track, read message by message.

    Attributes:
        end: its last tick; it begins at `start`, which is not 0 for a pattern that follows another.
        tempos: (tick, microseconds a quarter) in the order of the file.
        our_text: the last text in which pamusic says how it made the file; empty where there is none.
    """

    def __init__(self, data: bytes, is_whole: bool, log: _Log, start: int = 0) -> None:
        self.end = start
        self.tempos = [(start, DEFAULT_TEMPO)] if start else []  # a pattern knows nothing of the one before it
        self.our_text = ""
        self._name = b""
        self._program = [0] * 16
        # (channel, program) -> onset, offset, pitch, velocity of one note after the other; tick, control, value.
        self._notes: dict[tuple[int, int], array[int]] = {}
        self._pedal: dict[tuple[int, int], array[int]] = {}
        self._early_pedal: dict[int, array[int]] = {}  # of channels that have no notes yet
        # (channel, pitch) -> onset, program and velocity of each open stroke, as bits of one number.
        self._open: dict[tuple[int, int], array[int]] = {}
        self._log = log
        self._read(data, is_whole)
        self._end_what_is_open()

    @property
    def num_parts(self) -> int:
        return len(self._notes)

    def parts(self, number: int) -> list[Part]:
        """What it plays, as the track of a number, lower channels and programs first."""
        parts = []
        for channel, program in sorted(self._notes):
            notes = np.array(self._notes[channel, program], np.int64).reshape(-1, 4).T
            pedal = np.array(self._pedal[channel, program], np.int64).reshape(-1, 3)
            onset, offset, pitch, velocity = notes
            name = readable(self._name)
            heard = (onset, offset, pitch, velocity, pedal)
            parts.append(Part(program, channel == DRUMS, name, *heard, channel=channel, track=number))
        return parts

    def _read(self, data: bytes, is_whole: bool) -> None:
        at = status = 0
        tick, size = self.end, len(data)
        try:
            while at < size:
                delta = data[at]
                if delta > 0x7F:
                    delta, at = _variable_length(data, at)
                else:
                    at += 1
                tick += delta
                if tick > MAX_TICK:
                    break
                byte = data[at]
                if byte < 0x80 and not status:  # data of no message
                    byte, at = self._next_status(data, at)
                if byte > 0xEF:
                    if byte == META and data[at + 1] == END_OF_TRACK:
                        at += 3
                        break
                    at = self._after_system_message(data, at, tick)
                    continue
                if byte > 0x7F:
                    status = byte
                    at += 1
                first = data[at]
                if 0xC0 <= status < 0xE0:
                    second, at = 0, at + 1
                else:
                    second, at = data[at + 1], at + 2
                if status & 0xF0 not in HEARD:
                    continue
                if (first | second) > 0x7F:
                    self._log.add("data bytes above 127")
                    if first > 0x7F:
                        continue
                    second = 0x7F
                self._play(status, first, second, tick)
            else:
                if not is_whole:
                    self._log.cut(tick)
                elif size:
                    self._log.add("no end of track")
                return
            if not is_whole:
                self._log.add("chunk length")
            self._log.add("bytes outside tracks", max(0, size - at))
        except IndexError:  # a message is longer than what is there
            self._log.cut(tick)
        finally:
            self.end = tick

    def _next_status(self, data: bytes, at: int) -> tuple[int, int]:
        stray = at
        while data[at] < 0x80:
            at += 1
        self._log.add("stray bytes", at - stray)
        return data[at], at

    def _after_system_message(self, data: bytes, at: int, tick: int) -> int:
        """Takes the tempo or the name from a message that is no channel's; says where the next one begins.

        Raises:
            IndexError: it is longer than what is there.
        """
        kind = data[at]
        if kind == META:
            what = data[at + 1]
            length, at = _variable_length(data, at + 2)
            if at + length > len(data):
                raise IndexError
            if what == SET_TEMPO:
                tempo = int.from_bytes(data[at : at + 3], "big") if length == 3 else 0
                if tempo:
                    self.tempos.append((tick, tempo))
                else:
                    self._log.add("odd tempi")
            elif what == TRACK_NAME:
                self._name = data[at : at + length]
            elif what == TEXT and data.startswith(OUR_TEXT, at, at + length):
                self.our_text = readable(data[at : at + length], most=None)
            return at + length
        if kind in SYSEX:
            length, at = _variable_length(data, at + 1)
            if at + length <= len(data):
                return at + length
            end = data.find(b"\xf7", at)
            if end < 0:
                raise IndexError
            self._log.add("odd sysex")
            return end + 1
        if kind in UNDEFINED:
            self._log.add("stray bytes")
        return at + LENGTHS_OF_COMMON.get(kind, 1)

    def _play(self, status: int, first: int, second: int, tick: int) -> None:
        kind, channel = status & 0xF0, status & 0x0F
        if kind == NOTE_ON and second:
            program = self._program[channel]
            if (channel, program) not in self._notes:
                self._notes[channel, program] = array("q")
                self._pedal[channel, program] = array("q", self._early_pedal.get(channel, ()))
            stroke = tick << 14 | program << 7 | second
            self._open.setdefault((channel, first), array("q")).append(stroke)
        elif kind in (NOTE_OFF, NOTE_ON):
            self._release(channel, first, tick)
        elif kind == CONTROL and first in PEDALS:
            early = self._early_pedal.setdefault(channel, array("q"))
            self._pedal.get((channel, self._program[channel]), early).extend((tick, first, second))
        elif kind == PROGRAM:
            self._program[channel] = first

    def _release(self, channel: int, pitch: int, tick: int) -> None:
        strokes = self._open.pop((channel, pitch), None)
        if strokes is None:
            return
        num_earlier = sum(stroke >> 14 < tick for stroke in strokes)
        for stroke in strokes[:num_earlier]:
            self._add_note(channel, pitch, stroke, tick)
        if num_earlier < len(strokes):
            if num_earlier:
                self._open[channel, pitch] = strokes[num_earlier:]
            else:
                self._log.add("notes without length", len(strokes))

    def _end_what_is_open(self) -> None:
        for (channel, pitch), strokes in self._open.items():
            end = next_onset = self.end
            for stroke in reversed(strokes):
                onset = stroke >> 14
                if onset < next_onset:
                    end, next_onset = next_onset, onset
                if onset < end:
                    self._add_note(channel, pitch, stroke, end)
                    self._log.add("notes without an end")
                else:
                    self._log.add("notes without length")

    def _add_note(self, channel: int, pitch: int, stroke: int, offset: int) -> None:
        self._notes[channel, stroke >> 7 & 0x7F].extend((stroke >> 14, offset, pitch, stroke & 0x7F))


def _variable_length(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends; of an endless one, the last 49 bits."""
    value = 0
    while True:
        byte = data[at]
        at += 1
        value = (value & 2**42 - 1) << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
