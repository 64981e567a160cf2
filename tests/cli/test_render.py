"""`pamusic render`: a WAV file, or one line that says why not."""

import io
import os
import subprocess
import sys
import wave

import mido
import numpy as np
import pytest
from cli_asserts import one_line_error
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.music.soundfonts import default_soundfont

pytestmark = pytest.mark.usefixtures("no_better_soundfont")


def midi_file(path, pitches=(69,), ticks=960, program=0):
    track = mido.MidiTrack([mido.Message("program_change", program=program)])
    for pitch in pitches:
        track.append(mido.Message("note_on", note=pitch, velocity=80))
        track.append(mido.Message("note_off", note=pitch, time=ticks))
    mido.MidiFile(ticks_per_beat=480, tracks=[track]).save(path)
    return path


def render(*words, input=None):
    return CliRunner().invoke(app, ["render", "--engine", "midirenderer", *map(str, words)], input=input)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_wav_file_lies_beside_the_midi_file(tmp_path):
    done = render(midi_file(tmp_path / "a4.mid"))

    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'a4.wav'}\n"
    first, second = done.stderr.splitlines()
    assert first == "4.0 seconds, played by midirenderer on TimGM6mb.sf2"
    assert second.startswith(
        "for a better piano install FluidR3_GM.sf2 (Debian, Ubuntu: apt install fluid-soundfont-gm;"
    )
    with wave.open(str(tmp_path / "a4.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getframerate()), "<i2").reshape(-1, 2).mean(axis=1)
    assert np.sqrt(np.mean(samples**2)) > 100
    assert np.abs(np.fft.rfft(samples)).argmax() == pytest.approx(440, rel=0.01)


def test_nothing_is_overwritten_that_was_not_named(tmp_path):
    midi = midi_file(tmp_path / "a4.mid")
    (tmp_path / "a4.wav").write_text("mine")

    assert render(midi).stdout == f"{tmp_path / 'a4-2.wav'}\n"
    assert (tmp_path / "a4.wav").read_text() == "mine"

    assert render(midi, "-o", tmp_path / "a4.wav").stdout == f"{tmp_path / 'a4.wav'}\n"
    assert (tmp_path / "a4.wav").read_bytes()[:4] == b"RIFF"


def test_it_reads_and_writes_pipes(tmp_path):
    done = render("-", "-o", "-", input=midi_file(tmp_path / "a4.mid").read_bytes())

    assert done.exit_code == 0, done.stderr
    with wave.open(io.BytesIO(done.stdout_bytes)) as file:
        assert file.getnframes() == 4 * file.getframerate()


def test_a_soundfont_of_ones_own_and_a_room_that_is_left_out(tmp_path):
    midi = midi_file(tmp_path / "a4.mid")
    own = tmp_path / "own.sf2"
    own.write_bytes(default_soundfont().read_bytes())

    done = render(midi, "--soundfont", own, "--dry", "-o", tmp_path / "dry.wav")
    assert done.stderr == "4.0 seconds, played by midirenderer on own.sf2\n"
    assert render(midi, "-o", tmp_path / "wet.wav").exit_code == 0
    assert (tmp_path / "dry.wav").read_bytes() != (tmp_path / "wet.wav").read_bytes()


def test_a_missing_file(tmp_path):
    assert "no such file" in one_line_error(render(tmp_path / "missing.mid"))


def test_a_folder(tmp_path):
    assert "is a folder" in one_line_error(render(tmp_path))
    assert "is a folder" in one_line_error(render("."))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"RIFF" * 100, "is not a MIDI file"),
        (b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk\0\0\xff\xff\0\x90", "MIDI file|no notes"),
    ],
)
def test_what_is_no_midi_file(tmp_path, data, reason):
    (tmp_path / "bad.mid").write_bytes(data)

    for words, input in (((tmp_path / "bad.mid",), None), (("-", "-o", tmp_path / "out.wav"), data)):
        line = one_line_error(render(*words, input=input))
        assert any(each in line for each in reason.split("|"))
    assert names(tmp_path) == ["bad.mid"]


def test_no_notes_and_no_piano(tmp_path):
    assert "no notes" in one_line_error(render(midi_file(tmp_path / "empty.mid", pitches=())))
    assert "no piano" in one_line_error(render(midi_file(tmp_path / "violin.mid", program=40)))


def test_hours_of_music(tmp_path):
    assert "hours" in one_line_error(render(midi_file(tmp_path / "long.mid", ticks=960 * 10_000)))
    assert "hours" in one_line_error(render(midi_file(tmp_path / "longer.mid", ticks=960 * 200_000)))
    assert names(tmp_path) == ["long.mid", "longer.mid"]


def test_an_output_that_cannot_be_written(tmp_path):
    midi = midi_file(tmp_path / "a4.mid")

    assert "it is a folder" in one_line_error(render(midi, "-o", tmp_path))
    assert "a file, not a folder" in one_line_error(render(midi, "-o", midi / "a4.wav"))
    assert "a4: is also the input" in one_line_error(render(midi_file(tmp_path / "a4"), "-o", tmp_path / "a4"))
    assert "only WAV files" in one_line_error(render(midi, "-o", tmp_path / "a4.mp3"))
    assert names(tmp_path) == ["a4", "a4.mid"]


def test_a_soundfont_that_is_none(tmp_path):
    midi = midi_file(tmp_path / "a4.mid")

    assert "no such SoundFont" in one_line_error(render(midi, "--soundfont", tmp_path / "missing.sf2"))
    assert "is a folder" in one_line_error(render(midi, "--soundfont", tmp_path))
    assert "is not a SoundFont" in one_line_error(render(midi, "--soundfont", midi, "-o", tmp_path / "new" / "a4.wav"))
    assert names(tmp_path) == ["a4.mid"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("words", [["-o", "/dev/full"], ["-o", "-"]])
def test_a_full_disk(tmp_path, words):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pamusic", "render", midi_file(tmp_path / "a4.mid"), *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )

    assert done.returncode == 1
    assert done.stderr.startswith("pamusic: error: ")
    assert done.stderr.endswith("the disk is full; free some space or write elsewhere\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_gets_every_byte_and_one_that_closes_early_ends_it_quietly(tmp_path, unbuffered):
    command = [sys.executable, "-m", "pamusic", "render", midi_file(tmp_path / "a4.mid"), "-o", "-"]
    command += ["--engine", "midirenderer"]
    process = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": {**os.environ, "PYTHONUNBUFFERED": unbuffered},
    }

    whole = subprocess.run(command, **process)
    assert whole.returncode == 0
    with wave.open(io.BytesIO(whole.stdout)) as file:
        assert len(whole.stdout) == 44 + 4 * file.getnframes() == 44 + 4 * 4 * file.getframerate()

    with subprocess.Popen(command, **process) as cut_short:
        cut_short.stdout.read(100)
        cut_short.stdout.close()
        assert cut_short.stderr.read() == b""
    assert cut_short.returncode == 141
