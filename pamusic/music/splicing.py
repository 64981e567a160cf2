"""Splice a MIDI file and new music into one MIDI file that keeps all messages before the cut.

Knows messages, ticks and tempo maps; knows no tokens. Each message before the cut keeps its track, tick, data and
order. Messages after the cut are left out, and the tempo at the cut stays in force. New music uses the file's ticks, on
a track and a channel of its own, so that the old pedal can ring out without blurring it. Its sound (bank, program,
volume, pan) is copied from the prime's channel.

Notes and pedals that are open at the cut: on the selected channels they end as the `Seam` says, on all others at the
cut. A file of format 0 becomes format 1, with the same track first. At one tick note-offs come first, then pedals, then
note-ons. At the end every key and pedal is released.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mido
import numpy as np

from pamusic.music.held import Key, State, states_of
from pamusic.music.lenient_reader import DEFAULT_TEMPO, read_leniently
from pamusic.music.midi import Tracks, chosen_parts, tempo_map
from pamusic.music.midi_contents import DRUMS, Contents, Repair
from pamusic.music.performance import PEDAL, PEDALS, SUSTAIN, Performance, notes_in_order, pedal_in_order

# Repairs by our reader that do not prevent keeping the messages with mido.
HARMLESS = {
    "other instruments",
    "notes without an end",
    "notes without length",
    "pedals of channels",
    "pedals without notes",
}
# Bank, volume, pan, expression, reverb, chorus: copied to the new channel, so that it sounds alike.
SOUND = (0, 32, 7, 10, 11, 91, 93)
NEW_TRACK = "continuation"  # name of the track with new music
ENDS, MOVES, BEGINS = range(3)  # order of messages at one tick

Timed = list[tuple[int, int, mido.Message]]  # tick, `ENDS`, `MOVES` or `BEGINS`, message


@dataclass(frozen=True, eq=False)
class Seam:
    """The new music after a cut performance, in seconds of that performance.

    Attributes:
        start: Time of the music's second 0.
        music: New music.
        releases: End of each note that sounds at the cut, by pitch.
        pedal: Movements of the old pedals from the cut on, `[num_pedal]` records of `PEDAL`.
    """

    start: float
    music: Performance
    releases: dict[int, float] = field(default_factory=dict)
    pedal: np.ndarray = field(default_factory=lambda: np.empty(0, PEDAL))

    def merged(self) -> Seam:
        """Return the same for one piano that plays both, so the pedals of both are one sequence.

        A note of the prime ends no later than the music's first onset of its key. A pedal that the music does not use
        goes up no later than the first note of the music.
        """
        notes, releases = self.music.notes, dict(self.releases)
        for onset, pitch in zip(notes["onset"].tolist(), notes["pitch"].tolist(), strict=True):
            if pitch in releases:
                releases[pitch] = min(releases[pitch], self.start + onset)
        pedal = self.pedal[~np.isin(self.pedal["control"], self.music.pedal["control"])].copy()
        if len(notes):
            pedal["time"] = np.minimum(pedal["time"], self.start + notes["onset"].min())
        pedal = np.concatenate([pedal, self.music.shifted(self.start).pedal])
        return Seam(self.start, Performance(notes), releases, pedal_in_order(pedal))


def spliced(
    data: bytes,
    seam: Seam,
    *,
    tracks: Tracks,
    repairs: tuple[Repair, ...] = (),
    cut: float | None = None,
    one_track: bool = False,
    text: str = "",
) -> bytes | None:
    """Return a Standard MIDI File: the messages of another file before a cut, then the music of a seam.

    Return None if the file needed repairs, or if mido reads it differently: its messages cannot be kept.

    Args:
        data: Bytes of the other file.
        seam: New music.
        repairs: Repairs that `read_and_mend` reported for the file.
        tracks: Selected parts of the file, as for `read_and_mend`.
        cut: Time in seconds; None: the cut is where the music begins, and messages at that tick are kept.
        one_track: Whether the new music uses the track and channel of the first selected part. It also does so if all
            channels are in use.
        text: Text for `with_text`.
    """
    file = None if {repair.kind for repair in repairs} - HARMLESS else _read(data)
    if file is None:
        return None
    contents = read_leniently(data, "the prime")
    if not _keeps(file, contents):
        return None
    cut_tick, first_tick, tick_of = _ticks(contents, seam.start, cut)
    kept = [[(tick, message) for tick, message in _timed(track) if tick < cut_tick] for track in file.tracks]
    states = [states_of(track) for track in kept]
    chosen = chosen_parts(contents, tracks, "the prime")
    taken = list(dict.fromkeys((part.track, part.channel) for part in chosen))
    ports = [_port(track) for track in kept]
    home = next((place for place in taken if place[1] in states[place[0]]), taken[0])
    beside = [timed for track, port in zip(kept, ports, strict=True) if port == ports[home[0]] for timed in track]
    channels = states_of(sorted(beside, key=lambda timed: timed[0]))
    free = [channel for channel in range(16) if channel != DRUMS and channel not in channels]
    one_track = one_track or not free
    channel = home[1] if one_track else free[0]

    seam = seam.merged() if one_track else seam
    new = list(_strokes(seam, tick_of, channel))
    ends = _Ends(
        seam=seam,
        tick_of=tick_of,
        cut_tick=None if cut is None else cut_tick,
        first_tick=first_tick,
        places=frozenset(taken),
        channels=frozenset(
            (number, part.channel) for part in chosen for number, port in enumerate(ports) if port == part.port
        ),
        home=home,
        has_new_at_home=one_track,
        struck=frozenset((tick, message.note) for tick, kind, message in new if kind == BEGINS and one_track),
    )
    after = [
        [timed for its_channel, state in its_states.items() for timed in ends.of((number, its_channel), state)]
        for number, its_states in enumerate(states)
    ]
    if one_track:
        after[home[0]] += new
        if home[1] in channels and channels[home[1]].bend:
            after[home[0]].append((first_tick, MOVES, mido.Message("pitchwheel", pitch=0, channel=channel)))
    out = _appended(file, kept, after)
    if not one_track:
        out.type = 1
        sound = channels.get(home[1], State())
        moves = _moves(seam.music.shifted(seam.start).pedal, channel, tick_of)
        head = [(0, message) for message in _head(sound, channel, ports[home[0]])]
        out.tracks.append(_track([*head, *_in_order(new + moves)]))
    if text:
        _write_text(out, text)
    return _bytes(out)


def _ticks(contents: Contents, start: float, cut: float | None) -> tuple[int, int, Callable[[float], int]]:
    """Return the tick of the cut, the first tick of new music, and a function from seconds to ticks after it."""
    first_tick = _Clock(contents.ticks_per_quarter, contents.tempos).tick(start, rounding=np.rint)
    cut_tick = first_tick + 1
    if cut is not None:
        cut_tick = _Clock(contents.ticks_per_quarter, contents.tempos).tick(cut, rounding=np.ceil)
        first_tick = max(first_tick, cut_tick)
    clock = _Clock(contents.ticks_per_quarter, [(tick, tempo) for tick, tempo in contents.tempos if tick < cut_tick])
    return cut_tick, first_tick, lambda seconds: max(clock.tick(seconds, rounding=np.rint), first_tick)


def _appended(file: mido.MidiFile, kept: list[list[tuple[int, mido.Message]]], after: list[Timed]) -> mido.MidiFile:
    """Return a file with the kept messages in its tracks, then the later ones."""
    out = mido.MidiFile(type=file.type, ticks_per_beat=file.ticks_per_beat)
    for track, timed in zip(kept, after, strict=True):
        now = track[-1][0] if track else 0
        out.tracks.append(mido.MidiTrack([message for _, message in track] + _track(_in_order(timed), now)))
    return out


def with_text(data: bytes, text: str) -> bytes:
    """Add an ASCII text (meta message 1) to a file that mido wrote, last at tick 0 of its first track."""
    file = mido.MidiFile(file=io.BytesIO(data))
    _write_text(file, text)
    return _bytes(file)


def texts(data: bytes) -> list[str]:
    """Return the texts (meta message 1) at tick 0 of a file's first track; none if mido cannot read the file."""
    file = _read(data)
    if file is None or not file.tracks:
        return []
    return [message.text for tick, message in _timed(file.tracks[0]) if tick == 0 and message.type == "text"]


