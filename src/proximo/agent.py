"""A trained policy, ready to act."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from proximo.disk import replace
from proximo.errors import UsageError
from proximo.evaluate import EpisodePolicy
from proximo.export import Exported, export
from proximo.named import find, name_of
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.custom import Maker
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import Config, make_policy
from proximo.run.folder import RunFolder
from proximo.spaces import MASK


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
        self.reset()

    def reset(self) -> None:
        """Let another episode begin: a policy with a memory forgets the last one."""
        self._player = EpisodePolicy(self.policy)

    def act(self, obs: Any, *, deterministic: bool = True) -> Any:
        """The action for one observation, as the env takes it.

        deterministic: the most likely action; else one drawn from the policy. Raises `ValueError`
        for an observation of another shape, with a number that is not finite, or with a mask that
        allows nothing.
        """
        try:
            row = self.policy.observations.row(obs)
        except UsageError as error:
            raise ValueError(f"{error}: this policy takes one at a time") from error
        if not np.isfinite(row).all():
            raise ValueError(f"the observation holds a number that is not finite: {obs}")
        if self.policy.stuck(row[None]).any():
            raise ValueError(f"the {MASK} of the observation allows no action: {obs}")
        return self._player(obs, None if deterministic else self._generator)

    def export(self, path: str | Path, *, overwrite: bool = False) -> Exported:
        """Write the policy as one ONNX file, which takes its most likely actions without PyTorch.

        docs/export.md says what goes in and what comes out. The file was run before it is written,
        and acted as the policy does. Raises `UsageError` if it cannot be, or if a file is there.
        """
        from proximo import __version__

        about = {
            "proximo": __version__,
            "env": self.config.env.id,
            "algorithm": self.config.algorithm.name,
            "steps": str(self.result.get("steps", "")),
            "observation_space": str(self.obs_space),
            "action_space": str(self.action_space),
        }
        hidden = self.config.net.privileged
        return export(
            self.policy, Path(path), about, write=replace, privileged=hidden, overwrite=overwrite
        )


def load(run: str | Path, checkpoint: str = "last", *, net: str | Maker | None = None) -> Agent:
    """The policy of a run folder: its "last" or "best" one. Runs no code that the folder names.

    net: the class of a network of your own, or its name, module:Class, which is imported.

    Raises `UsageError` if the folder or the checkpoint is missing or damaged, or if the network is
    code and not named.
    """
    folder = RunFolder.open(run)
    config = folder.read_config()
    saved = Checkpoint(folder.checkpoint(checkpoint))
    if net is not None:
        if not config.net.module:
            raise UsageError(f"net is {net!r}, but the network of {run} is Proximo's: leave it out")
        name = net if isinstance(net, str) else name_of(net)
        config = dataclasses.replace(config, net=dataclasses.replace(config.net, module=name))
    own = find(net) if isinstance(net, str) else net
    if own is None:  # what the files say of sizes is compared before it is made
        with torch.device("meta"):
            saved.check_policy(make_policy(saved.spaces, config))
    policy = make_policy(saved.spaces, config, own)
    saved.load_policy(policy)
    trained = {"steps": saved.steps, "updates": saved.updates}
    return Agent(policy.eval(), config, saved.spaces, trained)
