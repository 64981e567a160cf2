"""Write the primes of the examples: a chord loop, an invention, and the opening of a sonata. Knows notes and mido.

Run: `python docs/primes.py`. It writes three files to `docs/primes/`, always the same bytes. The loop and the
invention are our own. The third is by Beethoven, typed from the score: Sonata Op. 27 No. 2 (1801), bars 1 to 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import mido

FOLDER = Path(__file__).parent / "primes"
TICKS_PER_QUARTER = 480
SUSTAIN = 64
STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"#": 1, "b": -1}


@dataclass(frozen=True)
class Line:
    """Notes that follow each other: names such as `C#4`, several of them joined by `+`, `-` for a rest.

    Attributes:
        notes: The notes, separated by spaces.
        quarters: Length of each note, in quarters.
        velocity: Loudness of each note, 1 to 127.
        starts: Place of the first note, in quarters.
        touch: Share of its length for which a key is down.
    """

    notes: str
    quarters: float
    velocity: int
    starts: float = 0
    touch: float = 0.95


def pitch(name: str) -> int:
    """Return the MIDI pitch of a name; C4 is 60."""
    letter, *accidental, octave = name
    return 12 * (int(octave) + 1) + STEPS[letter] + sum(ACCIDENTALS[sign] for sign in accidental)


def messages(line: Line) -> Iterable[tuple[int, mido.Message]]:
    """Yield the messages of a line, each with its tick."""
    for place, names in enumerate(line.notes.split()):
        began = line.starts + place * line.quarters
        ends = began + line.touch * line.quarters
        for name in names.split("+") if names != "-" else ():
            sounding = {"note": pitch(name), "velocity": line.velocity}
            yield round(began * TICKS_PER_QUARTER), mido.Message("note_on", **sounding)
            yield round(ends * TICKS_PER_QUARTER), mido.Message("note_off", note=pitch(name), velocity=64)


def pedal(changes: Iterable[float], until: float) -> Iterable[tuple[int, mido.Message]]:
    """Yield a press of the sustain pedal just after each change of harmony, held until just after the next."""
    places = [*changes, until]
    for place, after in pairwise(places):
        for quarters, value in ((place + 0.06, 127), (after + 0.02, 0)):
            yield round(quarters * TICKS_PER_QUARTER), mido.Message("control_change", control=SUSTAIN, value=value)


def write(
    name: str, quarters_a_minute: float, lines: Iterable[Line], pedalled: Iterable[tuple[int, mido.Message]] = ()
):
    """Write a MIDI file of one track."""
    timed = [event for line in lines for event in messages(line)] + list(pedalled)
    timed.sort(key=lambda event: (event[0], event[1].type == "note_on"))
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(quarters_a_minute))])
    before = 0
    for tick, message in timed:
        track.append(message.copy(time=tick - before))
        before = tick
    FOLDER.mkdir(exist_ok=True)
    mido.MidiFile(type=0, ticks_per_beat=TICKS_PER_QUARTER, tracks=[track]).save(FOLDER / f"{name}.mid")


def loop() -> None:
    """Write A minor, F, C, G twice: broken chords over a bass, the second time with a melody."""
    chords = ("A3 E4 C4 E4", "A3 F4 C4 F4", "G3 E4 C4 E4", "G3 D4 B3 D4")
    broken = " ".join(f"{chord} {chord}" for chord in chords)
    bass = "A2 F2 C3 G2"
    melody = "E5 D5 C5 E5 F5 E5 C5 A4 G4 C5 E5 G5 D5 C5 B4 D5"
    lines = [
        Line(f"{broken} {broken}", 0.5, 54),
        Line(f"{bass} {bass}", 4, 62),
        Line(melody, 1, 76, starts=16),
    ]
    write("four-chord-loop", 96, lines, pedal(range(0, 32, 4), 32))


def invention() -> None:
    """Write two parts in D minor: a subject of two bars, answered an octave lower, then in sequence to a half close."""
    subject_upper = "D5 F5 E5 D5 A5 - D5 C#5 D5 E5 F5 D5 C#5 A4 B4 C#5"
    subject_lower = "D4 F4 E4 D4 A4 - D4 C#4 D4 E4 F4 D4 C#4 A3 B3 C#4"
    above = "F5 - G5 F5 E5 C#5 F5 E5 F5 G5 A5 F5 E5 - D5 E5"
    sequence_upper = "F5 A5 G5 F5 C6 - F5 E5 D5 F5 E5 D5 Bb5 - D5 C5"
    sequence_lower = "F3 - C4 - F3 - A3 - Bb3 - G3 - Bb3 - G3 -"
    close_upper = "Bb4 D5 C5 Bb4 G5 F5 E5 D5 C#5 - E5 - A4 - - -"
    close_lower = "G3 - A3 - E3 - G3 - A3 - G3 - A2 - - -"
    bass = "D3 - F3 - D3 - F3 - D3 - F3 - A3 - A2 -"
    lines = [
        Line(" ".join((subject_upper, above, sequence_upper, close_upper)), 0.5, 70, touch=0.8),
        Line(" ".join((bass, subject_lower, sequence_lower, close_lower)), 0.5, 62, touch=0.8),
    ]
    write("two-part-invention", 112, lines)


def sonata() -> None:
    """Write the first four bars of Beethoven's Sonata Op. 27 No. 2; the pedal changes with the harmony."""
    triplets = [
        *["G#3 C#4 E4"] * 8,
        *["A3 C#4 E4"] * 2,
        *["A3 D4 F#4"] * 2,
        "G#3 B#3 F#4",
        "G#3 C#4 E4",
        "G#3 C#4 D#4",
        "F#3 B#3 D#4",
    ]
    lines = [
        Line(" ".join(triplets), 1 / 3, 40),
        Line("C#2+C#3 B1+B2", 4, 46),
        Line("A1+A2 F#1+F#2 G#1+G#2 G#1+G#2", 2, 46, starts=8),
    ]
    write("sonata-opening", 54, lines, pedal((0, 4, 8, 10, 12, 13, 14, 15), 16))


if __name__ == "__main__":
    loop()
    invention()
    sonata()
