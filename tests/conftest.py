"""What every test runs under."""

import os
import signal
import tempfile
from pathlib import Path

import mido
import pytest
import torch

# Models of tests are so small that a second thread costs more than it gives.
torch.set_num_threads(1)

# Kernels are not looked for among the user's, and once made serve the next run, too: their name tells what made them.
os.environ.setdefault("PAMUSIC_KERNELS", str(Path(tempfile.gettempdir()) / "pamusic-test-kernels"))

# Started in the background, a shell has us ignore Ctrl-C, and every program we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def backend():
    """mido with ports of our own that keep what is sent to them, by mido's own mechanism."""
    before = mido.backend
    mido.set_backend("recording_backend", load=True)
    mido.backend.module.SENT.clear()
    yield mido.backend.module
    mido.set_backend(before)
