"""Run `pamusic render`: synthesize a MIDI file to a WAV file. Knows options and words."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pamusic.cli.output import STREAM, check_kind, output
from pamusic.cli.terminal import log


class Engine(StrEnum):
    auto = "auto"
    midirenderer = "midirenderer"
    fluidsynth = "fluidsynth"


def render(
    file: Annotated[Path, typer.Argument(help="Play this MIDI file; - is stdin.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write the WAV file here; - is stdout. (default: beside FILE)",
            show_default=False,
        ),
    ] = None,
    soundfont: Annotated[
        Path | None,
        typer.Option(help="Use this .sf2 file.", show_default="the best that is installed, else TimGM6mb"),
    ] = None,
    tracks: Annotated[str, typer.Option(help="Read these tracks: piano, all (no drums), or numbers.")] = "piano",
    engine: Annotated[Engine, typer.Option(help="Synthesize with this engine.")] = Engine.auto,
    dry: Annotated[bool, typer.Option("--dry", help="Leave out the reverb.")] = False,
) -> None:
    """Synthesize the piano part of a MIDI file to a 16-bit stereo WAV file with a peak of -1 dBFS."""
    from pamusic.cli.midi_input import read_telling
    from pamusic.music.midi import parsed_tracks
    from pamusic.music.soundfonts import BETTER, default_soundfont, user_folder
    from pamusic.music.synthesis import synthesize, wav_bytes

    check_kind(out, "WAV", (".wav", ".wave", ""))
    default = Path("stdin.wav") if file == STREAM or not file.name else file.with_suffix(".wav")
    with output(out, default, sources=[file], kind="sound") as wav:
        performance = read_telling(file, parsed_tracks(tracks))
        sound = synthesize(performance, soundfont=soundfont, engine=engine.value, dry=dry)
        wav.write(wav_bytes(sound))
    for reason in sound.passed_over:
        log(f"not used: {reason}")
    log(f"{sound.seconds:.1f} seconds, played by {sound.engine} on {sound.soundfont.name}")
    if soundfont is None and sound.soundfont == default_soundfont() and not sound.passed_over:
        log(
            f"for a better piano install {BETTER[0]} (Debian, Ubuntu: apt install fluid-soundfont-gm; elsewhere put it"
            f" in {user_folder()}), or pass a SoundFont with --soundfont"
        )
