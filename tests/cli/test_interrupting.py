"""Ctrl-C twice ends a command at once, whatever it waits for, in one line and with nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from corpora import small_corpus

import pamusic
from pamusic.cli.interrupting import PATIENCE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals"),
    pytest.mark.usefixtures("elsewhere"),
]

SAMPLE = ("sample", "--device", "cpu", "--length", "20", "--seed", "1", "-o", "out.mid")
TRAIN = (
    "train",
    "--size",
    "tiny",
    "--context-length",
    "64",
    "--num-latents",
    "16",
    "--steps",
    "9",
    "--compile",
    "-o",
    "run",
)


@pytest.fixture
def compiler(tmp_path):
    """A compiler that never comes to an end and does not hear Ctrl-C; it says by a file that it was called."""
    script = tmp_path / "compiler"
    script.write_text(f"#!/bin/sh\ntrap '' INT\ntouch {tmp_path / 'called'}\nexec sleep 60\n")
    script.chmod(0o755)
    return script


# What runs a command of pamusic; and the same where a compiler is waited for in spite of so many interruptions, as code
# that is not ours may do.
AS_IT_IS = "from pamusic.cli import main; main()"
SWALLOWING = """
import subprocess
from contextlib import suppress
from pathlib import Path

def run(words, **options):
    compiling = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(NUM_SWALLOWED):
        with suppress(KeyboardInterrupt):
            Path("WAITS").touch()  # before this, while the compiler is started, an interruption is not swallowed
            compiling.wait()
    return subprocess.CompletedProcess(words, compiling.wait())

subprocess.run = run
"""


@pytest.fixture
def started(compiler, tmp_path):
    """A command in a process group of its own, once a file says that it waits for the compiler; killed at the end."""
    programs = []

    def start(words, program=AS_IT_IS, sign="called"):
        kept = {"PAMUSIC_KERNELS": str(tmp_path / "kernels"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
        running = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, **kept, "CXX": str(compiler), "PYTHONPATH": str(Path(pamusic.__file__).parents[1])},
        )  # fmt: skip
        programs.append(running)
        deadline = time.monotonic() + 120
        while not (tmp_path / sign).exists():
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return running

    yield start
    for running in programs:
        with suppress(ProcessLookupError):  # its compiler may still run
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


def interrupted(running, tmp_path, made):
    """Send Ctrl-C; see that the command ends soon, in one line, and makes nothing; return the hidden files it left."""
    os.killpg(running.pid, signal.SIGINT)
    began = time.monotonic()
    stdout, stderr = running.communicate(timeout=30)

    assert time.monotonic() - began < PATIENCE + 5
    assert running.returncode in (130, -signal.SIGINT)  # the latter where Python itself was already ending
    assert stdout == ""
    assert stderr.splitlines()[-1] == "pamusic: interrupted"
    assert "Traceback" not in stderr
    assert not (tmp_path / made).exists()
    return [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def still_runs_after_one(running):
    """Send Ctrl-C and see that the command has not ended two seconds later."""
    os.killpg(running.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(timeout=2)


def test_once_while_a_kernel_is_compiled(checkpoint, started, tmp_path):
    assert interrupted(started((*SAMPLE, "--checkpoint", str(checkpoint))), tmp_path, "out.mid") == []


@pytest.mark.parametrize("num_swallowed", [1, 9])
def test_twice_while_something_swallows_the_first_or_all(checkpoint, started, tmp_path, num_swallowed):
    swallowing = SWALLOWING.replace("NUM_SWALLOWED", str(num_swallowed)).replace("WAITS", str(tmp_path / "waits"))
    running = started((*SAMPLE, "--checkpoint", str(checkpoint)), swallowing + AS_IT_IS, sign="waits")
    still_runs_after_one(running)

    left = interrupted(running, tmp_path, "out.mid")
    assert num_swallowed > 1 or left == []  # who swallows all lets nothing be put in order


def test_twice_while_a_model_is_compiled(started, tmp_path):
    small_corpus(tmp_path / "corpus", notes_of_pieces=(120, 300), splits=("train", "validation"))
    running = started(TRAIN)
    still_runs_after_one(running)

    assert interrupted(running, tmp_path, "run") == []
