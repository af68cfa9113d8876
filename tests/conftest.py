"""What all tests share: one thread, so that they measure and reproduce the same everywhere."""

import torch

torch.set_num_threads(1)
