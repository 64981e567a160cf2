"""Standard MIDI File <-> Performance: the only place that turns MIDI bytes into music, and music into MIDI bytes.

Knows ticks, tempo maps, tracks and programs; knows no tokens. A plain file is read by symusic (about a millisecond);
every other one, message by message, by `repair.py`, which says what it mended. The times are computed in float64 with
the very operations of pretty_midi, so that quantising them later falls on the same side of a tie. Writing is mido's.

Three differences from pretty_midi are meant, as players have them: tempo changes count in whichever track they stand, a
note without an end is ended, not dropped, and a note belongs to the program it is struck with, not released.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import mido
import numpy as np
import symusic

from pamusic.errors import PamusicError, UsageError
from pamusic.music.contents import MAX_PARTS, Contents, Part, Repair, check_size, readable
from pamusic.music.performance import NOTE, PEDAL, PEDALS, Performance, notes_in_order, pedal_in_order
from pamusic.music.repair import read_leniently

PIANO_PROGRAMS = range(8)  # General MIDI's first family, from Acoustic Grand to Clavinet
MAX_SECONDS = 24 * 3600.0
MAX_NOTES = 1_000_000  # MAESTRO has 840,000 in 24 hours
MOST_PARTS_TOLD = 8

Tracks = Literal["piano", "all"] | tuple[int, ...]
SecondsAt = Callable[[np.ndarray], np.ndarray]  # ticks [n] -> seconds [n]

# Deltas and messages as they stand in a file, and the tick that four of the longest deltas lead to.
LONGEST_DELTA, EMPTY_TEXT, END_OF_TRACK = b"\xff\xff\xff\x7f", b"\xff\x01\x00", b"\xff\x2f\x00"
SIGN = "end of a track, as pamusic marks it"  # a marker (meta message 6)
NEVER = 4 * (2**28 - 1)
META, SET_TEMPO = 0xFF, 0x51
IS_PEDAL = np.isin(np.arange(256), PEDALS)  # of each control's number

# Messages of notes, controls and the like, in a row, each after its delta, with running status; one of another kind.
NUMBER, DATA = rb"[\x80-\xff]{0,3}+[\0-\x7f]", rb"[\0-\x7f]"
OF_TWO, OF_ONE = rb"[\x80-\xbf\xe0-\xef]%b{2}(?:%b%b{2})*+" % (DATA, NUMBER, DATA), rb"[\xd0-\xdf]%b" % DATA
COMMON_MESSAGES = re.compile(rb"(?:%b(?:%b|%b))*+" % (NUMBER, OF_TWO, OF_ONE))
OTHER_MESSAGE = re.compile(rb"%b(?:([\xc0-\xcf])%b|\xff(%b)(%b))" % (NUMBER, DATA, DATA, NUMBER))

TICKS_PER_QUARTER, MICROSECONDS_PER_QUARTER = 500, 500_000  # what we write: a tick is a millisecond


def read_midi(source: Path | bytes, name: str | None = None, *, tracks: Tracks = "piano") -> Performance:
    """Reads the piano part of a Standard MIDI File, mended where it is broken; the arguments are `read_and_mend`'s."""
    return read_and_mend(source, name, tracks=tracks)[0]


def read_and_mend(
    source: Path | bytes, name: str | None = None, *, tracks: Tracks = "piano"
) -> tuple[Performance, tuple[Repair, ...]]:
    """Reads the piano part of a Standard MIDI File, and says what was mended and left out.

    A part is what one track plays on one channel with one program. Those taken are merged, their pedals too.

    Args:
        source: a file, or its bytes.
        name: how to call it in an error; the path by default.
        tracks: "piano": parts of the piano family (programs 0 to 7; without a program it is 0), no drums. "all": all
            but drums. Numbers: these parts, counted from 1 among those that have notes, in the order of tracks,
            channels and programs.

    Raises:
        PamusicError: the file cannot be read, is no MIDI file, or has no such part in it.
    """
    name = name or (str(source) if isinstance(source, Path) else "standard input")
    data = _checked(source if isinstance(source, bytes) else _file_bytes(source), name)
    contents = _read_fast(data) or read_leniently(data, name)
    parts = chosen_parts(contents.parts, tracks, name)
    if (num_notes := sum(map(len, parts))) > MAX_NOTES:
        raise PamusicError(
            f"{name}: has {num_notes:,} notes, more than a day of music ({MAX_NOTES:,}); split it in a sequencer",
            rule="too many notes",
        )
    seconds_at = _tempo_map(contents.ticks_per_quarter, contents.tempos)
    notes = _joined([_notes(part, seconds_at) for part in parts])
    pedal = _joined([_pedal(part, seconds_at) for part in parts])
    performance = Performance(notes_in_order(notes), pedal_in_order(pedal))
    if performance.duration > MAX_SECONDS:
        raise PamusicError(
            f"{name}: lasts {performance.duration / 3600:.0f} hours, more than we take (24); cut it in a sequencer",
            rule="too long",
        )
    repairs = [_with_second(repair, seconds_at) for repair in contents.repairs]
    if left_out := sum(map(len, contents.parts)) - len(performance):
        repairs.append(Repair.of("other instruments", left_out))
    return performance, tuple(repairs)


