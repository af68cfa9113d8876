"""How a policy behaves: which actions it takes, and whether its values come true."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from proximo.agent import Agent
from proximo.envs.make import in_step
from proximo.envs.parallel_env import ParallelEnv
from proximo.errors import UsageError
from proximo.evaluation import EpisodePlayer, EpisodePolicy
from proximo.insight.thinning import Numbers, numbers
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import EVALUATION_SEED
from proximo.run.folder import RunFolder
from proximo.types import Segments

EPISODES = 10
STEPS = 4_000
"""Steps of all episodes of a report, after which no further one begins and the last is cut off."""
DOTS = 1_500
"""Points of a scatter plot."""
BINS = 40
MOST_PANELS = 12
"""Parts of an action that are shown."""
MOST_CHOICES = 64
"""Choices of a part: of more, the most frequent ones."""
CHUNK = 1_024
"""Observations whose values are computed at once."""


class _Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Notes the reward and the end of each step of an env."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.rewards = list[float]()
        self.final_obs: Any = None
        self.terminated = False

    def step(self, action: Any) -> Any:
        step = super().step(action)
        self.final_obs, reward, terminated = step[0], step[1], step[2]
        self.rewards.append(float(reward))
        self.terminated = bool(terminated)
        return step


@dataclass
class _Played:
    """One episode: rows of observations and actions, rewards, and how it ended."""

    obs: np.ndarray  # [T + 1, *obs], the final one too
    action: np.ndarray  # [T, *act] as the env took it
    reward: np.ndarray  # [T]
    terminated: bool


def behaviour(
    agent: Agent, env: gym.Env[Any, Any], folder: RunFolder, *, limit: int, steps: int
) -> dict[str, Any]:
    """Sampled actions and values of seeded episodes, for a page.

    limit: steps after which an episode is cut off. steps: of all of them together. Raises
    `UsageError` if the env fails.
    """
    if isinstance(env, ParallelEnv):
        raise UsageError("agents that share a policy are not played here: see proximo play")
    played = list(_episodes(agent, env, limit, steps))
    found: dict[str, Any] = {
        "episodes": len(played),
        "steps": sum(len(one.reward) for one in played),
        "return_mean": float(np.mean([one.reward.sum() for one in played])),
        "actions": actions(agent, np.concatenate([one.action for one in played])),
    }
    if agent.config.algorithm.critic:
        scale = _reward_scale(agent, folder)
        values = [scale * value(agent, one.obs) for one in played]
        gamma = agent.config.algorithm.gamma
        returns = [
            realised(one.reward, one.terminated, v, gamma)
            for one, v in zip(played, values, strict=True)
        ]
        found["values"] = _compared(
            np.concatenate([v[:-1] for v in values]), np.concatenate(returns)
        )
    return found


def _episodes(agent: Agent, env: gym.Env[Any, Any], limit: int, steps: int) -> Iterator[_Played]:
    """Seeded episodes with actions sampled from the policy, as it acts in training."""
    seen, left = agent.policy.observations, steps
    recorder = _Recorder(env)
    player = EpisodePlayer(in_step([recorder]))
    for number in range(EPISODES):
        if left <= 0:
            return
        seed = EVALUATION_SEED + number
        obs, action = list[np.ndarray](), list[np.ndarray]()
        acting, noise = EpisodePolicy(agent.policy), torch.Generator().manual_seed(seed)

        def act(
            row: np.ndarray,
            obs: list[np.ndarray] = obs,
            action: list[np.ndarray] = action,
            acting: EpisodePolicy = acting,
            noise: torch.Generator = noise,
        ) -> Any:
            obs.append(row.copy())
            action.append(np.array(acting.act(row, noise)))
            return action[-1]

        recorder.rewards.clear()
        player.play(act, episodes=1, seed=seed, limit=min(limit, left))
        last = np.empty(seen.shape, seen.dtype)
        seen.write(recorder.final_obs, last)
        left -= len(action)
        # A reset may step too, as some wrappers do: the last rewards are those of the actions.
        rewards = np.array(recorder.rewards[-len(action) :])
        yield _Played(np.stack([*obs, last]), np.stack(action), rewards, recorder.terminated)


@torch.no_grad()
def value(agent: Agent, obs: np.ndarray) -> np.ndarray:
    """V of each state of an episode. obs: [T + 1, *obs]; returns [T + 1]."""
    policy = agent.policy
    if policy.state_size:
        rows = policy.as_rows(obs)
        first = torch.zeros(len(rows), policy.state_size, dtype=policy.dtype, device=policy.device)
        segments = Segments(torch.zeros(len(rows), dtype=torch.int64, device=policy.device), first)
        return policy.value(rows, segments).double().cpu().numpy()
    chunks = (obs[begin : begin + CHUNK] for begin in range(0, len(obs), CHUNK))
    parts = [policy.value(policy.as_rows(rows)) for rows in chunks]
    return torch.cat(parts).double().cpu().numpy()


def realised(reward: np.ndarray, terminated: bool, values: np.ndarray, gamma: float) -> np.ndarray:
    """G_t = r_t + γ G_{t+1}; after a time limit G_T = V(s_T), as in training. [T]."""
    following = 0.0 if terminated else values[-1]
    returns = np.empty(len(reward))
    for t in range(len(reward) - 1, -1, -1):
        following = reward[t] + gamma * following
        returns[t] = following
    return returns


def _reward_scale(agent: Agent, folder: RunFolder) -> float:
    """What a value counts in the env's own units, where rewards were normalised."""
    if not agent.config.algorithm.normalize_reward:
        return 1.0
    var = Checkpoint(folder.checkpoint("last")).tensors.get("reward_moments.var")
    return 1.0 if var is None else math.sqrt(float(var) + 1e-8)


