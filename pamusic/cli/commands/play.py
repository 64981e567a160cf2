"""`pamusic play`: a MIDI file -> a MIDI port, in time. Knows options and words."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pamusic.cli.live import LIST, list_ports, live
from pamusic.cli.midi_input import read_telling
from pamusic.errors import UsageError


def play(
    port: Annotated[str, Option(help="A MIDI port, or part of its name; list: tells them; new: one more.")],
    file: Annotated[Path | None, Argument(help="The MIDI file; - is stdin.", show_default=False)] = None,
    tracks: Annotated[str, Option(help="piano; all (but drums); or numbers, like 1,3.")] = "piano",
) -> None:
    """Play a MIDI file on a port, all on one channel; no key stays down at the end, and no pedal."""
    from pamusic.music.events import events
    from pamusic.music.midi import parsed_tracks

    if port == LIST:
        list_ports()
        return
    if file is None:
        raise UsageError("name the MIDI file that is to be played; - is standard input")
    performance = read_telling(file, parsed_tracks(tracks))
    with live(port, ahead=inf) as playback:
        playback.play(events(performance), performance.duration)
        playback.raise_if_lost()
