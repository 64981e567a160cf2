"""`--port`: music that is heard while it is made. Knows words; `music/port.py` does the playing and the waiting."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pamusic.cli.terminal import result, say
from pamusic.errors import PamusicError

if TYPE_CHECKING:
    from pamusic.music.events import Gesture
    from pamusic.music.port import Player
    from pamusic.tokens.streaming_decoder import StreamingDecoder

LIST = "list"  # in place of a port's name


def list_ports() -> None:
    """Prints the names of the ports, one a line."""
    from pamusic.music.port import MAKES_ONE, port_names

    names = port_names()
    for name in names:
        result(name)
    if not names:
        say(f"there is no MIDI port; {MAKES_ONE}")


class Live:
    """What is drawn, heard on a port, or on none."""

    def __init__(self, player: Player | None) -> None:
        self._player = player

    def heard(self, drawn: Iterable[list[int | None]], decoder: StreamingDecoder) -> Iterator[list[int | None]]:
        """Passes on the ids of one piece as they are drawn, then plays them; ends early where the port is lost."""
        player = self._player
        for ids in drawn:
            yield ids  # first, so that no interruption loses one that is heard
            if player is None:
                continue
            for id in ids:
                player.put([] if id is None else decoder.follow(id), decoder.seconds)
            player.keep_pace()
            if player.is_over:
                return
        if player is not None:
            player.put(decoder.end(), decoder.seconds)
            player.finish()

    def play(self, gestures: Sequence[Gesture], seconds: float) -> None:
        """Plays what is there already."""
        if self._player is not None:
            self._player.put(gestures, seconds)
            self._player.finish()

    def quiet(self) -> bool:
        """Nothing is heard from now on; whether the port was lost before."""
        if self._player is None:
            return False
        self._player.stop()
        return self._player.lost is not None

    def told(self, comfort: str = "") -> None:
        """Says what went wrong.

        Args:
            comfort: what to say besides of a port that was lost.

        Raises:
            PamusicError: the port was lost.
        """
        player = self._player
        if player is None:
            return
        if player.num_waits:
            times = "once" if player.num_waits == 1 else f"{player.num_waits} times"
            say(f"the music waited {times} for the model, {player.waited:.1f} seconds in all")
        if player.lost is not None:
            raise PamusicError(f"the port was lost at second {player.second:.1f} ({player.lost}){comfort}")


@contextmanager
def live(port: str | None, ahead: float) -> Iterator[Live]:
    """Lends what plays on a port, which is opened first, so that one that is not there is told before the work.

    Raises:
        PamusicError: there is no such port.
    """
    if port is None:
        yield Live(None)
        return
    from pamusic.music.port import NEW, OWN_NAME, Player, opened_port, playing

    with opened_port(port) as (lent, is_there):
        if port == NEW and sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
            say(f"the port {OWN_NAME} is there: connect to it, then press Enter")
            sys.stdin.readline()
        player = Player(lent, ahead=ahead, on_wait=_slow, is_there=is_there)
        with playing(player):
            yield Live(player)


def _slow(second: float) -> None:
    say(f"the model is slower than the music, which waits for it (second {second:.1f})")
