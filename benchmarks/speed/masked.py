"""An env with action masks that both libraries are given: a walk on a grid with walls.

Imported by name in both environments: it needs Gymnasium alone.
"""

import gymnasium as gym
import numpy as np

SIZE, LIMIT = 8, 100
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


class Walk(gym.Env):
    """From somewhere on 8 x 8 cells to a corner; half of the cells have a wall to the right."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(4)
        wall = np.random.default_rng(0).random((SIZE, SIZE)) < 0.5
        self._legal = np.ones((SIZE, SIZE, 4), np.int8)
        self._legal[0, :, 0] = self._legal[-1, :, 1] = 0
        self._legal[:, 0, 2] = self._legal[:, -1, 3] = 0
        self._legal[1:-1, :-1, 3] &= ~wall[1:-1, :-1]
        self._legal[1:-1, 1:, 2] &= ~wall[1:-1, :-1]

    def action_masks(self) -> np.ndarray:
        return self._legal[self._place]

    def _see(self) -> np.ndarray:
        return np.array(self._place, np.float32) / SIZE

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place = tuple(self.np_random.integers(1, SIZE, 2).tolist())
        self._taken = 0
        return self._see(), {}

    def step(self, action):
        if not self._legal[self._place][action]:
            raise ValueError(f"move {action} is illegal at {self._place}")
        row, column = (a + b for a, b in zip(self._place, MOVES[action], strict=True))
        self._place = row, column
        self._taken += 1
        there = self._place == (0, 0)
        return self._see(), -0.01 + there, there, self._taken >= LIMIT, {}
