"""Ctrl-C twice ends a command at once, whatever it waits for, in one line and with nothing half-written."""

import os
import signal
import subprocess
import sys
import time

import pytest
from corpora import small_corpus

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


def started(compiler, words, tmp_path):
    """A command in a process group of its own, as in a terminal, once it waits for the compiler."""
    kept = {"PAMUSIC_KERNELS": str(tmp_path / "kernels"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    running = subprocess.Popen(
        [sys.executable, "-m", "pamusic", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, **kept, "CXX": str(compiler)},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "called").exists():
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return running


@pytest.mark.parametrize(("words", "made"), [(SAMPLE, "out.mid"), (TRAIN, "run")], ids=["sample", "train"])
def test_twice_while_something_is_compiled(checkpoint, compiler, tmp_path, words, made):
    if words == TRAIN:
        small_corpus(tmp_path / "corpus", notes_of_pieces=(120, 300), splits=("train", "validation"))
    else:
        words = (*words, "--checkpoint", str(checkpoint))
    running = started(compiler, words, tmp_path)
    for _ in range(2):
        os.killpg(running.pid, signal.SIGINT)
        time.sleep(0.3)
    began = time.monotonic()
    stdout, stderr = running.communicate(timeout=30)

    assert time.monotonic() - began < PATIENCE + 5
    assert running.returncode in (130, -signal.SIGINT)  # the latter where Python itself was already ending
    assert stdout == ""
    assert stderr.splitlines()[-1] == "pamusic: interrupted"
    assert "Traceback" not in stderr
    assert not (tmp_path / made).exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
