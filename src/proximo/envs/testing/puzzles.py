"""Small environments with a known best score: they measure masks, memory, images and actions.

Each is a `module:Class` for the command line, such as proximo.envs.testing.puzzles:Maze.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from proximo.envs.testing.task import Task


class Identity(Task):
    """Do what is shown: 1 for each step in which the action equals the observation. Best: 100.

    Of numbers, 1 - |a - o| in the mean over them, and no less than 0.
    """

    length = 100

    SPACES: ClassVar[dict[str, spaces.Space[Any]]] = {
        "discrete": spaces.Discrete(4),
        "multi-discrete": spaces.MultiDiscrete([4, 4]),
        "binary": spaces.MultiBinary(4),
        "box": spaces.Box(-1, 1, (1,), np.float32),
    }

    def __init__(self, kind: str = "discrete") -> None:
        self.observation_space = self.action_space = self.SPACES[kind]
        self._box = kind == "box"

    def deal(self) -> None:
        shown = self.observation_space
        if isinstance(shown, spaces.Box):
            self._shown: Any = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        elif isinstance(shown, spaces.MultiDiscrete):
            self._shown = self.np_random.integers(shown.nvec)
        elif isinstance(shown, spaces.MultiBinary):
            self._shown = self.np_random.integers(2, size=shown.n).astype(np.int8)
        else:
            self._shown = self.np_random.integers(4)

    def observe(self) -> Any:
        return self._shown

    def reward(self, action: Any) -> float:
        if self._box:
            return max(0.0, 1.0 - float(np.abs(action - self._shown).mean()))
        return float(np.array_equal(action, self._shown))


class Copy(Task):
    """Repeat the symbol of four steps ago, one of four. Best: 1, the share that was right."""

    length = 36
    DELAY = 4

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Discrete(4), spaces.Discrete(4)

    def deal(self) -> None:
        if self.steps == 0:
            self._shown: list[int] = []
        self._shown.append(int(self.np_random.integers(4)))

    def observe(self) -> int:
        return self._shown[-1]

    def reward(self, action: Any) -> float:
        t = self.steps - self.DELAY
        return float(t >= 0 and action == self._shown[t]) / (self.length - self.DELAY)


class Maze(Task):
    """A maze on 8 x 8 cells with one way between any two: half of all moves run into a wall.

    1 for the exit and -0.01 for each step. With `masks` a move into a wall is illegal and refused;
    without, it costs 0.1 more and leads nowhere. Best: `best()`, the mean over all beginnings.
    """

    SIZE = 8
    MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
    limit = 100

    def __init__(self, masks: bool = True) -> None:
        self._masks, cells = masks, self.SIZE**2
        self.action_space = spaces.Discrete(4)
        place = spaces.Discrete(cells)
        self.observation_space = (
            spaces.Dict({"action_mask": spaces.MultiBinary(4), "place": place}) if masks else place
        )
        self.open = self._dig(np.random.default_rng(5))

    def _neighbour(self, cell: int, move: int) -> int:
        """The cell there, or -1 outside."""
        row, column = (
            a + b for a, b in zip(divmod(cell, self.SIZE), self.MOVES[move], strict=True)
        )
        inside = 0 <= row < self.SIZE and 0 <= column < self.SIZE
        return row * self.SIZE + column if inside else -1

    def _dig(self, generator: np.random.Generator) -> np.ndarray:
        """[cells, 4] int8: which moves are open. A walk that turns back where all is dug."""
        ways, path, dug = np.zeros((self.SIZE**2, 4), np.int8), [0], {0}
        while path:
            steps = [(m, self._neighbour(path[-1], m)) for m in range(4)]
            fresh = [(m, cell) for m, cell in steps if cell >= 0 and cell not in dug]
            if not fresh:
                path.pop()
                continue
            move, cell = fresh[generator.integers(len(fresh))]
            ways[path[-1], move] = ways[cell, move ^ 1] = 1
            dug.add(cell)
            path.append(cell)
        return ways

    def distances(self) -> np.ndarray:
        """[cells] steps to the exit, cell 0."""
        steps, queue = np.full(self.SIZE**2, -1), deque([0])
        steps[0] = 0
        while queue:
            cell = queue.popleft()
            for move in np.flatnonzero(self.open[cell]):
                other = self._neighbour(cell, int(move))
                if steps[other] < 0:
                    steps[other] = steps[cell] + 1
                    queue.append(other)
        return steps

    def best(self) -> float:
        """The return of the best policy."""
        return float(1 - 0.01 * self.distances()[1:].mean())

    def deal(self) -> None:
        if self.steps == 0:
            self._cell = int(self.np_random.integers(1, self.SIZE**2))

    def observe(self) -> Any:
        if self._masks:
            return {"action_mask": self.open[self._cell], "place": self._cell}
        return self._cell

    def reward(self, action: Any) -> float:
        reward = -0.01
        if self.open[self._cell, action]:
            self._cell = self._neighbour(self._cell, int(action))
        elif self._masks:
            raise ValueError(f"move {action} is illegal in cell {self._cell}")
        else:
            reward -= 0.1
        return reward + self.over()

    def over(self) -> bool:
        return self._cell == 0


class Cards(Task):
    """Beat the card on the table with the lowest that does, or shed the lowest. Best: 10.

    A new hand of 5 cards out of 20 for each of 10 steps; 1 for the right card. With `masks` a card
    that is not in the hand is illegal and refused; without, playing it costs 1.
    """

    length = 10
    CARDS, HAND = 20, 5

    def __init__(self, masks: bool = True) -> None:
        self._masks = masks
        self.action_space = spaces.Discrete(self.CARDS)
        shown: dict[str, Any] = {
            "hand": spaces.MultiBinary(self.CARDS),
            "table": spaces.Discrete(self.CARDS),
        }
        if masks:
            shown["action_mask"] = spaces.MultiBinary(self.CARDS)
        self.observation_space = spaces.Dict(shown)

    def deal(self) -> None:
        drawn = self.np_random.permutation(self.CARDS)[: self.HAND + 1]
        self._table = int(drawn[0])
        self._hand = np.zeros(self.CARDS, np.int8)
        self._hand[drawn[1:]] = 1

    def observe(self) -> Any:
        shown = {"hand": self._hand, "table": self._table}
        return shown | {"action_mask": self._hand} if self._masks else shown

    def reward(self, action: Any) -> float:
        held = np.flatnonzero(self._hand)
        if action not in held:
            if self._masks:
                raise ValueError(f"card {action} is not in the hand {held}")
            return -1.0
        higher = held[held > self._table]
        return float(action == (higher[0] if len(higher) else held[0]))


class Workshop(Task):
    """Choose the tool for the material, and how hard to press. Best: 10.

    Three materials and three tools. The right one earns 1 - (strength - best)², where `best` is
    what the work asks for, more or less of it by the tool; a wrong one 0.
    """

    length = 10

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {"material": spaces.Discrete(3), "work": spaces.Box(-1, 1, (1,), np.float32)}
        )
        self.action_space = spaces.Dict(
            {"strength": spaces.Box(-1, 1, (1,), np.float32), "tool": spaces.Discrete(3)}
        )

    def deal(self) -> None:
        self._material = int(self.np_random.integers(3))
        self._work = self.np_random.uniform(-1, 1, 1).astype(np.float32)

    def observe(self) -> Any:
        return {"material": self._material, "work": self._work}

    def reward(self, action: Any) -> float:
        if action["tool"] != (self._material + 1) % 3:
            return 0.0
        best = self._work * (0.9, -0.5, 0.2)[self._material]
        return float(1 - np.square(action["strength"] - best).sum())


class Catch(Task):
    """A ball falls, a paddle must be under it (Mnih et al. 2014; bsuite). Best: 1, else -1.

    Seen as an image of 10 x 10 bytes with one channel.
    """

    SIZE = 10
    length = SIZE - 1

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (self.SIZE, self.SIZE, 1), np.uint8)
        self.action_space = spaces.Discrete(3)

    def deal(self) -> None:
        if self.steps == 0:
            self._column, self._paddle = int(self.np_random.integers(self.SIZE)), self.SIZE // 2

    def observe(self) -> np.ndarray:
        image = np.zeros((self.SIZE, self.SIZE, 1), np.uint8)
        image[self.steps, self._column] = image[-1, self._paddle] = 255
        return image

    def reward(self, action: Any) -> float:
        self._paddle = int(np.clip(self._paddle + action - 1, 0, self.SIZE - 1))
        caught = 1.0 if self._paddle == self._column else -1.0
        return (self.steps + 1 == self.length) * caught


def _only(env: gym.Env[Any, Any], columns: list[int]) -> gym.Env[Any, Any]:
    """An env that shows some numbers of its observation: the others have to be remembered."""
    whole: Any = env.observation_space
    space = spaces.Box(whole.low[columns], whole.high[columns], dtype=np.float32)
    return gym.wrappers.TransformObservation(env, lambda obs: obs[columns], space)


def still_cartpole(limit: int = 500, **kwargs: Any) -> gym.Env[Any, Any]:
    """CartPole without velocities: the places of cart and pole. Best: the limit."""
    env = gym.make("CartPole-v1", max_episode_steps=limit, disable_env_checker=True, **kwargs)
    return _only(env, [0, 2])


def still_pendulum(**kwargs: Any) -> gym.Env[Any, Any]:
    """Pendulum without its velocity: cosine and sine of the angle."""
    return _only(gym.make("Pendulum-v1", disable_env_checker=True, **kwargs), [0, 1])
