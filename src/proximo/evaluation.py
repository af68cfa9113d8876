"""Seeded evaluation episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from proximo.envs.base import Envs, SyncEnvs, TensorEnv
from proximo.envs.config import EnvConfig
from proximo.envs.make import in_step, time_limit
from proximo.envs.registries import ARCADE
from proximo.envs.tensors import as_rows
from proximo.envs.watch import Sampler, on_host
from proximo.errors import UsageError, explained
from proximo.nets.actor_critic import ActorCritic
from proximo.spaces import MASK, Actions, Observations
from proximo.types import FLAGS, EnvState, Episode, RolloutBuffer

Act = Callable[[np.ndarray], Any]
"""The env's action, as a row, for the row of an observation."""
EPISODE_STEPS = 10_000
"""Steps after which an episode of an evaluation is cut off, unless a setting says otherwise."""
GAME_STEPS = 108_000
"""This limit for Atari and EnvPool, whose envs have limits themselves: that of Atari, in frames."""
WIDEST = 256
"""Episodes that are played at once, at most."""


def step_limit(env: EnvConfig, given: int | None) -> int:
    """Steps after which an evaluation cuts off an episode: 10,000, or a longer limit of the env."""
    if given is not None:
        return given
    if env.backend == "envpool" or env.id.startswith(ARCADE):
        return GAME_STEPS
    return max(EPISODE_STEPS, env.max_episode_steps or time_limit(env) or 0)


def unwatched(episode: int) -> None:
    """Do nothing in any state of an evaluation. episode: its number."""


@dataclass(frozen=True)
class Scores:
    """Episodes of an evaluation, in the env's own units."""

    episodes: tuple[Episode, ...]
    seed: int
    deterministic: bool
    limit: int  # steps after which an episode was cut off: what it had earned by then counts
    cut: int  # episodes that were cut off there

    @property
    def returns(self) -> np.ndarray:
        return np.array([episode.ret for episode in self.episodes])

    @property
    def mean(self) -> float:
        """Mean return, never beyond all returns: else a goal that all reach could be missed."""
        returns = self.returns
        return float(returns.mean().clip(returns.min(), returns.max()))

    def summary(self) -> dict[str, float | int | bool]:
        """The scores as `proximo eval --json` prints them; std is that of the population."""
        returns = self.returns
        return {
            "episodes": len(self.episodes),
            "return_mean": self.mean,
            "return_std": float(returns.std()),
            "return_min": float(returns.min()),
            "return_max": float(returns.max()),
            "length_mean": float(np.mean([episode.length for episode in self.episodes])),
            "seed": self.seed,
            "deterministic": self.deterministic,
            **({"episodes_cut": self.cut, "max_episode_steps": self.limit} if self.cut else {}),
        }

    def said(self, setting: str) -> str:
        """Note on episodes that were cut off, or nothing. setting: the flag of the limit."""
        if not self.cut:
            return ""
        return (
            f"{self.cut} of {len(self.episodes)} episodes did not end within {self.limit:,} steps "
            f"and were cut off there, with what they had earned ({setting}; a time limit of the "
            "env is --env.max-episode-steps)"
        )


def evaluate_policy(policy: ActorCritic | Act, env: gym.Env, **how: Any) -> Scores:
    """`EpisodePlayer.play` in this env, or `BatchPlayer.play` where many are stepped at once."""
    if isinstance(env, TensorEnv) and isinstance(policy, ActorCritic):
        return BatchPlayer(env).play(policy, **how)
    return EpisodePlayer(in_step([env])).play(policy, **how)


def evaluate_random(env: gym.Env, **how: Any) -> Scores:
    """`EpisodePlayer.play` of actions drawn at random, of legal ones where the env has masks."""
    observations, sampler = Observations(env.observation_space), Sampler(Actions(env.action_space))

    def act(row: np.ndarray) -> Any:
        return sampler.draw(observations.legal(row), "a random policy")

    return evaluate_policy(act, env, **how)


