"""Code of a user's own for the tests of extensions: algorithms, schedules, callbacks."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from proximo import PPO, Callback, Schedule


class Bare(PPO):
    """No settings of its own, and no name."""


@dataclass(frozen=True, kw_only=True)
class Penalised(PPO):
    weight: float = 2.0

    def objective(self, policy, new, batch, advantage, coefficients):
        ratio = (new.log_prob - batch.log_prob).exp()
        return ratio * advantage - self.weight * (ratio - 1) ** 2


class Steps(Schedule):
    def __call__(self, progress):
        return self.start if progress < 0.5 else self.end


def falling(progress):
    return 1e-3 * (1 - progress)


@dataclass
class Bonus(Callback):
    """Adds a learned bonus to the rewards and a term to the loss; counts what it has seen."""

    coef: float = 0.1
    name: str = 'a "name"'

    def start(self, state):
        self.net = torch.nn.Linear(4, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters())
        self.generator = torch.Generator().manual_seed(3)
        self.seen = 0

    def before_advantages(self, state, rollout):
        value = self.net(rollout.obs).squeeze(-1)
        self.optimizer.zero_grad()
        value.square().mean().backward()
        self.optimizer.step()
        noise = torch.rand(rollout.reward.shape, generator=self.generator)
        return replace(rollout, reward=rollout.reward + self.coef * noise)

    def loss(self, policy, batch):
        return self.coef * policy.evaluate(batch.obs, batch.action, entropy=False).value.mean()

    def __call__(self, state, rollout, row):
        self.seen += 1
        row["seen"] = torch.tensor(self.seen)

    def state_dict(self):
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "seen": self.seen,
            "none": [None, True, (1, 2.5, "text")],
        }

    def load_state_dict(self, saved):
        assert saved["none"] == [None, True, (1, 2.5, "text")]
        self.net.load_state_dict(saved["net"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.generator.set_state(saved["generator"])
        self.seen = saved["seen"]


class Scored(Callback):
    """An evaluation of one's own; tells what was called."""

    def __init__(self):
        self.calls = []

    def start(self, state):
        self.calls.append("start")

    def evaluate(self, state):
        self.calls.append("evaluate")
        return {"evaluation": torch.tensor(state.updates), "other": 0.5}

    def end(self, state, result):
        self.calls.append("end")

    def close(self):
        self.calls.append("close")


class Taking(Callback):
    def __init__(self, path):
        self.path = path


@dataclass
class Odd(Callback):
    thing: Any = None


class Unpackable(Callback):
    def state_dict(self):
        return {"things": [object()]}


def watching(state, rollout, row):
    row["watched"] = 1
