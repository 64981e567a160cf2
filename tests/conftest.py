"""What every test runs under, and what tests of several files are given."""

import os
import signal
import tempfile
from pathlib import Path

import mido
import numpy as np
import pytest
import torch
from models import random_checkpoint
from typer.testing import CliRunner

from pamusic.cli.app import app
from pamusic.music.midi import midi_bytes
from pamusic.music.performance import PEDAL, SUSTAIN, Performance
from pamusic.tokens.tokenizer import load_tokenizer

# Models of tests are so small that a second thread costs more than it gives, here and in the programs that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Kernels are not looked for among the user's, and once made serve the next run, too: their name tells what made them.
os.environ.setdefault("PAMUSIC_KERNELS", str(Path(tempfile.gettempdir()) / "pamusic-test-kernels"))

# In the background a shell has us ignore Ctrl-C, and nohup the closing of the window; what we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def backend():
    """mido with ports of our own that keep what is sent to them, by mido's own mechanism."""
    before = mido.backend
    mido.set_backend("recording_backend", load=True)
    mido.backend.module.SENT.clear()
    yield mido.backend.module
    mido.set_backend(before)


@pytest.fixture
def no_better_soundfont(monkeypatch):
    """What is heard does not depend on what is installed."""
    monkeypatch.setattr("pamusic.music.soundfonts.usual_folders", list)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, which is where we are."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny model with random weights, which says anything at all."""
    return random_checkpoint(tmp_path_factory.mktemp("checkpoints") / "random", load_tokenizer("performance"))


@pytest.fixture
def prime(tmp_path):
    """A second and a half: two notes and a pedal, off the grid."""
    pedal = np.array([(0.1115, SUSTAIN, 100), (1.5, SUSTAIN, 70)], PEDAL)
    performance = Performance.from_arrays([0.0123, 0.5], [0.4, 1.234], [60, 64], [33, 101], pedal)
    (tmp_path / "prime.mid").write_bytes(midi_bytes(performance))
    return tmp_path / "prime.mid"


@pytest.fixture
def sample(checkpoint):
    """`pamusic sample` by that model."""

    def sample(*words, input=None):
        words = map(str, ("sample", "--checkpoint", checkpoint, "--device", "cpu", *words))
        return CliRunner().invoke(app, list(words), input=input)

    return sample
