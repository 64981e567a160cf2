"""Summarise a MIDI file and the performance in it, for a person who wants to know before using it.

Knows tracks, tempi and performances; judges nothing, changes nothing, knows no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pamusic.music.midi_contents import Contents, Part
from pamusic.music.pedal import DOWN
from pamusic.music.performance import PEDALS, SOFT, SOSTENUTO, SUSTAIN, Performance

STANDARD_BPM = 120.0
PEDAL_NAMES = {SUSTAIN: "sustain", SOSTENUTO: "sostenuto", SOFT: "soft"}


@dataclass(frozen=True)
class Track:
    """The notes of one track on one channel with one program.

    Attributes:
        number: Number for `--tracks`, from 1.
        name: Name of the track.
        channel: Channel, 1 to 16.
        program: General MIDI program, 0 to 127.
        is_drum: Whether it is on the drum channel.
        num_notes: Number of notes.
        taken: Whether pamusic reads it.
    """

    number: int
    name: str
    channel: int
    program: int
    is_drum: bool
    num_notes: int
    taken: bool


@dataclass(frozen=True)
class File:
    """Layout of a file.

    Attributes:
        format: Format of the Standard MIDI File: 0, 1 or 2.
        ticks_per_quarter: Resolution; None for SMPTE time.
        ticks_per_second: Resolution for SMPTE time; None otherwise.
        num_tempi: Number of places where a tempo is set.
        slowest_bpm, fastest_bpm: Quarters per minute; the standard's 120 if no tempo is set; None for SMPTE time.
        tracks: Tracks with notes.
        made_by: The record that pamusic wrote into the file; None if there is none.
    """

    format: int
    ticks_per_quarter: int | None
    ticks_per_second: float | None
    num_tempi: int
    slowest_bpm: float | None
    fastest_bpm: float | None
    tracks: tuple[Track, ...]
    made_by: str | None


@dataclass(frozen=True)
class PedalUse:
    """Use of one pedal.

    Attributes:
        num_messages: Number of its messages.
        num_values: Number of different values.
        up, shallow, deep, down: Shares of the time at 0, at 1 to 63, at 64 to 126, and at 127.
    """

    num_messages: int
    num_values: int
    up: float
    shallow: float
    deep: float
    down: float


@dataclass(frozen=True)
class PerformanceSummary:
    """Summary of a performance.

    Attributes:
        seconds: Time of the last event.
        num_notes: Number of notes.
        pitches, velocities: Lowest and highest.
        notes_per_second: Mean over the whole duration.
        most_keys: Largest number of keys down at once.
        keys: Mean number of keys down, over the time in which any is down.
        pedals: Use of each pedal that moves, by name.
    """

    seconds: float
    num_notes: int
    pitches: tuple[int, int]
    velocities: tuple[int, int]
    notes_per_second: float
    most_keys: int
    keys: float
    pedals: dict[str, PedalUse]


def describe_file(contents: Contents, taken: list[Part]) -> File:
    """Describe the layout of a file.

    Args:
        contents: Contents of the file, from `midi.read_contents`.
        taken: Parts that pamusic reads.
    """
    smpte = contents.has_smpte_time
    bpm = [60e6 / tempo for _, tempo in contents.tempos]
    tracks = tuple(
        Track(number, part.name, part.channel + 1, part.program, part.is_drum, len(part), part in taken)
        for number, part in enumerate(contents.parts, start=1)
    )
    assert contents.format is not None
    return File(
        format=contents.format,
        ticks_per_quarter=None if smpte else contents.ticks_per_quarter,
        ticks_per_second=round(contents.ticks_per_quarter * bpm[0] / 60, 3) if smpte else None,
        num_tempi=0 if smpte else len(bpm),
        slowest_bpm=None if smpte else min(bpm, default=STANDARD_BPM),
        fastest_bpm=None if smpte else max(bpm, default=STANDARD_BPM),
        tracks=tracks,
        made_by=contents.our_text or None,
    )


def describe_performance(performance: Performance) -> PerformanceSummary:
    """Summarise a performance that has notes."""
    notes, seconds = performance.notes, performance.duration
    times = np.concatenate([notes["offset"], notes["onset"]])  # at one instant offsets come before onsets
    order = np.argsort(times, kind="stable")
    down = np.cumsum(np.repeat([-1, 1], len(notes))[order])
    lasts = np.diff(times[order], append=times[order][-1])
    some = down > 0
    return PerformanceSummary(
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
