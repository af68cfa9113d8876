"""Shortest paths by words: the `randomwalks` task of trlx, rebuilt from its description.

    python benchmarks/language/randomwalks.py [--seeds 5]

A directed graph of 21 nodes, a to u, an edge from each to each other with probability 0.1, drawn by
seed 1000; a is the goal. A language model (6 layers, width 144) learns 1000 random walks of at most
10 nodes; then PPO, from each of the 20 other letters, for paths that are short. The score of a path
of L nodes is (10 - L)/(10 - L*), L* the shortest one's; one that misses the goal, or takes an edge
that is not there, scores 0. PPO has 160 gradient steps and 2,800 episodes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import string
import time
from pathlib import Path

import numpy as np
import torch

from proximo import Schedule
from proximo.language import (
    TOKENS,
    Fitting,
    KLConfig,
    ModelConfig,
    Sampling,
    TrainingConfig,
    ppo,
    sft,
)

RESULTS = Path(__file__).parents[1] / "results" / "randomwalks.jsonl"
NODES, LONGEST, GOAL, GRAPH_SEED = 21, 10, 0, 1000
NAMES = string.ascii_lowercase[:NODES]
STARTS = list(NAMES[1:])
MODEL = ModelConfig(layers=6, width=144, heads=12, context=16)
SAMPLING = Sampling(max_tokens=LONGEST - 1)


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


def run(seed: int) -> dict[str, object]:
    """Both stages with this seed."""
    graph = Graph()
    begin = time.perf_counter()
    texts = [{"prompt": walk[0], "completion": walk[1:]} for walk in graph.walks]
    rate = Fitting(learning_rate=Schedule.parse("linear:1e-3:0"), batch_size=100)
    whole = TrainingConfig(micro_batch=100)
    base = sft(MODEL, texts, updates=250, seed=seed, algorithm=rate, run=whole)
    fitted = time.perf_counter() - begin
    asked = STARTS * 20

    def measure(result: object) -> tuple[float, float]:
        said = result.generate(asked, SAMPLING, seed=seed)  # type: ignore[attr-defined]
        valid = [graph.valid(p + c) for p, c in zip(asked, said, strict=True)]
        return statistics.mean(graph.optimality(asked, said)), statistics.mean(valid)

    before, valid_before = measure(base)
    begin = time.perf_counter()
    tuned = ppo(
        base,
        STARTS,
        graph.optimality,
        updates=20,
        seed=seed,
        sampling=SAMPLING,
        kl=KLConfig(coef=0.01),
        algorithm=dataclasses.replace(
            TOKENS,
            learning_rate=Schedule.parse("linear:3e-4:0"),
            minibatch_size=70,
            adam_betas=(0.9, 0.95),
        ),
        run=TrainingConfig(sequences=140, micro_batch=140),
    )
    seconds = time.perf_counter() - begin
    after, valid = measure(tuned)
    return {
        "seed": seed,
        "before": before,
        "valid_before": valid_before,
        "optimality": after,
        "valid": valid,
        "kl": tuned.rows[-1]["kl"],
        "gradient_steps": sum(row["gradient_steps"] for row in tuned.rows),
        "episodes": tuned.rows[-1]["episodes"],
        "seconds_sft": round(fitted, 1),
        "seconds_ppo": round(seconds, 1),
        "scores": [round(score, 3) for score in tuned.scores],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    graph = Graph()
    reached = set(graph.shortest[1:])
    print(
        f"{int(graph.edges[1:].sum())} edges besides the goal's, {int(graph.edges.sum())} in all, "
        f"L* {min(reached):.0f} to {max(reached):.0f}, a uniform walk scores {graph.uniform():.3f}"
    )
    rows = []
    for seed in range(1, given.seeds + 1):
        rows.append(run(seed))
        print(json.dumps(rows[-1]), flush=True)
    RESULTS.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main()
