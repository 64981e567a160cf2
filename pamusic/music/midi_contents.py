"""What a MIDI file holds, in ticks, whoever read it; and what was mended on the way.

Knows parts, pedals, tempi and words for repairs; knows no bytes and no seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pamusic.errors import PamusicError

MAX_FILE_BYTES = 16 * 2**20  # a day of MAESTRO has about 10 MiB; its largest file 0.4
MAX_PARTS = 10_000
NUM_CHANNELS, DRUMS = 16, 9  # of a port, and the one that is the drums', counted from 0
OUR_TEXT = b"pamusic"  # so begins a text (meta message 1) in which we say how a file was made

# What we do to files, and how it is said: of one, of several, and what became of them.
KINDS = {
    "bytes before the header": ("byte before the header", "bytes before the header", "passed over"),
    "broken header": ("broken header", "broken headers", "read as what follows shows"),
    "number of tracks": ("track", "tracks", "not as many as the header says"),
    "tracks beyond the header's": (
        "track more than the header counts",
        "tracks more than the header counts",
        "left out",
    ),
    "second file": ("MIDI file behind the first", "MIDI files behind the first", "left out"),
    "foreign chunks": ("chunk that is no track", "chunks that are no tracks", "left out"),
    "chunk length": ("track of another length than said", "tracks of other lengths than said", "read as they are"),
    "bytes outside tracks": ("byte outside the tracks", "bytes outside the tracks", "passed over"),
    "no end of track": ("track without an end", "tracks without an end", "ended with the last message"),
    "cut off": ("track cut off", "tracks cut off", "kept as far as whole"),
    "data bytes above 127": ("data byte above 127", "data bytes above 127", "lowered, or left out with the message"),
    "stray bytes": ("byte that belongs to no message", "bytes that belong to no message", "passed over"),
    "odd tempi": ("tempo that cannot be read", "tempi that cannot be read", "left out"),
    "odd sysex": ("sysex that does not end", "sysex that do not end", "left out"),
    "notes without an end": (
        "note without an end",
        "notes without an end",
        "ended with the next of the key or the track",
    ),
    "notes without length": ("note released as it was struck", "notes released as they were struck", "left out"),
    "patterns": ("pattern (format 2)", "patterns (format 2)", "put one behind the other"),
    "other instruments": ("note of other parts", "notes of other parts", "left out"),
    "pedals of channels": (
        "press of a sustain pedal that holds one channel alone",
        "presses of sustain pedals that hold one channel alone",
        "put into the lengths of notes",
    ),
    "pedals without notes": ("pedal message", "pedal messages", "ignored"),
}


@dataclass(frozen=True)
class Repair:
    """What was done to a file so that it could be read, or what of it was left out.

    Attributes:
        kind: one of `KINDS`, the same for all files: what is counted.
        count: how often.
        words: what a person reads.
        tick: where, if it was at one place.
    """

    kind: str
    count: int
    words: str
    tick: int | None = None

    @classmethod
    def of(cls, kind: str, count: int, tick: int | None = None, place: str = "") -> Repair:
        """Return it with its words; `place` says where, as in "on channel 2"."""
        one, several, done = KINDS[kind]
        where = f" {place}:" if place else "," if tick is None else f" at tick {tick},"
        return cls(kind, count, f"{count:,} {one if count == 1 else several}{where} {done}", tick)


@dataclass(frozen=True, eq=False)
class Part:
    """What one track plays on one channel with one program.

    Attributes:
        program: 0 to 127; 0 where the file names none.
        is_drum: whether it is on the channel of the drums.
        name: the track's.
        onset, offset, pitch, velocity: of its notes, `[num_notes]`, int64; the first two in ticks.
        port: 0 to 255; 0 where the file names none.
        channel: 0 to 15.
        track: its number, from 0 on.
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
        """Port and channel as one number: what pedals and programs belong to."""
        return self.port * NUM_CHANNELS + self.channel

    def __len__(self) -> int:
        """Return the number of notes."""
        return len(self.onset)


@dataclass(frozen=True, eq=False)
class Contents:
    """What a file holds: parts that have notes, in the order of its tracks, ports, channels and programs.

    Attributes:
        tempos: (tick, microseconds a quarter), ordered by tick; of several at one tick the last in the file holds.
        pedals: by `Part.line`, `[num_messages, 3]` tick, control and value of the pedals' messages, int64, ordered by
            tick; of lines without notes, too.
        repairs: what was mended.
        format: 0, 1 or 2; None where it was read by symusic, and then what follows is not known either.
        has_smpte_time: whether ticks are parts of a second, not of a quarter; the tempo that stands here is then ours.
        our_text: what pamusic says there of how it made the file; empty where it did not.
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
    """Refuse what is larger than any MIDI file of music.

    Raises:
        PamusicError: it is.
    """
    if num_bytes > MAX_FILE_BYTES:
        raise PamusicError(
            f"{name}: has more than {MAX_FILE_BYTES / 2**20:.0f} MiB, the most of any MIDI file we take; "
            "split it in a sequencer",
            rule="too large",
        )
