"""Tiny worlds whose answer is known: the first thing to run when something does not learn.

Each isolates one more thing that can be wrong (after Andy Jones, "Debugging RL, without the
agonizing pain"). All come with one discrete action of two, or one continuous action in [-1, 1].
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

Answer = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class Probe(gym.Env[np.ndarray, Any]):
    """One number to see, one action to take."""

    length = 1
    """Steps until the episode terminates."""

    def __init__(self, continuous: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = (
            gym.spaces.Box(-1, 1, (1,), np.float32) if continuous else gym.spaces.Discrete(2)
        )
        self.continuous = continuous
        self._step = 0
        self._sign = 1.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        self._sign = float(self.np_random.choice([-1.0, 1.0]))
        return self.see(), {}

    def step(self, action: Any) -> Answer:
        reward = self.reward(float(np.asarray(action).item()))
        self._step += 1
        return self.see(), reward, self._step >= self.length, False, {}

    def see(self) -> np.ndarray:
        """What there is to see now."""
        return np.zeros(1, np.float32)

    def reward(self, action: float) -> float:
        """What this action earns now."""
        return 1.0

    def closeness(self, action: float, best: float) -> float:
        """1 at best. Discrete: 1 or -1, right or wrong. Continuous: 1 - (a - best/2)²."""
        if self.continuous:
            return 1.0 - (action - best / 2) ** 2
        return 1.0 if action == (best > 0) else -1.0


class ConstantValue(Probe):
    """Nothing matters and every episode earns 1: V = 1. Tests the value loss and its optimizer."""


class ValueFromObservation(Probe):
    """It earns what it sees, ±1: V(s) = s. Tests the way from observation to value."""

    def see(self) -> np.ndarray:
        return np.array([self._sign], np.float32)

    def reward(self, action: float) -> float:
        return self._sign


class DiscountedValue(Probe):
    """Two steps, 1 at the end: V(0) = γ, V(1) = 1. Tests the discount and the bootstrap."""

    length = 2

    def see(self) -> np.ndarray:
        return np.array([self._step], np.float32)

    def reward(self, action: float) -> float:
        return float(self._step == 1)


class BestAction(Probe):
    """One action is best: V = 1 once it is found. Tests advantages and the policy's loss."""

    def reward(self, action: float) -> float:
        return self.closeness(action, 1.0)


class BestActionGivenObservation(Probe):
    """The best action has the sign of what is seen: V = 1. Tests policy and value together."""

    def see(self) -> np.ndarray:
        return np.array([self._sign], np.float32)

    def reward(self, action: float) -> float:
        return self.closeness(action, self._sign)


class Endless(Probe):
    """Earns 1 for ever: V = 1/(1 - γ), under a time limit as well, if that is no termination."""

    length = 2**62
