"""Options that were renamed are still taken by their old names, and not listed by them."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.cli.renamed import RENAMED, with_new_names

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("command", RENAMED)
def test_an_old_name_stands_for_an_option_that_is_there_and_is_gone_itself(command):
    names = {name for each in COMMANDS[command].params for name in (*each.opts, *each.secondary_opts)}

    assert {*RENAMED[command].values()} <= names
    assert not {*RENAMED[command]} & names


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["sample", "--num", "2", "--end"], ["sample", "--num-samples", "2", "--end-near-length"]),
        (["sample", "--num=2", "--num-latents", "5"], ["sample", "--num-samples=2", "--num-latents", "5"]),
        (["train", "--from", "small", "--", "--force"], ["train", "--init-from", "small", "--", "--force"]),
        (["play", "--num"], ["play", "--num"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_words_of_a_command_line_are_brought_up_to_date(old, new):
    assert with_new_names(old) == new


def test_a_script_with_old_names_gives_the_same_file(sample):
    how = ("--seed", 3, "--length", 40)
    assert sample(*how, "--let-go", 0, "--may-end", "-o", "old.mid").exit_code == 0
    assert sample(*how, "--release-bias", 0, "--allow-end", "-o", "new.mid").exit_code == 0

    assert Path("old.mid").read_bytes() == Path("new.mid").read_bytes()


def test_the_help_lists_new_names_alone():
    words = CliRunner().invoke(app, ["sample", "--help"]).output

    assert "--release-bias" in words
    assert "--let-go" not in words
