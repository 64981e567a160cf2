"""Music is played in time, as it is made; whatever ends it, no key stays down.

The clock moves only while somebody sleeps; what is made meanwhile is told beforehand.
"""

import sys
import threading
from itertools import pairwise

import mido
import pytest

import pamusic.music.port
from pamusic.errors import PamusicError
from pamusic.music.events import Event, EventType
from pamusic.music.port import Player, opened_port, playing, port_names

NOTE_OFF, PEDAL, NOTE_ON = EventType


class Hall:
    """A port, a clock that moves while somebody sleeps, and what else happens at certain seconds of it."""

    def __init__(self, **about):
        self.now, self.sent, self.coming, self.waits = 100.0, [], [], []
        self.player = Player(self, clock=lambda: self.now, sleep=self.sleep, on_wait=self.waits.append, **about)

    def send(self, message):
        self.sent.append((round(self.now - 100, 6), message))

    def at(self, second, happens):
        self.coming.append((100 + second, happens))

    def puts(self, second, events, until):
        self.at(second, lambda: self.player.feed(events, until))

    def ends(self, second):
        self.at(second, self.player.end)

    def sleep(self, seconds):
        assert 0 < seconds <= 0.01
        self.now += seconds
        due = [happens for second, happens in self.coming if second <= self.now]
        self.coming = [each for each in self.coming if each[0] > self.now]
        for happens in due:
            happens()
        assert self.now < 400, "it hangs"

    @property
    def heard(self):
        """What was sent but the last words, in short: (second, kind, key or control)."""
        return [(second, *message.bytes()[:2]) for second, message in self.sent[:-4]]


ON, OFF, CONTROL = 0x90, 0x80, 0xB0
LAST_WORDS = [[CONTROL, 64, 0], [CONTROL, 66, 0], [CONTROL, 67, 0], [CONTROL, 123, 0]]


def stroke(time, pitch):
    return Event(time, NOTE_ON, pitch, 70)


def release(time, pitch):
    return Event(time, NOTE_OFF, pitch)


def test_gestures_become_messages_at_their_seconds():
    hall = Hall(ahead=1)
    music = [stroke(0.0, 60), Event(0.25, PEDAL, 64, 100), release(0.5, 60), stroke(0.5, 62), release(1.75, 62)]
    hall.player.feed(music, 2.0)
    hall.ends(0)
    hall.player.play()

    begin = hall.sent[0][0]
    assert [(round(second - begin, 6), message.bytes()) for second, message in hall.sent[:-4]] == [
        (0.0, [ON, 60, 70]), (0.25, [CONTROL, 64, 100]), (0.5, [OFF, 60, 64]), (0.5, [ON, 62, 70]),
        (1.75, [OFF, 62, 64]),
    ]  # fmt: skip
    assert [message.bytes() for _, message in hall.sent[-4:]] == LAST_WORDS
    assert hall.player.is_over
    assert hall.player.lost is None


def test_it_begins_when_so_much_is_there_and_a_stroke_does_not_wait_for_its_release():
    hall = Hall(ahead=2)
    for tenth in range(101):
        hall.puts(tenth / 10, [stroke(0.5, 60)] if tenth == 20 else [], tenth / 10)
    hall.puts(9.0, [release(8.5, 60)], 9.0)
    hall.ends(10)
    hall.player.play()

    (struck, *_), (released, *_) = hall.heard
    assert struck == pytest.approx(2.5, abs=0.02)
    assert released == pytest.approx(10.5, abs=0.02)


def test_music_that_is_made_too_slowly_waits_for_more_and_says_so_once():
    hall = Hall(ahead=1)
    for i in range(10):  # a stroke a second, each made in three
        hall.puts(3 * i, [stroke(i, 60), release(i + 0.5, 60)], i + 1)
    hall.ends(30)
    hall.player.play()

    strokes = [second for second, kind, _ in hall.heard if kind == ON]
    releases = [second for second, kind, _ in hall.heard if kind == OFF]
    assert len(strokes) == 10
    assert all(late - early == pytest.approx(3, abs=0.03) for early, late in pairwise(strokes))
    assert [released - struck for struck, released in zip(strokes, releases, strict=True)] == pytest.approx([0.5] * 10)
    assert hall.waits == [pytest.approx(1.0, abs=0.02)]
    assert hall.player.num_waits == 10  # the last one for the end
    assert hall.player.waited == pytest.approx(20, abs=0.3)


