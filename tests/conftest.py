"""What every test runs under."""

import signal

import torch

# Models of tests are so small that a second thread costs more than it gives.
torch.set_num_threads(1)

# Started in the background, a shell has us ignore Ctrl-C, and every program we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
