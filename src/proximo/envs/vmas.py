"""Envs of VMAS: worlds of several robots, written in PyTorch, N in step.

One policy moves all robots of a world: its observation and its action are dicts with a part for
each of them, and its reward is the mean of theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import vmas
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from proximo.envs.base import TensorEnv
from proximo.envs.config import EnvConfig
from proximo.errors import UsageError, explained, nearest
from proximo.spaces import Space, map_leaves

LIMIT = 100
"""Steps of an episode, as VMAS has no limit of its own."""


class VmasVectorEnv(VectorEnv[Any, Any, Any]):
    """N worlds of a scenario, in same-step mode: `final_obs` has a row for every world."""

    def __init__(self, env: EnvConfig) -> None:
        """Raises `UsageError`."""
        name = env.id.partition(":")[2]
        known = [*vmas.scenarios, *vmas.mpe_scenarios]
        if name not in known:
            raise UsageError(f"there is no env {name!r} in vmas. {nearest(name, known)}")
        self.num_envs = env.num_envs
        settings: dict[str, Any] = {"continuous_actions": True, **env.kwargs}
        settings |= {"clamp_actions": settings["continuous_actions"], "dict_spaces": True}
        with explained(f"{env.id} cannot be made with the arguments {env.kwargs}"), _apart():
            self._worlds = vmas.make_env(
                name,
                num_envs=env.num_envs,
                max_steps=env.max_episode_steps or LIMIT,
                terminated_truncated=True,
                **settings,
            )
        self._streams, self.device = _streams(0), torch.device(self._worlds.device)
        self.single_observation_space = _space(self._worlds.observation_space)
        self.single_action_space = _space(self._worlds.action_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """All worlds at the beginning of an episode; without a seed the random numbers go on.

        seed: of all of them, or a list with one for the beginning of each.
        """
        if isinstance(seed, list):
            for index, each in enumerate(seed):
                self._streams = _streams(each)
                with self._own_streams():
                    self._worlds.reset_at(index, return_observations=False)
            return _plain(self._seen()), {}
        if seed is not None:
            self._streams = _streams(seed)
        with self._own_streams():
            return _plain(self._worlds.reset()), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        given = {name: x if x.ndim > 1 else x.unsqueeze(-1) for name, x in actions.items()}
        with self._own_streams():
            final, rewards, terminated, truncated, _ = self._worlds.step(given)
            obs = final = _plain(final)
            truncated = truncated & ~terminated
            done = (terminated | truncated).nonzero().squeeze(-1).tolist()
            if done:
                obs = _plain(self._begin(done))
        reward = torch.stack([*rewards.values()]).mean(0)
        return obs, reward, terminated, truncated, {"final_obs": final}

    def _begin(self, done: list[int]) -> Any:
        """Observations once these worlds are at the beginning of an episode."""
        if len(done) == self.num_envs:
            return self._worlds.reset()
        for index in done:
            self._worlds.reset_at(index, return_observations=False)
        return self._seen()

    def _seen(self) -> Any:
        """Observations of all worlds."""
        return self._worlds.get_from_scenario(
            get_observations=True, get_rewards=False, get_infos=False, get_dones=False
        )[0]

    @contextlib.contextmanager
    def _own_streams(self) -> Iterator[None]:
        """Random numbers of these worlds: VMAS has one stream for all envs of a process."""
        shared = self._worlds.vmas_random_state
        before, shared[:] = list(shared), self._streams
        try:
            yield
        finally:
            self._streams, shared[:] = list(shared), before


class VmasEnv(TensorEnv):
    """One world as a single env: NumPy arrays, no resets of its own."""

    def __init__(self, env: EnvConfig, render_mode: str | None = None) -> None:
        if render_mode is not None:
            raise UsageError(
                f"{env.id} cannot be shown: VMAS draws with OpenGL in a window of its own, which "
                "Proximo does not open"
            )
        self._config, self._world = env, VmasVectorEnv(dataclasses.replace(env, num_envs=1))
        self.observation_space = self._world.single_observation_space
        self.action_space = self._world.single_action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return _only(self._world.reset(seed=seed)[0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        given = map_leaves(lambda x: torch.from_numpy(np.array(x)[None]), action)
        _, reward, terminated, truncated, info = self._world.step(given)
        seen = _only(info["final_obs"])
        return seen, float(reward), bool(terminated), bool(truncated), {}

    def many(self, count: int) -> VmasVectorEnv:
        return VmasVectorEnv(dataclasses.replace(self._config, num_envs=count))


def _streams(seed: int) -> list[Any]:
    """States of the generators that VMAS draws from, as it seeds them."""
    mersenne = np.random.RandomState(seed % 2**32)  # the kind that VMAS has
    torch_state = torch.Generator().manual_seed(seed).get_state()
    return [torch_state, mersenne.get_state(), random.Random(seed).getstate()]  # noqa: S311


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Leave all generators as they are: making worlds seeds and resets them."""
    shared = vmas.simulator.environment.Environment.vmas_random_state
    before, generators = list(shared), (np.random.get_state(), random.getstate())  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            shared[:] = before
            np.random.set_state(generators[0])  # noqa: NPY002
            random.setstate(generators[1])


def _space(space: Any) -> Space:
    """Gymnasium's space for one of VMAS, which has those of gym."""
    if hasattr(space, "spaces"):
        return spaces.Dict({key: _space(part) for key, part in space.spaces.items()})
    if hasattr(space, "nvec"):
        return spaces.MultiDiscrete(space.nvec)
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    return spaces.Box(space.low, space.high, space.shape, np.float32)


def _plain(seen: Any) -> Any:
    """Observations in the type of their spaces."""
    return map_leaves(lambda part: part.to(torch.float32), seen)


def _only(batch: Any) -> Any:
    return map_leaves(lambda rows: rows[0].numpy().copy(), batch)
