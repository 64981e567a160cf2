"""`pamusic sample` with a model of notes: primes, ports, pipes, endings and replay are as with events."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from builders import performance
from models import random_checkpoint
from test_live import in_file, strokes
from typer.testing import CliRunner

import pamusic
from pamusic.cli.app import app
from pamusic.cli.reports.provenance import command
from pamusic.compose.job import Composer, Prime
from pamusic.compose.provenance import read_provenance
from pamusic.compose.request import SampleRequest
from pamusic.music.events import events
from pamusic.music.midi import midi_bytes, read_midi
from pamusic.tokens.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("notes") / "random-notes", load_tokenizer("notes"))


@pytest.fixture
def played(elsewhere):
    """Three seconds with a pedal, as a file."""
    music = performance(*((0.5 * i, 0.5 * i + 0.7, 60 + i, 50 + i) for i in range(6)), pedal=[(0.3, 127), (2.9, 0)])
    Path("played.mid").write_bytes(midi_bytes(music))
    return "played.mid"


def run(*words, code=0, input=None):
    done = CliRunner().invoke(app, [str(word) for word in words], input=input)
    assert done.exit_code == code, done.output
    return done


def test_a_prime_is_kept_and_what_follows_begins_at_the_cut(notes, played):
    words = ("--prime", played, "--prime-end", 1.8, "--length", 20, "--seed", 2, "--no-guard")
    run("sample", "--checkpoint", notes, *words, "-o", "whole.mid")
    run("sample", "--checkpoint", notes, *words, "--continuation-only", "-o", "new.mid")

    whole, new, before = (read_midi(Path(name)) for name in ("whole.mid", "new.mid", played))
    kept = before.notes[before.notes["onset"] < 1.8]
    head = whole.notes[: len(kept)]
    assert (head["onset"] == kept["onset"]).all()
    assert (head["velocity"] == kept["velocity"]).all()
    assert whole.notes["onset"][len(kept) :].min() >= 1.8 - 1e-6
    tail = whole.notes[len(kept) :]
    np.testing.assert_allclose(np.sort(tail["onset"]) - 1.8, np.sort(new.notes["onset"]), atol=0.003)


@pytest.mark.parametrize("words", [(), ("--same-track",), ("--end-near-length", "--seconds", 30), ("--best-of", 2)])
def test_a_replay_makes_the_same_file(notes, played, words):
    length = () if "--seconds" in words else ("--length", 15)
    run("sample", "--checkpoint", notes, "--prime", played, *length, *words, "--seed", 3, "-o", "a.mid")
    again = run("replay", "a.mid", "-o", "b.mid")

    assert Path("a.mid").read_bytes() == Path("b.mid").read_bytes()
    assert "the same, byte for byte" in again.stderr


def test_a_pipe_gives_what_a_file_gives(notes, played):
    words = ("sample", "--checkpoint", notes, "--length", 15, "--seed", 4)
    run(*words, "--prime", played, "-o", "a.mid")
    piped = run(*words, "--prime", "-", "-o", "-", input=Path(played).read_bytes())

    there = read_midi(io.BytesIO(piped.stdout_bytes).getvalue())
    assert there.notes["pitch"].tolist() == read_midi(Path("a.mid")).notes["pitch"].tolist()


@pytest.mark.slow
def test_a_port_plays_what_is_in_the_file(notes, played, backend):
    words = ("--prime", played, "--seconds", 8, "--seed", 2)
    live = ("--port", "organ", "--buffer-seconds", 0.5, "--continuation-only")
    run("sample", "--checkpoint", notes, *words, *live, "-o", "a.mid")

    assert strokes([message for _, _, message in backend.SENT]) == in_file("a.mid") != []


def test_a_stream_is_the_piece_as_it_is_made(notes, played):
    model = pamusic.load(notes)
    how = {"seed": 5, "seconds": 120.0}

    for prime in (None, played):
        stream = list(model.stream(prime, **how))
        whole = events(model.sample(prime, **how, guard=False).continuation)
        assert sorted(each[:3] for each in stream) == sorted(each[:3] for each in whole)
        assert len(stream) > 4


@pytest.mark.parametrize("guard", [True, False])
def test_progress_and_seconds_count_from_the_end_of_the_prime(notes, guard):
    music, changes = performance((0.0, 0.4, 60, 70), (1.0, 9.0, 64, 70)), []
    request = SampleRequest(checkpoint=str(notes), seconds=200.0, seed=2, guard=guard)
    prime, composer = Prime(music), Composer(request)
    collector = composer.collector(prime)
    collector.on_progress = changes.append
    result = collector.collect(composer.stream(prime, collector))

    assert result.pieces[0]
    assert sum(changes) == pytest.approx(composer.num_seconds(result, prime))
    assert changes[0] == pytest.approx(-1.0)  # the second that the model reads after the last onset


def test_a_prime_without_a_note_that_the_model_knows_is_refused_with_its_name(notes):
    Path("low.mid").write_bytes(midi_bytes(performance((0.0, 0.4, 3, 70))))
    told = run("sample", "--checkpoint", notes, "--prime", "low.mid", "-o", "a.mid", code=1).stderr

    assert re.search(r"low\.mid: the prime has no note between pitches 21 and 108", " ".join(told.split()))
    assert not Path("a.mid").exists()


def test_a_guard_says_what_it_took_back(notes):
    told = run("sample", "--checkpoint", notes, "--length", 150, "--seed", 1, "-o", "a.mid").stderr

    assert re.search(r"guard, seed 1: a key held from second .*; back to second ", told)
    assert "positions/s" in told
    assert "Traceback" not in told


def test_returns_are_recorded_and_a_replay_of_an_older_file_has_none(notes, monkeypatch):
    how = ("--checkpoint", notes, "--length", 150, "--seed", 5, "--no-guard")
    run("sample", *how, "-o", "auto.mid")
    assert "--returns" not in command(read_provenance(Path("auto.mid").read_bytes(), "auto.mid").options)
    made = [read_midi(Path("auto.mid")).notes.tolist()]
    for kind in ("planned", "none"):
        run("sample", *how, "--returns", kind, "-o", f"{kind}.mid")
        record = read_provenance(Path(f"{kind}.mid").read_bytes(), f"{kind}.mid")
        assert record.options["returns"] == kind
        assert f"--returns {kind}" in command(record.options)
        made.append(read_midi(Path(f"{kind}.mid")).notes.tolist())
    assert made[0] != made[1] != made[2] != made[0]
    # As files were written before this option.
    with monkeypatch.context() as patch:
        patch.setattr("pamusic.compose.job.Composer.has_lengths", False)
        run("sample", *how, "--returns", "none", "-o", "older.mid")
    assert "returns" not in read_provenance(Path("older.mid").read_bytes(), "older.mid").options
    run("replay", "older.mid", "-o", "again.mid")
    assert Path("again.mid").read_bytes() == Path("older.mid").read_bytes()


def test_without_randomness_nothing_returns(notes):
    how = ("--checkpoint", notes, "--length", 60, "--temperature", 0, "--no-guard", "--seed")
    run("sample", *how, 1, "-o", "a.mid")
    run("sample", *how, 2, "-o", "b.mid")
    assert read_midi(Path("a.mid")).notes.tolist() == read_midi(Path("b.mid")).notes.tolist()


def test_an_unknown_kind_of_return_is_refused(notes):
    done = run("sample", "--checkpoint", notes, "--returns", "always", "-o", "x.mid", code=2)
    assert "--returns must be auto, planned or none, got 'always'" in " ".join(done.output.split())
    assert not Path("x.mid").exists()


def test_a_file_of_events_says_nothing_of_returns(tmp_path_factory):
    events_model = random_checkpoint(tmp_path_factory.mktemp("events") / "random", load_tokenizer("performance"))
    run("sample", "--checkpoint", events_model, "--length", 30, "--seed", 1, "-o", "events.mid")
    record = read_provenance(Path("events.mid").read_bytes(), "events.mid")
    assert "returns" not in record.options
    assert "--returns" not in command(record.options)
    done = run("sample", "--checkpoint", events_model, "--returns", "planned", "-o", "x.mid", code=2)
    assert "--returns planned has no effect with" in " ".join(done.output.split())
    assert not Path("x.mid").exists()
