"""`pamusic average`: the mean of weights, in a checkpoint that says of which."""

import pytest
import torch
from cli_asserts import one_line_error
from models import tiny_model
from typer.testing import CliRunner

from pamusic.checkpoint import load_checkpoint, save_checkpoint
from pamusic.cli.app import app
from pamusic.tokens.tokenizer import load_tokenizer


def run(*words):
    return CliRunner().invoke(app, ["average", *map(str, words)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with three checkpoints of one shape: a, b and c."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        save_checkpoint(tmp_path / name, tiny_model(seed=seed), load_tokenizer("performance"), metadata={"step": seed})
    return tmp_path


def test_every_weight_is_the_mean_of_those_of_all(here):
    done = run("a", "b", "c", "-o", "mean")

    assert done.exit_code == 0, done.stderr
    assert done.stdout == "mean\n"
    mean, *each = (load_checkpoint(here / name) for name in ("mean", "a", "b", "c"))
    for name, weight in mean.model.state_dict().items():
        expected = sum(one.model.state_dict()[name].double() for one in each) / 3
        torch.testing.assert_close(weight.double(), expected, atol=1e-6, rtol=1e-5)
    assert mean.metadata["mean_of"] == [{"checkpoint": name, "step": step} for step, name in enumerate("abc")]
    assert mean.tokenizer.name == "performance"


def test_it_is_where_it_says_unless_it_is_told_where(here):
    assert run("a", "b").stdout == "average\n"
    assert (here / "average" / "model.safetensors").is_file()


def test_what_is_there_is_replaced_only_if_it_is_to_be_and_is_a_checkpoint(here):
    (here / "folder").mkdir()
    assert "exists and is not a checkpoint" in one_line_error(run("a", "b", "-o", "folder", "--overwrite"))
    before = (here / "c" / "model.safetensors").read_bytes()
    assert "replace it with --overwrite" in one_line_error(run("a", "b", "-o", "c"))
    assert (here / "c" / "model.safetensors").read_bytes() == before
    assert run("a", "b", "-o", "c", "--overwrite").exit_code == 0
    assert (here / "c" / "model.safetensors").read_bytes() != before


def test_other_files_in_a_checkpoints_folder_are_left_alone(here):
    (here / "c" / "notes.txt").write_text("mine")
    assert "has files that do not belong to a checkpoint (notes.txt)" in one_line_error(
        run("a", "b", "-o", "c", "--overwrite")
    )
    assert (here / "c" / "notes.txt").read_text() == "mine"


def test_what_has_no_mean_is_refused(here):
    save_checkpoint(here / "deep", tiny_model(num_layers=3), load_tokenizer("performance"), metadata={})
    piano = load_tokenizer("piano")
    ids = {"vocab_size": len(piano.vocabulary), "pad_id": piano.vocabulary.id("pad")}
    save_checkpoint(here / "piano", tiny_model(**ids), piano, metadata={})

    assert "have different shapes (num_layers 2 and 3)" in one_line_error(run("a", "deep"))
    assert "average only models of one tokenizer" in one_line_error(run("a", "piano"))
    assert "a mean needs two or more checkpoints, got only a" in one_line_error(run("a"), code=2)
    assert "no checkpoint is called 'd'" in one_line_error(run("a", "d"))
    assert not (here / "average").exists()