def read_contents(data: bytes, name: str) -> Contents:
    """All that a file holds, read message by message, which is slower and keeps channels, format and our own text.

    Raises:
        PamusicError: it cannot be read, or is no MIDI file.
    """
    return read_leniently(_checked(data, name), name)


def chosen_parts(parts: list[Part], tracks: Tracks, name: str) -> list[Part]:
    """Those of a file's parts that are taken, at least one; the arguments are `read_and_mend`'s.

    Raises:
        PamusicError: there is none.
    """
    if not parts:
        raise PamusicError(f"{name}: has no notes in it; give a file with music", rule="no notes")
    if isinstance(tracks, tuple):
        if beyond := [number for number in tracks if number > len(parts)]:
            raise PamusicError(
                f"{name}: has no track {beyond[0]}, but {_told(parts)}; choose of these with --tracks",
                rule="no such track",
            )
        return [parts[number - 1] for number in sorted(set(tracks))]
    melodic = [part for part in parts if not part.is_drum]
    if not melodic:
        raise PamusicError(
            f"{name}: has only drums ({sum(map(len, parts))} notes); give a piano file", rule="only drums"
        )
    taken = [part for part in melodic if tracks == "all" or part.program in PIANO_PROGRAMS]
    if not taken:
        numbers = ",".join(str(number) for number, part in enumerate(parts, start=1) if not part.is_drum)
        option = "--tracks all" if len(numbers) > 40 else f"--tracks all or --tracks {numbers}"
        raise PamusicError(
            f"{name}: has no piano (programs 0 to 7), but {_told(parts)}; take them with {option}", rule="no piano"
        )
    return taken


def parsed_tracks(text: str) -> Tracks:
    """What `read_and_mend` takes, from what a person writes: piano, all, or numbers like 1,3.

    Raises:
        UsageError: it is none of these.
    """
    named: dict[str, Tracks] = {"piano": "piano", "all": "all"}
    if text in named:
        return named[text]
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() and 0 < int(number) <= MAX_PARTS for number in numbers):
        raise UsageError(f"--tracks is piano, all or numbers from 1 on, like 1,3; not {text!r}")
    return tuple(int(number) for number in numbers)


def midi_bytes(performance: Performance) -> bytes:
    """A Standard MIDI File (format 0, 1,000 ticks a second) of a performance.

    At one tick what ends comes first, then the pedals, then what begins. Pedals that are down at the end are let up,
    so that nothing rings on in a sequencer.
    """
    notes, pedal = performance.notes, performance.pedal
    onset, offset = (_tick(notes[field]) for field in ("onset", "offset"))
    offset = np.maximum(offset, onset + 1)
    messages = [
        (tick, 2, mido.Message("note_on", note=int(n["pitch"]), velocity=int(n["velocity"])))
        for tick, n in zip(onset.tolist(), notes, strict=True)
    ]
    messages += [
        (tick, 0, mido.Message("note_off", note=int(n["pitch"]), velocity=64))
        for tick, n in zip(offset.tolist(), notes, strict=True)
    ]
    messages += [
        (tick, 1, mido.Message("control_change", control=int(p["control"]), value=int(p["value"])))
        for tick, p in zip(_tick(pedal["time"]).tolist(), pedal, strict=True)
    ]
    messages.sort(key=lambda message: message[:2])
    last = messages[-1][0] if messages else 0
    for control in np.unique(pedal["control"]):
        if pedal["value"][pedal["control"] == control][-1]:
            messages.append((last, 3, mido.Message("control_change", control=int(control), value=0)))

    track = mido.MidiTrack(
        [
            mido.MetaMessage("track_name", name="piano"),
            mido.MetaMessage("set_tempo", tempo=MICROSECONDS_PER_QUARTER),
            mido.Message("program_change", program=0),
        ]
    )
    now = 0
    for tick, _, message in messages:
        track.append(message.copy(time=tick - now))
        now = tick
    buffer = io.BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=TICKS_PER_QUARTER, tracks=[track]).save(file=buffer)
    return buffer.getvalue()


