"""Render a performance as a waveform: played with a SoundFont, in a room, at full level.

Knows two engines: midirenderer, which pip installs everywhere, and the FluidSynth program, which sounds better and is
used if installed. Knows no MIDI files (`midi.py` does) and no names of output files. Both engines play at 48,000 Hz,
the only rate of midirenderer, so nothing is resampled. FluidSynth's own reverb and chorus are off: both engines use the
same room (`reverb.py`).
"""

from __future__ import annotations

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
from pamusic.music.reverb import in_a_room
from pamusic.music.soundfonts import better_soundfonts, check_soundfont, default_soundfont

SAMPLE_RATE = 48_000
ENGINES = ("auto", "midirenderer", "fluidsynth")
MAX_SECONDS = 2 * 3600.0  # an hour needs 0.7 GB as a file, and three times as much memory during rendering

RING_OUT = 3.0  # seconds after the last offset, until a note of the default SoundFont has died away
PEAK = 10 ** (-1 / 20)  # -1 dBFS: headroom for players that resample
MAX_GAIN = 10 ** (40 / 20)  # enough for a single soft note; more would make the engines' 16-bit steps audible
BLOCK = 60 * SAMPLE_RATE  # frames that are converted at a time
FLUIDSYNTH_GAIN = "0.3"  # the default, 0.2, wastes bits; at 0.3, forty keys at full velocity do not clip
FLUIDSYNTH_OPTIONS = (
    *("-n", "-i", "-q", "-R", "0", "-C", "0", "-g", FLUIDSYNTH_GAIN),
    *("-r", str(SAMPLE_RATE), "-T", "wav", "-O", "s16"),
)


@dataclass(frozen=True, eq=False)
class Sound:
    """A rendered performance.

    Attributes:
        samples: `[num_frames, 2]` int16, left and right, at `SAMPLE_RATE`.
        engine: Engine that played it.
        soundfont: SoundFont that was used.
        passed_over: For each better SoundFont that is installed, the reason why it was not used.
    """

    samples: np.ndarray
    engine: str
    soundfont: Path
    passed_over: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def synthesize(
    performance: Performance, *, soundfont: Path | None = None, engine: str = "auto", dry: bool = False
) -> Sound:
    """Render a performance in a room, with `RING_OUT` seconds after its end; its loudest sample is `PEAK`.

    The gain is at most `MAX_GAIN`, so a few very soft notes alone stay below `PEAK`.

    Args:
        performance: Performance with at least one note.
        soundfont: An `.sf2` file; by default the best that is installed, else TimGM6mb of pretty_midi.
        engine: One of `ENGINES`; `auto` uses FluidSynth if it is installed.
        dry: Whether to leave out the room.

    Raises:
        PamusicError: the performance is too long, the engine is unknown, or the SoundFont is broken or has no sound for
            these notes.
    """
    if performance.duration > MAX_SECONDS:
        raise PamusicError(
            f"the performance must be at most {MAX_SECONDS / 3600:.0f} hours long, got "
            f"{performance.duration / 3600:.1f}; cut it into parts"
        )
    engine = _chosen(engine)
    midi = midi_bytes(_ringing_out(performance))
    num_frames = round((performance.duration + RING_OUT) * SAMPLE_RATE)
    passed_over: tuple[str, ...] = ()
    if soundfont is not None:
        played = _played(midi, engine, soundfont)
    else:
        soundfont, played, passed_over = _played_on_the_best(midi, engine)
    return Sound(_levelled(played[:num_frames], dry=dry), engine, soundfont, passed_over)


