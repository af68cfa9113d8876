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
import json
import statistics
import time
from pathlib import Path

import torch
from graph import LONGEST, STARTS, Graph

from proximo import Schedule
from proximo.language import (
    TOKENS,
    Fitting,
    KLConfig,
    ModelConfig,
    Result,
    Sampling,
    TrainingConfig,
    ppo,
    sft,
)

RESULTS = Path(__file__).parents[1] / "results" / "randomwalks.jsonl"
MODEL = ModelConfig(layers=6, width=144, heads=12, context=16)
SAMPLING = Sampling(max_tokens=LONGEST - 1)


def fine_tuned(seed: int) -> Result:
    """A language model of the walks."""
    texts = [{"prompt": walk[0], "completion": walk[1:]} for walk in Graph().walks]
    rate = Fitting(learning_rate=Schedule.parse("linear:1e-3:0"), batch_size=100)
    whole = TrainingConfig(micro_batch=100)
    return sft(MODEL, texts, updates=250, seed=seed, algorithm=rate, run=whole)


def run(seed: int) -> dict[str, object]:
    """Both stages with this seed."""
    graph = Graph()
    begin = time.perf_counter()
    base = fine_tuned(seed)
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
