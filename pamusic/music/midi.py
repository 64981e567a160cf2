"""Convert between Standard MIDI Files and performances; the only place that turns MIDI bytes into music, or music into
MIDI bytes.

Knows ticks, tempo maps, tracks and programs; knows no tokens. `fast_reader.py` reads plain files (about a millisecond).
`lenient_reader.py` reads all others, message by message, and reports its repairs. Times are computed in float64 with
exactly the operations of pretty_midi, so that ties round the same way when times are quantised later. mido writes.

We differ from pretty_midi, and so from note-seq, where players do. Tempo changes apply from any track. Programs and
pedals belong to a channel of the file, in any track. A note has the program of its onset, not of its release. A note
without an end is ended, not dropped. A note without length sounds while the pedal is down.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import mido
import numpy as np

from pamusic.errors import PamusicError, UsageError
from pamusic.music.fast_reader import read_plain
from pamusic.music.foreign import read_file, unpacked
from pamusic.music.lenient_reader import read_leniently
from pamusic.music.midi_contents import MAX_PARTS, NUM_CHANNELS, Contents, Part, Repair
from pamusic.music.pedal import merged
from pamusic.music.performance import (
    NOTE,
    PEDAL,
    Performance,
    empty_pedal,
    notes_in_order,
)

PIANO_PROGRAMS = range(8)  # General MIDI's piano family, from Acoustic Grand to Clavinet
MAX_SECONDS = 24 * 3600.0
MAX_NOTES = 1_000_000  # MAESTRO has 840,000 in 24 hours
MAX_PARTS_LISTED = 8

Tracks = Literal["piano", "all"] | tuple[int, ...]
SecondsAt = Callable[[np.ndarray], np.ndarray]  # ticks [n] -> seconds [n]

TICKS_PER_QUARTER, MICROSECONDS_PER_QUARTER = 500, 500_000  # of files that we write: a tick is a millisecond


def read_midi(source: Path | bytes, name: str | None = None, *, tracks: Tracks = "piano") -> Performance:
    """Read the piano part of a Standard MIDI File and repair it if it is broken; arguments as in `read_and_mend`."""
    return read_and_mend(source, name, tracks=tracks)[0]


def read_and_mend(
    source: Path | bytes, name: str | None = None, *, tracks: Tracks = "piano"
) -> tuple[Performance, tuple[Repair, ...]]:
    """Read the piano part of a Standard MIDI File, and return it with a list of repairs and omissions.

    A part holds the notes of one track on one channel with one program. The selected parts are merged. A sustain pedal
    that holds the notes of only one channel has no counterpart on one piano: these notes get their sounding lengths.

    Args:
        source: Path of a file, or its bytes.
        name: Name of the file in errors; the path by default.
        tracks: "piano": parts of the piano family (programs 0 to 7; 0 if no program is set), without drums. "all": all
            parts but drums. Numbers: these parts, counted from 1 among the parts with notes, in the order of tracks,
            channels and programs.

    Raises:
        PamusicError: the file cannot be read, is not a MIDI file, or has no such part.
    """
    name = name or (str(source) if isinstance(source, Path) else "standard input")
    data = _checked(source if isinstance(source, bytes) else file_bytes(source), name)
    contents = read_plain(data) or read_leniently(data, name)
    parts = chosen_parts(contents, tracks, name)
    if (num_notes := sum(map(len, parts))) > MAX_NOTES:
        raise PamusicError(
            f"{name}: has {num_notes:,} notes, more than a day of music ({MAX_NOTES:,}); split it in a sequencer",
            rule="too many notes",
        )
    seconds_at = tempo_map(contents.ticks_per_quarter, contents.tempos)
    channels = _by_line(parts, contents, seconds_at)
    performance, num_removed = merged(channels)
    if performance.duration > MAX_SECONDS:
        raise PamusicError(
            f"{name}: lasts {performance.duration / 3600:.0f} hours, the limit is 24; cut it in a sequencer",
            rule="too long",
        )
    repairs = [_with_second(repair, seconds_at) for repair in contents.repairs]
    if left_out := sum(map(len, contents.parts)) - num_notes:
        repairs.append(Repair.of("other instruments", left_out))
    if num_removed:
        repairs.append(Repair.of("pedals of channels", num_removed))
    return performance, (*repairs, *_pedals_without_notes(contents))


def read_contents(data: bytes, name: str) -> Contents:
    """Return the full contents of a file, read message by message: slower, but with channels, format and our own text.

    Raises:
        PamusicError: the file cannot be read, or is not a MIDI file.
    """
    return read_leniently(_checked(data, name), name)


def chosen_parts(contents: Contents, tracks: Tracks, name: str) -> list[Part]:
    """Return the selected parts of a file, at least one; arguments as in `read_and_mend`.

    Raises:
        PamusicError: no part fits. The error also lists the repairs of the file, which may be the reason.
    """
    try:
        return _chosen(contents.parts, tracks, name)
    except PamusicError as error:
        if not contents.repairs:
            raise
        seconds_at = tempo_map(contents.ticks_per_quarter, contents.tempos)
        mended = "; ".join(_with_second(repair, seconds_at).words for repair in contents.repairs)
        raise PamusicError(f"{error} (repaired: {mended})", rule=error.rule) from None


def _chosen(parts: list[Part], tracks: Tracks, name: str) -> list[Part]:
    if not parts:
        raise PamusicError(f"{name}: has no notes; use a file with music", rule="no notes")
    if isinstance(tracks, tuple):
        if beyond := [number for number in tracks if number > len(parts)]:
            raise PamusicError(
                f"{name}: has no track {beyond[0]}, but {_told(parts)}; select from these with --tracks",
                rule="no such track",
            )
        return [parts[number - 1] for number in sorted(set(tracks))]
    melodic = [part for part in parts if not part.is_drum]
    if not melodic:
        raise PamusicError(
            f"{name}: has only drums ({sum(map(len, parts))} notes); use a piano file", rule="only drums"
        )
    taken = [part for part in melodic if tracks == "all" or part.program in PIANO_PROGRAMS]
    if not taken:
        numbers = ",".join(str(number) for number, part in enumerate(parts, start=1) if not part.is_drum)
        option = "--tracks all" if len(numbers) > 40 else f"--tracks all or --tracks {numbers}"
        raise PamusicError(
            f"{name}: has no piano (programs 0 to 7), but {_told(parts)}; select them with {option}", rule="no piano"
        )
    return taken


def parsed_tracks(text: str) -> Tracks:
    """Return the `tracks` of `read_and_mend` from a user's text: piano, all, or numbers like 1,3.

    Raises:
        UsageError: the text is none of these.
    """
    named: dict[str, Tracks] = {"piano": "piano", "all": "all"}
    if text in named:
        return named[text]
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() and 0 < int(number) <= MAX_PARTS for number in numbers):
        raise UsageError(f"--tracks must be piano, all, or numbers from 1 like 1,3, got {text!r}")
    return tuple(int(number) for number in numbers)


def midi_bytes(performance: Performance) -> bytes:
    """Return a Standard MIDI File (format 0, 1,000 ticks per second) of a performance.

    At one tick note-offs come first, then pedals, then note-ons. Pedals that are down at the end are raised, so that
    no note keeps sounding in a sequencer.
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


