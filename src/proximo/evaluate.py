"""Seeded evaluation episodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from proximo.envs.agents import Agents
from proximo.envs.config import EnvConfig
from proximo.envs.known import ARCADE
from proximo.envs.make import RESET, Envs, misanswer, time_limit
from proximo.errors import UsageError, explain, faults
from proximo.nets.actor_critic import ActorCritic
from proximo.spaces import MASK, Observations
from proximo.types import Episode, RolloutBuffer

Choose = Callable[[Any, torch.Generator | None], Any]
"""The env's action for one observation: the most likely one, or drawn by the generator."""
Act = Callable[[np.ndarray], Any]
"""The same as rows: the most likely action."""
Rewards = dict[Any, float]
"""By agent; the one of a single env is None."""
EPISODE_STEPS = 10_000
"""Steps after which an episode of an evaluation is cut off, unless a setting says otherwise."""
GAME_STEPS = 108_000
"""The same for Atari and EnvPool, which have limits of their own: that of Atari, in frames."""


def step_limit(env: EnvConfig, given: int | None) -> int:
    """Steps after which an evaluation cuts off an episode: `given`, or a default.

    That is 10,000, or the time limit of the env if it is longer. It depends on the configuration
    alone, so that the same policy has the same score wherever it is evaluated.
    """
    if given is not None:
        return given
    if env.backend == "envpool" or env.id.startswith(ARCADE):
        return GAME_STEPS
    return max(EPISODE_STEPS, env.max_episode_steps or time_limit(env) or 0)


def unwatched(episode: int) -> None:
    """Told of every state of an evaluation, with the number of its episode."""


@dataclass(frozen=True)
class Scores:
    """Episodes of an evaluation, in the env's own units."""

    episodes: tuple[Episode, ...]
    seed: int
    deterministic: bool
    limit: int
    """Steps after which an episode was cut off: what it had earned by then counts."""
    cut: int
    """Episodes that were cut off there."""

    @property
    def returns(self) -> np.ndarray:
        return np.array([episode.ret for episode in self.episodes])

    @property
    def mean(self) -> float:
        """Mean return, never beyond all returns: else a goal that all reach could be missed."""
        returns = self.returns
        return float(returns.mean().clip(returns.min(), returns.max()))

    def summary(self) -> dict[str, float | int | bool]:
        """What `proximo eval --json` prints; deviations are of the population.

        `episodes_cut` and `max_episode_steps` stand there only where episodes were cut off.
        """
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
        """What the reader of the scores should know of episodes that were cut off, or nothing.

        setting: the name of the limit, as one gives it.
        """
        if not self.cut:
            return ""
        return (
            f"{self.cut} of {len(self.episodes)} episodes did not end within {self.limit:,} steps "
            f"and were cut off there, with what they had earned ({setting}; a time limit of the "
            "env is --env.max-episode-steps)"
        )


def evaluate(
    policy: ActorCritic | Choose,
    env: gym.Env,
    *,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    limit: int = EPISODE_STEPS,
    watch: Callable[[int], None] = unwatched,
) -> Scores:
    """Play episodes 0..episodes-1, number i from seed + i, each to its end or to `limit` steps.

    One env, one row per forward: an episode's result depends on its seed and on nothing else.
    In an env of several agents each one's part of an episode counts as one, as in training.
    The policy and its moments are not changed. watch: called in every state, with i. Raises
    `UsageError` if the env fails.
    """
    played, cut = [], 0
    for i in range(episodes):
        watched = partial(watch, i)
        parts, cut_off = play_episode(policy, env, seed + i, deterministic, limit, watched)
        played += parts
        cut += cut_off
    return Scores(tuple(played), seed, deterministic, limit, cut)


def play_episode(
    policy: ActorCritic | Choose,
    env: gym.Env,
    seed: int,
    deterministic: bool,
    limit: int,
    watch: Callable[[], None] = lambda: None,
) -> tuple[list[Episode], int]:
    """One episode from this seed, with noise from it as well; `watch` is called in every state.

    It is one `Episode`, or one for every agent of the env; and how many of them had not ended
    after `limit` steps.
    """
    noise = None if deterministic else torch.Generator().manual_seed(seed)
    play = _play_agents if isinstance(env, Agents) else _play
    parts: dict[Any, Episode] = {}
    there: Collection[Any] = ()
    try:
        game = play(policy, env, seed, noise, watch)  # type: ignore[arg-type]
        for rewards, there in itertools.islice(game, limit):  # noqa: B007 read behind it
            for agent, reward in rewards.items():
                ret, length = parts.get(agent, (0.0, 0))
                parts[agent] = Episode(ret + reward, length + 1)
    except UsageError:
        raise
    except faults() as error:
        length = max((part.length for part in parts.values()), default=0)
        raise UsageError(f"the env failed after {length} steps: {explain(error)}") from error
    return list(parts.values()), sum(agent in parts for agent in there)


def _play(
    policy: ActorCritic | Choose,
    env: gym.Env,
    seed: int,
    noise: torch.Generator | None,
    watch: Callable[[], None],
) -> Iterator[tuple[Rewards, Collection[Any]]]:
    """The rewards of every step of an episode, and who goes on."""
    act = Player(policy) if isinstance(policy, ActorCritic) else policy
    begun = env.reset(seed=seed)
    if not isinstance(begun, tuple) or len(begun) != 2:
        raise UsageError(RESET)
    obs = begun[0]
    watch()
    over = False
    while not over:
        answer = env.step(act(obs, noise))
        if not isinstance(answer, tuple) or len(answer) != 5:
            raise UsageError(misanswer(answer, Observations(env.observation_space)))
        obs, reward, terminated, truncated, _ = answer
        watch()
        over = terminated or truncated
        yield {None: float(reward)}, () if over else (None,)