def _compared(values: np.ndarray, returns: np.ndarray) -> dict[str, Any]:
    """A scatter of values against returns, and how well they agree."""
    spread = returns.var()
    explained = 1 - (returns - values).var() / spread if spread > 0 else math.nan
    chosen = np.linspace(0, len(values) - 1, min(DOTS, len(values))).astype(int)
    chosen = chosen[np.argsort(values[chosen], kind="stable")]
    return {
        "value": numbers(values[chosen]),
        "return": numbers(returns[chosen]),
        "explained": numbers([explained])[0],
        "bias": numbers([(values - returns).mean()])[0],
    }


def actions(agent: Agent, taken: np.ndarray) -> dict[str, Any]:
    """How often each choice was taken, and the histogram of each number. taken: [B, *act]."""
    panels, rows = list[dict[str, Any]](), taken.reshape(len(taken), -1)
    for leaf in agent.policy.actions.leaves:
        name = ".".join(map(str, leaf.path))
        part, space = rows[:, leaf.begin : leaf.end], leaf.space
        for i in range(part.shape[1]):
            own = f"{name}[{i}]" if part.shape[1] > 1 else name
            if isinstance(space, spaces.Box):
                low, high = float(space.low.flat[i]), float(space.high.flat[i])
                panels.append({"name": own, **histogram(part[:, i], low, high)})
            else:
                panels.append({"name": own, **shares(part[:, i], _choices(space, i))})
    return {"panels": panels[:MOST_PANELS], "left_out": max(0, len(panels) - MOST_PANELS)}


def _choices(space: Any, i: int) -> range:
    """The choices of a part of a discrete action."""
    if isinstance(space, spaces.MultiBinary):
        return range(2)
    begin = int(np.ravel(getattr(space, "start", 0))[i])
    count = (
        int(np.ravel(space.nvec)[i]) if isinstance(space, spaces.MultiDiscrete) else int(space.n)
    )
    return range(begin, begin + count)


def shares(taken: np.ndarray, choices: range) -> dict[str, Any]:
    """Share of each choice; of many choices the most frequent ones."""
    found, number = np.unique(taken.astype(int), return_counts=True)
    share = dict(zip(found.tolist(), (number / len(taken)).tolist(), strict=True))
    shown = list(choices)
    if len(choices) > MOST_CHOICES:
        shown = sorted(sorted(share, key=lambda c: -share[c])[:MOST_CHOICES])
    parts: Numbers = numbers(share.get(choice, 0.0) for choice in shown)
    return {"kind": "shares", "x": shown, "share": parts}


def histogram(taken: np.ndarray, low: float, high: float) -> dict[str, Any]:
    """Share of each bin between the bounds, or the extremes where there are none."""
    taken = taken[np.isfinite(taken)].astype(float)
    begin = low if math.isfinite(low) else float(taken.min())
    end = high if math.isfinite(high) else float(taken.max())
    begin, end = (begin - 0.5, end + 0.5) if begin == end else (begin, end)
    number, edges = np.histogram(taken.clip(begin, end), BINS, (begin, end))
    at_bounds = ((taken <= low) | (taken >= high)).mean()
    return {
        "kind": "histogram",
        "x": numbers((edges[:-1] + edges[1:]) / 2),
        "share": numbers(number / max(1, len(taken))),
        "at_bounds": numbers([at_bounds])[0],
    }
