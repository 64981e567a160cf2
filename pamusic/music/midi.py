"""Standard MIDI File <-> Performance: the only place that reads or writes MIDI bytes.

Knows ticks, tempo maps, tracks and programs; knows no tokens. Reading is symusic's (about a millisecond a file); the
times are computed in float64 with the very operations of pretty_midi, so that quantising them later falls on the same
side of a tie. Writing is mido's.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import mido
import numpy as np
import symusic

from pamusic.errors import PamusicError
from pamusic.music.performance import NOTE, PEDAL, PEDALS, Performance, notes_in_order, pedal_in_order

PIANO_PROGRAMS = range(8)  # General MIDI's first family, from Acoustic Grand to Clavinet
MAX_FILE_BYTES = 64 * 2**20  # the largest file of MAESTRO has 0.4 MB
MAX_SECONDS = 24 * 3600.0

SecondsAt = Callable[[np.ndarray], np.ndarray]  # ticks [n] -> seconds [n]

# Deltas and messages as they stand in a file, and the tick that four of the longest deltas lead to.
LONGEST_DELTA, EMPTY_TEXT, END_OF_TRACK = b"\xff\xff\xff\x7f", b"\xff\x01\x00", b"\xff\x2f\x00"
NEVER = 4 * (2**28 - 1)

TICKS_PER_QUARTER, MICROSECONDS_PER_QUARTER = 500, 500_000  # what we write: a tick is a millisecond


def read_midi(source: Path | bytes, name: str | None = None) -> Performance:
    """Reads the piano part of a Standard MIDI File.

    Taken are tracks of the piano family (programs 0 to 7; a track without a program is program 0); drums and other
    instruments are left out. Tracks are merged. Notes without an end are dropped, as pretty_midi drops them.

    Args:
        source: a file, or its bytes.
        name: how to call it in an error; the path by default.

    Raises:
        PamusicError: the file cannot be read, is no MIDI file, or has no piano notes in it.
    """
    name = name or (str(source) if isinstance(source, Path) else "standard input")
    data = source if isinstance(source, bytes) else _file_bytes(source)
    score = _parse(data, name)
    tracks = [track for track in score.tracks if not track.is_drum and track.program in PIANO_PROGRAMS]
    if not any(len(track.notes) for track in tracks):
        raise PamusicError(f"{name}: {_why_no_notes(score)}")

    notes, pedal = [], []
    seconds_at = _tempo_map(score.tpq, _tempos(score, data))
    for track in tracks:
        notes.append(_notes(track, seconds_at))
        pedal.append(_pedal(track, seconds_at))
    merged_notes, merged_pedal = np.concatenate(notes), np.concatenate(pedal)
    if not len(merged_notes):
        raise PamusicError(f"{name}: no note in it has both a length and an end; give a file with music")
    performance = Performance(notes_in_order(merged_notes), pedal_in_order(merged_pedal))
    if performance.duration > MAX_SECONDS:
        raise PamusicError(f"{name}: lasts {performance.duration / 3600:.0f} hours, more than we take (24)")
    return performance


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
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PamusicError(
                f"{path}: has {path.stat().st_size / 2**20:.0f} MiB, more than any MIDI file we take (64)"
            )
        return path.read_bytes()
    except IsADirectoryError:
        raise PamusicError(f"{path}: is a folder; give a MIDI file") from None
    except FileNotFoundError:
        raise PamusicError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise PamusicError(f"{path}: cannot be read ({error.strerror})") from None


def _parse(data: bytes, name: str) -> symusic.Score:
    """The score, with every stroke in it: one that is never released ends beyond `NEVER`."""
    if not data:
        raise PamusicError(f"{name}: is empty; give a MIDI file")
    if data[:4] != b"MThd":
        raise PamusicError(f"{name}: is not a MIDI file (it begins with {data[:4]!r}, not b'MThd')")
    if len(data) < 14:
        raise PamusicError(f"{name}: is a truncated MIDI file ({len(data)} bytes); fetch it anew")
    division = int.from_bytes(data[12:14], "big")
    if division == 0 or division >= 0x8000:  # by 0 pretty_midi and symusic divide; SMPTE is for film
        what = "has no ticks in a quarter" if division == 0 else "counts SMPTE frames, not ticks a quarter"
        raise PamusicError(f"{name}: {what}; save it anew in a sequencer")
    try:
        for num_releases in (1, 16, 256, 4096):
            score = symusic.Score.from_midi(_with_keys_released(data, num_releases), sanitize_data=True)
            if _most_unreleased(score) < num_releases:
                break
    except Exception as error:  # symusic raises plain RuntimeErrors and ValueErrors
        why = str(error).partition("\n")[0].removeprefix("MiniMidi: ")[:100]
        raise PamusicError(f"{name}: is a broken or truncated MIDI file ({why}); fetch it anew") from None
    return score


def _with_keys_released(data: bytes, num_releases: int) -> bytes:
    """The same file, in which all keys are released `num_releases` times, `NEVER` ticks after each track's end.

    symusic gives each release to the oldest stroke of its key and drops strokes that find none, though another
    release may have ended them. This makes it give us all strokes; `_notes` pairs them anew.
    """
    parts, at = [data[:14]], 14
    size = len(data)
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
        chunk = data[at + 8 : end]
        if data[at : at + 4] == b"MTrk" and end <= len(data) and chunk.endswith(END_OF_TRACK):
            channels = [channel for channel in range(16) if bytes([0x90 + channel]) in chunk]
            releases = b"".join(_all_keys_released(channel) * num_releases for channel in channels)
            chunk = chunk[:-3] + EMPTY_TEXT + (LONGEST_DELTA + EMPTY_TEXT) * 4 + b"\0" + releases + END_OF_TRACK
        parts.append(data[at : at + 4] + len(chunk).to_bytes(4, "big") + chunk)
        size += len(parts[-1])
        if end > len(data) or size > 2 * MAX_FILE_BYTES:
            return data
        at = end
    return b"".join([*parts, data[at:]])


@lru_cache(maxsize=16)
def _all_keys_released(channel: int) -> bytes:
    return b"".join(bytes([0x80 + channel, pitch, 0, 0]) for pitch in range(128))  # message, then the next one's delta


def _most_unreleased(score: symusic.Score) -> int:
    """How many strokes of one key, at most, are never released."""
    most = 0
    for track in score.tracks:
        columns = track.notes.numpy()
        never = columns["time"].astype(np.int64) + columns["duration"] >= NEVER
        most = max(most, int(np.bincount(columns["pitch"][never].astype(np.int64), minlength=1).max()))
    return most


def _why_no_notes(score: symusic.Score) -> str:
    drums = sum(len(track.notes) for track in score.tracks if track.is_drum)
    others = sum(len(track.notes) for track in score.tracks if not track.is_drum)
    if others:
        return f"has no piano track (programs 0 to 7), only {others} notes of other instruments; give a piano file"
    if drums:
        return f"has only drums ({drums} notes); give a piano file"
    return "has no notes in it; give a file with music"


def _tempos(score: symusic.Score, data: bytes) -> list[tuple[int, int]]:
    """(tick, microseconds a quarter) of each change of tempo, of all tracks, in the order of the file."""
    columns = score.tempos.numpy()
    tempos = list(zip(columns["time"].tolist(), columns["mspq"].tolist(), strict=True))
    ticks, values = np.diff(columns["time"]), np.diff(columns["mspq"])
    if not np.any((ticks == 0) & (values != 0)):
        return tempos
    # symusic sorts them, and from some twenty on shuffles those of one tick; which of them comes last decides.
    try:
        file = mido.MidiFile(file=io.BytesIO(data), clip=True)
    except Exception:  # mido refuses files that symusic takes, in many ways
        return tempos
    in_file = []
    for track in file.tracks:
        tick = 0
        for message in track:
            tick += message.time
            if message.type == "set_tempo":
                in_file.append((tick, message.tempo))
    return sorted(in_file, key=lambda change: change[0])


def _tempo_map(ticks_per_quarter: int, tempos: list[tuple[int, int]]) -> SecondsAt:
    """A function from ticks `[n]` to seconds `[n]`, operation for operation pretty_midi's table."""
    scales = [(0, 60.0 / (120.0 * ticks_per_quarter))]
    for tick, tempo in tempos:
        scale = 60.0 / ((6e7 / max(tempo, 1)) * ticks_per_quarter)
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
        # A tick on a border belongs to the later tempo: the same second, since it adds zero ticks to it.
        interval = np.searchsorted(start_tick, ticks, side="right") - 1
        return start_second[interval] + seconds_a_tick[interval] * (ticks - start_tick[interval])

    return seconds_at


