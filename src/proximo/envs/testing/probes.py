"""Tiny environments with a known value: the first thing to run when something does not learn.

Each isolates one more thing that can be wrong (after Andy Jones, "Debugging RL, without the
agonizing pain"). All come with one discrete action of two, or one continuous action in [-1, 1].
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from proximo.envs.testing.task import Task


class Probe(Task):
    """One number to see, one action to take."""

    def __init__(self, continuous: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = (
            gym.spaces.Box(-1, 1, (1,), np.float32) if continuous else gym.spaces.Discrete(2)
        )
        self.continuous = continuous

    def deal(self) -> None:
        if self.steps == 0:
            self._sign = float(self.np_random.choice([-1.0, 1.0]))

    def observe(self) -> np.ndarray:
        return np.zeros(1, np.float32)

    def closeness(self, action: Any, best: float) -> float:
        """1 at best. Discrete: 1 or -1, right or wrong. Continuous: 1 - (a - best/2)²."""
        number = float(np.asarray(action).item())
        if self.continuous:
            return 1.0 - (number - best / 2) ** 2
        return 1.0 if number == (best > 0) else -1.0


class ConstantValue(Probe):
    """Nothing matters and every episode earns 1: V = 1. Tests the value loss and its optimizer."""


class ValueFromObservation(Probe):
    """It earns what it sees, ±1: V(s) = s. Tests the way from observation to value."""

    def observe(self) -> np.ndarray:
        return np.array([self._sign], np.float32)

    def reward(self, action: Any) -> float:
        return self._sign


class DiscountedValue(Probe):
    """Two steps, 1 at the end: V(0) = γ, V(1) = 1. Tests the discount and the bootstrap."""

    length = 2

    def observe(self) -> np.ndarray:
        return np.array([min(self.steps, 1)], np.float32)

    def reward(self, action: Any) -> float:
        return float(self.steps == 1)


class BestAction(Probe):
    """One action is best: V = 1 once it is found. Tests advantages and the policy's loss."""

    def reward(self, action: Any) -> float:
        return self.closeness(action, 1.0)


class BestActionGivenObservation(ValueFromObservation):
    """The best action has the sign of what is seen: V = 1. Tests policy and value together."""

    def reward(self, action: Any) -> float:
        return self.closeness(action, self._sign)


class Remember(Probe):
    """Three steps; the best last action has the sign that the first observation had: V(0) = γ².

    Tests a memory. Without one, 0 is the best that can be hoped for in the last step.
    """

    length = 3

    def observe(self) -> np.ndarray:
        return np.array([self._sign if self.steps == 0 else 0.0], np.float32)

    def reward(self, action: Any) -> float:
        return self.closeness(action, self._sign) if self.steps == 2 else 0.0


class Endless(Probe):
    """Earns 1 for ever: V = 1/(1 - γ), under a time limit as well, if that is no termination."""

    length = 2**62


