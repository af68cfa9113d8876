"""The graph of `randomwalks`: who leads where, random walks in it, and how good a path is.

Apart from the training, so that a peer's environment can import it with NumPy alone.
"""

from __future__ import annotations

import itertools
import string

import numpy as np

NODES, LONGEST, GOAL, GRAPH_SEED = 21, 10, 0, 1000
NAMES = string.ascii_lowercase[:NODES]
STARTS = list(NAMES[1:])


class Graph:
    """Who leads where, and how short the ways to the goal can be."""

    def __init__(self, seed: int = GRAPH_SEED) -> None:
        rng = np.random.RandomState(seed)
        while True:
            self.edges = rng.rand(NODES, NODES) > 0.9
            np.fill_diagonal(self.edges, False)
            if self.edges.any(1).all():
                break
        self.walks = self._walks(rng, 1000)
        self.shortest = self._shortest()

    def _walks(self, rng: np.random.RandomState, count: int) -> list[str]:
        walks = []
        while len(walks) < count:
            node = rng.randint(1, NODES)
            walk = NAMES[node]
            while len(walk) < LONGEST and node != GOAL:
                node = rng.choice(np.nonzero(self.edges[node])[0])
                walk += NAMES[node]
            walks.append(walk)
        return walks

    def _shortest(self) -> list[float]:
        """Nodes on the shortest way from each node to the goal, both counted."""
        steps = np.full(NODES, np.inf)
        steps[GOAL] = 1
        for _ in range(NODES):
            for node in range(1, NODES):
                steps[node] = 1 + steps[self.edges[node]].min()
        return steps.tolist()

    def length(self, path: str) -> int:
        """Nodes up to the goal; the longest where it is not reached by edges that are there."""
        nodes = [NAMES.find(letter) for letter in path[:LONGEST]]
        for i, node in enumerate(nodes):
            if node == GOAL:
                return i + 1
            follows = nodes[i + 1] if i + 1 < len(nodes) else -1
            if follows < 0 or not self.edges[node, follows]:
                break
        return LONGEST

    def valid(self, path: str) -> bool:
        """Whether all its edges, up to the goal, are there."""
        nodes = [NAMES.find(letter) for letter in path.split(NAMES[GOAL], maxsplit=1)[0]]
        if NAMES[GOAL] in path:
            nodes.append(GOAL)
        return -1 not in nodes and all(self.edges[a, b] for a, b in itertools.pairwise(nodes))

    def optimality(self, prompts: list[str], completions: list[str]) -> list[float]:
        """The reward."""
        return [
            (LONGEST - self.length(prompt + completion))
            / (LONGEST - self.shortest[NAMES.index(prompt)])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def uniform(self) -> float:
        """The expected score of a walker that takes every edge as often."""
        chances = self.edges / self.edges.sum(1, keepdims=True)
        total = 0.0
        for start in range(1, NODES):
            here = np.eye(NODES)[start]
            for length in range(2, LONGEST + 1):
                here = here @ chances
                total += here[GOAL] * (LONGEST - length) / (LONGEST - self.shortest[start])
                here[GOAL] = 0
        return total / (NODES - 1)
