"""The base of the environments with a known answer."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class Task(gym.Env[Any, Any]):
    """Episodes of `length` steps, in each of them something to observe, to do and to earn."""

    length = 1
    """Steps until the episode terminates."""
    limit = 2**62
    """Steps until it is truncated."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.deal()
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = self.reward(action)
        self.steps += 1
        self.deal()
        return self.observe(), reward, self.over(), self.steps >= self.limit, {}

    def deal(self) -> None:
        """Draw what comes next: at the beginning, when `steps` is 0, and after every step."""

    def observe(self) -> Any:
        """The observation."""

    def reward(self, action: Any) -> float:
        """Act, and return what the action earns."""
        return 1.0

    def over(self) -> bool:
        """The episode has terminated."""
        return self.steps >= self.length
