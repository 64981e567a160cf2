"""`make` makes an environment once, says what it does meanwhile, and tells how to hear the demo."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# A Python whose environments hold a pip and a pamusic that do nothing but note how they were called.
PYTHON = """#!/bin/sh
if [ "$1" = -VV ]; then cat version; exit; fi
mkdir -p "$3/bin"
for name in python pamusic; do
    printf '#!/bin/sh\\necho "%s $*" >> calls\\n[ ! -e broken ]\\n' $name > "$3/bin/$name"
    chmod +x "$3/bin/$name"
done
"""


@pytest.fixture
def demo(tmp_path):
    """`make demo` in a folder with our Makefile and an imitation of Python; gives its words and the calls it made."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "version").write_text("Python 3.11.7")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)

    def demo(code=0):
        (tmp_path / "calls").write_text("")
        words = ["make", "--no-print-directory", "demo", "PYTHON=./python"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode == 0) == (code == 0), done.stderr
        return done.stdout, (tmp_path / "calls").read_text()

    return demo


def test_an_environment_is_reused_until_what_it_was_made_of_changes(demo, tmp_path):
    said, calls = demo()
    assert "making .venv-demo" in said
    assert "python -m pip install" in calls

    said, calls = demo()
    assert "using .venv-demo, which was made before" in said
    assert "pip" not in calls

    for name in ("constraints.txt", "pyproject.toml", "version"):
        with (tmp_path / name).open("a") as file:
            file.write("\n")
            file.write("# changed")
        assert "pip install" in demo()[1], name
        assert "pip" not in demo()[1], name


def test_an_environment_that_was_not_finished_is_made_anew(demo, tmp_path):
    (tmp_path / "broken").touch()
    demo(code=2)
    (tmp_path / "broken").unlink()

    assert "pip install" in demo()[1]


def test_the_demo_says_what_it_does_and_how_to_hear_it(demo):
    said, calls = demo()

    lines = said.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["making", "installing", "composing"]
    assert any(line.startswith("Hear it:") for line in lines)
    assert any("demo/demo.mid (open it in a DAW" in line for line in lines)
    assert "sample --checkpoint nocturne --prime docs/prime.mid --seconds 60 --end-near-length" in calls