def _play_agents(
    policy: ActorCritic | Choose,
    env: Agents,
    seed: int,
    noise: torch.Generator | None,
    watch: Callable[[], None],
) -> Iterator[tuple[Rewards, Collection[Any]]]:
    """The same of several agents, each of which remembers for itself."""
    act = {a: Player(policy) if isinstance(policy, ActorCritic) else policy for a in env.agents}
    seen, _ = env.reset(seed=seed)
    watch()
    while env.present:
        actions = {agent: act[agent](seen[agent], noise) for agent in env.present}
        seen, rewards, *_ = env.step(actions)
        watch()
        yield {agent: float(rewards[agent]) for agent in actions}, env.present


class Player:
    """A policy in one episode of one env: what it remembers is kept from step to step."""

    def __init__(self, policy: ActorCritic) -> None:
        self._policy = policy
        self._carry = torch.zeros(1, policy.state_size, device=policy.device)
        self._noise, self._sampled, self._acted = torch.empty(0), 0, 0

    def __call__(self, obs: Any, generator: torch.Generator | None) -> Any:
        """The env's action: the most likely one, or sampled by `generator`."""
        row = self.act(self._policy.observations.row(obs), generator)
        return self._policy.actions.given(row)

    @torch.no_grad()
    def act(self, seen: np.ndarray, generator: torch.Generator | None = None) -> Any:
        """The same of a row, as a row. Raises `UsageError` for a mask that allows nothing."""
        if self._policy.stuck(seen[None]).any():
            raise UsageError(
                f"the {MASK} of an env allows no action at step {self._acted} of an episode: one "
                "must be legal until it ends"
            )
        self._acted += 1
        noise = None if generator is None else self._draw(generator)
        policy = self._policy
        kind = None if seen.dtype == np.uint8 else policy.dtype
        row = torch.as_tensor(seen, dtype=kind, device=policy.device)[None]
        action, _, moved = policy.act(row, noise, self._carry)
        if moved is not None:
            self._carry.copy_(moved)
        return policy.head.to_env(action)[0]

    def _draw(self, generator: torch.Generator) -> torch.Tensor:
        """The noise of one step, drawn for as many as some of it is held."""
        head, policy = self._policy.head, self._policy
        step = self._sampled % head.hold
        if step == 0:
            self._noise = head.noise(generator, (head.hold, 1)).to(policy.device, policy.dtype)
        self._sampled += 1
        return self._noise[step]


class Supervised:
    """An env in a process that is watched over, to play in as `evaluate` does, to the bit.

    An episode in which it fails is left out, and one more is played behind the others.
    """

    def __init__(self, envs: Envs) -> None:
        """envs: one, whose seed is `NUMBERED`. It is closed if its first reset fails."""
        self._envs = envs
        try:
            self._state = envs.start()
        except BaseException:
            envs.close()
            raise
        seen, acts, rows = envs.observations, envs.actions, (1, envs.count)
        nothing = np.empty(0)
        self._steps = RolloutBuffer(
            obs=np.empty((2, envs.count, *seen.shape), seen.dtype),
            action=nothing,
            parameters=nothing,
            env_action=np.zeros((*rows, *(acts.shape or ())), acts.dtype),
            reward=np.empty(rows),
            terminated=np.empty(rows, bool),
            done=np.empty(rows, bool),
            valid=np.empty(rows, bool),
            final_obs=[],
        )

    def play(
        self,
        begin: Callable[[], Act],
        *,
        episodes: int,
        seed: int,
        limit: int = EPISODE_STEPS,
        watch: Callable[[int], None] = unwatched,
    ) -> Scores:
        """Episodes from these seeds; `begin` gives what acts for an agent in one of them.

        watch: called at every step, with the number of episodes before this one.

        Raises `UsageError` if the env has failed once too often.
        """
        self._state.episode[:] = seed - 1
        self._begin()
        played, cut, done = list[Episode](), 0, 0
        while done < episodes:
            acts = [begin() for _ in range(self._envs.count)]
            parts, there = self._play(acts, limit, partial(watch, done))
            played += parts
            cut += there
            done += bool(parts)
            if there:
                self._begin()
        return Scores(tuple(played), seed, True, limit, cut)

    def _begin(self) -> None:
        """The next episode, where the last one has not ended by itself."""
        self._state.length[:] = 1
        self._envs.fresh(self._state)
        self._steps.obs[0] = self._state.obs

    def _play(
        self, acts: list[Act], limit: int, watch: Callable[[], None]
    ) -> tuple[list[Episode], int]:
        """One episode, of every agent, and how many of them had not ended at the limit.

        Nothing if the env fails in it.
        """
        envs, state, buffer = self._envs, self._state, self._steps
        ret, length = np.zeros(envs.count), np.zeros(envs.count, np.int64)
        over = np.zeros(envs.count, bool)
        for _ in range(limit):
            for i in np.flatnonzero(~over):  # an agent that has left shows nothing
                buffer.env_action[0, i] = acts[i](buffer.obs[0, i])
            buffer.done[:], buffer.valid[:] = False, True
            envs.step(state, buffer, 0)
            watch()
            envs.remember(state, buffer)
            buffer.final_obs.clear()
            buffer.obs[0] = buffer.obs[1]
            ret += np.where(buffer.valid[0], buffer.reward[0], 0)
            length += buffer.valid[0]
            over = (buffer.done | ~buffer.valid)[0]
            if over.all():
                break
        there = int((~over).sum())
        if not there and not buffer.done.any():
            return [], 0
        pairs = zip(ret.tolist(), length.tolist(), strict=True)
        return [Episode(r, n) for r, n in pairs if n], there

    def close(self) -> None:
        """Close the env's process."""
        self._envs.close()
