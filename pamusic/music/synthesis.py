"""Performance -> waveform, by playing it on a SoundFont.

Knows two engines: midirenderer, which pip installs everywhere, and the FluidSynth program, which sounds better and is
taken where it is found. Knows no MIDI files (`midi.py` does) and no names of output files. Both engines play at
48,000 Hz, the only rate that midirenderer offers, so nothing is resampled.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pamusic.errors import PamusicError
from pamusic.music.midi import midi_bytes
from pamusic.music.performance import PEDAL, SUSTAIN, Performance

SAMPLE_RATE = 48_000
ENGINES = ("auto", "midirenderer", "fluidsynth")
MAX_SECONDS = 2 * 3600.0  # an hour takes 0.7 GB as a file and three times as much memory while it is made

RING_OUT = 3.0  # seconds after the last offset: by then a string of the default SoundFont has died away
PEAK = 10 ** (-1 / 20)  # -1 dBFS: room for players that resample
MAX_GAIN = 10 ** (12 / 20)  # both engines leave some 18 dB of room over a piano; this keeps soft music softer than loud
FLUIDSYNTH_OPTIONS = ("-n", "-i", "-q", "-r", str(SAMPLE_RATE), "-T", "wav", "-O", "s16")


@dataclass(frozen=True, eq=False)
class Sound:
    """What a performance sounds like.

    Attributes:
        samples: `[num_frames, 2]` int16, left and right, at `SAMPLE_RATE`.
        engine: which engine played.
        soundfont: which SoundFont it played on.
    """

    samples: np.ndarray
    engine: str
    soundfont: Path

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def synthesize(performance: Performance, *, soundfont: Path | None = None, engine: str = "auto") -> Sound:
    """Plays a performance and lets its end ring out for `RING_OUT` seconds.

    Raised to a peak of -1 dBFS, but by no more than 12 dB, and never lowered.

    Args:
        performance: what to play; it has notes.
        soundfont: an `.sf2` file; by default TimGM6mb, which pretty_midi carries.
        engine: one of `ENGINES`; `auto` takes FluidSynth where it is installed.

    Raises:
        PamusicError: too long, no such engine, a broken SoundFont, or one without a sound for these notes.
    """
    if performance.duration > MAX_SECONDS:
        raise PamusicError(
            f"the performance lasts {performance.duration / 3600:.1f} hours, more than one rendering takes "
            f"({MAX_SECONDS / 3600:.0f}); cut it into parts"
        )
    engine = _chosen(engine)
    soundfont = soundfont or default_soundfont()
    _check_soundfont(soundfont)
    midi = midi_bytes(_ringing_out(performance))
    waveform = (_play_with_fluidsynth if engine == "fluidsynth" else _play_with_midirenderer)(midi, soundfont)
    samples = _samples(waveform)[: round((performance.duration + RING_OUT) * SAMPLE_RATE)]
    if not samples.any():
        raise PamusicError(f"{soundfont}: {engine} plays these notes without a sound; try another SoundFont")
    return Sound(_levelled(samples), engine, soundfont)


def wav_bytes(sound: Sound) -> bytes:
    """A WAV file: 16-bit PCM, stereo."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(sound.samples.astype("<i2", copy=False).tobytes())
    return buffer.getvalue()


def default_soundfont() -> Path:
    """TimGM6mb.sf2, found without importing pretty_midi.

    Raises:
        PamusicError: pretty_midi is not installed, or without its SoundFont.
    """
    package = importlib.util.find_spec("pretty_midi")
    path = Path(package.origin).with_name("TimGM6mb.sf2") if package and package.origin else None
    if path is None or not path.is_file():
        raise PamusicError("the default SoundFont is missing; pip install pretty_midi, or give one with --soundfont")
    return path


def _chosen(engine: str) -> str:
    if engine not in ENGINES:
        raise PamusicError(f"no engine is called {engine!r}; there is {', '.join(ENGINES)}")
    found = shutil.which("fluidsynth") is not None
    if engine == "fluidsynth" and not found:
        raise PamusicError("FluidSynth is not installed (no `fluidsynth` on the PATH); use --engine midirenderer")
    if engine == "auto":
        return "fluidsynth" if found else "midirenderer"
    return engine


def _check_soundfont(path: Path) -> None:
    """Refuses what is no SoundFont: FluidSynth would go on without a word, and play on another."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except FileNotFoundError:
        raise PamusicError(f"{path}: no such SoundFont; check the path") from None
    except IsADirectoryError:
        raise PamusicError(f"{path}: is a folder; give an .sf2 file") from None
    except OSError as error:
        raise PamusicError(f"{path}: cannot be read ({error.strerror})") from None
    if head[:4] != b"RIFF" or head[8:] != b"sfbk":
        raise PamusicError(f"{path}: is not a SoundFont (it begins with {head!r}); give an .sf2 file")
    if int.from_bytes(head[4:8], "little") + 8 > path.stat().st_size:
        raise PamusicError(f"{path}: is a truncated SoundFont; fetch it again")


def _ringing_out(performance: Performance) -> Performance:
    """The same, and long enough for its last strings to die away: an engine stops at the last message."""
    up = np.array([(performance.duration + RING_OUT, SUSTAIN, 0)], PEDAL)
    return Performance(performance.notes, np.concatenate([performance.pedal, up]))


def _play_with_midirenderer(midi: bytes, soundfont: Path) -> bytes:
    import midirenderer

    try:
        with _standard_error_silenced():
            return bytes(midirenderer.render_wave_from(soundfont.read_bytes(), midi))
    except Exception as error:  # plain RuntimeErrors
        raise PamusicError(f"{soundfont}: midirenderer cannot play on it ({_first_line(str(error))})") from None
    except BaseException as error:  # a panic in Rust is pyo3's PanicException, which is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise PamusicError(f"{soundfont}: is a broken SoundFont, midirenderer broke down on it; try another") from None


@contextmanager
def _standard_error_silenced() -> Iterator[None]:
    """Keeps off the terminal what a panic in Rust writes to descriptor 2 past Python, 35 lines in all."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or none at all, as under pythonw
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _play_with_fluidsynth(midi: bytes, soundfont: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="pamusic-") as folder:
        score, waveform = Path(folder) / "performance.mid", Path(folder) / "performance.wav"
        score.write_bytes(midi)
        command = ["fluidsynth", *FLUIDSYNTH_OPTIONS, "-F", str(waveform), str(soundfont.resolve()), str(score)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        # It exits with 0 though it could not load the SoundFont.
        if done.returncode or not waveform.is_file() or re.search("failed to load soundfont", done.stderr, re.I):
            raise PamusicError(f"{soundfont}: FluidSynth cannot play on it ({_first_line(done.stderr)})")
        return waveform.read_bytes()


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it gives no reason")[:200]


def _samples(waveform: bytes) -> np.ndarray:
    """The samples `[num_frames, 2]` of an engine's WAV file, which is 16-bit and stereo."""
    with wave.open(io.BytesIO(waveform)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, SAMPLE_RATE)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)


def _levelled(samples: np.ndarray) -> np.ndarray:
    """Raised to `PEAK`, by `MAX_GAIN` at most; a minute at a time, since a float copy would take twice the memory."""
    loudest = max(int(samples.max()), -int(samples.min()))
    gain = min(MAX_GAIN, max(1.0, PEAK * 32767 / loudest))
    levelled = np.empty(samples.shape, np.int16)
    for start in range(0, len(samples), 60 * SAMPLE_RATE):
        part = slice(start, start + 60 * SAMPLE_RATE)
        levelled[part] = np.rint(samples[part] * gain).clip(-32768, 32767)
    return levelled
