"""Track the state of a file's channels at a tick: open keys and pedals, sounds and programs.

Knows messages and ticks; knows no seconds and no files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mido

from pamusic.music.performance import PEDALS


@dataclass
class Key:
    """Open notes of a key in the middle of a track.

    Attributes:
        onsets: Ticks of its open notes, as `read_leniently` pairs them.
        num_unanswered: Number of note-ons minus note-offs; some sequencers hold this number of notes open.
    """

    onsets: list[int] = field(default_factory=list)
    num_unanswered: int = 0

    def strike(self, tick: int) -> None:
        """Begin a note."""
        self.onsets.append(tick)
        self.num_unanswered += 1

    def release(self, tick: int) -> None:
        """End the notes of earlier ticks; if there are none, forget the notes that begin at this tick."""
        was_down = any(onset < tick for onset in self.onsets)
        self.onsets = [onset for onset in self.onsets if onset == tick and was_down]
        self.num_unanswered = max(0, self.num_unanswered - 1)


@dataclass
class State:
    """State of a channel.

    Attributes:
        keys: Keys by pitch.
        pedals: Values of the pedals that are down.
        controls: Values of all other controls.
        sound: Values of these controls at the last note-on, which a later fade-out does not change.
        last_onset: Tick of that note-on.
        program, bend: Current values.
    """

    keys: dict[int, Key] = field(default_factory=dict)
    pedals: dict[int, int] = field(default_factory=dict)
    controls: dict[int, int] = field(default_factory=dict)
    sound: dict[int, int] = field(default_factory=dict)
    last_onset: int = -1
    program: int = 0
    bend: int = 0


def states_of(timed: list[tuple[int, mido.Message]]) -> dict[int, State]:
    """Return the state of each channel after these messages."""
    states: dict[int, State] = {}
    for tick, message in timed:
        kind = message.type
        if message.is_meta or kind == "sysex" or not hasattr(message, "channel"):
            continue
        state = states.setdefault(message.channel, State())
        if kind == "note_on" and message.velocity:
            state.keys.setdefault(message.note, Key()).strike(tick)
            state.sound, state.last_onset = state.controls, tick
        elif kind in ("note_on", "note_off"):
            state.keys.setdefault(message.note, Key()).release(tick)
        elif kind == "control_change" and message.control in PEDALS:
            state.pedals[message.control] = message.value
        elif kind == "control_change":
            state.controls = {**state.controls, message.control: message.value}
            state.sound = state.controls if tick == state.last_onset else state.sound
        elif kind == "program_change":
            state.program = message.program
        elif kind == "pitchwheel":
            state.bend = message.pitch
    for state in states.values():
        state.pedals = {control: value for control, value in state.pedals.items() if value}
    return states
