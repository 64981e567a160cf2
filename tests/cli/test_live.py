"""`pamusic sample --port` and `pamusic play`: what is heard is what is in the file; the file is as without a port."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import mido
import numpy as np
import pytest
import recording_backend
from builders import tune
from cli_asserts import one_line_error
from models import random_checkpoint
from typer.testing import CliRunner

import pamusic
from pamusic.cli.app import app
from pamusic.music.midi import read_midi
from pamusic.sampling.guard import GuardConfig
from pamusic.tokens.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("elsewhere")

LAST_WORDS = 4  # messages: three pedals up, all notes off


def strokes(messages):
    """(key, velocity) of each stroke, after seeing that every key was let go."""
    down = set()
    for message in messages:
        if message.type == "note_on":
            assert message.note not in down
            down.add(message.note)
        elif message.type == "note_off":
            down.remove(message.note)
    assert not down
    return [(message.note, message.velocity) for message in messages if message.type == "note_on"]


def in_file(path):
    return [(pitch, velocity) for _, _, pitch, velocity in read_midi(Path(path)).notes.tolist()]


@pytest.mark.slow
def test_what_is_heard_is_what_is_in_the_file_and_the_file_is_as_without_a_port(sample, backend):
    how = ("--seconds", 2, "--seed", 1)
    done = sample(*how, "--port", "organ", "--buffer-seconds", 0.5, "-o", "heard.mid")

    assert done.exit_code == 0, done.stderr
    assert done.stdout == "heard.mid\n"
    assert sample(*how, "--no-guard", "-o", "unheard.mid").exit_code == 0
    assert Path("heard.mid").read_bytes() == Path("unheard.mid").read_bytes()
    assert {name for _, name, _ in backend.SENT} == {"Organ"}
    messages = [message for _, _, message in backend.SENT]
    assert strokes(messages) == in_file("heard.mid") != []
    seconds = np.array([second for second, _, message in backend.SENT if message.type == "note_on"])
    late = (seconds - seconds[0]) - (lambda onset: onset - onset[0])(read_midi(Path("heard.mid")).notes["onset"])
    assert np.median(np.abs(late)) < 0.05


@pytest.mark.slow
def test_what_a_guard_lets_pass_is_what_is_heard(sample, backend, monkeypatch):
    """While it goes on composing, and takes back what it held."""
    monkeypatch.setattr(
        "pamusic.compose.job.GuardConfig", partial(GuardConfig, held=2.0, lookback_seconds=1.0, backoff_seconds=0.5)
    )
    how = ("--seconds", 5, "--seed", 1, "--release-bias", 0, "--guard")
    done = sample(*how, "--port", "Organ", "--buffer-seconds", 0.5, "-o", "out.mid")

    assert done.exit_code == 0, done.stderr
    assert "guard, seed 1: a key held from second" in done.stderr
    assert strokes([message for _, _, message in backend.SENT]) == in_file("out.mid") != []


def test_of_a_prime_only_what_follows_is_heard(sample, backend, prime):
    how = ("--prime", prime, "--seconds", 1.5, "--seed", 2, "--port", "Organ", "--buffer-seconds", 0.5)
    assert sample(*how, "-o", "both.mid").exit_code == 0

    both = read_midi(Path("both.mid")).notes
    heard = strokes([message for _, _, message in backend.SENT])
    assert heard == [(pitch, velocity) for onset, _, pitch, velocity in both.tolist() if onset >= 1.5] != []


@pytest.mark.slow
def test_half_pedal_is_heard_and_every_pedal_is_up_in_the_end(sample, backend, prime, tmp_path):
    piano = random_checkpoint(tmp_path / "piano", load_tokenizer("piano"))
    how = ("--prime", prime, "--prime-end", 1.2, "--seconds", 4, "--seed", 3, "--port", "Organ", "--buffer-seconds", 1)
    done = sample(*how, "--checkpoint", piano, "--continuation-only", "-o", "new.mid")

    assert done.exit_code == 0, done.stderr
    messages = [message for _, _, message in backend.SENT]
    assert strokes(messages) == in_file("new.mid")
    moves = [(each.control, each.value) for each in messages[:-LAST_WORDS] if each.type == "control_change"]
    pedal = read_midi(Path("new.mid")).pedal
    assert sorted(moves) == sorted((control, value) for _, control, value in pedal.tolist())
    assert {value for _, value in moves} & {42, 85}
    assert [message.value for message in messages[-LAST_WORDS:]] == [0, 0, 0, 0]


def test_the_ports_are_listed_one_a_line(sample, backend):
    done = sample("--port", "list")

    assert (done.exit_code, done.stdout, done.stderr) == (0, "Grand Piano\nUpright Piano\nOrgan\n", "")
    assert not Path("sample.mid").exists()


@pytest.mark.parametrize("words", [["sample", "--port", "list"], ["play", "--port", "list"]])
def test_where_there_is_no_port_it_is_told_what_makes_one(backend, monkeypatch, words):
    monkeypatch.setattr(backend, "NAMES", [])
    done = CliRunner().invoke(app, words)

    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "there is no MIDI port; use --port new to create one for other programs\n"
    said = one_line_error(CliRunner().invoke(app, [words[0], *(["-"] if words[0] == "play" else []), "--port", "x"],
                                             input=tune(0)))  # fmt: skip
    assert "no port is called 'x'; there are no ports; use --port new" in said


def test_play_lists_ports_too_and_wants_a_file_for_anything_else(backend):
    done = CliRunner().invoke(app, ["play", "--port", "list"])
    assert (done.exit_code, done.stdout, done.stderr) == (0, "Grand Piano\nUpright Piano\nOrgan\n", "")

    refused = CliRunner().invoke(app, ["play", "--port", "Organ"])
    assert (refused.exit_code, "pass a MIDI file" in refused.stderr) == (2, True)


def test_a_port_that_is_not_there_is_told_before_anything_is_composed(sample, backend):
    said = one_line_error(sample("--port", "Flute", "--length", 10**9))

    assert "the ports are Grand Piano; Upright Piano; Organ" in said
    refused = sample("--port", "Organ", "--num-samples", 2)
    assert refused.exit_code == 2
    assert "--port plays one piece, got 2" in refused.stderr


@pytest.mark.slow
def test_of_a_port_that_is_lost_what_was_made_is_kept(sample, backend, monkeypatch):
    monkeypatch.setenv("UNPLUGGED_AFTER", "20")
    done = sample("--length", 10**6, "--seed", 1, "--port", "Organ", "--buffer-seconds", 0.5, "-o", "out.mid")

    assert done.exit_code == 1
    assert done.stdout == "out.mid\n"
    assert "the port was lost at second" in done.stderr
    assert "(no such device); what was made so far is in the file" in done.stderr
    heard = [(each.note, each.velocity) for _, _, each in backend.SENT if each.type == "note_on"]
    assert heard == in_file("out.mid")[: len(heard)] != []


@pytest.mark.slow
def test_under_a_guard_a_lost_port_loses_nothing_that_was_held_back(sample, backend, monkeypatch):
    monkeypatch.setenv("UNPLUGGED_AFTER", "20")
    how = ("--guard", "--port", "Organ", "--buffer-seconds", 0.5, "-o", "out.mid")
    done = sample("--length", 10**6, "--seed", 1, *how)

    assert (done.exit_code, done.stdout) == (1, "out.mid\n")
    heard = [(each.note, each.velocity) for _, _, each in backend.SENT if each.type == "note_on"]
    assert heard == in_file("out.mid")[: len(heard)] != []
    assert read_midi(Path("out.mid")).duration > 30
    again = CliRunner().invoke(app, ["replay", "out.mid"])
    assert "the same, byte for byte" in again.stderr


@pytest.mark.slow
def test_replay_makes_a_file_that_was_heard_again_in_silence(sample, backend, checkpoint):
    assert sample("--length", 60, "--seed", 1, "--port", "Organ", "-o", "heard.mid").exit_code == 0
    backend.SENT.clear()
    done = CliRunner().invoke(app, ["replay", "heard.mid"])

    assert done.exit_code == 0, done.stderr
    assert "the same, byte for byte" in done.stderr
    assert backend.SENT == []


def test_a_file_is_played_whole(backend, prime):
    done = CliRunner().invoke(app, ["play", str(prime), "--port", "upright"])

    assert (done.exit_code, done.output) == (0, "")
    messages = [message for _, _, message in backend.SENT]
    assert strokes(messages) == [(60, 33), (64, 101)]
    assert [message.value for message in messages if message.is_cc(64)] == [*read_midi(prime).pedal["value"], 0]
    first, last = backend.SENT[0][0], backend.SENT[-1][0]
    assert last - first == pytest.approx(1.5, abs=0.2)


def environment(**more):
    here = Path(pamusic.__file__).parent.parent
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{Path(recording_backend.__file__).parent}", **more}


def started(checkpoint, *words, **more):
    words = ["sample", "--checkpoint", checkpoint, "--device", "cpu", *words]
    words = [sys.executable, "-m", "pamusic", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment(**more))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_it_falls_silent(checkpoint, tmp_path, end):
    how = ("--length", 10**6, "--seed", 1, "--port", "Organ", "--buffer-seconds", 0.5, "-o", "out.mid")
    running = started(checkpoint, *how, MIDO_BACKEND="recording_backend", RECORDING="heard.txt")
    until = time.monotonic() + 60
    while not Path("heard.txt").exists() or len(Path("heard.txt").read_text().splitlines()) < 20:
        assert time.monotonic() < until
        time.sleep(0.05)
    running.send_signal(end)
    stdout, stderr = running.communicate(timeout=30)

    messages = [mido.Message.from_str(line) for line in Path("heard.txt").read_text().splitlines()]
    heard = strokes(messages)
    assert [message.bytes()[1:] for message in messages[-LAST_WORDS:]] == [[64, 0], [66, 0], [67, 0], [123, 0]]
    assert "Traceback" not in stderr
    assert (running.returncode, stdout) == (130 if end == signal.SIGINT else 143, "out.mid\n")
    assert heard == in_file("out.mid")[: len(heard)]


def without_jack() -> str | None:
    """Why there is no JACK server here to play on; None where there is."""
    if shutil.which("jackd") is None:
        return "jackd is not installed (Debian: apt-get install jackd2)"
    try:
        import rtmidi
    except ImportError:
        return "python-rtmidi is not installed: pip install 'pamusic[live]'"
    return None if rtmidi.API_UNIX_JACK in rtmidi.get_compiled_api() else "this python-rtmidi was built without JACK"


@pytest.fixture
def jack(monkeypatch):
    """A JACK server without hardware, and a port on it that listens: what it hears, and how to close it."""
    if reason := without_jack():
        pytest.skip(reason)
    monkeypatch.setenv("JACK_DEFAULT_SERVER", f"pamusic-{os.getpid()}")
    monkeypatch.setenv("JACK_NO_AUDIO_RESERVATION", "1")
    monkeypatch.setenv("JACK_NO_START_SERVER", "1")
    server = subprocess.Popen(
        ["jackd", "--no-realtime", "-n", os.environ["JACK_DEFAULT_SERVER"], "-d", "dummy", "-r", "48000", "-p", "256"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    heard, listener = [], None
    jack = mido.Backend("mido.backends.rtmidi/UNIX_JACK")
    until = time.monotonic() + 20
    while listener is None and time.monotonic() < until:
        time.sleep(0.2)
        try:
            listener = jack.open_input("listener", virtual=True, callback=lambda m: heard.append((time.monotonic(), m)))
        except Exception as error:  # the server is still starting
            reason = error
    try:
        assert listener is not None, reason
        yield heard, listener.close
    finally:
        if listener is not None:
            listener.close()
        server.terminate()
        server.wait(10)


def test_on_a_real_midi_system_what_is_received_is_what_was_made(checkpoint, jack):
    heard, _ = jack
    on_jack = {"MIDO_BACKEND": "mido.backends.rtmidi/UNIX_JACK"}
    listed = started(checkpoint, "--port", "list", **on_jack).communicate(timeout=60)[0]
    assert [line for line in listed.splitlines() if line.endswith(":listener")]
    running = started(checkpoint, "--seconds", 3, "--seed", 1, "--port", "listener", "-o", "out.mid", **on_jack)
    stdout, stderr = running.communicate(timeout=90)

    assert (running.returncode, stdout) == (0, "out.mid\n"), stderr
    time.sleep(0.2)
    assert strokes([message for _, message in heard]) == in_file("out.mid") != []
    onset = read_midi(Path("out.mid")).notes["onset"]
    received = np.array([second for second, message in heard if message.type == "note_on"])
    late = (received - received[0]) - (onset - onset[0])
    assert np.median(np.abs(late - np.median(late))) < 0.03


def test_on_a_real_midi_system_a_port_that_goes_away_ends_the_work(checkpoint, jack):
    heard, close = jack
    how = ("--length", 10**6, "--seed", 1, "--port", "listener", "--buffer-seconds", 0.5, "-o", "out.mid")
    running = started(checkpoint, *how, MIDO_BACKEND="mido.backends.rtmidi/UNIX_JACK")
    until = time.monotonic() + 60
    while len(heard) < 10:
        assert time.monotonic() < until
        time.sleep(0.05)
    close()
    stdout, stderr = running.communicate(timeout=30)

    assert (running.returncode, stdout) == (1, "out.mid\n")
    assert "the port was lost" in stderr
    received = [(each.note, each.velocity) for _, each in heard if each.type == "note_on"]
    assert received == in_file("out.mid")[: len(received)]