class Match(Task):
    """One of three symbols, k, is shown, and one action is right for each: V = 1 - k/2.

    For every kind of observation and of action, with or without a mask. Tests that each leaf
    arrives in the network, and that each part of an action is credited. With `later` the action is
    asked for that many steps later, with k = 0 shown meanwhile: V is γ^later of it in the first
    step. Tests a recurrent state.
    """

    SEEN = (
        *("vector", "bytes", "image", "stack", "grey", "discrete", "multi-discrete", "binary"),
        *("dict", "tuple", "nested"),
    )
    DONE = ("discrete", "multi-discrete", "binary", "box", "hybrid")

    def __init__(
        self, seen: str = "vector", done: str = "discrete", masks: bool = False, later: int = 0
    ) -> None:
        self._seen, self._done, self._masks = seen, done, masks
        spaces = gym.spaces
        bit, noise = spaces.MultiBinary(1), spaces.Box(-9, 9, (2,))
        kinds: dict[str, gym.Space[Any]] = {
            "vector": spaces.Box(-1, 1, (3,), np.float32),
            "bytes": spaces.Box(0, 2, (3, 1), np.uint8),
            "image": spaces.Box(0, 255, (6, 6, 1), np.uint8),
            "stack": spaces.Box(0, 255, (2, 1, 6, 6), np.uint8),
            "grey": spaces.Box(0, 255, (36, 36), np.uint8),
            "discrete": spaces.Discrete(3, start=2),
            "multi-discrete": spaces.MultiDiscrete([2, 3]),
            "binary": spaces.MultiBinary(3),
            "dict": spaces.Dict({"noise": noise, "symbol": spaces.Discrete(3)}),
            "tuple": spaces.Tuple([spaces.Discrete(2), bit]),
            "nested": spaces.Dict(
                {"noise": noise, "pair": spaces.Tuple([spaces.Discrete(2), spaces.Dict(bit=bit)])}
            ),
        }
        shown = kinds[seen]
        if masks:
            choices = {"discrete": 3, "multi-discrete": 6, "hybrid": 3}[done]
            shown = spaces.Dict({"action_mask": spaces.MultiBinary(choices), "shown": shown})
        self.observation_space = shown
        wide = spaces.Box(-1, 3, (2,), np.float32)
        self.action_space: gym.Space[Any] = {
            "discrete": spaces.Discrete(3, start=1),
            "multi-discrete": spaces.MultiDiscrete([3, 3]),
            "binary": spaces.MultiBinary(3),
            "box": wide,
            "hybrid": spaces.Dict({"strength": wide, "tool": spaces.Discrete(3)}),
        }[done]
        self.length = later + 1

    def deal(self) -> None:
        if self.steps == 0:
            self._symbol = int(self.np_random.integers(3))

    def reward(self, action: Any) -> float:
        if not self.action_space.contains(action):
            raise ValueError(f"{action} is not in {self.action_space}")
        earned = self._earned(action)
        return earned if self.steps + 1 == self.length else 0.0

    def observe(self) -> Any:
        k = self._symbol if self.steps == 0 else 0
        hot = np.eye(3, dtype=np.float32)[k]
        first, second = int(k == 1), np.array([k == 2], np.int8)
        coin, noise = self.np_random.integers(2), self.np_random.uniform(-9, 9, 2)
        noise = noise.astype(np.float32)
        image = np.tile(np.repeat(hot * 255, 2), (6, 1)).astype(np.uint8)
        shown = {
            "vector": hot,
            "bytes": 2 * hot[:, None].astype(np.uint8),
            "image": image[..., None],
            "stack": np.stack([np.zeros_like(image), image])[:, None],
            "grey": np.kron(image, np.ones((6, 6), np.uint8)),
            "discrete": k + 2,
            "multi-discrete": np.array([coin, k]),
            "binary": hot.astype(np.int8),
            "dict": {"noise": noise, "symbol": k},
            "tuple": (first, second),
            "nested": {"noise": noise, "pair": (first, {"bit": second})},
        }[self._seen]
        return {"action_mask": self.legal(), "shown": shown} if self._masks else shown

    def legal(self) -> np.ndarray:
        """All choices but the one that comes after the right one."""
        mask = np.ones(3, np.int8)
        mask[(self._symbol + 1) % 3] = 0
        return np.tile(mask, 2) if self._done == "multi-discrete" else mask

    def worth(self, symbol: int) -> float:
        """Reward of the right action for this symbol."""
        return 1.0 - symbol / 2

    def right(self, symbol: int) -> Any:
        """The action that earns most for this symbol."""
        place = np.array([symbol, 1 - symbol / 2], np.float32)
        return {
            "discrete": symbol + 1,
            "multi-discrete": np.array([symbol, symbol]),
            "binary": np.eye(3, dtype=np.int8)[symbol],
            "box": place,
            "hybrid": {"strength": place, "tool": symbol},
        }[self._done]

    def _earned(self, action: Any) -> float:
        """Less than for the right action by the share that is wrong, or the squared distance."""
        best, worth = self.right(self._symbol), self.worth(self._symbol)
        if self._done == "hybrid":
            off = float(np.square(action["strength"] - best["strength"]).sum())
            return worth - off - float(self._check(action["tool"], self._symbol, 0))
        if self._done == "box":
            return worth - float(np.square(action - best).sum())
        chosen = np.atleast_1d(action)
        pairs = zip(chosen, np.atleast_1d(best), strict=True)
        wrong = [self._check(a, b, i) for i, (a, b) in enumerate(pairs)]
        return worth - float(np.mean(wrong))

    def _check(self, chosen: Any, best: Any, index: int) -> bool:
        """A choice is wrong. Raises `ValueError` for one that the mask forbids."""
        start = int(self._done == "discrete")
        if self._masks and not self.legal()[3 * index + int(chosen) - start]:
            raise ValueError(f"choice {index} is {chosen}, which is not legal")
        return int(chosen) != int(best)
