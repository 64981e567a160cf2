"""Run `pamusic play`: play a MIDI file on a MIDI port in real time. Knows options and words."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pamusic.cli.live import LIST, list_ports, live
from pamusic.cli.midi_input import read_telling
from pamusic.errors import UsageError


def play(
    port: Annotated[str, Option(help="Play on this MIDI port; list: print ports; new: open one.")],
    file: Annotated[Path | None, Argument(help="Play this MIDI file; - is stdin.", show_default=False)] = None,
    tracks: Annotated[str, Option(help="Read these tracks: piano, all (no drums), or numbers.")] = "piano",
) -> None:
    """Play a MIDI file on a MIDI port, on one channel; at the end, release all keys and pedals."""
    from pamusic.music.events import events
    from pamusic.music.midi import parsed_tracks

    if port == LIST:
        list_ports()
        return
    if file is None:
        raise UsageError("there is nothing to play; pass a MIDI file, or - for standard input")
    performance = read_telling(file, parsed_tracks(tracks))
    with live(port, ahead=inf) as playback:
        playback.play(events(performance), performance.duration)
        playback.raise_if_lost()
