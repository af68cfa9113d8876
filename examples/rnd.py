"""RND, exploration by Random Network Distillation: what is seldom seen earns a reward of its own.

proximo train ppo MountainCar-v0 --callback examples.rnd:RND
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from proximo import Callback, Rollout, TrainState
from proximo import functional as F


@dataclass
class RND(Callback):
    """r + c i / σ, with i = |f̂(s') - f(s')|² of a fixed random network f and a trained one f̂.

    Burda et al. 2018 (arXiv 1810.12894), Algorithm 1: s' is standardised and clipped to ±5, σ is
    the running standard deviation of Σ γ^k i, which no episode's end cuts. Unlike the paper, one
    critic learns the sum of both rewards, and f̂ takes one step per rollout, on all of it.
    """

    kept = ("nets", "optimizer", "seen", "earned", "sums")
    coef: float = 1.0
    gamma: float = 0.99
    learning_rate: float = 1e-3

    def start(self, state: TrainState) -> None:
        size = state.policy.obs_shape[0]
        nets = [nn.Sequential(nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2)]
        self.nets = nn.ModuleList(nets)
        self.optimizer = torch.optim.Adam(self.nets[0].parameters(), self.learning_rate)
        self.seen, self.earned = F.moments.no_moments((size,)), F.moments.no_moments()
        self.sums = torch.zeros(len(state.envs.obs))

    def before_advantages(self, state: TrainState, rollout: Rollout) -> Rollout:
        successors = torch.cat([rollout.obs[1:], rollout.last_obs[None]]).flatten(0, 1)
        successors[rollout.final_index] = rollout.final_obs
        self.seen = F.moments.merge(self.seen, F.moments.batch_moments(successors))
        x = (successors - self.seen.mean) / (self.seen.var + 1e-8).sqrt()
        trained, fixed = (net(x.float().clamp(-5, 5)) for net in self.nets)
        surprise = (trained - fixed.detach()).square().mean(-1).view_as(rollout.reward)
        self.optimizer.zero_grad()
        F.masked.masked_mean(surprise, rollout.mask).backward()
        self.optimizer.step()
        for intrinsic in surprise.detach():
            self.sums = self.gamma * self.sums + intrinsic
            self.earned = F.moments.merge(self.earned, F.moments.batch_moments(self.sums))
        bonus = surprise.detach() / (self.earned.var + 1e-8).sqrt().float()
        return replace(rollout, reward=rollout.reward + self.coef * bonus)
