"""Standard MIDI File <-> Performance: the only place that reads or writes MIDI bytes.

Knows ticks, tempo maps, tracks and programs; knows no tokens. Reading is symusic's (about a millisecond a file); the
times are computed in float64 with the very operations of pretty_midi, so that quantising them later falls on the same
side of a tie. Writing is mido's.
"""

from __future__ import annotations

import io
from pathlib import Path

import mido
import numpy as np
import symusic

from pamusic.errors import PamusicError
from pamusic.music.performance import NOTE, PEDAL, PEDALS, Performance

PIANO_PROGRAMS = range(8)  # General MIDI's first family, from Acoustic Grand to Clavinet
MAX_FILE_BYTES = 64 * 2**20  # the largest file of MAESTRO has 0.4 MB
MAX_SECONDS = 24 * 3600.0

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
    seconds_at = _tempo_map(score)
    for track in tracks:
        notes.append(_notes(track, seconds_at))
        pedal.append(_pedal(track, seconds_at))
    merged_notes, merged_pedal = np.concatenate(notes), np.concatenate(pedal)
    if not len(merged_notes):
        raise PamusicError(f"{name}: every note in it has no length; give a file with music")
    if merged_notes["offset"].max() > MAX_SECONDS:
        raise PamusicError(f"{name}: lasts {merged_notes['offset'].max() / 3600:.0f} hours, more than we take (24)")
    return Performance(
        merged_notes[np.lexsort((merged_notes["pitch"], merged_notes["onset"]))],
        merged_pedal[np.argsort(merged_pedal["time"], kind="stable")],
    )


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
    if not data:
        raise PamusicError(f"{name}: is empty; give a MIDI file")
    if data[:4] != b"MThd":
        raise PamusicError(f"{name}: is not a MIDI file (it begins with {data[:4]!r}, not b'MThd')")
    try:
        return symusic.Score.from_midi(data, sanitize_data=True)
    except Exception as error:  # symusic raises plain RuntimeErrors and ValueErrors
        raise PamusicError(f"{name}: is a broken or truncated MIDI file ({str(error).splitlines()[0][:100]})") from None


def _why_no_notes(score: symusic.Score) -> str:
    drums = sum(len(track.notes) for track in score.tracks if track.is_drum)
    others = sum(len(track.notes) for track in score.tracks if not track.is_drum)
    if others:
        return f"has no piano track (programs 0 to 7), only {others} notes of other instruments; give a piano file"
    if drums:
        return f"has only drums ({drums} notes); give a piano file"
    return "has no notes in it; give a file with music"


def _tempo_map(score: symusic.Score):
    """A function from ticks `[n]` to seconds `[n]`, operation for operation pretty_midi's table."""
    tempos = score.tempos.numpy()
    scales = [(0, 60.0 / (120.0 * score.tpq))]
    for tick, tempo in zip(tempos["time"].tolist(), tempos["mspq"].tolist(), strict=True):
        scale = 60.0 / ((6e7 / max(tempo, 1)) * score.tpq)
        if tick == 0:
            scales = [(0, scale)]
        elif scale != scales[-1][1]:
            scales.append((tick, scale))
    start_tick = np.array([tick for tick, _ in scales])
    scale = np.array([scale for _, scale in scales])
    start_second = np.zeros(len(scales))
    for i in range(1, len(scales)):
        start_second[i] = start_second[i - 1] + scale[i - 1] * (start_tick[i] - start_tick[i - 1])

    def seconds_at(ticks: np.ndarray) -> np.ndarray:
        # A tick on a border belongs to the later tempo: the same second, since it adds zero ticks to it.
        interval = np.searchsorted(start_tick, ticks, side="right") - 1
        return start_second[interval] + scale[interval] * (ticks - start_tick[interval])

    return seconds_at


def _notes(track: symusic.Track, seconds_at) -> np.ndarray:
    """The notes of a track as `NOTE` records, paired as pretty_midi pairs them.

    There a release closes every note of its pitch that is open and began earlier; symusic closes the oldest alone. So
    the offset of a note is the first release of its pitch after its onset.
    """
    columns = track.notes.numpy()
    onset = columns["time"].astype(np.int64)
    offset = onset + columns["duration"]
    pitch = columns["pitch"].astype(np.int64)
    kept = (offset > onset) & (onset >= 0)
    onset, offset, pitch, velocity = onset[kept], offset[kept], pitch[kept], columns["velocity"][kept]

    far = (int(offset.max()) + 1) if len(offset) else 1
    releases = np.sort(pitch * far + offset)
    offset = (
        releases[np.searchsorted(releases, pitch * far + onset, side="right")] - pitch * far if len(onset) else offset
    )

    notes = np.empty(len(onset), NOTE)
    notes["onset"], notes["offset"] = seconds_at(onset), seconds_at(offset)
    notes["pitch"], notes["velocity"] = pitch, velocity
    return notes


def _pedal(track: symusic.Track, seconds_at) -> np.ndarray:
    columns = track.controls.numpy()
    kept = np.isin(columns["number"], PEDALS)
    pedal = np.empty(int(kept.sum()), PEDAL)
    pedal["time"] = seconds_at(columns["time"][kept].astype(np.int64))
    pedal["control"], pedal["value"] = columns["number"][kept], columns["value"][kept]
    return pedal


def _tick(seconds: np.ndarray) -> np.ndarray:
    return np.rint(seconds * 1000).astype(np.int64)