def _notes(track: symusic.Track, seconds_at: SecondsAt) -> np.ndarray:
    """The notes of a track as `NOTE` records, paired as pretty_midi pairs them.

    There a release closes every stroke of its key that is open and began earlier; symusic closes the oldest alone. So
    the offset of a note is the first release of its pitch after its onset. (One constellation differs: of a key
    struck twice and released within one tick, pretty_midi forgets both strokes, and we keep the second.)
    """
    columns = track.notes.numpy()
    onset = columns["time"].astype(np.int64)
    offset = onset + columns["duration"]
    kept = (offset > onset) & (onset >= 0)
    onset, offset = onset[kept], offset[kept]
    pitch, velocity = columns["pitch"][kept].astype(np.int64), columns["velocity"][kept]

    far = int(offset.max(initial=0)) + 1
    releases = np.sort(pitch * far + offset)
    offset = releases[np.searchsorted(releases, pitch * far + onset, side="right")] - pitch * far if far > 1 else offset
    ends = offset < NEVER

    notes = np.empty(int(ends.sum()), NOTE)
    notes["onset"], notes["offset"] = seconds_at(onset[ends]), seconds_at(offset[ends])
    notes["pitch"], notes["velocity"] = pitch[ends], velocity[ends]
    return notes


def _pedal(track: symusic.Track, seconds_at: SecondsAt) -> np.ndarray:
    columns = track.controls.numpy()
    kept = np.isin(columns["number"], PEDALS)
    pedal = np.empty(int(kept.sum()), PEDAL)
    pedal["time"] = seconds_at(columns["time"][kept].astype(np.int64))
    pedal["control"], pedal["value"] = columns["number"][kept], columns["value"][kept]
    return pedal


def _tick(seconds: np.ndarray) -> np.ndarray:
    return np.rint(seconds * 1000).astype(np.int64)
