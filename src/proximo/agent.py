"""A trained policy, ready to act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from proximo.evaluate import choose
from proximo.nets.actor_critic import ActorCritic
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import Config, make_policy
from proximo.run.folder import RunFolder


class Agent:
    """A policy with the configuration and spaces it was trained with."""

    def __init__(
        self,
        policy: ActorCritic,
        config: Config,
        spaces: tuple[gym.Space[Any], gym.Space[Any]],
        result: dict[str, Any] | None = None,
    ) -> None:
        self.policy = policy
        self.config = config
        self.obs_space, self.action_space = spaces
        self.result = result or {}
        """How the training ended: steps, updates, returns, seconds."""
        self._generator = torch.Generator().manual_seed(config.run.seed)

    def act(self, obs: np.ndarray, *, deterministic: bool = True) -> Any:
        """The action for one observation, as the world takes it.

        deterministic: the most likely action; else one drawn from the policy. Raises `ValueError`
        for an observation of another shape, or with a number that is not finite.
        """
        if np.shape(obs) != self.policy.obs_shape:
            raise ValueError(
                f"the observation has shape {np.shape(obs)}: this policy takes one of "
                f"{self.policy.obs_shape} at a time"
            )
        if not np.isfinite(obs).all():
            raise ValueError(f"the observation holds a number that is not finite: {obs}")
        return choose(self.policy, obs, None if deterministic else self._generator)


def load(run: str | Path, checkpoint: str = "last") -> Agent:
    """The policy of a run folder: its "last" or "best" one. Runs no code from the folder.

    Raises `UsageError` if the folder or the checkpoint is missing or damaged.
    """
    folder = RunFolder.open(run)
    config = folder.read_config()
    saved = Checkpoint(folder.checkpoint(checkpoint))
    policy = make_policy(saved.spaces, config)
    saved.load_policy(policy)
    return Agent(policy.eval(), config, saved.spaces)
