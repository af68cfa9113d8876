"""Random numbers where they are used."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator; for a CUDA device one there, seeded with a number that this one draws.

    So a rollout's noise is not drawn on the CPU and carried over, and the state of the generator on
    the CPU still is all that a checkpoint needs.
    """
    if device.type != "cuda":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def permutation(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """0, 1, ..., count - 1 in a random order, drawn by `on_device`. [count] int64."""
    near = on_device(generator, device)
    return torch.randperm(count, generator=near, device=near.device)
