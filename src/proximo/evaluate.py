"""Seeded evaluation episodes."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch

from proximo.nets.actor_critic import ActorCritic
from proximo.types import Episode


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


@torch.no_grad()
def evaluate(
    policy: ActorCritic, world: gym.Env, *, episodes: int, seed: int, deterministic: bool = True
) -> Scores:
    """Play episodes 0..episodes-1, number i from seed + i, with its own noise from that seed.

    One world, one row per forward: an episode's result depends on its seed and on nothing else.
    The policy and its moments are not changed.
    """
    finished = []
    for index in range(episodes):
        noise = torch.Generator().manual_seed(seed + index)
        obs, _ = world.reset(seed=seed + index)
        ret, length, over = 0.0, 0, False
        while not over:
            obs, reward, terminated, truncated, _ = world.step(
                choose(policy, obs, None if deterministic else noise)
            )
            ret, length, over = ret + float(reward), length + 1, terminated or truncated
        finished.append(Episode(ret, length))
    return Scores(tuple(finished), seed, deterministic)


@torch.no_grad()
def choose(policy: ActorCritic, obs: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
    """The world's action for one observation: the most likely one, or sampled by `generator`."""
    row = torch.as_tensor(np.asarray(obs), dtype=policy.dtype, device=policy.device)[None]
    noise = None
    if generator is not None:
        noise = policy.head.noise(generator, (1,)).to(policy.device, policy.dtype)
    action: np.ndarray = policy.head.to_env(policy.act(row, noise)[0])[0]
    return action
