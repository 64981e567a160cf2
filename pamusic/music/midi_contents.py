"""Hold the contents of a MIDI file in ticks, and the repairs, independent of the reader.

Knows parts, pedals, tempi and words for repairs; knows no bytes and no seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pamusic.errors import PamusicError

MAX_FILE_BYTES = 16 * 2**20  # a day of MAESTRO has about 10 MiB; its largest file has 0.4
MAX_PARTS = 10_000
NUM_CHANNELS, DRUMS = 16, 9  # channels per port, and the drum channel, counted from 0
OUR_TEXT = b"pamusic"  # start of a text (meta message 1) in which pamusic says how a file was made

# Kinds of repairs, with words for messages: singular, plural, and the action.
KINDS = {
    "bytes before the header": ("byte before the header", "bytes before the header", "skipped"),
    "broken header": ("broken header", "broken headers", "read with the standard length"),
    "number of tracks": ("track", "tracks", "not the number in the header"),
    "tracks beyond the header's": (
        "track more than the header counts",
        "tracks more than the header counts",
        "left out",
    ),
    "second file": ("MIDI file after the first", "MIDI files after the first", "left out"),
    "foreign chunks": ("chunk that is not a track", "chunks that are not tracks", "left out"),
    "chunk length": ("track with a wrong length", "tracks with a wrong length", "read to their real end"),
    "bytes outside tracks": ("byte outside the tracks", "bytes outside the tracks", "skipped"),
    "no end of track": ("track without an end", "tracks without an end", "ended with the last message"),
    "cut off": ("track cut off", "tracks cut off", "kept up to the cut"),
    "data bytes above 127": ("data byte above 127", "data bytes above 127", "lowered, or the message left out"),
    "stray bytes": ("byte outside any message", "bytes outside any message", "skipped"),
    "odd tempi": ("unreadable tempo", "unreadable tempi", "left out"),
    "odd sysex": ("sysex without an end", "sysex without an end", "left out"),
    "notes without an end": (
        "note without an end",
        "notes without an end",
        "ended at the key's next note or the track's end",
    ),
    "notes without length": ("note without length", "notes without length", "left out"),
    "patterns": ("pattern (format 2)", "patterns (format 2)", "placed one after another"),
    "other instruments": ("note of other parts", "notes of other parts", "left out"),
    "pedals of channels": (
        "press of a sustain pedal that holds only one channel",
        "presses of sustain pedals that hold only one channel",
        "converted to note lengths",
    ),
    "pedals without notes": ("pedal message", "pedal messages", "ignored"),
}


@dataclass(frozen=True)
class Repair:
    """A repair that made a file readable, or an omission from it.

    Attributes:
        kind: One of `KINDS`; counts over many files use it.
        count: Number of occurrences.
        words: Text for people.
        tick: Place in the file, if there is only one.
    """

    kind: str
    count: int
    words: str
    tick: int | None = None

    @classmethod
    def of(cls, kind: str, count: int, tick: int | None = None, place: str = "") -> Repair:
        """Return a repair with its words; `place` names a location, as in "on channel 2"."""
        one, several, done = KINDS[kind]
        where = f" {place}:" if place else "," if tick is None else f" at tick {tick},"
        return cls(kind, count, f"{count:,} {one if count == 1 else several}{where} {done}", tick)


@dataclass(frozen=True, eq=False)
class Part:
    """The notes of one track on one channel with one program.

    Attributes:
        program: 0 to 127; 0 if the file sets none.
        is_drum: Whether it is on the drum channel.
        name: Name of the track.
        onset, offset, pitch, velocity: Notes, `[num_notes]`, int64; the first two in ticks.
        port: 0 to 255; 0 if the file sets none.
        channel: 0 to 15.
        track: Number of the track, from 0.
    """

    program: int
    is_drum: bool
    name: str
    onset: np.ndarray
    offset: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray
    port: int
    channel: int
    track: int

    @property
    def line(self) -> int:
        """Port and channel as one number, the owner of pedals and programs."""
        return self.port * NUM_CHANNELS + self.channel

    def __len__(self) -> int:
        """Return the number of notes."""
        return len(self.onset)


@dataclass(frozen=True, eq=False)
class Contents:
    """Contents of a file: its parts with notes, in the order of tracks, ports, channels and programs.

    Attributes:
        tempos: (tick, microseconds per quarter), ordered by tick; of several at one tick the last in the file applies.
        pedals: Pedal messages by `Part.line`, `[num_messages, 3]` tick, control and value, int64, ordered by tick;
            lines without notes are included.
        repairs: Repairs and omissions.
        format: 0, 1 or 2; None if symusic read the file, and then the fields below are unknown, too.
        has_smpte_time: Whether ticks are parts of a second, not of a quarter; `tempos` then holds a tempo of our own.
        our_text: Text of pamusic in the file on how it was made; empty if there is none.
    """

    ticks_per_quarter: int
    tempos: list[tuple[int, int]]
    parts: list[Part]
    pedals: dict[int, np.ndarray]
    repairs: tuple[Repair, ...] = ()
    format: int | None = None
    has_smpte_time: bool = False
    our_text: str = ""


def check_size(num_bytes: int, name: str) -> None:
    """Raise an error for a file larger than any MIDI file of music.

    Raises:
        PamusicError: the file is too large.
    """
    if num_bytes > MAX_FILE_BYTES:
        raise PamusicError(
            f"{name}: is larger than {MAX_FILE_BYTES / 2**20:.0f} MiB, the limit;  split it in a sequencer",
            rule="too large",
        )
