"""Play music on a MIDI port in real time; the only module that waits for the clock.

Knows events, ports and a clock; knows no tokens, no files and no terminal. Music may still be generated while it plays:
one thread adds events, another plays them. The generator stays a few seconds ahead, no further. If it falls behind, the
music pauses until it is that far ahead again. However playback ends, all keys and pedals are released.
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

NEW = "new"  # used as a port's name: create a virtual port that other programs connect to
OWN_NAME = "pamusic"
MAKES_ONE = (
    "install loopMIDI to create ports" if sys.platform == "win32" else "use --port new to create one for other programs"
)
ALL_NOTES_OFF = 123  # MIDI 1.0, channel mode messages
MAX_NAP_SECONDS = 0.01  # longest delay until more music, or a stop, is noticed
LOOK_AROUND = 1.0  # seconds between checks that the port still exists
PATIENCE = 2.0  # seconds that a driver may take for a message before it is given up


class Port(Protocol):
    """A receiver of MIDI messages, such as mido's output ports."""

    def send(self, message: mido.Message) -> None: ...


class Player:
    """A player of events on a port, while more events arrive.

    The generating thread calls `feed`, `throttle` and `finish`; a thread of its own calls `play`; any thread may call
    `stop`.

    Args:
        port: Port to play on.
        ahead: Seconds of music that must be ready before playback starts, or resumes after a pause.
        clock: Function that returns the time in seconds, from any zero.
        sleep: Function that waits for a number of seconds.
        on_wait: Callback for the first pause, with the second of the music.
        is_there: Function that returns whether the port still exists; called at intervals.

    Attributes:
        lost: Error that made the port unusable; None while it works.
        num_waits, waited: Number of pauses to wait for more music, and their total seconds.
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
        self._until = 0.0  # second of the music up to which all events have arrived
        self._ended = self._stopped = False
        self._zero: float | None = None  # clock time of second 0, if the music had never paused; None during a pause
        self._second = 0.0  # second of the music during a pause
        self._down: set[int] = set()
        self.lost: Exception | None = None
        self.num_waits, self.waited = 0, 0.0

    @property
    def second(self) -> float:
        """Current second of the music."""
        zero = self._zero
        return self._second if zero is None else self._clock() - zero

    def feed(self, events: Iterable[Event], until: float) -> None:
        """Add more music: all events before the second `until` have now arrived."""
        self._coming.extend(events)
        self._until = until

    def throttle(self) -> None:
        """Wait until the generated music is at most `ahead` seconds ahead of playback."""
        while not self._stopped and self._until - self.second > self._ahead:
            self._sleep(MAX_NAP_SECONDS)

    def end(self) -> None:
        """Mark the music as complete."""
        self._ended = True

    def finish(self) -> None:
        """Mark the music as complete, and wait until all is played or the port is lost."""
        self.end()
        while not self._stopped:
            if self.second > self._until + PATIENCE:
                self.lost = TimeoutError("it takes no more messages")
                return
            self._sleep(MAX_NAP_SECONDS)

    def stop(self) -> None:
        """End `play` now, and silence the port."""
        self._stopped = True

    @property
    def is_over(self) -> bool:
        """Whether playback is over: all was played, it was stopped, or the port is lost."""
        return self._stopped

    def play(self) -> None:
        """Play all events that arrive; return at the end, on a stop, or if the port is lost."""
        looked = self._clock()
        try:
            self._wait_for_more()
            while not self._stopped:
                # Read in this order: events that arrive in between are then in `_coming`, and none is missed.
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
        """Wait until `ahead` more seconds of music, or its end, have arrived; then continue at the same second."""
        while not (self._stopped or self._ended or self._until - self._second >= self._ahead):
            self._sleep(MAX_NAP_SECONDS)
        self._zero = self._clock() - self._second

    def _check_port(self) -> None:
        try:
            if not self._is_there():
                raise PamusicError("it is no longer there")
        except Exception as error:  # drivers raise exceptions of their own
            self.lost, self._stopped = error, True

    def _send(self, message: mido.Message) -> None:
        try:
            self._port.send(message)
        except Exception as error:  # drivers raise exceptions of their own
            self.lost, self._stopped = error, True
            return
        if message.type == "note_on":
            self._down.add(message.note)
        elif message.type == "note_off":
            self._down.discard(message.note)

    def _release_all(self) -> None:
        """Release every key and every pedal, and silence the channel."""
        messages = [mido.Message("note_off", note=pitch, velocity=64) for pitch in sorted(self._down)]
        messages += [mido.Message("control_change", control=control, value=0) for control in (*PEDALS, ALL_NOTES_OFF)]
        for message in messages:
            with suppress(Exception):  # also tried on a lost port
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
    """Open the port with this name, or the only port that contains it; yield the port and a check that it still exists.

    Args:
        name: Name, in upper or lower case; `NEW` creates a port that other programs connect to.

    Raises:
        PamusicError: no port matches, or it cannot be opened.
    """
    if name == NEW and sys.platform == "win32":
        raise PamusicError(
            "Windows cannot create ports; install loopMIDI, create a port with it, and pass its name to --port"
        )
    known = OWN_NAME if name == NEW else _found(name, port_names())
    try:
        port = mido.open_output(known, virtual=name == NEW)
    except ImportError as error:
        raise _no_midi(error) from None
    except Exception as error:  # drivers raise exceptions of their own
        raise PamusicError(f"port {known} cannot be opened ({error}); close other programs that use it") from None

    def is_there() -> bool:
        driver = getattr(port, "_rt", None)  # set by mido's python-rtmidi backend; other backends fail on use
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
        raise PamusicError(
            f"{name!r} matches {len(matching)} ports: {'; '.join(matching)}; use a longer part of one name"
        )
    there = f"the ports are {'; '.join(names)}" if names else "there are no ports"
    raise PamusicError(f"no port is called {name!r}; {there}; {MAKES_ONE}")


def _no_midi(error: Exception) -> PamusicError:
    if isinstance(error, ImportError) and error.name == "rtmidi":
        return PamusicError('MIDI ports need python-rtmidi, which is not installed; run pip install "pamusic[live]"')
    if isinstance(error, ImportError):
        return PamusicError(f"MIDO_BACKEND must name a module that can be imported ({error}); unset it")
    return PamusicError(
        f"this system's MIDI does not answer ({error}); on Linux load the module snd-seq, or play through JACK: "
        "MIDO_BACKEND=mido.backends.rtmidi/UNIX_JACK"
    )


@contextmanager
def playing(player: Player) -> Iterator[Player]:
    """Play in a separate thread while the block runs; however the block ends, the port is silenced.

    A driver that hangs is abandoned: its thread does not keep the program alive.
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
