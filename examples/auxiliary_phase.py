"""PPG's auxiliary phase: every few updates the actor's layers learn what the critic knows.

proximo train ppo CartPole-v1 --preset none --callback examples.auxiliary_phase:AuxiliaryPhase
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proximo import Callback, Rollout, TrainState
from proximo import functional as F


@dataclass
class AuxiliaryPhase(Callback):
    """L = ½ E[(V_aux(s) - V(s))²] + β KL(π_old, π), of a value head V_aux on the actor's layers.

    Cobbe et al. 2020 (arXiv 2009.04416), Algorithm 1: L^joint. Unlike the paper, V_aux learns the
    values of the critic, which trains in the updates alone. For policies without recurrence.
    """

    kept = ("head", "optimizer", "seen")
    every: int = 8
    epochs: int = 3
    beta: float = 1.0
    learning_rate: float = 3e-4

    def start(self, state: TrainState) -> None:
        self.head = nn.Linear(state.policy.actor.outputs, 1)
        parameters = [*state.policy.actor_parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.Adam(parameters, self.learning_rate)
        self.seen: list[Tensor] = []

    def __call__(self, state: TrainState, rollout: Rollout, row: dict[str, Any]) -> None:
        self.seen.append(rollout.obs[rollout.mask])
        if state.updates % self.every:
            return
        policy, obs, self.seen = state.policy, torch.cat(self.seen), []
        with torch.no_grad():
            value, old = policy.value(obs), policy.distribution(obs).parameters
        for _ in range(self.epochs):
            for rows in torch.randperm(len(obs), generator=state.shuffling).split(256):
                features = policy.actor(policy.inputs(obs[rows]))
                error = (self.head(features).squeeze(-1) - value[rows]).square()
                before, now = policy.head.restore(old[rows]), policy.distribution(obs[rows])
                loss = (error / 2 + self.beta * F.kl.kl_divergence(before, now)).mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        row["auxiliary_loss"] = loss.detach()
