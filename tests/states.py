"""A TrainState for tests of collecting and updating."""

import torch

from proximo.engines.torch import TorchEngine
from proximo.state import TrainState


def new_state(policy, algorithm, envs, **fields):
    """The state of a run that begins, on the torch engine."""
    optimizer = algorithm.make_optimizer(policy)
    return TrainState(
        policy=policy,
        optimizer=optimizer,
        envs=envs.start(),
        collecting=torch.Generator().manual_seed(1),
        shuffling=torch.Generator().manual_seed(2),
        engine=TorchEngine(policy, optimizer),
        horizon=1000,
        **fields,
    )
