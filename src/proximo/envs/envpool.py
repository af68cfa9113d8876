"""EnvPool's envs, many at once in C++, as a Gymnasium vector env that checks its input.

EnvPool itself crashes at a batch of the wrong size, accepts actions that do not exist, ignores a
seed given to `reset`, calls an end on the last step before the time limit a truncation, and gives
other bounds and types than Gymnasium's env of the same name.
"""

from __future__ import annotations

import ctypes.util
import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from proximo.envs.config import EnvConfig
from proximo.errors import UsageError, explained, nearest
from proximo.spaces import map_leaves

NEVER = 2**31 - 1
"""A time limit for EnvPool that is not reached: the real one is kept here."""
SPLIT = 128
"""Frames of a step of all envs from which it pays to step them in two groups: a group costs some
80 µs of Python, and hides as much of the other's."""
TAKEN = {
    *("base_path", "batch_size", "env_seed", "from_pixels", "frame_stack", "gym_reset_return_info"),
    *("max_num_players", "num_envs", "num_threads", "render_mode", "seed"),
    "thread_affinity_offset",
}
"""Arguments that are set here, or that change what a step returns."""


SHOWN = ("obs", "reward", "done", "trunc", "elapsed_step")
"""Names of what a step of EnvPool's shows, where observations are not nested."""


class _CutOff(NamedTuple):
    """A step of a group in which some envs only reset, as our time limit has cut them off."""

    on: np.ndarray  # those that step
    off: np.ndarray  # those that reset
    obs: Any  # of these