def without_texts(data: bytes, sign: str) -> list[list[tuple[int, mido.Message]]]:
    """Return the timed messages of each track in a file that mido wrote, without texts that begin with a sign."""
    return [
        [each for each in _timed(track) if each[1].type != "text" or not each[1].text.startswith(sign)]
        for track in mido.MidiFile(file=io.BytesIO(data)).tracks
    ]


class _Clock:
    """A converter from seconds to ticks through a tempo map; the inverse of `tempo_map`."""

    def __init__(self, ticks_per_quarter: int, tempos: list[tuple[int, int]]) -> None:
        tempo_of_tick = {0: DEFAULT_TEMPO, **dict(tempos)}
        self._ticks = np.array(sorted(tempo_of_tick))
        self._seconds = tempo_map(ticks_per_quarter, tempos)(self._ticks)
        tempo = np.array([tempo_of_tick[tick] for tick in self._ticks.tolist()])
        self._ticks_a_second = ticks_per_quarter * 1e6 / tempo

    def tick(self, seconds: float, *, rounding: Callable[[float], float]) -> int:
        i = max(0, int(np.searchsorted(self._seconds, seconds, side="right")) - 1)
        exact = self._ticks[i] + (seconds - self._seconds[i]) * self._ticks_a_second[i]
        return int(rounding(round(float(exact), 6)))  # absorbs the rounding error of the division


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ends:
    """Rules that end open notes and pedals where the new music begins; a place is a track and a channel.

    Attributes:
        seam: New music.
        tick_of: Function from seconds of the prime to ticks.
        cut_tick: Tick of the cut; None if the prime is complete.
        first_tick: First tick of new music.
        places: Places with selected notes.
        channels: Places with pedals that hold such notes.
        home: Main place of the prime.
        has_new_at_home: Whether new music uses `home`.
        struck: Tick and pitch of each onset of new music at `home`.
    """

    seam: Seam
    tick_of: Callable[[float], int]
    cut_tick: int | None
    first_tick: int
    places: frozenset[tuple[int, int]]
    channels: frozenset[tuple[int, int]]
    home: tuple[int, int]
    has_new_at_home: bool
    struck: frozenset[tuple[int, int]]

    def of(self, place: tuple[int, int], state: State) -> Timed:
        """Return the messages that end the open notes and pedals of a place."""
        releases = self.seam.releases if place in self.places else {}
        pedal = self.seam.pedal if place in self.channels else self.seam.pedal[:0]
        timed: Timed = []
        for pitch, key in sorted(state.keys.items()):
            end = self._end(place, pitch, key, releases)
            release = mido.Message("note_off", note=pitch, velocity=64, channel=place[1])
            timed += [(end, ENDS, release)] * max(len(key.onsets), key.num_unanswered)
        for control in sorted(state.pedals):
            if control not in pedal["control"]:
                # One of several sustain pedals, folded into note lengths, goes up with the last of these notes.
                is_folded = place in self.channels and control == SUSTAIN and self.seam.releases
                end = self.tick_of(max(self.seam.releases.values())) if is_folded else self.first_tick
                timed.append((end, MOVES, _moved(place[1], control, 0)))
        heard = list(PEDALS) if self.has_new_at_home and place == self.home else sorted(state.pedals)
        return timed + _moves(pedal[np.isin(pedal["control"], heard)], place[1], self.tick_of)

    def _end(self, place: tuple[int, int], pitch: int, key: Key, releases: dict[int, float]) -> int:
        last = max(key.onsets, default=-1)
        end = max(self.first_tick, last + 1) if self.cut_tick is None else self.cut_tick
        if key.onsets and pitch in releases:
            end = max(self.tick_of(releases[pitch]), end)
        if place[0] != self.home[0] and place[1] == self.home[1] and (end, pitch) in self.struck:
            end = max(end - 1, last + 1)  # on two tracks, a player may play the note-on before the note-off
        return end


