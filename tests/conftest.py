"""What every test runs under."""

import signal

import mido
import pytest
import torch

# Models of tests are so small that a second thread costs more than it gives.
torch.set_num_threads(1)

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
