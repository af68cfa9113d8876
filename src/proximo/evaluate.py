"""Seeded evaluation episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from proximo.envs.agents import Agents
from proximo.envs.make import Worlds
from proximo.nets.actor_critic import ActorCritic
from proximo.spaces import MASK
from proximo.types import Episode, Steps, UsageError, explain, faults

Choose = Callable[[Any, torch.Generator | None], Any]
"""The world's action for one observation: the most likely one, or drawn by the generator."""
Act = Callable[[np.ndarray], Any]
"""The same as rows: the most likely action."""
ENDLESS = 100_000
"""Steps after which an episode counts as one that never ends."""


@dataclass(frozen=True)
class Scores:
    """Episodes of an evaluation, in the world's own units."""

    episodes: tuple[Episode, ...]
    seed: int
    deterministic: bool

    @property
    def returns(self) -> np.ndarray:
        return np.array([episode.ret for episode in self.episodes])

    def summary(self) -> dict[str, float | int | bool]:
        """What `proximo eval --json` prints; deviations are of the population."""
        returns = self.returns
        return {
            "episodes": len(self.episodes),
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "return_min": float(returns.min()),
            "return_max": float(returns.max()),
            "length_mean": float(np.mean([episode.length for episode in self.episodes])),
            "seed": self.seed,
            "deterministic": self.deterministic,
        }


def evaluate(
    policy: ActorCritic | Choose,
    world: gym.Env,
    *,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    watch: Callable[[int], None] = lambda episode: None,
) -> Scores:
    """Play episodes 0..episodes-1, number i from seed + i.

    One world, one row per forward: an episode's result depends on its seed and on nothing else.
    In a world of several agents each one's part of an episode counts as one, as in training.
    The policy and its moments are not changed. watch: called in every state, with i. Raises
    `UsageError` if the world fails.
    """
    played = [
        one
        for i in range(episodes)
        for one in play_episode(policy, world, seed + i, deterministic, partial(watch, i))
    ]
    return Scores(tuple(played), seed, deterministic)


def play_episode(
    policy: ActorCritic | Choose,
    world: gym.Env,
    seed: int,
    deterministic: bool,
    watch: Callable[[], None] = lambda: None,
) -> tuple[Episode, ...]:
    """One episode from this seed, with noise from it as well; `watch` is called in every state.

    It is one `Episode`, or one for every agent of the world.
    """
    noise = None if deterministic else torch.Generator().manual_seed(seed)
    play = _play_agents if isinstance(world, Agents) else _play
    parts: dict[Any, Episode] = {}
    try:
        for agent, reward in play(policy, world, seed, noise, watch):  # type: ignore[arg-type]
            ret, length = parts.get(agent, (0.0, 0))
            parts[agent] = Episode(ret + reward, length + 1)
            _check_end(length + 1)
    except UsageError:
        raise
    except faults() as error:
        length = max((part.length for part in parts.values()), default=0)
        raise UsageError(f"the world failed after {length} steps: {explain(error)}") from error
    return tuple(parts.values())


def _check_end(length: int) -> None:
    if length >= ENDLESS:
        raise UsageError(
            f"an episode did not end in {ENDLESS:,} steps: give its world a time limit"
        )


def _play(
    policy: ActorCritic | Choose,
    world: gym.Env,
    seed: int,
    noise: torch.Generator | None,
    watch: Callable[[], None],
) -> Iterator[tuple[None, float]]:
    """The rewards of an episode."""
    act = Player(policy) if isinstance(policy, ActorCritic) else policy
    obs, _ = world.reset(seed=seed)
    watch()
    over = False
    while not over:
        answer = world.step(act(obs, noise))
        obs, reward, terminated, truncated, _ = answer
        watch()
        yield None, float(reward)
        over = terminated or truncated


def _play_agents(
    policy: ActorCritic | Choose,
    world: Agents,
    seed: int,
    noise: torch.Generator | None,
    watch: Callable[[], None],
) -> Iterator[tuple[Any, float]]:
    """The same with the agent whose reward it is; each of them remembers for itself."""
    act = {a: Player(policy) if isinstance(policy, ActorCritic) else policy for a in world.agents}
    seen, _ = world.reset(seed=seed)
    watch()
    while world.present:
        actions = {agent: act[agent](seen[agent], noise) for agent in world.present}
        seen, rewards, *_ = world.step(actions)
        watch()
        yield from ((agent, float(rewards[agent])) for agent in actions)


