"""Play music on a port while it is generated (`--port`). Knows words; `music/port.py` plays and waits."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pamusic.cli.terminal import log, result
from pamusic.errors import PamusicError

if TYPE_CHECKING:
    from pamusic.music.events import Event
    from pamusic.music.port import Player
    from pamusic.tokens.streaming_decoder import EventDecoder
    from pamusic.tokens.vocabulary import Position

LIST = "list"  # instead of a port's name: print the names


def list_ports() -> None:
    """Print the names of the ports, one per line."""
    from pamusic.music.port import MAKES_ONE, port_names

    names = port_names()
    for name in names:
        result(name)
    if not names:
        log(f"there is no MIDI port; {MAKES_ONE}")


class Live:
    """Playback of generated music on a port, or on none."""

    def __init__(self, player: Player | None) -> None:
        self._player = player

    def tee(
        self, drawn: Iterable[Sequence[Position | None]], decoder: EventDecoder
    ) -> Iterator[Sequence[Position | None]]:
        """Yield the ids of one piece as they are drawn, then play them; stop early if the port is lost."""
        player = self._player
        for ids in drawn:
            yield ids  # first, so that an interruption loses no id that was played
            if player is None:
                continue
            for position in ids:
                player.feed([] if position is None else decoder.follow(position), decoder.seconds)
            player.throttle()
            if player.is_over:
                return
        if player is not None:
            player.feed(decoder.end(), decoder.seconds)
            player.finish()

    def play(self, events: Sequence[Event], seconds: float) -> None:
        """Play music that is complete."""
        if self._player is not None:
            self._player.feed(events, seconds)
            self._player.finish()

    def stop(self) -> bool:
        """Stop playing; return whether the port was lost before."""
        if self._player is None:
            return False
        self._player.stop()
        return self._player.lost is not None

    def raise_if_lost(self, comfort: str = "") -> None:
        """Log how often the music waited for the model, and raise an error if the port was lost.

        Args:
            comfort: Text to add to the error.

        Raises:
            PamusicError: the port was lost.
        """
        player = self._player
        if player is None:
            return
        if player.num_waits:
            times = "once" if player.num_waits == 1 else f"{player.num_waits} times"
            log(f"the music waited {times} for the model, {player.waited:.1f} seconds in all")
        if player.lost is not None:
            raise PamusicError(f"the port was lost at second {player.second:.1f} ({player.lost}){comfort}")


@contextmanager
def live(port: str | None, ahead: float) -> Iterator[Live]:
    """Open the port, so that an error comes before the work, and yield the playback.

    Raises:
        PamusicError: there is no such port.
    """
    if port is None:
        yield Live(None)
        return
    from pamusic.music.port import NEW, OWN_NAME, Player, opened_port, playing

    with opened_port(port) as (lent, is_there):
        if port == NEW and sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
            log(f"the port {OWN_NAME} is ready: connect to it, then press Enter")
            sys.stdin.readline()
        player = Player(lent, ahead=ahead, on_wait=_slow, is_there=is_there)
        with playing(player):
            yield Live(player)


def _slow(second: float) -> None:
    log(f"the model is slower than the music, so the music waits (second {second:.1f})")