def _read(data: bytes) -> mido.MidiFile | None:
    """Parse a file with mido, and remove messages of live MIDI, which do not belong in a file."""
    try:
        file = mido.MidiFile(file=io.BytesIO(data))
    except (OSError, EOFError, ValueError, KeyError, IndexError, mido.KeySignatureError):
        return None
    if file.type not in (0, 1):
        return None
    if len(file.tracks) != 1:
        file.type = 1
    for number, track in enumerate(file.tracks):
        if any(_is_live(message) for message in track):
            file.tracks[number] = _track([each for each in _timed(track, with_end=True) if not _is_live(each[1])])
    return file


def _is_live(message: mido.Message) -> bool:
    """Return whether a message is a system message other than sysex: a clock, a start, a tune request."""
    return not (message.is_meta or message.type == "sysex" or hasattr(message, "channel"))


def _keeps(file: mido.MidiFile, contents: Contents) -> bool:
    """Return whether mido reproduces the contents that we read; it may misread a status after a sysex, for example."""
    again = read_leniently(_bytes(file), "the prime")
    is_alike = again.repairs == contents.repairs and len(again.parts) == len(contents.parts)
    is_alike = is_alike and again.pedals.keys() == contents.pedals.keys()
    return (
        is_alike
        and all(np.array_equal(again.pedals[line], moves) for line, moves in contents.pedals.items())
        and all(
            np.array_equal(getattr(now, name), getattr(before, name))
            for now, before in zip(again.parts, contents.parts, strict=True)
            for name in ("track", "line", "program", "onset", "offset", "pitch", "velocity")
        )
    )