def wav_bytes(sound: Sound) -> bytes:
    """Return a 16-bit stereo PCM WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.setnframes(len(sound.samples))
        file.writeframesraw(b"")  # the header alone: `writeframes` would copy an hour of samples twice
        header = buffer.getvalue()
    return header + sound.samples.astype("<i2", copy=False).data.cast("B")


def _chosen(engine: str) -> str:
    if engine not in ENGINES:
        raise PamusicError(f"no engine is called {engine!r}; use one of {', '.join(ENGINES)}")
    found = shutil.which("fluidsynth") is not None
    if engine == "fluidsynth" and not found:
        raise PamusicError("FluidSynth is not installed (no `fluidsynth` on the PATH); use --engine midirenderer")
    if engine == "auto":
        return "fluidsynth" if found else "midirenderer"
    return engine


def _played_on_the_best(midi: bytes, engine: str) -> tuple[Path, np.ndarray, tuple[str, ...]]:
    """Return the first SoundFont that plays, its samples, and errors of better ones: an installed one may be broken."""
    passed_over: list[str] = []
    for soundfont in better_soundfonts(engine):
        try:
            return soundfont, _played(midi, engine, soundfont), tuple(passed_over)
        except PamusicError as error:
            passed_over.append(str(error))
    return default_soundfont(), _played(midi, engine, default_soundfont()), tuple(passed_over)


def _played(midi: bytes, engine: str, soundfont: Path) -> np.ndarray:
    """Render a MIDI file with an engine: samples `[num_frames, 2]`, at the engine's level."""
    check_soundfont(soundfont)
    samples = _samples((_play_with_fluidsynth if engine == "fluidsynth" else _play_with_midirenderer)(midi, soundfont))
    if not samples.any():
        raise PamusicError(f"{soundfont}: {engine} gives no sound for these notes; use another SoundFont")
    return samples


def _ringing_out(performance: Performance) -> Performance:
    """Return the performance with a silent last event, so that notes die away: an engine stops at the last message."""
    up = np.array([(performance.duration + RING_OUT, SUSTAIN, 0)], PEDAL)
    return Performance(performance.notes, np.concatenate([performance.pedal, up]))


def _play_with_midirenderer(midi: bytes, soundfont: Path) -> bytes:
    import midirenderer

    try:
        with _standard_error_silenced():
            return bytes(midirenderer.render_wave_from(soundfont.read_bytes(), midi))
    except Exception as error:  # plain RuntimeErrors
        raise PamusicError(f"{soundfont}: midirenderer cannot play on it ({_first_line(str(error))})") from None
    except BaseException as error:  # a panic in Rust is pyo3's PanicException, not an Exception
        if type(error).__name__ != "PanicException":
            raise
        raise PamusicError(f"{soundfont}: is a broken SoundFont, midirenderer failed on it; use another") from None


@contextmanager
def _standard_error_silenced() -> Iterator[None]:
    """Suppress the 35 lines that a panic in Rust writes to file descriptor 2, past Python's sys.stderr."""
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
        # FluidSynth exits with 0 even if it could not load the SoundFont.
        if done.returncode or not waveform.is_file() or re.search("failed to load soundfont", done.stderr, re.I):
            raise PamusicError(f"{soundfont}: FluidSynth cannot play on it ({_first_line(done.stderr)})")
        return waveform.read_bytes()


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it gives no reason")[:200]


def _samples(waveform: bytes) -> np.ndarray:
    """Return the samples `[num_frames, 2]` of an engine's WAV file, which is 16-bit and stereo; a view, not a copy."""
    with wave.open(io.BytesIO(waveform)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, SAMPLE_RATE)
        num_frames = file.getnframes()
    first = waveform.index(b"data") + 8
    num_frames = min(num_frames, (len(waveform) - first) // 4)
    return np.frombuffer(waveform, "<i2", 2 * num_frames, first).reshape(-1, 2)


def _levelled(samples: np.ndarray, *, dry: bool) -> np.ndarray:
    """Return the samples, in a room unless `dry`, with a gain that makes the loudest sample `PEAK`.

    Blocks are computed twice, first for the peak: keeping all of them as floats would need four times the memory.
    """

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        return _as_they_are(samples) if dry else in_a_room(samples, SAMPLE_RATE)

    loudest = max(float(np.abs(block).max()) for _, block in blocks())
    gain = min(MAX_GAIN, PEAK * 32767 / loudest)
    levelled = np.empty(samples.shape, np.int16)
    for start, block in blocks():
        levelled[start : start + len(block)] = np.rint(block * np.float32(gain)).clip(-32768, 32767)
    return levelled


def _as_they_are(samples: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(samples), BLOCK):
        yield start, samples[start : start + BLOCK].astype(np.float32)
