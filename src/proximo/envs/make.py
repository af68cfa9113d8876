"""Worlds from a configuration, under one step for all three autoreset modes of Gymnasium."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from proximo.envs.config import EnvConfig
from proximo.types import UsageError, WorldState, nearest

Maker = Callable[..., gym.Env]


class Step(NamedTuple):
    """What N worlds answered. `real` is False where a next-step world only reset itself."""

    reward: np.ndarray  # [N]
    terminated: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool
    real: np.ndarray | None  # [N] bool; None: all of them
    final_obs: dict[int, np.ndarray]  # world -> the true successor where an episode ended


def episode_seed(seed: int, world: int, episode: int) -> int:
    """The seed, in [0, 2^32), with which episode number `episode` of a world starts: a hash."""
    digest = hashlib.blake2b(f"{seed}/{world}/{episode}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


class Worlds:
    """N worlds in step.

    Worlds that we build ourselves are reset by us, each episode from its own seed: then seed and
    actions are enough to bring a world back, which is how a run resumes exactly. A vector world
    that comes from elsewhere keeps its own resets, in whichever mode it declares.
    """

    def __init__(self, envs: VectorEnv, seed: int, *, ours: bool = False) -> None:
        self.envs = envs
        self.count = envs.num_envs
        self.obs_space = envs.single_observation_space
        self.action_space = envs.single_action_space
        self.replayable = ours
        self._seed = seed
        mode = (envs.metadata or {}).get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise UsageError(
                f"{envs!r} declares metadata['autoreset_mode'] = {mode!r}: it must be one of "
                "gymnasium.vector.AutoresetMode, or its resets cannot be told from its steps"
            )
        self._mode = mode

    def start(self) -> WorldState:
        """Reset every world to its episode 0."""
        episode = np.zeros(self.count, np.int64)
        state = WorldState(
            obs=np.empty(0),
            episode=episode,
            actions=[[] for _ in range(self.count)],
            resetting=np.zeros(self.count, bool),
            ret=np.zeros(self.count),
            length=np.zeros(self.count, np.int64),
        )
        self._reset_all(state)
        return state

    def _seeds(self, state: WorldState, which: np.ndarray | None = None) -> Any:
        return [
            episode_seed(self._seed, i, int(k)) if which is None or which[i] else None
            for i, k in enumerate(state.episode)
        ]

    def _reset_all(self, state: WorldState) -> None:
        # One generator serves a whole vector world from elsewhere, so one seed; later resets of
        # it come from that generator.
        first = state.obs.size == 0
        one: Any = episode_seed(self._seed, 0, 0) if first else None
        obs, _ = self.envs.reset(seed=self._seeds(state) if self.replayable else one)
        state.obs = np.array(obs)
        state.actions = [[] for _ in range(self.count)]
        state.resetting[:] = False
        state.ret[:] = 0
        state.length[:] = 0

    def fresh(self, state: WorldState) -> None:
        """Let every world begin a new episode, unless it has just begun one."""
        begun = (state.length > 0) | state.resetting
        if not begun.any():
            return
        state.episode += begun
        if self._mode is AutoresetMode.DISABLED:
            self._reset_some(state, begun)
            state.ret[begun] = 0
            state.length[begun] = 0
            for i in np.flatnonzero(begun):
                state.actions[i] = []
        else:
            self._reset_all(state)

    def _reset_some(self, state: WorldState, which: np.ndarray) -> None:
        seeds: Any = self._seeds(state, which) if self.replayable else None
        state.obs = np.array(self.envs.reset(seed=seeds, options={"reset_mask": which.copy()})[0])

    def step(self, state: WorldState, action: np.ndarray) -> Step:
        """One step of every world; `state.obs` becomes what the policy sees next."""
        obs, reward, terminated, truncated, info = self.envs.step(action)
        obs, ended = np.asarray(obs), terminated | truncated
        real, final_obs = None, {}
        if self._mode is AutoresetMode.NEXT_STEP:
            if state.resetting.any():
                real = ~state.resetting
                ended = ended & real
            state.resetting = ended
        if ended.any():
            final = info["final_obs"] if self._mode is AutoresetMode.SAME_STEP else obs
            final_obs = {int(i): np.array(final[i]) for i in np.flatnonzero(ended)}
            state.episode += ended
        # Copied: some worlds write every observation into one and the same array.
        state.obs = np.array(obs)
        if final_obs and self._mode is AutoresetMode.DISABLED:
            self._reset_some(state, ended)
        return Step(np.asarray(reward), terminated, truncated, real, final_obs)

    def restore(self, state: WorldState) -> bool:
        """Bring every world back to where `state` says it stood: reset from its seed and replay.

        Returns False, with all worlds in new episodes, where that cannot be done: for worlds from
        elsewhere, and for those that do not answer as they did.
        """
        if self.replayable and isinstance(self.envs, SyncVectorEnv):
            obs = np.array(self.envs.reset(seed=self._seeds(state))[0])
            for i, (env, stretches) in enumerate(zip(self.envs.envs, state.actions, strict=True)):
                for action in (a for stretch in stretches for a in stretch):
                    obs[i] = env.step(action)[0]
            if np.array_equal(obs, state.obs):
                return True
        state.episode += 1
        state.obs = np.empty(0)
        self._reset_all(state)
        return False

    def close(self) -> None:
        self.envs.close()


def make_world(
    env: EnvConfig, maker: Maker | None = None, render_mode: str | None = None
) -> gym.Env:
    """One world, as `EnvConfig` or a callable describes it. Raises `UsageError`."""
    maker = maker or _maker(env)
    kwargs = dict(env.kwargs)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    try:
        world = maker(**kwargs)
    except gym.error.DependencyNotInstalled as error:
        raise UsageError(f"{env.id} needs a package that is not installed: {error}") from error
    except Exception as error:
        what = f"{env.id or maker}" + (f" with the arguments {kwargs}" if kwargs else "")
        raise UsageError(f"{what} cannot be made: {type(error).__name__}: {error}") from error
    if env.max_episode_steps is not None and not _is_registered(env.id):
        world = gym.wrappers.TimeLimit(world, env.max_episode_steps)
    return world


def make_worlds(env: EnvConfig, seed: int, source: Maker | VectorEnv | None = None) -> Worlds:
    """N worlds: from the configuration, a callable that makes one, or a vector world itself."""
    if isinstance(source, VectorEnv):
        return Worlds(source, seed)
    if env.backend == "vector":
        return Worlds(_native_vector(env), seed)
    made = [make_world(env, source) for _ in range(env.worlds)]
    envs = SyncVectorEnv(
        [partial(_same, world) for world in made],
        copy=False,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    return Worlds(envs, seed, ours=True)


def _same(world: gym.Env) -> gym.Env:
    return world


def return_threshold(env: EnvConfig) -> float | None:
    """The return at which Gymnasium calls this task solved, where it names one."""
    return gym.registry[env.id].reward_threshold if _is_registered(env.id) else None


def _is_registered(name: str) -> bool:
    return name in gym.registry


def _maker(env: EnvConfig) -> Maker:
    if not env.id:
        raise UsageError("no world is named: give a Gymnasium id or module:Class")
    if ":" in env.id:
        return _user_maker(env.id)
    if not _is_registered(env.id):
        raise UsageError(
            f"there is no world {env.id!r} in Gymnasium. {nearest(env.id, gym.registry)}"
        )

    def make(**kwargs: Any) -> gym.Env:
        # The passive checker looks at the first step only; the rollout is checked whole.
        limit = env.max_episode_steps
        return gym.make(env.id, max_episode_steps=limit, disable_env_checker=True, **kwargs)

    return make


def _user_maker(name: str) -> Maker:
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"{name}: the module {module_name!r} cannot be imported: {error}"
        ) from error
    if not attribute.isidentifier() or not hasattr(module, attribute):
        if attribute in gym.registry:  # importing the module registered it, as gym.make allows
            return lambda **kwargs: gym.make(attribute, **kwargs)
        raise UsageError(f"{module_name} has no {attribute!r}. {nearest(attribute, dir(module))}")
    maker: Maker = getattr(module, attribute)
    return maker


def _native_vector(env: EnvConfig) -> VectorEnv:
    _maker(env)  # names the world that does not exist
    if not _is_registered(env.id) or gym.registry[env.id].vector_entry_point is None:
        raise UsageError(f"env.backend is vector, but {env.id} has no vector version: use sync")
    kwargs: dict[str, Any] = dict(env.kwargs)
    if env.max_episode_steps is not None:
        kwargs["max_episode_steps"] = env.max_episode_steps
    return gym.make_vec(
        env.id, num_envs=env.worlds, vectorization_mode="vector_entry_point", **kwargs
    )
