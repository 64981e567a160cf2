"""Turn the messages of all tracks into parts and pedals, by port and channel.

Knows ticks, ports and channels; knows no bytes and no seconds. A player sends all messages of one port and channel to
one instrument, from whichever track. So a program or a pedal applies to the notes of all tracks on its channel. At one
tick, programs and pedals apply before notes. One exception: a program that follows a note in the same track. The tracks
of format 2 are patterns that share nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pamusic.music.midi_contents import DRUMS, NUM_CHANNELS, Part
from pamusic.music.pedal import DOWN
from pamusic.music.performance import SUSTAIN
from pamusic.music.text import readable


@dataclass(frozen=True, eq=False)
class Played:
    """Messages of one track, by line (port * 16 + channel), each in the order of the file.

    Attributes:
        name: Name of the track, as bytes.
        notes: `[num_notes, 5]` onset and offset in ticks, pitch, velocity, own program. The own program is the program
            plus 1 that this track sets at the tick of the onset, before the note; 0 if it sets none there.
        instants: Notes released at the tick of their onset, in the same form.
        programs: `[num_changes, 2]` tick and program.
        pedals: `[num_messages, 3]` tick, control and value.
    """

    name: bytes
    notes: dict[int, np.ndarray]
    instants: dict[int, np.ndarray]
    programs: dict[int, np.ndarray]
    pedals: dict[int, np.ndarray]


def pedals_by_line(tracks: list[dict[int, np.ndarray]]) -> dict[int, np.ndarray]:
    """Return the pedal messages of each line `[num_messages, 3]`, by tick, then in the order of tracks."""
    gathered: dict[int, list[np.ndarray]] = {}
    for pedals in tracks:
        for line, messages in pedals.items():
            if len(messages):
                gathered.setdefault(line, []).append(messages)
    return {line: _by_tick(gathered[line]) for line in sorted(gathered)}


def one_after_another(patterns: list[dict[int, np.ndarray]], ends: list[int]) -> dict[int, np.ndarray]:
    """Return the pedal messages of each line of a file with consecutive patterns.

    No pedal stays down from one pattern to the next: it goes up one tick before its pattern ends. At the tick of the
    end a message of the next pattern may stand, and at one tick a pedal goes down before it goes up.

    Args:
        patterns: Result of `pedals_by_line` for each pattern, in order.
        ends: Tick at which each pattern ends.
    """
    separate = [
        {line: _up_before(end, messages) for line, messages in by_line.items()}
        for by_line, end in zip(patterns[:-1], ends[:-1], strict=True)
    ]
    return pedals_by_line([*separate, *patterns[-1:]])


def _up_before(end: int, messages: np.ndarray) -> np.ndarray:
    """Return the pedal messages of a pattern before its end, with every pedal up at the end."""
    before = messages[messages[:, 0] < end]
    down = {control: value for _, control, value in before.tolist()}
    ups = [(end - 1, control, 0) for control, value in down.items() if value]
    return np.concatenate([before, np.array(ups, np.int64).reshape(-1, 3)])


def _by_tick(several: list[np.ndarray]) -> np.ndarray:
    messages = np.concatenate(several) if len(several) > 1 else several[0]
    tick = messages[:, 0]
    return messages if (tick[1:] >= tick[:-1]).all() else messages[np.argsort(tick, kind="stable")]


def parts_of(tracks: list[Played], pedals: dict[int, np.ndarray], lost: list[int]) -> Iterator[Part]:
    """Yield the parts that have notes, in the order of tracks, lines and programs.

    Args:
        tracks: Tracks of the file.
        pedals: Result of `pedals_by_line`.
        lost: List that receives, for each track, the number of notes without length that do not sound.
    """
    changes = _changes_by_line(tracks)
    for number, track in enumerate(tracks):
        for line in sorted(track.notes.keys() | track.instants.keys()):
            notes = track.notes.get(line, np.empty((0, 5), np.int64))
            if line in track.instants:
                sounding, num_lost = _sounding_instants(track.instants[line], notes, pedals.get(line), line)
                notes = np.concatenate([notes, sounding])
                lost.append(num_lost)
            program = (
                changes[line].at(notes[:, 0], notes[:, 4], number) if line in changes else np.zeros(len(notes), int)
            )
            for each in np.unique(program).tolist():
                onset, offset, pitch, velocity = notes[program == each, :4].T
                channel, name = line % NUM_CHANNELS, readable(track.name)
                heard = (onset, offset, pitch, velocity)
                yield Part(
                    each, channel == DRUMS, name, *heard, port=line // NUM_CHANNELS, channel=channel, track=number
                )


@dataclass(frozen=True, eq=False)
class _Changes:
    """Program changes of a line, by tick; at one tick in the order of tracks.

    Attributes:
        tick, track, program: `[num_changes]`, int64.
        before: `[num_changes]`, index of the last change of an earlier tick or track; -1 if there is none.
    """

    tick: np.ndarray
    track: np.ndarray
    program: np.ndarray
    before: np.ndarray

    def at(self, onset: np.ndarray, own: np.ndarray, track: int) -> np.ndarray:
        """Return the programs `[num_notes]` of notes of a track; see `Played.notes` for `own`."""
        place = np.searchsorted(self.tick, onset, side="right") - 1
        is_own = (place >= 0) & (self.tick[place] == onset) & (self.track[place] == track)
        others = np.where(is_own, self.before[place], place)
        program = np.where(others >= 0, self.program[others], 0)
        return np.where(is_own & (own > 0), own - 1, program)


def _changes_by_line(tracks: list[Played]) -> dict[int, _Changes]:
    gathered: dict[int, list[np.ndarray]] = {}
    for number, track in enumerate(tracks):
        for line, changes in track.programs.items():
            gathered.setdefault(line, []).append(np.insert(changes, 1, number, axis=1))
    by_line = {}
    for line, several in gathered.items():
        changes = np.concatenate(several)
        tick, track_number, program = changes[np.argsort(changes[:, 0], kind="stable")].T
        begins = np.ones(len(tick), bool)
        begins[1:] = (np.diff(tick) != 0) | (np.diff(track_number) != 0)
        before = np.maximum.accumulate(np.where(begins, np.arange(len(tick)), 0)) - 1
        by_line[line] = _Changes(tick, track_number, program, before)
    return by_line


def _sounding_instants(
    instants: np.ndarray, notes: np.ndarray, pedal: np.ndarray | None, line: int
) -> tuple[np.ndarray, int]:
    """Return the notes without length that sound, each one tick long, and the number of those that do not.

    Such a note sounds while the sustain pedal is down, until the pedal goes up. A drum always sounds. If the same key
    has another note-on at the same tick, nothing is lost: the key sounds from that tick on.
    """
    key = instants[:, 0] << 7 | instants[:, 2]
    last = len(key) - 1 - np.unique(key[::-1], return_index=True)[1]
    last = np.sort(last[~np.isin(key[last], notes[:, 0] << 7 | notes[:, 2])])
    alone = instants[last].copy()
    alone[:, 1] = alone[:, 0] + 1
    sounds = np.full(len(alone), line % NUM_CHANNELS == DRUMS)
    if pedal is not None:
        tick, _, value = pedal[pedal[:, 1] == SUSTAIN].T
        order = np.lexsort((value < DOWN, tick))  # at one tick the pedal goes down before it goes up
        is_down = np.append(False, value[order] >= DOWN)
        sounds |= is_down[np.searchsorted(tick[order], alone[:, 0], side="right")]
    return alone[sounds], int(np.count_nonzero(~sounds))
