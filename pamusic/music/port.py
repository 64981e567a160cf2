"""Music -> a MIDI port, in time: the only place that waits.

Knows events, ports and a clock; knows no tokens, no files and no terminal. Music may still be made while it is
played: one thread puts events in, another plays them. The maker is kept some seconds ahead, no further; where it
falls behind, the music waits until that much is there again. Whatever ends it, no key stays down and no pedal.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import mido

from pamusic.errors import PamusicError
from pamusic.music.events import Event, EventType
from pamusic.music.performance import PEDALS

NEW = "new"  # in place of a port's name: one of our own, which others connect to
OWN_NAME = "pamusic"
MAKES_ONE = (
    "install loopMIDI, which makes some"
    if sys.platform == "win32"
    else "--port new makes one that a program can connect to"
)
ALL_NOTES_OFF = 123  # MIDI 1.0, channel mode messages
MAX_NAP_SECONDS = 0.01  # how late it may be noticed that there is more music, or that there shall be no more
LOOK_AROUND = 1.0  # how often it is looked whether the port is still there
PATIENCE = 2.0  # how long a driver may take over a message before it is given up


class Port(Protocol):
    """What takes messages: mido's output ports do."""

    def send(self, message: mido.Message) -> None: ...


class Player:
    """Plays events on a port while more of them come.

    `feed`, `throttle` and `finish` are for who makes the music, `play` for a thread of its own; `stop` is for anyone.

    Args:
        port: where to.
        ahead: seconds of music that must be there before it begins, or goes on after it had to wait.
        clock: seconds, from any zero.
        sleep: lets seconds pass.
        on_wait: told, at the first time, at which second of the music it had to wait for more.
        is_there: whether the port still exists; asked now and then.

    Attributes:
        lost: why the port takes no more messages; None while it does.
        num_waits, waited: how often the music had to wait for more of it, and how many seconds in all.
    """

    def __init__(
        self,
        port: Port,
        *,
        ahead: float,
        clock: Callable[[], float] = time.perf_counter,  # monotonic's steps were 16 ms on Windows, up to Python 3.12
        sleep: Callable[[float], None] = time.sleep,
        on_wait: Callable[[float], None] = lambda second: None,
        is_there: Callable[[], bool] = lambda: True,
    ) -> None:
        self._port, self._ahead, self._clock, self._sleep = port, ahead, clock, sleep
        self._on_wait, self._is_there = on_wait, is_there
        self._coming: deque[Event] = deque()
        self._until = 0.0  # second of the music up to which all events have come
        self._ended = self._stopped = False
        self._zero: float | None = None  # when second 0 of the music was, had it never waited; None while it waits
        self._second = 0.0  # where it is while it waits
        self._down: set[int] = set()
        self.lost: Exception | None = None
        self.num_waits, self.waited = 0, 0.0

    @property
    def second(self) -> float:
        """Which second of the music it is."""
        zero = self._zero
        return self._second if zero is None else self._clock() - zero

    def feed(self, events: Iterable[Event], until: float) -> None:
        """Take more music: all that happens before a second has come now."""
        self._coming.extend(events)
        self._until = until

    def throttle(self) -> None:
        """Return when the music that came is no more than `ahead` seconds before what is heard."""
        while not self._stopped and self._until - self.second > self._ahead:
            self._sleep(MAX_NAP_SECONDS)

    def end(self) -> None:
        """No more will come."""
        self._ended = True

    def finish(self) -> None:
        """No more will come; returns when all was played, or can no longer be."""
        self.end()
        while not self._stopped:
            if self.second > self._until + PATIENCE:
                self.lost = TimeoutError("it takes no more messages")
                return
            self._sleep(MAX_NAP_SECONDS)

    def stop(self) -> None:
        """End `play` now, with the port quiet."""
        self._stopped = True

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be heard: all was played, it was stopped, or the port is lost."""
        return self._stopped

    def play(self) -> None:
        """Play all that comes; returns when it has ended or is stopped, or the port is lost."""
        looked = self._clock()
        try:
            self._wait_for_more()
            while not self._stopped:
                # Read in this order: what comes meanwhile is then in `_coming`, at the latest.
                ended, until, second = self._ended, self._until, self.second
                if self._coming and self._coming[0].time <= second:
                    self._send(_message(self._coming.popleft()))
                elif self._coming or second < until:
                    due = self._coming[0].time if self._coming else until
                    self._sleep(min(due - second, MAX_NAP_SECONDS))
                elif ended:
                    return
                else:
                    self._fall_behind(second)
                if self._clock() - looked > LOOK_AROUND:
                    looked = self._clock()
                    self._check_port()
        finally:
            self._second, self._zero = self.second, None
            self._release_all()
            self._stopped = True

    def _fall_behind(self, second: float) -> None:
        self._second, self._zero = second, None
        if not self.num_waits:
            self._on_wait(second)
        self.num_waits += 1
        began = self._clock()
        self._wait_for_more()
        self.waited += self._clock() - began

    def _wait_for_more(self) -> None:
        """Until the music has come for `ahead` seconds more, or to its end; then time goes on from where it was."""
        while not (self._stopped or self._ended or self._until - self._second >= self._ahead):
            self._sleep(MAX_NAP_SECONDS)
        self._zero = self._clock() - self._second

    def _check_port(self) -> None:
        try:
            if not self._is_there():
                raise PamusicError("it is no longer there")
        except Exception as error:  # a driver's own kind
            self.lost, self._stopped = error, True

    def _send(self, message: mido.Message) -> None:
        try:
            self._port.send(message)
        except Exception as error:  # each driver has errors of its own kind
            self.lost, self._stopped = error, True
            return
        if message.type == "note_on":
            self._down.add(message.note)
        elif message.type == "note_off":
            self._down.discard(message.note)

    def _release_all(self) -> None:
        """Every key and every pedal, and what else may sound on the channel."""
        messages = [mido.Message("note_off", note=pitch, velocity=64) for pitch in sorted(self._down)]
        messages += [mido.Message("control_change", control=control, value=0) for control in (*PEDALS, ALL_NOTES_OFF)]
        for message in messages:
            with suppress(Exception):  # of a port that is lost one tries all the same
                self._port.send(message)


def port_names() -> list[str]:
    """Return the names of the ports that take messages.

    Raises:
        PamusicError: python-rtmidi is missing, or the system has no MIDI.
    """
    try:
        return list(mido.get_output_names())
    except Exception as error:
        raise _no_midi(error) from None


@contextmanager
def opened_port(name: str) -> Iterator[tuple[mido.ports.BaseOutput, Callable[[], bool]]]:
    """Lend the port of a name, or the only one in whose name that is a part, and what tells whether it is still there.

    Args:
        name: upper and lower case are the same; `NEW` makes a port that others connect to.

    Raises:
        PamusicError: it is none, or it cannot be opened.
    """
    if name == NEW and sys.platform == "win32":
        raise PamusicError(
            "Windows makes no new ports; install loopMIDI, make a port with it, and give that one's name to --port"
        )
    known = OWN_NAME if name == NEW else _found(name, port_names())
    try:
        port = mido.open_output(known, virtual=name == NEW)
    except ImportError as error:
        raise _no_midi(error) from None
    except Exception as error:  # each driver has errors of its own kind
        raise PamusicError(f"port {known} cannot be opened ({error}); close what else uses it") from None

    def is_there() -> bool:
        driver = getattr(port, "_rt", None)  # mido's port of python-rtmidi: others tell by failing
        return driver is None or name == NEW or known in driver.get_ports()

    try:
        yield port, is_there
    finally:
        with suppress(Exception):
            port.close()


def _found(name: str, names: list[str]) -> str:
    if name in names:
        return name
    matching = [known for known in names if name.casefold() in known.casefold()]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise PamusicError(f"{name!r} is in {len(matching)} ports' names: {'; '.join(matching)}; give more of one")
    there = f"there is {'; '.join(names)}" if names else "there is none"
    raise PamusicError(f"no port is called {name!r}; {there}; {MAKES_ONE}")


def _no_midi(error: Exception) -> PamusicError:
    if isinstance(error, ImportError) and error.name == "rtmidi":
        return PamusicError('MIDI ports need python-rtmidi, which is not installed: pip install "pamusic[live]"')
    if isinstance(error, ImportError):
        return PamusicError(f"MIDO_BACKEND names what cannot be imported ({error}); unset it")
    return PamusicError(
        f"this system's MIDI does not answer ({error}); on Linux load the module snd-seq, or play through JACK: "
        "MIDO_BACKEND=mido.backends.rtmidi/UNIX_JACK"
    )


@contextmanager
def playing(player: Player) -> Iterator[Player]:
    """Play in a thread of its own while the block runs; however that ends, the port is quiet.

    A driver that hangs is left behind: its thread does not keep the program.
    """
    thread = threading.Thread(target=player.play, name="player", daemon=True)
    thread.start()
    try:
        yield player
    finally:
        player.stop()
        thread.join(PATIENCE)


def _message(event: Event) -> mido.Message:
    _, type, number, value = event
    if type == EventType.NOTE_ON:
        return mido.Message("note_on", note=number, velocity=value)
    if type == EventType.NOTE_OFF:
        return mido.Message("note_off", note=number, velocity=64)
    return mido.Message("control_change", control=number, value=value)
