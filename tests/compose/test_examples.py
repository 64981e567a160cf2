"""The examples are what their README says: by the commands beside them, of the weights that ship, and on their page."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.cli.reports.provenance import command
from pamusic.compose.provenance import read_provenance, sha256
from pamusic.music.midi import read_midi
from pamusic.resources import checkpoints_folder

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
COMMANDS = dict(re.findall(r"^\| (\S+\.mid) \| `(pamusic sample .*)` \|$", README, re.MULTILINE))

ANEW = "make examples PAMUSIC=pamusic"


def options(words: str) -> set[tuple[str, str]]:
    """What a command says, whatever the order: each option with its value, flags with none."""
    program, verb, *rest = shlex.split(words)
    assert (program, verb) == ("pamusic", "sample")
    return set(re.findall(r"(--\S+)(?: (?!--)(\S+))?", " ".join(rest)))


def test_the_readme_lists_every_example_and_there_are_nine():
    assert len(COMMANDS) == 9
    assert sorted(COMMANDS) == sorted(path.name for path in EXAMPLES.glob("*.mid"))


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_runs_the_commands_of_the_readme():
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", "examples", "PAMUSIC=pamusic"], cwd=ROOT, capture_output=True, text=True
    )
    *samples, page = told.stdout.splitlines()

    made = dict(re.fullmatch(r"(.*) -o examples/(\S+)", line).groups()[::-1] for line in samples)
    assert {name: options(words) for name, words in made.items()} == {
        name: options(words) for name, words in COMMANDS.items()
    }
    assert page.startswith("pamusic page examples ")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_an_example_was_made_by_its_command_and_the_weights_that_ship(name):
    record = read_provenance((EXAMPLES / name).read_bytes(), name)

    shipped = checkpoints_folder() / record.options["checkpoint"]
    assert options(command(record.options)) == options(COMMANDS[name]), ANEW
    assert record.weights_sha256 == sha256((shipped / "model.safetensors").read_bytes()), ANEW
    prime = record.options["prime"]
    assert record.prime_sha256 == (None if prime is None else sha256((ROOT / prime).read_bytes())), ANEW
    assert record.stopped_after is None
    assert 175 < read_midi(EXAMPLES / name).duration < 265  # up to 1.25 times three minutes, and the prime


def test_the_page_plays_the_examples_and_all_is_under_a_megabyte(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    title = re.search(r"<title>(.*?)</title>", (EXAMPLES / "index.html").read_text(encoding="utf-8"))[1]

    done = CliRunner().invoke(app, ["page", "examples", "--title", title, "-o", str(tmp_path / "page.html")])

    assert done.exit_code == 0, done.stderr
    again = f"make it anew: pamusic page examples --title {shlex.quote(title)} -o examples/index.html"
    assert (tmp_path / "page.html").read_bytes() == (EXAMPLES / "index.html").read_bytes(), again
    assert sum(path.stat().st_size for path in EXAMPLES.iterdir()) < 1_000_000
