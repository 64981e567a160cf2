"""Read a Standard MIDI File into its parts, in ticks; this reader refuses little and reports its repairs.

Knows a file message by message; knows no seconds and no pianos. It handles the files that the fast reader of `midi.py`
refuses, and gives the same `Contents`: the choice of tracks, the tempo map and all later steps are shared. It is also
the plain twin of that reader: on a plain file both give the same result, and the tests hold them together.

Why not repair the bytes and use the fast reader: which note a release ends depends on the order within a tick, and that
reader does not keep this order. Why not mido: it refuses a whole file if one chunk is cut, and does not report what it
clips.

The reader does what players do. A chunk with a wrong length ends where the next one begins. A message that is too short
ends its track. Running status survives meta messages and sysex. Bytes outside the tracks are skipped. Tracks beyond the
header's number are left out, unless the others have no notes.

Notes are paired as in pretty_midi: a release ends all open notes of its key that began earlier, and drops notes that
began at its own tick. Two differences: a note without a release is kept, and ends at the next onset of its key or with
its track; a note released at its own tick is kept if it sounds.

Programs and pedals belong to a channel of the file, not of a track (`channels.py`). Tracks of format 2 are separate
patterns: each begins where the one before it ends, at the standard's tempo, with program 0 and its pedals up. SMPTE
frames become ticks at any tempo: 30 frames last 1 second, or 1.001 seconds in drop frame (29.97).
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from operator import itemgetter

import numpy as np

from pamusic.errors import PamusicError
from pamusic.music.channels import Played, one_after_another, parts_of, pedals_by_line
from pamusic.music.chunks import Log, from_header_on, time_base, track_spans
from pamusic.music.midi_contents import MAX_PARTS, NUM_CHANNELS, OUR_TEXT, Contents, Part
from pamusic.music.performance import PEDALS
from pamusic.music.text import readable

MAX_TRACKS = 65_535  # limit of the header's 16 bits
MAX_TICK = 2**40  # beyond any music; far below integer overflow
FORMATS = (0, 1, 2)

DEFAULT_TEMPO = 500_000  # microseconds per quarter, the standard's default
NOTE_OFF, NOTE_ON, CONTROL, PROGRAM = HEARD = (0x80, 0x90, 0xB0, 0xC0)
META, SYSEX = 0xFF, (0xF0, 0xF7)
TEXT, TRACK_NAME, PORT, END_OF_TRACK, SET_TEMPO = 0x01, 0x03, 0x21, 0x2F, 0x51
UNDEFINED = (0xF4, 0xF5, 0xF9, 0xFD)
LENGTHS_OF_COMMON = {0xF1: 2, 0xF2: 3, 0xF3: 2}  # messages of live MIDI that do not belong in a file


def read_leniently(data: bytes, name: str) -> Contents:
    """Return the contents of a file, however broken it is.

    Args:
        data: Bytes of the file.
        name: Name of the file in errors.

    Raises:
        PamusicError: the header is missing or does not define the length of a tick, or there are too many tracks or
            ticks.
    """
    log = Log()
    data, at = from_header_on(data, name, log)
    kind, num_tracks, division = (int.from_bytes(data[i : i + 2], "big") for i in (8, 10, 12))
    has_patterns = kind == 2
    ticks_per_quarter, smpte_tempo = time_base(division, name)
    tracks: list[_Track] = []
    num_lines, is_enough = 0, False
    for number, (start, end, is_whole) in enumerate(track_spans(data, at, log)):
        if number == num_tracks:
            is_enough = num_lines > 0
        if is_enough:
            log.add("tracks beyond the header's")
            continue
        if len(tracks) == MAX_TRACKS:
            raise PamusicError(
                f"{name}: has more than {MAX_TRACKS:,} tracks; merge them in a sequencer", rule="too many tracks"
            )
        tick = tracks[-1].end if has_patterns and tracks else 0
        tracks.append(_Track(data[start:end], is_whole, log, tick))
        num_lines += len(tracks[-1].notes)
        if num_lines > MAX_PARTS:
            raise _too_many_parts(name)
        if tracks[-1].end > MAX_TICK:
            raise PamusicError(
                f"{name}: lasts more than {MAX_TICK:.0e} ticks, longer than music; cut it in a sequencer",
                rule="too long",
            )
    if len(tracks) != num_tracks:
        log.add("number of tracks", len(tracks))
    if has_patterns and len(tracks) > 1:
        log.add("patterns", len(tracks))
    played = [track.played() for track in tracks]
    parts, pedals = _parts([[each] for each in played] if has_patterns else [played], name, log)
    pedals_of_file = one_after_another(pedals, [track.end for track in tracks]) if has_patterns else pedals[0]
    tempos = dict(sorted((tempo for track in tracks for tempo in track.tempos), key=itemgetter(0)))
    return Contents(
        ticks_per_quarter,
        [(0, smpte_tempo)] if smpte_tempo else list(tempos.items()),
        parts,
        pedals_of_file,
        log.repairs(),
        format=kind if kind in FORMATS else 1,
        has_smpte_time=smpte_tempo is not None,
        our_text=next((track.our_text for track in tracks if track.our_text), ""),
    )


def _parts(groups: list[list[Played]], name: str, log: Log) -> tuple[list[Part], list[dict[int, np.ndarray]]]:
    """Return the parts of all tracks, and the pedals of each group; tracks of different groups share no channel."""
    pedals = [pedals_by_line([track.pedals for track in group]) for group in groups]
    parts: list[Part] = []
    lost: list[int] = []
    num_before = 0
    for group, its_pedals in zip(groups, pedals, strict=True):
        for part in parts_of(group, its_pedals, lost):
            parts.append(replace(part, track=part.track + num_before) if num_before else part)
            if len(parts) > MAX_PARTS:
                raise _too_many_parts(name)
        num_before += len(group)
    log.add("notes without length", sum(lost))
    return parts, pedals


def _too_many_parts(name: str) -> PamusicError:
    return PamusicError(
        f"{name}: has more than {MAX_PARTS:,} instruments; merge them in a sequencer", rule="too many tracks"
    )


class _Track:
    """A track, read message by message.

    Attributes:
        end: Last tick. The track begins at `start`, which is not 0 for a pattern that follows another.
        tempos: (tick, microseconds per quarter) in the order of the file.
        our_text: Last text in which pamusic says how it made the file; empty if there is none.
        notes: Rows of `Played.notes` by line, flattened.
    """

    def __init__(self, data: bytes, is_whole: bool, log: Log, start: int = 0) -> None:
        self.end = start
        self.tempos = [(start, DEFAULT_TEMPO)] if start else []  # a pattern does not inherit the tempo before it
        self.our_text = ""
        self.notes: dict[int, array[int]] = {}
        self._name = b""
        self._first_line = 0  # of the port
        # By line, the rows of the fields of `Played`, flattened.
        self._instants: dict[int, array[int]] = {}
        self._programs: dict[int, array[int]] = {}
        self._pedals: dict[int, array[int]] = {}
        # (line, pitch) -> onset, program set at that tick, and velocity of each open note, packed into one number.
        self._open: dict[tuple[int, int], array[int]] = {}
        self._log = log
        self._read(data, is_whole)
        self._end_what_is_open()

    def played(self) -> Played:
        """Return the messages of the track."""
        return Played(
            self._name,
            *(
                {line: np.array(each, np.int64).reshape(-1, num_columns) for line, each in by_line.items()}
                for by_line, num_columns in (
                    (self.notes, 5),
                    (self._instants, 5),
                    (self._programs, 2),
                    (self._pedals, 3),
                )
            ),
        )

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
                if byte < 0x80 and not status:  # a data byte without a status
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
        except IndexError:  # a message extends beyond the end of the data
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
        """Read the tempo, name, port or text of a system message, and return where the next message begins.

        Raises:
            IndexError: the message extends beyond the end of the data.
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
            elif what == PORT and length == 1:
                self._first_line = data[at] * NUM_CHANNELS
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
        kind, line = status & 0xF0, self._first_line + (status & 0x0F)
        if kind == NOTE_ON and second:
            if line not in self.notes:
                self.notes[line] = array("q")
            changes = self._programs.get(line)
            program = changes[-1] + 1 if changes and changes[-2] == tick else 0
            self._open.setdefault((line, first), array("q")).append(tick << 15 | program << 7 | second)
        elif kind in (NOTE_OFF, NOTE_ON):
            self._release(line, first, tick)
        elif kind == CONTROL and first in PEDALS:
            self._pedals.setdefault(line, array("q")).extend((tick, first, second))
        elif kind == PROGRAM:
            self._programs.setdefault(line, array("q")).extend((tick, first))

    def _release(self, line: int, pitch: int, tick: int) -> None:
        strokes = self._open.pop((line, pitch), None)
        if strokes is None:
            return
        num_earlier = sum(stroke >> 15 < tick for stroke in strokes)
        for stroke in strokes[:num_earlier]:
            _add_note(self.notes, line, pitch, stroke, tick)
        if num_earlier == len(strokes):
            return
        if num_earlier:
            self._open[line, pitch] = strokes[num_earlier:]
        else:
            for stroke in strokes:
                _add_note(self._instants, line, pitch, stroke, tick)

    def _end_what_is_open(self) -> None:
        for (line, pitch), strokes in self._open.items():
            end = next_onset = self.end
            for stroke in reversed(strokes):
                onset = stroke >> 15
                if onset < next_onset:
                    end, next_onset = next_onset, onset
                if onset < end:
                    _add_note(self.notes, line, pitch, stroke, end)
                    self._log.add("notes without an end")
                else:
                    _add_note(self._instants, line, pitch, stroke, end)


def _add_note(notes: dict[int, array[int]], line: int, pitch: int, stroke: int, offset: int) -> None:
    if line not in notes:
        notes[line] = array("q")
    notes[line].extend((stroke >> 15, offset, pitch, stroke & 0x7F, stroke >> 7 & 0xFF))


def _variable_length(data: bytes, at: int) -> tuple[int, int]:
    """Return a variable-length number (seven bits per byte), at most its last 49 bits, and the place after it."""
    value = 0
    while True:
        byte = data[at]
        at += 1
        value = (value & 2**42 - 1) << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
