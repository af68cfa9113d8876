"""N envs in step: the contract, and single envs that are stepped in turn."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from proximo.envs.check import begin_at, check_env, check_made, limit_of, masks_beside
from proximo.envs.layers import check_spaces, close_all
from proximo.envs.watch import Checked, misanswer
from proximo.errors import UsageError
from proximo.spaces import Actions, Observations, Space, misfit, own_copy
from proximo.types import EnvState, NativeCall, RolloutBuffer

if TYPE_CHECKING:
    import torch

Maker = Callable[..., gym.Env[Any, Any]]
"""Makes one env."""
REPLAYED = 100_000
"""Longest episode, in steps, of which all actions are kept for a replay."""
NUMBERED = -1
"""A seed with which episode k starts with seed k."""


def episode_seed(seed: int, env: int, episode: int) -> int:
    """Seed in [0, 2^32) of an episode of an env: a hash, or with `NUMBERED` the episode itself."""
    if seed == NUMBERED:
        return episode
    digest = hashlib.blake2b(f"{seed}/{env}/{episode}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def first_step(seed: int, env: int, limit: int | None) -> int:
    """Step of its time limit at which a staggered env begins, in [0, limit).

    Raises `UsageError` where there is no limit that we count.
    """
    if limit is None:
        raise UsageError(
            "env.stagger is on, but no time limit is known that these envs could begin within: "
            "set env.max_episode_steps, use --env.backend sync, or leave it out"
        )
    digest = hashlib.blake2b(f"{seed}/{env}/stagger".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % limit


def by_step(state: EnvState, rows: slice) -> list[np.ndarray]:
    """The actions in the rows of an env since its episode began: [n][A, ...]."""
    logs = [np.concatenate(log) for log in state.actions[rows] if log]
    return list(np.stack(logs, 1)) if logs else []


class TensorEnv(gym.Env[Any, Any], ABC):
    """One env of a suite that holds tensors, of which many can be stepped at once."""

    @abstractmethod
    def many(self, count: int) -> VectorEnv[Any, Any, Any]:
        """N of it, whose `reset` takes a list with the seed of each one's episode."""


