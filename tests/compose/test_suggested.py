"""A checkpoint can have temperatures of its own. They are defaults, and a record has the values that were used."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pamusic
from pamusic.cli.app import app
from pamusic.cli.reports.provenance import command
from pamusic.compose.provenance import read_provenance
from pamusic.compose.request import SampleRequest
from pamusic.errors import PamusicError

NAMES = ("temperature_time", "temperature_pitch")


@pytest.fixture
def suggesting(checkpoint, elsewhere):
    """The random model, with a suggestion for the temperature of pitches."""

    def suggesting(**sampling):
        folder = elsewhere / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(checkpoint, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "sampling": sampling}), encoding="utf-8")
        return folder

    return suggesting


def sampled(model, *words):
    words = ("sample", "--checkpoint", str(model), "--device", "cpu", "--seed", "1", "--length", "120", *words)
    done = CliRunner().invoke(app, [*words, "-o", "out.mid"])
    Path("out.mid").rename("kept.mid") if done.exit_code == 0 else None
    return done


def test_what_is_not_asked_for_is_as_the_checkpoint_suggests(suggesting, checkpoint):
    assert sampled(suggesting(temperature_pitch=0.5)).exit_code == 0
    suggested = read_provenance(Path("kept.mid").read_bytes(), "kept.mid")
    ids_of = {}
    for words in ((), ("--temperature-pitch", "0.5")):
        assert sampled(checkpoint, *words).exit_code == 0
        ids_of[words] = pamusic.read_midi("kept.mid").notes.tolist()
    assert sampled(suggesting(temperature_pitch=0.5)).exit_code == 0
    by_suggestion = pamusic.read_midi("kept.mid").notes.tolist()

    assert [suggested.options[name] for name in NAMES] == [1.0, 0.5]
    assert by_suggestion == ids_of[("--temperature-pitch", "0.5")] != ids_of[()]


def test_what_is_asked_for_wins(suggesting):
    assert sampled(suggesting(temperature_pitch=0.5, temperature_time=0.7), "--temperature-pitch", "1").exit_code == 0
    record = read_provenance(Path("kept.mid").read_bytes(), "kept.mid")
    assert [record.options[name] for name in NAMES] == [0.7, 1.0]


def test_a_replay_does_not_ask_again(suggesting):
    assert sampled(suggesting(temperature_pitch=0.5)).exit_code == 0
    suggesting(temperature_pitch=2.0)
    done = CliRunner().invoke(app, ["replay", "kept.mid", "-o", "again.mid"])
    assert done.exit_code == 0, done.output
    assert "the same, byte for byte" in done.stderr
    assert Path("again.mid").read_bytes() == Path("kept.mid").read_bytes()


@pytest.mark.parametrize("value", [-1, 1e9, "warm", True, None])
def test_a_suggestion_that_is_no_temperature_is_one_line(suggesting, value):
    done = sampled(suggesting(temperature_time=value))
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("pamusic: error")]
    assert "sampling.temperature_time in the config.json of the checkpoint must be between 0 and" in line


@pytest.mark.parametrize("sampling", [None, [], "warm"])
def test_suggestions_that_are_no_table_are_one_line(sampling):
    with pytest.raises(PamusicError, match=r"sampling in the config.json of the checkpoint must be a table"):
        SampleRequest().suggested({"sampling": sampling})


def test_the_command_of_a_record_leaves_out_what_the_checkpoint_suggests_and_says_what_it_does_not(suggesting):
    folder = suggesting(temperature_pitch=0.5)
    for words in ((), ("--temperature-pitch", "1"), ("--temperature-time", "0.7")):
        assert sampled(folder, *words).exit_code == 0
        told = command(read_provenance(Path("kept.mid").read_bytes(), "kept.mid").options)
        assert [word for word in words if word not in told.split()] == []
        assert ("temperature" in told) == bool(words)


def test_a_request_alone_suggests_nothing():
    assert SampleRequest().suggested({}) == SampleRequest(temperature_time=1.0, temperature_pitch=1.0)
    with pytest.raises(PamusicError, match=r"got 'hot'"):
        SampleRequest().suggested({"sampling": {"temperature_pitch": "hot"}})
