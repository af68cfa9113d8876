"""Envs written in JAX as vector envs of tensors: one compiled program steps all of them.

Each env is a pure function of its state and a random key, so that the state is an array to save,
and a run resumes exactly. Arrays become tensors, and actions arrays, without a copy (DLPack).
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch.utils.dlpack import from_dlpack

from proximo.envs.adapters import Simulator, make_simulator
from proximo.envs.base import TensorEnv
from proximo.envs.config import EnvConfig
from proximo.envs.tensors import Snapshots
from proximo.spaces import map_leaves


class Carry(NamedTuple):
    """State of one env, or of N along the first axis of all arrays."""

    state: Any
    key: Any  # of the random numbers to come
    time: Any  # [] int32: steps since the episode began


def strong(leaf: Any, dtype: Any = None) -> Any:
    """An array of a type that nothing promotes."""
    leaf = jnp.asarray(leaf)
    return jax.lax.convert_element_type(leaf, dtype or leaf.dtype)


class Programs:
    """The functions of a simulator, compiled for one env and for N in step."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.begin = jax.jit(self._begin)
        self.begin_all = jax.jit(jax.vmap(self._begin))
        self.again_all = jax.jit(jax.vmap(lambda carry: self._begin(carry.key)))
        self.step = jax.jit(lambda carry, action: self._step(carry, action)[:2])
        self.step_all = jax.jit(self._step_all)

    def _begin(self, key: Any) -> tuple[Carry, Any]:
        """First state of an episode, and its observation."""
        key, start = jax.random.split(key)
        state, obs = self.simulator.reset(start)
        # Types for good: what has a weak one would be compiled again at the second step.
        state = jax.tree.map(strong, state)
        return Carry(state, key, jnp.int32(0)), obs

    def _step(self, carry: Carry, action: Any) -> tuple[Carry, tuple[Any, ...], Any]:
        """One step without a reset: next state, answers, and the key of an episode to begin."""
        key, now, start = jax.random.split(carry.key, 3)
        answer = self.simulator.step(carry.state, action, now)
        state, obs, reward, terminated, truncated = answer
        # A step must give what a reset gives, to be replaced by it.
        state = jax.tree.map(lambda new, old: strong(new, old.dtype), state, carry.state)
        time = carry.time + 1
        limit = self.simulator.limit
        cut = jnp.asarray(truncated, bool) | (jnp.bool_(False) if limit is None else time >= limit)
        answers = (obs, jnp.asarray(reward, jnp.float32), jnp.asarray(terminated, bool), cut)
        return Carry(state, key, time), answers, start

    def _step_all(self, carry: Carry, action: Any) -> tuple[Carry, Any, tuple[Any, ...]]:
        """N steps, and resets where an episode ended: next states, observations, answers."""
        carry, answers, start = jax.vmap(self._step)(carry, action)
        done = answers[2] | answers[3]

        def begun(_: None) -> tuple[Carry, Any]:
            fresh, obs = jax.vmap(self._begin)(start)

            def choose(new: Any, old: Any) -> Any:
                return jnp.where(done.reshape(-1, *[1] * (old.ndim - 1)), new, old)

            new, old = (fresh, obs), (carry, answers[0])
            return jax.tree.map(choose, new, old)  # type: ignore[no-any-return]

        # One condition for all: resets may cost more than steps, and most steps end nothing.
        carry, obs = jax.lax.cond(done.any(), begun, lambda _: (carry, answers[0]), None)
        return carry, obs, answers


@lru_cache(maxsize=4)
def _programs(name: str, limit: int | None, kwargs: tuple[tuple[str, Any], ...]) -> Programs:
    return Programs(make_simulator(name, limit, dict(kwargs)))


def programs(env: EnvConfig) -> Programs:
    """Those of the env of this name, compiled once for all that use it. Raises `UsageError`."""
    return _programs(env.id, env.max_episode_steps, tuple(sorted(env.kwargs.items())))


