"""Read and write performances, synthesize them, and prepare primes. Knows MIDI and sound; knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pamusic.api.border import StrPath, as_path, in_python, write_file
from pamusic.compose.job import Prime
from pamusic.errors import PamusicError
from pamusic.music import synthesis
from pamusic.music.midi import file_bytes, midi_bytes, parsed_tracks, read_and_mend
from pamusic.music.midi_contents import Repair
from pamusic.music.performance import Performance

MIDI_SUFFIXES, WAV_SUFFIXES = (".mid", ".midi"), (".wav", ".wave")
IN_MEMORY = Path("-")  # a record's name for a prime that is not a file, the same as for standard input


@dataclass(frozen=True, eq=False)
class MidiFile(Performance):
    """A performance with its source file, so that a continuation keeps the file's own messages.

    Attributes:
        path: Path of the file.
        data: Bytes of the file.
        repairs: Repairs that reading the file needed.
        tracks: Parts of the file that were read.
    """

    path: Path = IN_MEMORY
    data: bytes = b""
    repairs: tuple[Repair, ...] = ()
    tracks: str = "piano"


def read_midi(path: StrPath, *, tracks: str = "piano") -> MidiFile:
    """Read the piano part of a Standard MIDI File, and repair it if it is broken.

    Args:
        path: Path of the file; gzip is unpacked.
        tracks: `piano` (programs 0 to 7, no drums), `all` (except drums), or numbers of parts, such as `1,3`.

    Returns:
        The performance: `.notes`, `[num_notes]` records of onset and offset in seconds, pitch, velocity; `.pedal`.

    Raises:
        PamusicError: the file cannot be read, is not a MIDI file, or has no such part.

    >>> prime = pamusic.read_midi("intro.mid")
    >>> len(prime) > 0, prime.duration > 0
    (True, True)
    >>> higher = prime.transposed(2).cropped(0, 10)
    """
    with in_python():
        file = as_path(path)
        return midi_file(file_bytes(file), file, tracks)


def write_midi(performance: Performance, path: StrPath) -> Path:
    """Write a performance as a Standard MIDI File, on a grid of milliseconds, and return the path.

    Raises:
        PamusicError: the file cannot be written.

    >>> pamusic.write_midi(pamusic.read_midi("intro.mid").cropped(0, 10), "ten-seconds.mid")
    PosixPath('ten-seconds.mid')
    """
    check_times(performance)
    return write_file(path, midi_bytes(performance), MIDI_SUFFIXES)


def synthesize(performance: Performance, path: StrPath, *, soundfont: StrPath | None = None) -> Path:
    """Synthesize a performance with a SoundFont, in a small room, to a 16-bit stereo WAV file, and return the path.

    Args:
        performance: Performance with at least one note.
        path: Path of the WAV file.
        soundfont: An `.sf2` file; by default the best that is installed, else one that is always there.

    Raises:
        PamusicError: the performance is too long or empty, the SoundFont is broken, or the file cannot be written.

    >>> pamusic.synthesize(pamusic.read_midi("intro.mid").cropped(0, 5), "intro.wav")
    PosixPath('intro.wav')
    """
    with in_python():
        sound = synthesis.synthesize(performance, soundfont=None if soundfont is None else as_path(soundfont))
    return write_file(path, synthesis.wav_bytes(sound), WAV_SUFFIXES)


def as_prime(prime: Performance | StrPath | None, tracks: str) -> Prime:
    """Return a prime with a file: the file that it was read from, or a file made from its notes."""
    if prime is None:
        return Prime()
    if not isinstance(prime, Performance):
        prime = read_midi(prime, tracks=tracks)
    if isinstance(prime, MidiFile):
        prime = prime if prime.tracks == tracks else midi_file(prime.data, prime.path, tracks)
        return Prime(prime, prime.data, prime.repairs, prime.path)
    check_times(prime)
    made = midi_file(midi_bytes(prime), IN_MEMORY, tracks)
    return Prime(made, made.data, made.repairs, IN_MEMORY)


def as_performance(music: Performance | StrPath) -> Performance:
    return music if isinstance(music, Performance) else read_midi(music)


def check_times(performance: Performance) -> None:
    """Raise an error for times that no file can hold."""
    if not isinstance(performance, Performance):
        raise TypeError(f"performance must be a pamusic.Performance, got {type(performance).__name__}")
    times = (performance.notes["onset"], performance.notes["offset"], performance.pedal["time"])
    if not all(np.isfinite(each).all() and (each >= 0).all() for each in times):
        raise PamusicError("times of a performance must be finite and 0 or more; shift or crop it first")


def midi_file(data: bytes, path: Path, tracks: str) -> MidiFile:
    performance, repairs = read_and_mend(data, str(path), tracks=parsed_tracks(str(tracks)))
    for array in (performance.notes, performance.pedal):
        array.flags.writeable = False  # the arrays stand for the file, which does not change with them
    return MidiFile(performance.notes, performance.pedal, path, data, repairs, str(tracks))