class Player:
    """A policy in one episode of one world: what it remembers is kept from step to step."""

    def __init__(self, policy: ActorCritic) -> None:
        self._policy = policy
        self._carry = torch.zeros(1, policy.carry_size, device=policy.device)
        self._noise, self._sampled, self._acted = torch.empty(0), 0, 0

    def __call__(self, obs: Any, generator: torch.Generator | None) -> Any:
        """The world's action: the most likely one, or sampled by `generator`."""
        row = self.act(self._policy.observations.row(obs), generator)
        return self._policy.actions.nested(row)

    @torch.no_grad()
    def act(self, seen: np.ndarray, generator: torch.Generator | None = None) -> Any:
        """The same of a row, as a row. Raises `UsageError` for a mask that allows nothing."""
        if self._policy.stuck(seen[None]).any():
            raise UsageError(
                f"the {MASK} of a world allows no action at step {self._acted} of an episode: one "
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
    """A world in a process that is watched over, to play in as `evaluate` does, to the bit.

    An episode in which it fails is left out, and one more is played behind the others.
    """

    def __init__(self, worlds: Worlds) -> None:
        """worlds: one, whose seed is `NUMBERED`. It is closed if its first reset fails."""
        self._worlds = worlds
        try:
            self._state = worlds.start()
        except BaseException:
            worlds.close()
            raise
        seen, acts, rows = worlds.observations, worlds.actions, (1, worlds.count)
        nothing = np.empty(0)
        self._steps = Steps(
            obs=np.empty((2, worlds.count, *seen.shape), seen.dtype),
            action=nothing,
            parameters=nothing,
            taken=np.zeros((*rows, *(acts.shape or ())), acts.dtype),
            reward=np.empty(rows),
            terminated=np.empty(rows, bool),
            ended=np.empty(rows, bool),
            real=np.empty(rows, bool),
            finals=[],
        )

    def play(
        self,
        begin: Callable[[], Act],
        *,
        episodes: int,
        seed: int,
        watch: Callable[[int], None] = lambda episode: None,
    ) -> Scores:
        """Episodes from these seeds; `begin` gives what acts for an agent in one of them.

        watch: called at every step, with the number of episodes before this one.

        Raises `UsageError` if the world has failed once too often.
        """
        self._state.episode[:], self._state.length[:] = seed - 1, 1
        self._worlds.fresh(self._state)
        self._steps.obs[0] = self._state.obs
        played: list[Episode] = []
        done = 0
        while done < episodes:
            acts = [begin() for _ in range(self._worlds.count)]
            parts = self._play(acts, partial(watch, done))
            played += parts
            done += bool(parts)
        return Scores(tuple(played), seed, True)

    def _play(self, acts: list[Act], watch: Callable[[], None]) -> list[Episode]:
        """One episode, of every agent; nothing if the world fails in it."""
        worlds, state, steps = self._worlds, self._state, self._steps
        ret, length = np.zeros(worlds.count), np.zeros(worlds.count, np.int64)
        over = np.zeros(worlds.count, bool)
        while not over.all():
            for i in np.flatnonzero(~over):  # an agent that has left shows nothing
                steps.taken[0, i] = acts[i](steps.obs[0, i])
            steps.ended[:], steps.real[:] = False, True
            worlds.step(state, steps, 0)
            watch()
            worlds.remember(state, steps)
            steps.finals.clear()
            steps.obs[0] = steps.obs[1]
            ret += np.where(steps.real[0], steps.reward[0], 0)
            length += steps.real[0]
            _check_end(int(length.max()))
            over = (steps.ended | ~steps.real)[0]
        pairs = zip(ret.tolist(), length.tolist(), strict=True)
        return [Episode(r, n) for r, n in pairs if n] if steps.ended.any() else []

    def close(self) -> None:
        self._worlds.close()
