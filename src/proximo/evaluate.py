"""Seeded evaluation episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from proximo.envs.agents import Agents
from proximo.nets.actor_critic import ActorCritic
from proximo.types import Episode, UsageError, explain

Choose = Callable[[Any, torch.Generator | None], Any]
"""The world's action for one observation: the most likely one, or drawn by the generator."""
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
) -> Scores:
    """Play episodes 0..episodes-1, number i from seed + i.

    One world, one row per forward: an episode's result depends on its seed and on nothing else.
    In a world of several agents each one's part of an episode counts as one, as in training.
    The policy and its moments are not changed. Raises `UsageError` if the world fails.
    """
    played = [
        one for i in range(episodes) for one in play_episode(policy, world, seed + i, deterministic)
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
            if length + 1 >= ENDLESS:
                raise UsageError(
                    f"an episode did not end in {ENDLESS:,} steps: give its world a time limit"
                )
    except UsageError:
        raise
    except Exception as error:
        length = max((part.length for part in parts.values()), default=0)
        raise UsageError(f"the world failed after {length} steps: {explain(error)}") from error
    return tuple(parts.values())


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
        self._noise, self._sampled = torch.empty(0), 0

    def __call__(self, obs: Any, generator: torch.Generator | None) -> Any:
        """The world's action: the most likely one, or sampled by `generator`."""
        noise = None if generator is None else self._draw(generator)
        return _choose(self._policy, obs, noise, self._carry)

    def _draw(self, generator: torch.Generator) -> torch.Tensor:
        """The noise of one step, drawn for as many as some of it is held."""
        head, policy = self._policy.head, self._policy
        step = self._sampled % head.hold
        if step == 0:
            self._noise = head.noise(generator, (head.hold, 1)).to(policy.device, policy.dtype)
        self._sampled += 1
        return self._noise[step]


@torch.no_grad()
def _choose(policy: ActorCritic, obs: Any, noise: torch.Tensor | None, carry: torch.Tensor) -> Any:
    seen = policy.observations.row(obs)
    kind = None if seen.dtype == np.uint8 else policy.dtype
    row = torch.as_tensor(seen, dtype=kind, device=policy.device)[None]
    action, _, moved = policy.act(row, noise, carry)
    if moved is not None:
        carry.copy_(moved)
    return policy.actions.nested(policy.head.to_env(action)[0])
