"""What every test runs under."""

import torch

# Models of tests are so small that a second thread costs more than it gives.
torch.set_num_threads(1)