def test_the_maker_is_kept_so_far_ahead_and_no_further():
    class Port:
        sent = 0

        def send(self, message):
            self.sent += message.type == "note_on"

    player, ahead = Player(Port(), ahead=0.3), []  # in real time: 1.2 seconds
    with playing(player):
        for tenth in range(12):
            player.feed([stroke(tenth / 10, 60)], (tenth + 1) / 10)
            ahead.append((tenth + 1) / 10 - player.second)
            player.throttle()
        player.finish()

    assert player._port.sent == 12
    assert 0.3 < max(ahead) <= 0.3 + 0.1


@pytest.mark.parametrize("how", ["stopped", "lost", "unplugged"])
def test_whatever_ends_it_no_key_stays_down_and_no_pedal(how):
    hall = Hall(ahead=1, is_there=lambda: how != "unplugged" or hall.now < 104)
    hall.player.feed([stroke(0, 60), stroke(0, 64), Event(0, PEDAL, 64, 127), release(1, 60), stroke(3.5, 67)], 60)
    hall.at(3, hall.player.stop if how == "stopped" else lambda: None)
    if how == "lost":
        send = hall.send

        def fails(message):
            if message.type == "note_on" and message.note == 67:
                raise OSError("no such device")
            send(message)

        hall.player._port.send = fails
    hall.player.play()

    last = [message.bytes() for _, message in hall.sent[-5:]]
    assert last == [[OFF, 64, 64], *LAST_WORDS] or (how == "unplugged" and last == [[OFF, 67, 64], *LAST_WORDS])
    down = set()
    for _, message in hall.sent:
        if message.type in ("note_on", "note_off"):
            (down.add if message.type == "note_on" else down.discard)(message.note)
    assert not down
    assert (hall.player.lost is None) == (how == "stopped")
    assert hall.now < 106


def test_a_driver_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(pamusic.music.port, "PATIENCE", 0.2)
    hangs = threading.Event()

    class Hanging:
        def send(self, message):
            hangs.wait()

    player = Player(Hanging(), ahead=0.1)
    with playing(player):
        player.feed([stroke(0, 60)], 0.2)
        player.finish()

    assert "takes no more messages" in str(player.lost)
    hangs.set()


def test_a_port_is_found_by_a_part_of_its_name(backend):
    assert port_names() == ["Grand Piano", "Upright Piano", "Organ"]
    for name, found in (("Organ", "Organ"), ("gran", "Grand Piano"), ("new", "pamusic")):
        with opened_port(name) as (port, is_there):
            assert port.name == found
            assert port.is_virtual == (name == "new")
            assert is_there()
        assert port.closed


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Flute", "no port is called 'Flute'; the ports are Grand Piano; Upright Piano; Organ; use --port new"),
        ("piano", "'piano' matches 2 ports: Grand Piano; Upright Piano; use a longer part of one name"),
    ],
)
def test_a_name_of_no_port_is_answered_with_those_there_are(backend, name, reason):
    with pytest.raises(PamusicError, match=reason), opened_port(name):
        pass


def test_windows_makes_no_new_ports(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")

    with pytest.raises(PamusicError, match="install loopMIDI"), opened_port("new"):
        pass


def test_without_python_rtmidi_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rtmidi", None)
    monkeypatch.delitem(sys.modules, "mido.backends.rtmidi", raising=False)
    before = mido.backend
    mido.set_backend("mido.backends.rtmidi")
    try:
        with pytest.raises(PamusicError, match=r'pip install "pamusic\[live\]"'):
            port_names()
        with pytest.raises(PamusicError, match=r'pip install "pamusic\[live\]"'), opened_port("new"):
            pass
        mido.set_backend("no_such_backend")
        with pytest.raises(PamusicError, match="MIDO_BACKEND"):
            port_names()
    finally:
        mido.set_backend(before)
