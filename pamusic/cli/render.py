"""`pamusic render`: MIDI to a WAV file."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pamusic.cli.terminal import result, result_bytes, say
from pamusic.errors import PamusicError

STREAM = Path("-")


class Engine(StrEnum):
    auto = "auto"
    midirenderer = "midirenderer"
    fluidsynth = "fluidsynth"


def render(
    file: Annotated[Path, typer.Argument(help="A MIDI file; - is standard input.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The WAV file; - is standard output. By default beside FILE, under a name that is still free.",
            show_default=False,
        ),
    ] = None,
    soundfont: Annotated[
        Path | None, typer.Option(help="An .sf2 file of your own.", show_default="TimGM6mb, from pretty_midi")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="auto: FluidSynth where it is installed.")] = Engine.auto,
) -> None:
    """Plays the piano part of a MIDI file into a 16-bit stereo WAV file."""
    from pamusic.files import free_name, written_atomically
    from pamusic.music.midi import read_midi
    from pamusic.music.synthesis import synthesize, wav_bytes

    if out is None:
        out = free_name("stdin.wav" if file == STREAM or not file.name else file.with_suffix(".wav"))
    _check_output(out, file)
    performance = read_midi(sys.stdin.buffer.read() if file == STREAM else file)

    if out == STREAM:
        sound = synthesize(performance, soundfont=soundfont, engine=engine.value)
        result_bytes(wav_bytes(sound))
    else:
        with written_atomically(out) as temporary:  # opened first: a place one cannot write to is told at once
            sound = synthesize(performance, soundfont=soundfont, engine=engine.value)
            temporary.write_bytes(wav_bytes(sound))
        result(out)
    say(f"{sound.seconds:.1f} seconds, played by {sound.engine} on {sound.soundfont.name}")


def _check_output(out: Path, file: Path) -> None:
    if out == STREAM:
        if sys.stdout.isatty():
            raise PamusicError("standard output is a terminal, which shows no sound; name a file with --out")
        return
    if out.suffix.lower() not in (".wav", ".wave", ""):
        raise PamusicError(f"{out}: only WAV files are written, not {out.suffix}; name one that ends in .wav")
    if file != STREAM and out.exists() and file.exists() and os.path.samefile(out, file):
        raise PamusicError(f"{out}: is the MIDI file itself; name another file with --out")
