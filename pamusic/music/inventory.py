"""What is in a MIDI file, and what is played in it: for a person who wants to know before using it.

Knows tracks, tempi and performances; judges nothing, changes nothing, knows no tokens.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass

import mido
import numpy as np

from pamusic.errors import PamusicError
from pamusic.music.midi import PIANO_PROGRAMS
from pamusic.music.pedal import DOWN
from pamusic.music.performance import PEDALS, SOFT, SOSTENUTO, SUSTAIN, Performance

DRUM_CHANNEL = 10  # as people count them, from 1
PEDAL_NAMES = {SUSTAIN: "sustain", SOSTENUTO: "sostenuto", SOFT: "soft"}


@dataclass(frozen=True)
class Track:
    """What one track plays on one channel with one program.

    Attributes:
        name: the track's.
        channel: 1 to 16.
        program: 0 to 127, of General MIDI.
        num_notes: how many it strikes.
        taken: whether we read it.
    """

    name: str
    channel: int
    program: int
    num_notes: int
    taken: bool


@dataclass(frozen=True)
class File:
    """How a file is laid out.

    Attributes:
        format: 0, 1 or 2, of the Standard MIDI File.
        ticks_per_quarter: its resolution.
        num_tempi: how often a tempo is set.
        slowest_bpm, fastest_bpm: quarters a minute.
        tracks: those with notes.
    """

    format: int
    ticks_per_quarter: int
    num_tempi: int
    slowest_bpm: float
    fastest_bpm: float
    tracks: tuple[Track, ...]


@dataclass(frozen=True)
class PedalUse:
    """How one pedal is used.

    Attributes:
        num_messages: how often it moves.
        num_values: how many different values it takes.
        up, shallow, deep, down: the share of time at 0, at 1 to 63, at 64 to 126, at 127.
    """

    num_messages: int
    num_values: int
    up: float
    shallow: float
    deep: float
    down: float


@dataclass(frozen=True)
class Playing:
    """What is played.

    Attributes:
        seconds: from 0 to the last thing that happens.
        num_notes: strokes.
        pitches, velocities: lowest and highest.
        notes_per_second: over all of it.
        most_keys: down at once.
        keys: down at once on average, while any is.
        pedals: by name, those that move.
    """

    seconds: float
    num_notes: int
    pitches: tuple[int, int]
    velocities: tuple[int, int]
    notes_per_second: float
    most_keys: int
    keys: float
    pedals: dict[str, PedalUse]


def layout(data: bytes, name: str) -> File:
    """How a MIDI file is laid out.

    Raises:
        PamusicError: it cannot be read message by message.
    """
    try:
        file = mido.MidiFile(file=io.BytesIO(data), clip=True)
    except Exception as error:  # mido raises what it comes upon
        raise PamusicError(f"{name}: its tracks cannot be told ({error}); save it anew in a sequencer") from None
    tempi, tracks = [], []
    for track in file.tracks:
        programs: dict[int, int] = {}
        strokes: Counter[tuple[int, int]] = Counter()
        for message in track:
            if message.type == "set_tempo":
                tempi.append(mido.tempo2bpm(max(message.tempo, 1)))
            elif message.type == "program_change":
                programs[message.channel] = message.program
            elif message.type == "note_on" and message.velocity:
                strokes[message.channel, programs.get(message.channel, 0)] += 1
        for (channel, program), num_notes in sorted(strokes.items()):
            taken = channel + 1 != DRUM_CHANNEL and program in PIANO_PROGRAMS
            tracks.append(Track(track.name, channel + 1, program, num_notes, taken))
    bpm = tempi or [120.0]  # the standard's, where none is set
    return File(file.type, file.ticks_per_beat, len(tempi), min(bpm), max(bpm), tuple(tracks))


def playing(performance: Performance) -> Playing:
    """What is played in a performance that has notes."""
    notes, seconds = performance.notes, performance.duration
    times = np.concatenate([notes["offset"], notes["onset"]])  # at one instant keys go up before others go down
    order = np.argsort(times, kind="stable")
    down = np.cumsum(np.repeat([-1, 1], len(notes))[order])
    lasts = np.diff(times[order], append=times[order][-1])
    some = down > 0
    return Playing(
        seconds=seconds,
        num_notes=len(notes),
        pitches=(int(notes["pitch"].min()), int(notes["pitch"].max())),
        velocities=(int(notes["velocity"].min()), int(notes["velocity"].max())),
        notes_per_second=len(notes) / seconds,
        most_keys=int(down.max()),
        keys=float((down * lasts)[some].sum() / lasts[some].sum()),
        pedals={
            PEDAL_NAMES[control]: _use(performance.pedal[performance.pedal["control"] == control], seconds)
            for control in PEDALS
            if np.any(performance.pedal["control"] == control)
        },
    )


def _use(moves: np.ndarray, seconds: float) -> PedalUse:
    value = np.concatenate([[0], moves["value"].astype(np.int64)])
    lasts = np.diff(np.concatenate([[0.0], moves["time"], [seconds]]))
    zone = np.digitize(value, [1, DOWN, 127])
    up, shallow, deep, down = (float(lasts[zone == each].sum() / seconds) for each in range(4))
    return PedalUse(len(moves), len(np.unique(moves["value"])), up, shallow, deep, down)