def _timed(track: mido.MidiTrack, with_end: bool = False) -> list[tuple[int, mido.Message]]:
    """Return the messages of a track with their ticks, by default without the end of track."""
    ticks = np.cumsum([message.time for message in track], dtype=np.int64).tolist()
    timed = zip(ticks, track, strict=True)
    return [(tick, message) for tick, message in timed if with_end or message.type != "end_of_track"]


def _strokes(seam: Seam, tick_of: Callable[[float], int], channel: int) -> Iterator[tuple[int, int, mido.Message]]:
    """Yield the new notes; if long ticks put two onsets of a key on one tick, keep the later one."""
    notes = notes_in_order(seam.music.notes)
    next_tick: dict[int, int] = {}
    for onset, offset, pitch, velocity in reversed(notes.tolist()):
        tick, end = tick_of(seam.start + onset), tick_of(seam.start + offset)
        if pitch in next_tick and tick >= next_tick[pitch]:
            continue
        end = min(max(end, tick + 1), next_tick.get(pitch, end + 1))
        next_tick[pitch] = tick
        yield tick, BEGINS, mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)
        yield end, ENDS, mido.Message("note_off", note=pitch, velocity=64, channel=channel)


def _moves(pedal: np.ndarray, channel: int, tick_of: Callable[[float], int]) -> Timed:
    """Convert records of `PEDAL` to messages."""
    return [(tick_of(time), MOVES, _moved(channel, control, value)) for time, control, value in pedal.tolist()]


def _moved(channel: int, control: int, value: int) -> mido.Message:
    return mido.Message("control_change", control=control, value=value, channel=channel)


def _port(track: list[tuple[int, mido.Message]]) -> int:
    """Return the port that a track sets, the last if it sets several; 0 if none."""
    return next((message.port for _, message in reversed(track) if message.type == "midi_port"), 0)


def _head(sound: State, channel: int, port: int) -> list[mido.Message]:
    """Return the first messages of a new track, so that it sounds like another channel."""
    controls = [
        mido.Message("control_change", control=control, value=sound.sound[control], channel=channel)
        for control in SOUND
        if control in sound.sound
    ]
    head = [mido.MetaMessage("track_name", name=NEW_TRACK)]
    if port:
        head.append(mido.MetaMessage("midi_port", port=port))
    return [*head, *controls, mido.Message("program_change", program=sound.program, channel=channel)]


def _in_order(timed: Timed) -> list[tuple[int, mido.Message]]:
    return [(tick, message) for tick, _, message in sorted(timed, key=lambda each: each[:2])]


def _write_text(file: mido.MidiFile, text: str) -> None:
    track = file.tracks[0]
    place = next((i for i, message in enumerate(track) if message.time or message.type == "end_of_track"), len(track))
    track.insert(place, mido.MetaMessage("text", text=text))


def _track(timed: list[tuple[int, mido.Message]], now: int = 0) -> mido.MidiTrack:
    track = mido.MidiTrack()
    for tick, message in timed:
        track.append(message.copy(time=tick - now))
        now = tick
    return track


def _bytes(file: mido.MidiFile) -> bytes:
    buffer = io.BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()
