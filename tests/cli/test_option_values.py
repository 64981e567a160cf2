"""`--config` and `--set` give options to `sample` and `train`; what is given by name on the command line wins."""

from pathlib import Path

import pytest
from cli_asserts import one_line_error
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.cli.option_values import read_values
from pamusic.compose.provenance import read_provenance

pytestmark = pytest.mark.usefixtures("elsewhere")

HOW = ("--seed", 1, "-o", "out.mid")


def options_of(path="out.mid"):
    return read_provenance(Path(path).read_bytes(), path).options


def test_values_are_tomls_or_texts_and_the_last_one_counts(tmp_path):
    (tmp_path / "a.toml").write_text("top_p = 0.9\nlength = 5\n")
    words = ["top-p=0.8", "refill=slide", "guard=false", "top_p=0.7", "device='cpu'"]

    assert read_values(tmp_path / "a.toml", words) == {
        "top_p": 0.7, "length": 5, "refill": "slide", "guard": False, "device": "cpu",
    }  # fmt: skip
    assert read_values(None, []) == {}


def test_a_file_sets_options_of_sample_and_those_that_are_given_win(sample):
    Path("mine.toml").write_text("length = 30\ntop_p = 0.9\nrelease_bias = 0.5\nguard = false\n")
    assert sample("--config", "mine.toml", "--set", "top_p=0.8", "--release-bias", 0.15, *HOW).exit_code == 0

    found = options_of()
    assert (found["length"], found["top_p"], found["let_go"], found["guard"]) == (30, 0.8, 0.15, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "top_p"], "--set must be NAME=VALUE, got 'top_p'"),
        (["--set", "=1"], "--set must be NAME=VALUE"),
        (["--set", "topp=1"], "unknown option 'topp' (did you mean top_p?)"),
        (["--set", "top_p=high"], "--top-p must be a number, got 'high'"),
        (["--set", "prime=a.mid"], "pass it with --prime"),
        (["--config", "none.toml"], "none.toml: no such file"),
        (["--config", "broken.toml"], "broken.toml: is not a TOML file"),
    ],
)
def test_what_cannot_be_set_is_refused_in_a_line(sample, words, said):
    Path("broken.toml").write_text("top_p = = 1")
    before = sorted(Path().iterdir())
    done = sample(*words, *HOW)

    assert said in one_line_error(done, done.exit_code)
    assert sorted(Path().iterdir()) == before


def test_a_setting_of_train_can_be_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["train", "none", "--set", "stepss=5"])
    assert "--set: unknown setting 'stepss'; did you mean steps?" in one_line_error(done, 2)

    Path("mine.toml").write_text("steps = 5")
    done = CliRunner().invoke(app, ["train", "none", "--config", "mine.toml", "--set", "lr=high"])
    assert "--set: lr must be a number, got 'high'" in one_line_error(done, 2)

    done = CliRunner().invoke(app, ["train", "none", "--set", "steps=5"])
    assert "none: no corpus there" in one_line_error(done)