def to_tensors(nested: Any) -> Any:
    """Arrays as tensors that share their memory."""
    return map_leaves(from_dlpack, jax.block_until_ready(nested))


def to_array(action: Any) -> Any:
    """A tensor as an array that shares its memory; choices become int32, which JAX counts in."""
    if not action.is_floating_point():
        action = action.to(torch.int32)
    return jnp.from_dlpack(action.contiguous())


class SimulatorVectorEnv(Snapshots):
    """N envs of a simulator in step, in same-step mode: `final_obs` has a row for every env."""

    def __init__(self, env: EnvConfig) -> None:
        self.programs = programs(env)
        simulator = self.programs.simulator
        self.num_envs, self.limit = env.num_envs, simulator.limit
        self.single_observation_space = simulator.obs_space
        self.single_action_space = simulator.action_space
        self.observation_space = batch_space(simulator.obs_space, env.num_envs)
        self.action_space = batch_space(simulator.action_space, env.num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        # A simulator holds its tensors where JAX's arrays are by default.
        self.carry: Any = None
        self.device = from_dlpack(jnp.zeros(1)).device

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """seed: of all of them, or a list with one for each; None: go on with their keys."""
        if seed is None and self.carry is not None:
            self.carry, obs = self.programs.again_all(self.carry)
            return to_tensors(obs), {}
        if isinstance(seed, list):
            keys = jnp.stack([first_key(each) for each in seed])
        else:
            keys = jax.random.split(first_key(seed or 0), self.num_envs)
        self.carry, obs = self.programs.begin_all(bound(keys))
        return to_tensors(obs), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.carry, obs, answers = self.programs.step_all(self.carry, to_array(actions))
        final, reward, terminated, truncated = map(to_tensors, answers)
        return to_tensors(obs), reward, terminated, truncated, {"final_obs": final}

    def begin_at(self, steps: list[int]) -> None:
        self.carry = self.carry._replace(time=jnp.array(steps, jnp.int32))

    def snapshot(self) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(leaf) for leaf in jax.tree.leaves(self.carry))

    def restore(self, saved: tuple[np.ndarray, ...]) -> bool:
        # Copies: the arrays of a checkpoint are not aligned as JAX has its own.
        leaves = [jnp.array(leaf) for leaf in saved]
        self.carry = bound(jax.tree.unflatten(jax.tree.structure(self.carry), leaves))
        return True


def first_key(seed: int) -> Any:
    """Key of an env's first episode."""
    return jax.random.PRNGKey(np.uint32(seed % 2**32))


def bound(arrays: Any) -> Any:
    """Arrays bound to their device, as those of a step are, whose actions came from a tensor.

    With others the program of a step would be compiled twice.
    """
    return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.device), arrays)


class SimulatorEnv(TensorEnv):
    """One env of a simulator: NumPy arrays, no resets of its own."""

    def __init__(self, env: EnvConfig, render_mode: str | None = None) -> None:
        self._config, self._programs = env, programs(env)
        self._simulator = self._programs.simulator
        self.observation_space = self._simulator.obs_space
        self.action_space = self._simulator.action_space
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self._simulator.fps}
        self.render_mode, self._carry = render_mode, None
        if render_mode is not None:
            self._simulator.check_render(render_mode)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**32))
        self._carry, obs = self._programs.begin(first_key(seed))
        return map_leaves(np.asarray, obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        action = np.asarray(action)
        given = jnp.asarray(action, jnp.float32 if action.dtype.kind == "f" else jnp.int32)
        self._carry, answers = self._programs.step(self._carry, given)
        obs, reward, terminated, truncated = answers
        seen = map_leaves(np.asarray, obs)
        return seen, float(reward), bool(terminated), bool(truncated), {}

    def many(self, count: int) -> SimulatorVectorEnv:
        return SimulatorVectorEnv(dataclasses.replace(self._config, num_envs=count))

    def render(self) -> Any:
        return self._simulator.render(self._carry.state) if self._carry else None
