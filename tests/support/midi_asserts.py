"""What MIDI files have in them, told so that tests can compare it."""

import io

import mido
import numpy as np


def timed(data, number):
    """(tick, message without its delta) of a track, but for its end."""
    now, out = 0, []
    for message in mido.MidiFile(file=io.BytesIO(data)).tracks[number]:
        now += message.time
        if message.type != "end_of_track":
            out.append((now, message.copy(time=0)))
    return out


def strokes(data):
    """(channel, pitch, onset, offset) of every note, in ticks."""
    notes, down = [], {}
    for number in range(len(mido.MidiFile(file=io.BytesIO(data)).tracks)):
        for tick, message in timed(data, number):
            if message.type == "note_on" and message.velocity:
                down.setdefault((message.channel, message.note), []).append(tick)
            elif message.type in ("note_on", "note_off"):
                for onset in down.pop((message.channel, message.note), []):
                    assert onset < tick
                    notes.append((message.channel, message.note, onset, tick))
    assert not down
    return sorted(notes)


def same(fast, plain):
    """Whether both readers found the same."""
    assert (fast.ticks_per_quarter, fast.tempos) == (plain.ticks_per_quarter, plain.tempos)
    about = [
        [(part.track, part.line, part.program, part.is_drum, part.name) for part in contents.parts]
        for contents in (fast, plain)
    ]
    assert about[0] == about[1]
    for one, other in zip(fast.parts, plain.parts, strict=True):
        order, other_order = (np.lexsort((part.pitch, part.onset)) for part in (one, other))
        for field in ("onset", "offset", "pitch", "velocity"):
            assert np.array_equal(getattr(one, field)[order], getattr(other, field)[other_order])
    assert fast.pedals.keys() == plain.pedals.keys()
    assert all(np.array_equal(fast.pedals[line], moves) for line, moves in plain.pedals.items())
    return plain.repairs == ()