class EpisodePlayer:
    """Seeded episodes in one env: the result of each depends on its seed and on nothing else."""

    def __init__(self, envs: Envs) -> None:
        """envs: one env, as `Envs.apart` gives it: its episode k starts with seed k."""
        self.envs = envs
        self._state: EnvState | None = None
        self._length = 0  # of the running episode
        seen, acts, rows = envs.observations, envs.actions, (1, envs.count)
        self.buffer = RolloutBuffer(
            obs=np.empty((2, envs.count, *seen.shape), seen.dtype),
            env_action=np.zeros((*rows, *(acts.shape or ())), acts.dtype),
            reward=np.empty(rows),
            final_obs=[],
            **{name: np.empty(rows, bool) for name in FLAGS},
        )
        """The last step, for who watches: its observations, actions, rewards and ends."""

    def play(
        self,
        policy: ActorCritic | Act,
        *,
        episodes: int,
        seed: int,
        deterministic: bool = True,
        limit: int = EPISODE_STEPS,
        watch: Callable[[int], None] = unwatched,
    ) -> Scores:
        """Play episodes from `seed`, seed + 1, ..., each to its end or to `limit` steps.

        Each agent's part of an episode counts as one; the noise of an episode has its seed. An
        episode in which a worker's env fails is replaced by one more. watch: called in every state,
        with the number of episodes so far. Raises `UsageError` if the env fails.
        """
        played, cut, count = list[Episode](), 0, 0
        with explained(lambda: f"the env failed after {self._length} steps"):
            self._begin(seed)
            while count < episodes:
                parts, there = self._episode(
                    self._acts(policy, deterministic), limit, partial(watch, count)
                )
                played += parts or []
                cut, count = cut + there, count + (parts is not None)
                if count < episodes and (there or not self.envs.autoreset):
                    self._begin(self._seed + 1)
        return Scores(tuple(played), seed, deterministic, limit, cut)

    @property
    def _seed(self) -> int:
        """Seed of the running episode."""
        assert self._state
        return int(self._state.episode[0])

    def _begin(self, seed: int) -> None:
        """Start the episode of this seed, whether or not the last one has ended."""
        self._length = 0
        if self._state is None:
            self._state = self.envs.start(seed)
        else:
            self._state.episode[:], self._state.length[:] = seed - 1, 1
            self.envs.fresh(self._state)
        self.buffer.obs[0] = self._state.obs

    def _acts(self, policy: ActorCritic | Act, deterministic: bool) -> list[Act]:
        """The policy of each agent in this episode."""
        if not isinstance(policy, ActorCritic):
            return [policy] * self.envs.count
        noise = None if deterministic else torch.Generator().manual_seed(self._seed)
        policies = [EpisodePolicy(policy) for _ in range(self.envs.count)]
        return [partial(one.act, generator=noise) for one in policies]

    def _episode(
        self, acts: list[Act], limit: int, watch: Callable[[], None]
    ) -> tuple[list[Episode] | None, int]:
        """Every agent's episode (None: a worker's env failed), and how many the limit cut off."""
        envs, state, buffer = self.envs, self._state, self.buffer
        assert state
        ret, length = np.zeros(envs.count), np.zeros(envs.count, np.int64)
        buffer.done[:], buffer.valid[:] = False, True
        acting, failed = envs.acting(buffer, 0), False
        watch()
        for self._length in range(limit):
            if not acting.any():
                break
            for i in np.flatnonzero(acting):  # an agent that has left shows nothing
                buffer.env_action[0, i] = acts[i](buffer.obs[0, i])
            buffer.done[:], buffer.valid[:] = False, True
            envs.step(state, buffer, 0)
            watch()
            envs.remember(state, buffer)
            buffer.final_obs.clear()
            buffer.obs[0] = buffer.obs[1]
            ret += np.where(buffer.valid[0], buffer.reward[0], 0)
            length += buffer.valid[0]
            acting = envs.acting(buffer, 0)
            failed = not (acting.any() or buffer.done.any())
        pairs = zip(ret.tolist(), length.tolist(), strict=True)
        parts = [Episode(r, n) for r, n in pairs if n]
        return None if failed else parts, int((acting & (length > 0)).sum())