def _file_bytes(path: Path) -> bytes:
    try:
        check_size(path.stat().st_size, str(path))
        return path.read_bytes()
    except IsADirectoryError:
        raise PamusicError(f"{path}: is a folder; give a MIDI file") from None
    except FileNotFoundError:
        raise PamusicError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise PamusicError(f"{path}: cannot be read ({error.strerror}); check its rights and the disk") from None


def _checked(data: bytes, name: str) -> bytes:
    check_size(len(data), name)
    if not data:
        raise PamusicError(f"{name}: is empty; give a MIDI file", rule="empty")
    return data


def _read_fast(data: bytes) -> Contents | None:
    """What a plain file holds; None where symusic refuses it, or cannot tell which strokes its releases end.

    symusic gives each release to the oldest open stroke of its key, pretty_midi to all that began earlier: where
    strokes of a key overlap they are paired anew. So that none is lost, all keys are released after the end.
    """
    plain = _plain(data)
    if plain is None:
        return None
    try:
        score = symusic.Score.from_midi(plain, sanitize_data=False)
    except Exception:  # symusic raises plain RuntimeErrors and ValueErrors, and MemoryErrors of its own
        return None
    signs = [marker.time for marker in score.markers if marker.text == SIGN]
    if len(signs) != int.from_bytes(data[10:12], "big") or min(signs, default=0) < 0:
        return None  # a message went on beyond the end of its track, or ticks beyond what symusic can count
    tempos = score.tempos.numpy()
    if len(score.tracks) > MAX_PARTS:
        return None
    if np.any((np.diff(tempos["time"]) == 0) & (np.diff(tempos["mspq"]) != 0)) or not np.all(tempos["mspq"]):
        return None  # symusic sorts them, and from some twenty on shuffles those of one tick
    parts = []
    for track in score.tracks:
        columns = track.notes.numpy()
        onset, pitch = columns["time"].astype(np.int64), columns["pitch"].astype(np.int64)
        ended = _released(onset, onset + columns["duration"], pitch)
        if ended is None:
            return None
        offset = ended
        if len(onset):
            controls = track.controls.numpy()
            pedals = IS_PEDAL[controls["number"]]
            pedal = np.column_stack([controls[field][pedals].astype(np.int64) for field in ("time", "number", "value")])
            velocity = columns["velocity"].astype(np.int64)
            name = readable(track.name.encode())
            parts.append(Part(track.program, track.is_drum, name, onset, offset, pitch, velocity, pedal))
    times = list(zip(tempos["time"].tolist(), tempos["mspq"].tolist(), strict=True))
    return Contents(score.tpq, times, parts)


def _plain(data: bytes) -> bytes | None:
    """The same file with all keys released `NEVER` ticks after the end of each track; None where it is not plain.

    Plain is: nothing but a header and as many tracks as it says, each of them ended by its only end of track; no sysex
    and no tempo of odd length, both of which symusic misreads; of each channel one program at most.
    """
    division = int.from_bytes(data[12:14], "big")
    if data[:9] != b"MThd\0\0\0\6\0" or data[9:10] > b"\1" or not 0 < division < 0x8000:
        return None
    sign = b"\xff\x06" + bytes([len(SIGN)]) + SIGN.encode()
    parts, at = [data[:14]], 14
    for _ in range(int.from_bytes(data[10:12], "big")):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
        chunk = data[at + 8 : end]
        if data[at : at + 4] != b"MTrk" or end > len(data) or not (_seems_plain(chunk) or _is_plain(chunk)):
            return None
        chunk = chunk[:-3]
        channels = [channel for channel in range(16) if bytes([0x90 + channel]) in chunk]
        releases = b"".join(_all_keys_released(channel) for channel in channels)
        chunk += sign + (LONGEST_DELTA + EMPTY_TEXT) * 4 + b"\0" + releases + END_OF_TRACK
        parts += [b"MTrk", len(chunk).to_bytes(4, "big"), chunk]
        at = end
    return b"".join([*parts, bytes(16)]) if at == len(data) else None  # symusic may look a few bytes beyond the end


def _seems_plain(chunk: bytes) -> bool:
    """Whether a track is plain, told from its bytes at once; no, too, where a delta or a name looks otherwise."""
    if chunk[-3:] != END_OF_TRACK:
        return False
    data = np.frombuffer(chunk, np.uint8)
    high = np.flatnonzero(data >= 0xC0)
    metas, programs = high[data[high] >= 0xF0], data[high[data[high] < 0xD0]]
    status, kind, length = data[metas], data[metas[:-1] + 1], data[metas[:-1] + 2]
    odd = (kind == END_OF_TRACK[1]) | ((kind == SET_TEMPO) & (length != 3))
    ends_once = bool(np.all(status == META) and not np.any(odd) and metas[-1] == len(data) - 3)
    return ends_once and len(np.unique(programs)) == len(programs)


