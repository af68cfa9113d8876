"""PPO-clip as it is taught, written plainly: one env, an update per episode, torch alone.

A re-writing of the two listings behind `teaching-cartpole` and `teaching-pendulum` (Hands-on RL,
chapter 12), with what they do and nothing else: time limits count as terminations, advantages are
not normalised. What it takes and what it reaches is what the presets are compared with.

    python benchmarks/teaching/plain.py cartpole --seed 1
"""

from __future__ import annotations

import argparse
import json
import time

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

TASKS = {
    "cartpole": {
        "env": ("CartPole-v1", {"max_episode_steps": 200}),
        "episodes": 500,
        "actor_lr": 1e-3,
        "critic_lr": 1e-2,
        "gamma": 0.98,
        "lam": 0.95,
    },
    "pendulum": {
        "env": ("Pendulum-v1", {}),
        "episodes": 2000,
        "actor_lr": 1e-4,
        "critic_lr": 5e-3,
        "gamma": 0.9,
        "lam": 0.9,
    },
}
CLIP, EPOCHS, HIDDEN = 0.2, 10, 128


class DiscreteActor(nn.Module):
    """Softmax over the actions."""

    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, HIDDEN)
        self.out = nn.Linear(HIDDEN, actions)

    def forward(self, obs: torch.Tensor) -> Categorical:
        return Categorical(probs=F.softmax(self.out(F.relu(self.hidden(obs))), dim=1))


class ContinuousActor(nn.Module):
    """Mean 2 tanh, deviation softplus."""

    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, HIDDEN)
        self.mean = nn.Linear(HIDDEN, actions)
        self.std = nn.Linear(HIDDEN, actions)

    def forward(self, obs: torch.Tensor) -> Normal:
        features = F.relu(self.hidden(obs))
        return Normal(2.0 * torch.tanh(self.mean(features)), F.softplus(self.std(features)))


class Critic(nn.Module):
    """V(s)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.out(F.relu(self.hidden(obs)))


def advantages(gamma: float, lam: float, delta: torch.Tensor) -> torch.Tensor:
    found, running = [], 0.0
    for d in reversed(delta.numpy()):
        running = gamma * lam * running + d
        found.append(running)
    return torch.tensor(np.array(found[::-1]), dtype=torch.float)


def main() -> None:  # noqa: PLR0915 one long page, as such listings are
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    task = TASKS[given.task]
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    begin = time.perf_counter()
    name, kwargs = task["env"]
    env = gym.make(name, **kwargs)
    inputs = env.observation_space.shape[0]
    discrete = isinstance(env.action_space, gym.spaces.Discrete)
    if discrete:
        actor: nn.Module = DiscreteActor(inputs, int(env.action_space.n))
    else:
        actor = ContinuousActor(inputs, env.action_space.shape[0])
    critic = Critic(inputs)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=task["actor_lr"])
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=task["critic_lr"])
    returns = []
    for episode in range(task["episodes"]):
        seen: dict[str, list] = {k: [] for k in ("obs", "action", "reward", "next", "done")}
        obs, _ = env.reset(seed=given.seed if episode == 0 else None)
        done = False
        while not done:
            with torch.no_grad():
                action = actor(torch.tensor(obs[None], dtype=torch.float)).sample()
            env_action = action.item() if discrete else action.numpy()[0]
            following, reward, terminated, truncated, _ = env.step(env_action)
            done = terminated or truncated
            for key, value in zip(seen, (obs, env_action, reward, following, done), strict=True):
                seen[key].append(value)
            obs = following
        returns.append(float(sum(seen["reward"])))

        obs_all = torch.tensor(np.array(seen["obs"]), dtype=torch.float)
        next_all = torch.tensor(np.array(seen["next"]), dtype=torch.float)
        action_all = torch.tensor(np.array(seen["action"]))
        reward_all = torch.tensor(np.array(seen["reward"]), dtype=torch.float).view(-1, 1)
        done_all = torch.tensor(np.array(seen["done"]), dtype=torch.float).view(-1, 1)
        if not discrete:
            reward_all = (reward_all + 8.0) / 8.0

        def log_prob(obs: torch.Tensor = obs_all, action: torch.Tensor = action_all):
            if discrete:
                return actor(obs).log_prob(action).view(-1, 1)
            return actor(obs).log_prob(action)

        with torch.no_grad():
            target = reward_all + task["gamma"] * critic(next_all) * (1 - done_all)
            delta = target - critic(obs_all)
            old = log_prob()
        advantage = advantages(task["gamma"], task["lam"], delta)
        for _ in range(EPOCHS):
            ratio = torch.exp(log_prob() - old)
            clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
            actor_loss = -torch.min(ratio * advantage, clipped * advantage).mean()
            critic_loss = F.mse_loss(critic(obs_all), target)
            actor_optimizer.zero_grad()
            critic_optimizer.zero_grad()
            actor_loss.backward()
            critic_loss.backward()
            actor_optimizer.step()
            critic_optimizer.step()
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": round(seconds, 2), "returns": returns}))


if __name__ == "__main__":
    main()