class BatchPlayer:
    """The episodes of `EpisodePlayer` in an env of a suite: many at once, as tensors."""

    def __init__(self, env: TensorEnv) -> None:
        self._env = env
        self._envs: VectorEnv[Any, Any, Any] | None = None  # as many as are played at once
        self._observations = Observations(env.observation_space)
        self._actions = Actions(env.action_space)
        self._length = 0  # of the running episodes

    def play(
        self,
        policy: ActorCritic,
        *,
        episodes: int,
        seed: int,
        deterministic: bool = True,
        limit: int = EPISODE_STEPS,
        watch: Callable[[int], None] = unwatched,
    ) -> Scores:
        """`EpisodePlayer.play`. watch: called with the number of episodes that have ended."""
        played, cut, count = list[Episode](), 0, min(episodes, WIDEST)
        with explained(lambda: f"the env failed after {self._length} steps"):
            if self._envs is None or self._envs.num_envs != count:
                self._envs = self._env.many(count)
            for begun in range(0, episodes, count):
                seeds = [*range(seed + begun, seed + begun + count)]
                noise = None if deterministic else [torch.Generator().manual_seed(s) for s in seeds]
                ret, length, there = self._episodes(
                    *(self._envs, EpisodePolicy(policy), seeds, noise),
                    *(min(count, episodes - begun), limit, lambda n, begun=begun: watch(begun + n)),
                )
                played += map(Episode, ret, length)
                cut += there
        return Scores(tuple(played), seed, deterministic, limit, cut)

    @torch.no_grad()
    def _episodes(
        self,
        envs: VectorEnv[Any, Any, Any],
        policy: EpisodePolicy,
        seeds: Any,  # of each one
        noise: list[torch.Generator] | None,
        wanted: int,
        limit: int,
        watch: Callable[[int], None],
    ) -> tuple[list[float], list[int], int]:
        """Returns and lengths of the first `wanted` episodes; how many the limit cut off."""
        rows = as_rows(self._observations, envs.reset(seed=seeds)[0], envs.num_envs)
        running = torch.arange(envs.num_envs, device=rows.device) < wanted
        ret, length = torch.zeros_like(running, dtype=torch.float64), running.long() * 0
        watch(0)
        for self._length in range(limit):
            if not running.any():
                break
            policy.check_masks(rows[running])
            action = policy.env_actions(rows, noise).to(rows.device)
            seen, reward, terminated, truncated, _ = envs.step(self._actions.nested(action))
            ret += torch.where(running, reward, 0)
            length += running
            running = running & ~(terminated | truncated)
            rows = as_rows(self._observations, seen, envs.num_envs)
            watch(wanted - int(running.sum()))
        return ret[:wanted].tolist(), length[:wanted].tolist(), int(running.sum())


def player(envs: Envs) -> EpisodePlayer | BatchPlayer:
    """What plays in such envs as `Envs.apart` gives: many episodes at once where it can."""
    single = envs.single if isinstance(envs, SyncEnvs) else None
    return BatchPlayer(single) if isinstance(single, TensorEnv) else EpisodePlayer(envs)


class EpisodePolicy:
    """A policy in episodes of one env or of N, with the recurrent state of each."""

    def __init__(self, policy: ActorCritic) -> None:
        self._policy = policy
        self.recurrent_state = torch.empty(0, policy.state_size)  # [N, C], once it has acted
        self._noise, self._sampled, self.steps = torch.empty(0), 0, 0

    def act(self, seen: np.ndarray, generator: torch.Generator | None = None) -> Any:
        """Act on one row; returns a row. Raises `UsageError` for a mask that allows nothing."""
        self.check_masks(seen[None])
        return self.act_batch(seen[None], generator)[0]

    def check_masks(self, rows: Any) -> None:
        """Raises `UsageError` where the mask of a row allows no action. rows: [N, *obs]."""
        if self._policy.masked and self._policy.stuck(on_host(rows)).any():
            raise UsageError(
                f"the {MASK} of an env allows no action at step {self.steps} of an episode: one "
                "must be legal until it ends"
            )

    def act_batch(self, rows: np.ndarray, generator: torch.Generator | None) -> Any:
        """The most likely actions for rows of observations, [N, *obs], or sampled ones, as rows.

        Raises `ValueError` for another N than before, if the policy is recurrent.
        """
        return self._policy.head.to_env(self._sample(rows, generator))

    def env_actions(self, rows: Tensor, noise: list[torch.Generator] | None) -> Tensor:
        """`act_batch` for tensors. noise: a generator for each row."""
        return self._policy.head.env_action(self._sample(rows, noise))

    @torch.no_grad()
    def _sample(
        self, rows: Any, generators: torch.Generator | list[torch.Generator] | None
    ) -> Tensor:
        policy, count, before = self._policy, len(rows), len(self.recurrent_state)
        if count != before:
            if self.steps and policy.state_size:
                raise ValueError(
                    f"the batch has {count} observations, but the one before had {before}, and the "
                    "policy remembers each row: call reset() before another number of rows"
                )
            self.recurrent_state = torch.zeros(count, policy.state_size, device=policy.device)
        self.steps += 1
        given = None
        if generators is not None:  # noise drawn anew after `resample_every` steps
            head, steps = policy.head, policy.head.resample_every
            step = self._sampled % steps
            if step == 0 or self._noise.shape[1] != count:
                if isinstance(generators, torch.Generator):
                    drawn = head.noise(generators, (steps, count))
                else:
                    drawn = torch.cat([head.noise(one, (steps, 1)) for one in generators], 1)
                self._noise = drawn.to(policy.device, policy.dtype)
            self._sampled, given = self._sampled + 1, self._noise[step]
        action, _, following = policy.act(policy.as_rows(rows), given, self.recurrent_state)
        if following is not None:
            self.recurrent_state = following
        return action