def _is_plain(chunk: bytes) -> bool:
    """Whether a track is plain, told message by message."""
    at, programs = 0, set()
    while True:
        if (common := COMMON_MESSAGES.match(chunk, at)) and (message := OTHER_MESSAGE.match(chunk, common.end())):
            at = message.end()
        else:
            return False
        program, kind, length = message.groups()
        if program:
            if program in programs:
                return False  # what a note belongs to when its program changes
            programs.add(program)
        elif kind[0] == END_OF_TRACK[1]:
            return length == b"\0" and at == len(chunk)
        elif kind[0] == SET_TEMPO and length != b"\3":
            return False
        else:
            at += _value(length)


def _value(number: bytes) -> int:
    """Of a number of seven bits a byte."""
    value = 0
    for byte in number:
        value = value << 7 | byte & 0x7F
    return value


@lru_cache(maxsize=16)
def _all_keys_released(channel: int) -> bytes:
    return b"".join(bytes([0x80 + channel, pitch, 0, 0]) for pitch in range(128))  # message, then the next one's delta


def _released(onset: np.ndarray, offset: np.ndarray, pitch: np.ndarray) -> np.ndarray | None:
    """The offsets `[num_notes]` as pretty_midi pairs them, from symusic's; None where these do not tell.

    A release ends all strokes of its key that began earlier, so each ends with the first release after it.
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
        return offset  # no two strokes of a key overlap
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


def _told(parts: list[Part]) -> str:
    """The parts of a file, numbered as `read_and_mend` counts them."""
    from pretty_midi.constants import INSTRUMENT_MAP

    told = []
    for number, part in enumerate(parts[:MOST_PARTS_TOLD], start=1):
        instrument = "drums" if part.is_drum else INSTRUMENT_MAP[part.program]
        named = f" \u201c{part.name}\u201d" if part.name else ""
        told.append(f"{number} {instrument}{named} ({len(part):,} {'note' if len(part) == 1 else 'notes'})")
    more = len(parts) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def _with_second(repair: Repair, seconds_at: SecondsAt) -> Repair:
    if repair.tick is None:
        return repair
    second = float(seconds_at(np.array([repair.tick]))[0])
    return replace(repair, words=f"{repair.words} (second {second:.1f})")


def _tempo_map(ticks_per_quarter: int, tempos: list[tuple[int, int]]) -> SecondsAt:
    """A function from ticks `[n]` to seconds `[n]`, operation for operation pretty_midi's table."""
    scales = [(0, 60.0 / (120.0 * ticks_per_quarter))]
    for tick, tempo in tempos:
        scale = 60.0 / ((6e7 / tempo) * ticks_per_quarter)
        if tick == 0:
            scales = [(0, scale)]
        elif scale != scales[-1][1]:
            scales.append((tick, scale))
    start_tick = np.array([tick for tick, _ in scales])
    seconds_a_tick = np.array([scale for _, scale in scales])
    start_second = np.zeros(len(scales))
    for i in range(1, len(scales)):
        start_second[i] = start_second[i - 1] + seconds_a_tick[i - 1] * (start_tick[i] - start_tick[i - 1])

    def seconds_at(ticks: np.ndarray) -> np.ndarray:
        if len(scales) == 1:
            return scales[0][1] * ticks
        # A tick on a border belongs to the later tempo: the same second, since it adds zero ticks to it.
        interval = np.searchsorted(start_tick, ticks, side="right") - 1
        return start_second[interval] + seconds_a_tick[interval] * (ticks - start_tick[interval])

    return seconds_at


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def _notes(part: Part, seconds_at: SecondsAt) -> np.ndarray:
    notes = np.empty(len(part), NOTE)
    notes["onset"], notes["offset"] = seconds_at(part.onset), seconds_at(part.offset)
    notes["pitch"], notes["velocity"] = part.pitch, part.velocity
    return notes


def _pedal(part: Part, seconds_at: SecondsAt) -> np.ndarray:
    pedal = np.empty(len(part.pedal), PEDAL)
    tick, pedal["control"], pedal["value"] = part.pedal.T
    pedal["time"] = seconds_at(tick)
    return pedal


def _tick(seconds: np.ndarray) -> np.ndarray:
    return np.rint(seconds * 1000).astype(np.int64)