class Envs(ABC):
    """N envs in step. They alone change their `EnvState`, and the rollout's rows."""

    replayable: bool  # seeds and actions bring an env back, so that a run resumes exactly
    autoreset: bool = True  # `step` resets an env whose episode has ended; False: only `fresh` does
    device: torch.device | None = None  # of their tensors; None: they give and take NumPy arrays
    agents: int = 1  # of one env: rows that begin together
    names: tuple[str, ...] = ()  # of these agents, in the order of their rows
    stagger: bool = False  # first episodes begin within their time limit, and are not scored
    groups: tuple[slice, ...] = ()  # rows that `send` and `receive` step apart from the others
    single: gym.Env[Any, Any]  # the first env itself, where single ones are stepped in this process
    make_apart: Callable[[], Envs] | None = None  # makes the env that `apart` returns
    _apart: Envs | None = None
    report: Callable[[str, str], None] = staticmethod(lambda text, trace: None)
    """Called for every fault that is mended, with a text and a traceback."""

    def __init__(self, count: int, obs_space: Space, action_space: Space) -> None:
        self.count = count
        # Copies: the envs may move the bounds of theirs.
        self.obs_space, self.action_space = own_copy(obs_space), own_copy(action_space)
        self.observations = Observations(self.obs_space)
        self.actions = Actions(self.action_space)

    def start(self, episode: int = 0) -> EnvState:
        """Reset all envs, to the beginning of the episode of this number."""
        state = EnvState(
            obs=np.empty(0),
            episode=np.full(self.count, episode - 1, np.int64),
            actions=[[] for _ in range(self.count)],
            resetting=np.zeros(self.count, bool),
            ret=np.zeros(self.count),
            length=np.ones(self.count, np.int64),
        )
        self.fresh(state)
        return state

    def fresh(self, state: EnvState) -> None:
        """Begin a new episode in every env that is not at the beginning of one."""
        begun = ((state.length > 0) | state.resetting).reshape(-1, self.agents).any(-1)
        if begun.any():
            rows = np.repeat(begun, self.agents)
            state.begin(rows)
            state.obs = self._begin(state, rows)

    @abstractmethod
    def _begin(self, state: EnvState, begun: np.ndarray) -> Any:
        """Reset the envs of these rows, [N] bool. Returns the observations of all rows."""

    def _rows(self, env: int) -> slice:
        """Rows of the agents of an env."""
        return slice(env * self.agents, (env + 1) * self.agents)

    @abstractmethod
    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        """Step every env by row t's actions; fill in row t and obs[t + 1], but not `state.obs`."""

    def send(self, buffer: RolloutBuffer, t: int, group: int) -> None:
        """Let the envs of a group take row t's actions, while the caller does something else."""
        raise NotImplementedError

    def receive(self, state: EnvState, buffer: RolloutBuffer, t: int, group: int) -> None:
        """Wait for a group and fill in what `step` does; `final_obs` is in order of arrival."""
        raise NotImplementedError

    def with_actor(
        self, act: NativeCall | None, state: EnvState, buffer: RolloutBuffer
    ) -> Callable[[int, int], None] | None:
        """`run(begin, end)`, which acts and steps by itself; None: step by step, from outside."""
        return None

    def remember(self, state: EnvState, buffer: Any) -> None:
        """Keep the actions since each env began, for `restore` to replay."""
        if not self.replayable:
            return
        begin, too_long = self._begins(buffer), state.length > REPLAYED
        for i, log in enumerate(state.actions):
            if begin[i] or too_long[i]:
                log.clear()
            if begin[i] < len(buffer) and not too_long[i]:
                log.append(buffer.env_action[begin[i] :, i].copy())
                if len(log) > 64:  # an episode over many rollouts
                    log[:] = [np.concatenate(log)]

    @staticmethod
    def remembered(state: EnvState) -> np.ndarray:
        """[N] bool: all actions since the beginning of the episode are kept."""
        logged = np.array([sum(map(len, log)) for log in state.actions])
        return logged >= state.length

    def _begins(self, buffer: RolloutBuffer) -> np.ndarray:
        """[N] steps before the running episode, where all agents of the last one had ended."""
        ended = (buffer.done | ~buffer.valid).reshape(len(buffer), -1, self.agents).all(-1)
        behind = np.arange(1, len(buffer) + 1)[:, None]
        return np.repeat((ended * behind).max(0), self.agents)

    def restore(self, state: EnvState) -> bool:
        """Bring all envs back to this state. If that fails, begin new episodes; return False."""
        if self.replayable and self.remembered(state).all() and self._bring_back(state):
            return True
        state.length[:] = 1
        self.fresh(state)
        return False

    def _bring_back(self, state: EnvState) -> bool:
        """Replay all actions; returns whether the observations are those of the state."""
        return False

    def check(self) -> Checked | None:
        """Play for a moment, at random, to find mistakes. Raises `UsageError`; None: no check."""
        return None

    def examine(self, **limits: Any) -> Checked:
        """Play these very envs, within seconds, steps and episodes. Raises `UsageError`."""
        return self.check() or Checked([])

    @property
    def resets(self) -> str:
        """What begins the next episode of an env, in words."""
        return "Proximo resets each env, every episode by a seed of its own"

    @property
    def time_limit(self) -> int | None:
        """Steps after which a wrapper of the env truncates an episode, where that is known."""
        return None

    def masks_beside(self) -> str:
        """Place of action masks that are not in the observation: info, method, or empty."""
        return ""

    def apart(self) -> Envs:
        """One env like these, whose episode k starts with seed k. Raises `UsageError` for none."""
        if self._apart is None:
            if self.make_apart is None:
                raise UsageError(
                    "a vector env cannot be evaluated one episode at a time: leave out stop_at and "
                    "eval_every, or pass a callable that makes one env"
                )
            self._apart = self.make_apart()
        return self._apart

    def acting(self, buffer: RolloutBuffer, t: int) -> np.ndarray:
        """[N] bool: the rows whose episode continues after step t."""
        acting: np.ndarray = buffer.valid[t] & ~buffer.done[t]
        return acting

    def close(self) -> list[str]:
        """Close all envs. Returns error texts: no result depends on these failures any more."""
        return [*self._close(), *(self._apart.close() if self._apart else [])]

    @abstractmethod
    def _close(self) -> list[str]: ...