def file_bytes(path: Path) -> bytes:
    """Return the bytes of a file, unpacked if gzip has packed them.

    Raises:
        PamusicError: the file cannot be read, or is larger than any MIDI file of music.
    """
    try:
        with path.open("rb") as file:
            return read_file(file, str(path))
    except IsADirectoryError:
        raise PamusicError(f"{path}: is a folder; use a MIDI file") from None
    except FileNotFoundError:
        raise PamusicError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise PamusicError(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk") from None


def _checked(data: bytes, name: str) -> bytes:
    data = unpacked(data, name)
    if not data:
        raise PamusicError(f"{name}: is empty; use a MIDI file", rule="empty")
    return data


def _told(parts: list[Part]) -> str:
    """Return a list of a file's parts for messages, numbered as in `read_and_mend`."""
    from pretty_midi.constants import INSTRUMENT_MAP

    told = []
    for number, part in enumerate(parts[:MAX_PARTS_LISTED], start=1):
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


def tempo_map(ticks_per_quarter: int, tempos: list[tuple[int, int]]) -> SecondsAt:
    """Return a function from ticks `[n]` to seconds `[n]`, with the same operations as pretty_midi."""
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
        # A tick on a border belongs to the later tempo; both give the same second, since 0 ticks are added.
        interval = np.searchsorted(start_tick, ticks, side="right") - 1
        return start_second[interval] + seconds_a_tick[interval] * (ticks - start_tick[interval])

    return seconds_at


def _by_line(parts: list[Part], contents: Contents, seconds_at: SecondsAt) -> list[Performance]:
    """Return the notes and pedals of each port and channel."""
    lines: dict[int, list[Part]] = {}
    for part in parts:
        lines.setdefault(part.line, []).append(part)
    return [
        Performance(
            notes_in_order(_joined([_notes(part, seconds_at) for part in its_parts])),
            _pedal(contents.pedals.get(line), seconds_at),
        )
        for line, its_parts in lines.items()
    ]


def _pedals_without_notes(contents: Contents) -> list[Repair]:
    heard = {part.line for part in contents.parts}
    unheard = [line for line, moves in contents.pedals.items() if line not in heard and moves[:, 2].any()]
    if not unheard:
        return []
    named = [_line_name(line) for line in unheard]
    place = f"channel {named[0]}, which has" if len(named) == 1 else f"channels {_listed(named)}, which have"
    num_messages = sum(len(contents.pedals[line]) for line in unheard)
    return [Repair.of("pedals without notes", num_messages, place=f"on {place} no notes")]


def _line_name(line: int) -> str:
    port, channel = divmod(line, NUM_CHANNELS)
    return f"{channel + 1} of port {port + 1}" if port else f"{channel + 1}"


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def _notes(part: Part, seconds_at: SecondsAt) -> np.ndarray:
    notes = np.empty(len(part), NOTE)
    notes["onset"], notes["offset"] = seconds_at(part.onset), seconds_at(part.offset)
    notes["pitch"], notes["velocity"] = part.pitch, part.velocity
    return notes


def _pedal(messages: np.ndarray | None, seconds_at: SecondsAt) -> np.ndarray:
    if messages is None:
        return empty_pedal()
    pedal = np.empty(len(messages), PEDAL)
    tick, pedal["control"], pedal["value"] = messages.T
    pedal["time"] = seconds_at(tick)
    return pedal


def _tick(seconds: np.ndarray) -> np.ndarray:
    return np.rint(seconds * 1000).astype(np.int64)
