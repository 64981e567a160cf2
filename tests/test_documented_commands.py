"""Every command of README, tutorial and guides runs, in the order of its page, with less to do where it takes long."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from builders import MAESTRO_HEADER, zipped
from test_documents import FENCE, WITH_COMMANDS, name, text_of
from typer.testing import CliRunner

from pamusic.cli.app import app

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.mid"))

SHORTER = {
    "sample": {"--seconds": "1", "--minutes": "0.02", "--length": "40", "--num-samples": "10", "--best-of": "3"},
    "train": {"--steps": "3", "--max-minutes": "0.02", "--cooldown-steps": "2", "--num-layers": "7"},
}
"""The values that a test takes in place of those of a page."""

ADDED = {
    "sample": [(("--seconds", "--minutes", "--length"), ["--seconds", "1"])],
    "train": [
        (("--resume",), ["--batch-size", "1", "--context-length", "256", "--num-latents", "64"]),
        (("--resume", "--steps", "--max-minutes"), ["--steps", "3"]),
        ((), ["--no-compile"]),
    ],
    "evaluate": [((), ["--max-pieces", "1", "--context-length", "1024", "--num-latents", "128"])],
    "benchmark": [((), ["--tokens", "4", "--context-length", "64", "--num-samples", "1"])],
    "compare": [((), ["--workers", "1"])],
}
"""What is added to a command that has none of the options on the left."""

ELSEWHERE = {
    "doctor": "tests/cli/test_doctor.py",
    "play": "tests/cli/test_live.py",
    "torchrun": "tests/training/test_distributed.py",
    "cuda": "tests/test_gpu.py",
}
"""Words of commands with tests of their own, for they take processes, a GPU, half a minute or as long as the music."""


def pipelines(text):
    """The commands of the fenced blocks of a page: for each line the words of its parts between pipes."""
    found = []
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            parts = [shlex.split(part, comments=True) for part in line.removeprefix("$ ").split(" | ")]
            if parts[0][:1] in (["cat"], ["torchrun"]) or (
                parts[0][:1] == ["pamusic"] and re.match(r"[a-z-]+$", parts[0][1])
            ):
                found.append(parts)
    return found


def shorter(words):
    """The same command, with less to do."""
    command, *rest = words
    values = SHORTER.get(command, {})
    rest = [values.get(before, word) for before, word in zip(["", *rest[:-1]], rest, strict=True)] if rest else []
    for unless, more in ADDED.get(command, []):
        if not any(option in rest for option in unless) and "list" not in rest:
            rest += more
    if command == "train" and "--resume" in rest and "--out" not in rest:
        rest += ["--steps", "4"]
    return [command, *rest]


def run_pipeline(parts):
    data = None
    for words in parts:
        if words[0] == "cat":
            data = Path(words[1]).read_bytes()
            continue
        result = CliRunner().invoke(app, shorter(words[1:]), input=data)
        assert result.exit_code == 0, (words, result.output)
        data = result.stdout_bytes
    return data


def test_commands_are_found_and_shortened():
    text = "```\n$ cat a.mid | pamusic sample --prime - \\\n  --seconds 60\npamusic: error: no\n```\npamusic runs\n"

    assert pipelines(text) == [[["cat", "a.mid"], ["pamusic", "sample", "--prime", "-", "--seconds", "60"]]]
    assert shorter(["sample", "--prime", "-", "--seconds", "60"]) == ["sample", "--prime", "-", "--seconds", "1"]
    assert all((ROOT / path).is_file() for path in ELSEWHERE.values())


@pytest.fixture
def workplace(elsewhere, backend, no_better_soundfont):
    """A folder with what the pages assume: MAESTRO (its table, with our examples), a prime, some songs."""
    (elsewhere / "maestro" / "2004").mkdir(parents=True)
    rows = []
    pieces = [(EXAMPLES[0], "train"), (EXAMPLES[1], "validation"), *((path, "test") for path in EXAMPLES)]
    for number, (path, split) in enumerate(pieces):
        shutil.copy(path, elsewhere / "maestro" / "2004" / f"{number}.midi")
        rows.append(f"Composer,Title,{split},2004,2004/{number}.midi,2004/{number}.wav,5.0\n")
    (elsewhere / "maestro" / "maestro-v3.0.0.csv").write_text(MAESTRO_HEADER + "".join(rows))
    files = {str(path.relative_to(elsewhere)): path.read_bytes() for path in (elsewhere / "maestro").rglob("*.*")}
    zipped(elsewhere / "maestro-v3.0.0-midi.zip", files)
    shutil.copytree(ROOT / "examples", elsewhere / "examples")
    shutil.copytree(ROOT / "examples", elsewhere / "mypieces", ignore=shutil.ignore_patterns("*.html", "*.md"))
    (elsewhere / "docs").mkdir()
    (elsewhere / "songs").mkdir()
    for place in ("docs/prime.mid", "mine.mid", "a.mid", "b.mid", "songs/a.mid", "songs/b.mid"):
        shutil.copy(ROOT / "docs" / "prime.mid", place)
    shutil.copy(EXAMPLES[0], "intro.mid")
    return elsewhere


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_every_command_runs_as_written(page, workplace):
    ran = []
    for parts in pipelines(text_of(page)):
        if any(word in ELSEWHERE for words in parts for word in words):
            continue
        run_pipeline(parts)
        ran.append(parts)

    assert ran or page.name == "several-gpus.md"


def test_the_python_example_runs(workplace, capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```", text_of(ROOT / "README.md"), re.MULTILINE | re.DOTALL)
    code, times = re.subn(
        r"seconds=60|(?<=stream\(prime)", lambda found: "seconds=1" if found[0] else ", seconds=1", code
    )

    exec(compile(code, "README.md", "exec"), {})

    assert times == 2
    assert Path("out.mid").read_bytes().startswith(b"MThd")
    assert Path("out.wav").read_bytes().startswith(b"RIFF")
    assert 0 < float(capsys.readouterr().out) < 10
