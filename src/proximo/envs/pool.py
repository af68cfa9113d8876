"""EnvPool's worlds, many at once in C++, as a Gymnasium vector world that does not trust its input.

EnvPool itself ends the process at a batch of the wrong size, plays on with actions that do not
exist, and takes a seed at `reset` without a word and without effect.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from proximo.envs.config import EnvConfig
from proximo.types import UsageError, explain, nearest


class Pool(VectorEnv[Any, Any, Any]):
    """N worlds of EnvPool. They reset in a step of their own (next-step mode)."""

    def __init__(self, env: EnvConfig, threads: int) -> None:
        """threads: to step the worlds with. Raises `UsageError`."""
        try:
            import envpool
        except ImportError as error:
            raise UsageError(
                f"env.backend is envpool, which cannot be imported ({error}): install it by "
                "pip install 'proximo[envpool]', or use another backend"
            ) from error
        self._make = envpool.make_gymnasium
        self._arguments: dict[str, Any] = {"num_envs": env.worlds, "num_threads": threads}
        self._arguments |= env.kwargs
        if env.max_episode_steps is not None:
            self._arguments["max_episode_steps"] = env.max_episode_steps
        known = envpool.list_all_envs()
        if env.id not in known:
            raise UsageError(f"there is no world {env.id!r} in EnvPool. {nearest(env.id, known)}")
        self._id, self._seed = env.id, 0
        self._pool = self._made(0)
        self.metadata = self._pool.metadata
        self.num_envs = env.worlds
        with warnings.catch_warnings():  # it rounds the bounds of its spaces
            warnings.simplefilter("ignore")
            self.single_observation_space = self._pool.single_observation_space
            self.single_action_space = self._pool.single_action_space

    def _made(self, seed: int) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._make(self._id, seed=seed, **self._arguments)
        except Exception as error:
            raise UsageError(f"EnvPool cannot make {self._id}: {explain(error)}") from error

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """All worlds at the beginning of an episode; with a seed, in a new pool made with it."""
        if isinstance(seed, int):
            self._pool.close()
            self._pool = self._made(seed % 2**31)  # it takes no larger one
        obs, info = self._pool.reset()
        return obs, info

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of every world. Raises `ValueError` for what EnvPool would not notice."""
        space = self.single_action_space
        expected = (self.num_envs, *(space.shape or ()))
        if actions.shape != expected:
            raise ValueError(f"the actions have shape {actions.shape}: it must be {expected}")
        if isinstance(space, gym.spaces.Discrete):
            legal = (actions >= space.start) & (actions < space.start + space.n)
        else:
            legal = np.isfinite(actions)
        if not legal.all():
            raise ValueError(f"an action is not one of {space}: {actions[~legal][0]}")
        answer: tuple[Any, Any, Any, Any, dict[str, Any]] = self._pool.step(
            actions.astype(space.dtype)
        )
        return answer

    def close_extras(self, **kwargs: Any) -> None:
        self._pool.close()