class _BarePool:
    """The C++ calls of a pool, without EnvPool's Python around them: 30 µs of a step or more."""

    def __init__(self, pool: Any) -> None:
        self._pool, names = pool, pool._state_keys
        self._ids = np.arange(pool.config["num_envs"], dtype=np.int32)
        self._dtype = pool.spec.action_array_spec["action"].dtype
        self._places = [names.index(name) for name in SHOWN]

    @staticmethod
    def of(pool: Any) -> _BarePool | None:
        """None where one row an env does not say it all, or where EnvPool names things anew."""
        names = getattr(pool, "_state_keys", ()), getattr(pool, "_action_keys", ())
        known = {*SHOWN} <= {*names[0]} and list(names[1]) == ["env_id", "players.env_id", "action"]
        return _BarePool(pool) if known and pool.config["max_num_players"] == 1 else None

    def send(self, actions: np.ndarray) -> None:
        self._pool._send([self._ids, self._ids, np.ascontiguousarray(actions, self._dtype)])

    def recv(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """What EnvPool's own returns, of which info has `elapsed_step` alone."""
        values = self._pool._recv()
        obs, reward, done, truncated, elapsed = (values[place] for place in self._places)
        return obs, reward, done & ~truncated, truncated, {"elapsed_step": elapsed}


class EnvPoolEnvs(VectorEnv[Any, Any, Any]):
    """N envs of EnvPool. They reset in a step of their own (next-step mode).

    Many costly ones stand in two pools, so that one can step while the policy acts in the other.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 as Gymnasium has it

    def __init__(
        self,
        env: EnvConfig,
        spaces: tuple[gym.Space[Any], gym.Space[Any]] | None,
        threads: int,
        render_mode: str | None = None,
    ) -> None:
        """spaces: of Gymnasium's env of that name. Raises `UsageError`."""
        try:
            import envpool
        except ImportError as error:
            raise UsageError(
                f"env.backend is envpool, which cannot be imported ({error}): install it by "
                "pip install 'proximo[envpool]', or use another backend"
            ) from error
        known = envpool.list_all_envs()
        if env.id not in known:
            raise UsageError(f"there is no env {env.id!r} in EnvPool. {nearest(env.id, known)}")
        if taken := TAKEN & env.kwargs.keys():
            raise UsageError(
                f"env.kwargs holds {sorted(taken)}, which EnvPool uses for itself: leave it out"
            )
        self.num_envs, self._id = env.num_envs, env.id
        self._arguments = {
            **env.kwargs,
            "num_threads": max(1, min(threads, env.num_envs)),
            "max_episode_steps": NEVER,
            **({"render_mode": render_mode} if render_mode else {}),
        }
        self._make = envpool.make_gymnasium
        spec = envpool.make_spec(env.id, **env.kwargs)
        # A rule on sizes. Frames tell costly envs from those that are cheaper than the call.
        frames = env.num_envs * getattr(spec.config, "frame_skip", 1)
        edges = [0, env.num_envs // 2, env.num_envs] if frames >= SPLIT else [0, env.num_envs]
        self.groups = tuple(slice(*pair) for pair in itertools.pairwise(edges))
        """Rows of the envs that step apart from the others."""
        self._pools = self._made(np.zeros(env.num_envs, np.int64))
        self._waiting: dict[int, _CutOff | None] = {}
        self._limit = env.max_episode_steps or spec.config.max_episode_steps
        self._cut = np.zeros(env.num_envs, bool)  # by the time limit, unknown to EnvPool
        self._spaces = self._pools[0].single_observation_space, self._pools[0].single_action_space
        for ours, theirs in zip(spaces or (), self._spaces, strict=False):
            if type(ours) is not type(theirs) or ours.shape != theirs.shape:
                raise UsageError(
                    f"EnvPool's {env.id} has {theirs} where Gymnasium's has {ours}: use another "
                    "backend"
                )
        self.single_observation_space, self.single_action_space = spaces or self._spaces

    def _made(self, seeds: np.ndarray) -> list[Any]:
        """A pool for each group. Where an env stands changes none of its numbers."""
        with explained(f"EnvPool cannot make {self._id}"), warnings.catch_warnings():
            # It rounds the bounds of its spaces, once they are looked at, and warns of that.
            warnings.simplefilter("ignore")
            pools = []
            for rows in self.groups:
                own = seeds[rows].tolist()
                pools.append(self._make(self._id, seed=own, num_envs=len(own), **self._arguments))
                _ = pools[-1].single_observation_space, pools[-1].single_action_space
                _ = pools[-1].observation_space
        self._quick = [_BarePool.of(pool) or pool for pool in pools]
        return pools

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """All envs at the beginning of an episode; with a seed, in a new pool made from it."""
        if isinstance(seed, int):
            self.close_extras()
            # One for each: from a single one, env i of seed s would be env i + 1 of seed s - 1.
            drawn = np.random.SeedSequence(seed).generate_state(self.num_envs)
            self._pools = self._made(drawn.astype(np.int64) - 2**31)
        self._cut[:] = False
        return _joined([pool.reset()[0] for pool in self._pools]), {}

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of every env. Raises `ValueError` for what EnvPool would not notice."""
        actions = self._checked(actions, self.num_envs)
        for group, rows in enumerate(self.groups):
            self._send(actions[rows], group)
        answers = [self.receive(group)[:4] for group in range(len(self.groups))]
        obs, reward, terminated, truncated = map(_joined, zip(*answers, strict=True))
        return obs, reward, terminated, truncated, {}

    def send(self, actions: np.ndarray, group: int) -> None:
        """Begin a step of a group. Raises `ValueError` for what EnvPool would not notice."""
        rows = self.groups[group]
        self._send(self._checked(actions, rows.stop - rows.start), group)

    def _send(self, actions: np.ndarray, group: int) -> None:
        pool, cut = self._pools[group], self._cut[self.groups[group]]
        if not cut.any():
            self._waiting[group] = None
            self._quick[group].send(actions)
            return
        # The pool resets the envs that terminated; those that we cut off, we reset.
        on, off = (np.flatnonzero(x).astype(np.int32) for x in (~cut, cut))
        self._waiting[group] = _CutOff(on, off, pool.reset(env_id=off)[0])  # their rows only
        if len(on):
            pool.send(actions[on], on)

    def receive(self, group: int) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """The answer of a group to the actions that it was sent."""
        pool, rows, cut_off = self._pools[group], self.groups[group], self._waiting.pop(group)
        if cut_off is None:
            obs, reward, terminated, _, info = self._quick[group].recv()
            elapsed = info["elapsed_step"]
        else:
            on, off, obs = cut_off
            count = rows.stop - rows.start
            reward, terminated = np.zeros(count), np.zeros(count, bool)
            elapsed = np.zeros(count, np.int64)
            if len(on):
                rest, reward[on], terminated[on], _, info = pool.recv()
                order = np.argsort(np.concatenate([off, on]))
                obs = map_leaves(lambda *parts: np.concatenate(parts)[order], obs, rest)
                elapsed[on] = info["elapsed_step"]
        truncated = elapsed >= self._limit
        self._cut[rows] = truncated & ~terminated
        return obs, reward, terminated, truncated, {}

    def _checked(self, actions: np.ndarray, count: int) -> np.ndarray:
        space = self._spaces[1]
        expected = (count, *(space.shape or ()))
        if actions.shape != expected:
            raise ValueError(f"the actions have shape {actions.shape}: it must be {expected}")
        if isinstance(space, gym.spaces.Discrete):
            legal = (actions >= space.start) & (actions < space.start + space.n)
            legal &= actions == np.floor(actions)
        else:
            legal = np.isfinite(actions)
        if not legal.all():
            raise ValueError(f"an action is not one of {space}: {actions[~legal][0]}")
        return np.ascontiguousarray(actions, space.dtype)

    def close_extras(self, **kwargs: Any) -> None:
        for pool in self._pools:
            pool.close()
        self._pools, self._quick = [], []  # only now do their threads end

    def render(self) -> Any:
        """The screen of the first env, if `render_mode` is an argument."""
        return self._pools[0].render()[0]


def is_pooled(name: str) -> bool:
    """EnvPool is installed, and has an env of this name."""
    try:
        import envpool
    except ImportError:
        return False
    return name in envpool.list_all_envs()


def _joined(batches: Sequence[Any]) -> Any:
    """Batches, which may be nested, one after the other."""
    if len(batches) == 1:
        return batches[0]
    return map_leaves(lambda *rows: np.concatenate(rows), *batches)


def _only(batch: Any) -> Any:
    """The one row of a batch, which may be nested."""
    return map_leaves(lambda rows: rows[0], batch)


class EnvPoolEnv(gym.Env[Any, Any]):
    """One env of EnvPool as a single env, for what only EnvPool has."""

    def __init__(self, env: EnvConfig, render_mode: str | None = None) -> None:
        one = dataclasses.replace(env, num_envs=1)
        if render_mode is not None:
            # MuJoCo within EnvPool ends the process unless these are in it already.
            for library in filter(None, map(ctypes.util.find_library, ("OpenGL", "EGL"))):
                ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        self._pool = EnvPoolEnvs(one, None, 1, render_mode)
        self.observation_space = self._pool.single_observation_space
        self.action_space = self._pool.single_action_space
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["rgb_array", "human"]}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return _only(self._pool.reset(seed=seed)[0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self._pool.step(np.asarray(action)[None])
        return _only(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Any:
        return self._pool.render()

    def close(self) -> None:
        self._pool.close()