class SyncEnvs(Envs):
    """Single envs, stepped in turn and reset by us, each episode from its own seed.

    first: the number of the first one. autoreset: False leaves an env at the end of its episode
    until `fresh`; such envs are not replayed.
    """

    def __init__(
        self, envs: Sequence[gym.Env], seed: int, first: int = 0, *, autoreset: bool = True
    ) -> None:
        check_spaces(envs[0])
        count = len(envs) * self.agents
        super().__init__(count, envs[0].observation_space, envs[0].action_space)
        self.replayable = self.autoreset = autoreset
        self._envs, self._seed, self._first, self.single = envs, seed, first, envs[0]
        self._steps = [env.step for env in envs]
        self._shape = self.obs_space.shape
        self._plain = self.observations.plain

    def _reset(self, state: EnvState, env: int, obs: np.ndarray) -> None:
        """Reset an env for its episode in the state. obs: [N, *obs] the rows of all envs."""
        episode = int(state.episode[env * self.agents])
        answer = self._envs[env].reset(seed=episode_seed(self._seed, self._first + env, episode))
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise UsageError("an env's reset must return two things, (observation, info)")
        if self.stagger and not episode:
            begin_at(self._envs[env], first_step(self._seed, self._first + env, self.time_limit))
        self._show(env, answer[0], obs)

    def _show(self, env: int, seen: Any, obs: np.ndarray) -> None:
        """Write the observation of an env to its rows."""
        self.observations.write(seen, obs[env])

    def _given(self, env: int, env_action: np.ndarray) -> Any:
        """The action that lies in the rows of an env, [A, ...]."""
        return self.actions.given(env_action[0])

    def _begin(self, state: EnvState, begun: np.ndarray) -> np.ndarray:
        obs = np.empty((self.count, *self.observations.shape), self.observations.dtype)
        if not begun.all():
            obs[:] = state.obs
        for env in np.flatnonzero(begun[:: self.agents]).tolist():
            self._reset(state, env, obs)
        return obs

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        obs, reward = buffer.obs[t + 1], buffer.reward[t]
        plain, shape, env_action = self._plain, self._shape, buffer.env_action[t]
        # One copy for all of them: an env may keep its part of it, and change it.
        given: Any = env_action.copy()
        if not self.actions.simple:
            given = [self.actions.nested(row) for row in env_action]
        # By index: what ends an iteration over an array is an error, whose text costs 3 µs.
        for i, env_step in enumerate(self._steps):
            answer = env_step(given[i])
            try:
                seen, reward[i], over, cut, _ = answer
                if plain:
                    obs[i] = seen
            except (TypeError, ValueError) as error:
                raise UsageError(_misanswer(answer, self.observations)) from error
            if not plain:
                self.observations.write(seen, obs[i])
            elif getattr(seen, "shape", ()) != shape != np.shape(seen):  # it would be broadcast
                raise UsageError(misfit(self.observations.leaves[0], seen, np.shape(seen)))
            if over or cut:
                buffer.terminated[t, i], buffer.done[t, i] = over, True
                buffer.final_obs.append((t, i, obs[i].copy()))
                if self.autoreset:
                    state.episode[i] += 1
                    self._reset(state, i, obs)

    def _bring_back(self, state: EnvState) -> bool:
        obs = np.empty_like(state.obs)
        for i, env in enumerate(self._envs):
            self._reset(state, i, obs)
            for env_action in by_step(state, self._rows(i)):
                self._show(i, env.step(self._given(i, env_action))[0], obs)
        return np.array_equal(obs, state.obs)

    def check(self) -> Checked:
        return check_made(lambda: self.apart().single)

    def examine(self, **limits: Any) -> Checked:
        return check_env(self.single, **limits)

    @property
    def time_limit(self) -> int | None:
        return limit_of(self.single)

    def masks_beside(self) -> str:
        return masks_beside(self.single) if self.observations.masks is None else ""

    def _close(self) -> list[str]:
        return close_all(self._envs)


def _misanswer(answer: Any, observations: Observations) -> str:
    """Error text for the return value of a step."""
    if text := misanswer(answer):
        return f"an env's {text}"
    if np.ndim(answer[1]) or not isinstance(answer[1], int | float | np.number):
        return f"an env's reward must be one number, but it is {answer[1]!r}"
    try:
        observations.row(answer[0])
    except UsageError as error:
        return str(error)
    return f"an env returned an observation that cannot be: {answer[0]!r}"
