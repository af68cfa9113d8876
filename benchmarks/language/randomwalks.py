"""Shortest paths by words: the `randomwalks` task of trlx, rebuilt from its description.

    python benchmarks/language/randomwalks.py [--seeds 5] [--jobs 1] [--models FOLDER]

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
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from graph import LONGEST, STARTS, Graph

from proximo import Schedule
from proximo.language import (
    TOKEN_PPO,
    KLConfig,
    LanguageModel,
    ModelConfig,
    Sampling,
    SupervisedConfig,
    TrainingConfig,
    load_model,
    ppo,
    sft,
)
from proximo.language.stages import complete

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parent / "speed")]
from bench import ROOT, commit  # noqa: E402 beside the folder of this script

from scores import machine  # noqa: E402

RESULTS = HERE.parent / "results"
PPO = {
    "learning_rate": Schedule.parse("linear:3e-4:0"),
    "minibatch_size": 70,
    "adam_betas": (0.9, 0.95),
}
ADVANTAGES: dict[str, tuple[dict[str, Any], int]] = {
    "rloo": ({"advantage": "rloo", "critic": False, "normalize_advantage": "none"}, 7),
    "gae": ({"lam": 1.0, "value_loss": "mse", "value_coef": 1.0, "max_grad_norm": None}, 1),
}
"""Settings, and how many completions of a prompt an update compares with each other."""
MODEL = ModelConfig(layers=6, width=144, heads=12, context=16)
SAMPLING = Sampling(max_tokens=LONGEST - 1)


def fine_tuned(seed: int, models: Path) -> Path:
    """A language model of the walks, in a folder of `models`, if it is not there yet."""
    folder = models / str(seed)
    if folder.is_dir():
        return folder
    texts = [{"prompt": walk[0], "completion": walk[1:]} for walk in Graph().walks]
    rate = SupervisedConfig(learning_rate=Schedule.parse("linear:1e-3:0"), batch_size=100)
    whole = TrainingConfig(micro_batch=100)
    begin = time.perf_counter()
    sft(MODEL, texts, updates=600, seed=seed, algorithm=rate, run=whole).save(folder)
    (folder / "seconds").write_text(str(round(time.perf_counter() - begin, 1)))
    return folder


def run(seed: int, models: Path) -> list[dict[str, object]]:
    """Fine-tuning with this seed, then PPO with each kind of advantage."""
    torch.set_num_threads(1)
    graph, asked = Graph(), STARTS * 20
    base = fine_tuned(seed, models)

    def measure(lm: LanguageModel) -> tuple[float, float]:
        said = complete(lm, asked, SAMPLING, seed=seed)
        valid = [graph.valid(p + c) for p, c in zip(asked, said, strict=True)]
        return statistics.mean(graph.optimality(asked, said)), statistics.mean(valid)

    before, valid_before = measure(load_model(base))
    rows = []
    for name, (settings, group) in ADVANTAGES.items():
        begin = time.perf_counter()
        tuned = ppo(
            base,
            STARTS,
            graph.optimality,
            updates=20,
            seed=seed,
            sampling=SAMPLING,
            kl=KLConfig(coef=0.01),
            algorithm=dataclasses.replace(TOKEN_PPO, **PPO, **settings),
            run=TrainingConfig(sequences=140, micro_batch=140, completions_per_prompt=group),
        )
        seconds = time.perf_counter() - begin
        after, valid = measure(tuned.lm)
        rows.append(
            {
                "seed": seed,
                "advantage": name,
                "before": before,
                "valid_before": valid_before,
                "optimality": after,
                "valid": valid,
                "kl": tuned.rows[-1]["kl"],
                "gradient_steps": sum(row["gradient_steps"] for row in tuned.rows),
                "episodes": tuned.rows[-1]["episodes"],
                "seconds_sft": float((base / "seconds").read_text()),
                "seconds_ppo": round(seconds, 1),
                "scores": [round(score, 3) for score in tuned.scores],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| advantages | optimality, each seed | valid paths | KL, nats | seconds, PPO |",
        "|---|---|---|---|---|",
    ]
    for name in ADVANTAGES:
        own = [row for row in rows if row["advantage"] == name]
        each = ", ".join(f"{row['optimality']:.3f}" for row in own)
        valid, kl, seconds = (
            statistics.mean(row[key] for row in own) for key in ("valid", "kl", "seconds_ppo")
        )
        best = statistics.mean(row["optimality"] for row in own)
        lines.append(
            f"| {name} | **{best:.3f}** ({each}) | {valid:.3f} | {kl:.1f} | {seconds:.0f} |"
        )
    before = statistics.mean(row["before"] for row in rows)
    fitting = statistics.mean(row["seconds_sft"] for row in rows)
    return [
        *lines,
        "",
        f"randomwalks, 400 paths drawn at temperature 1; {before:.3f} before PPO.",
        f"{rows[0]['gradient_steps']} gradient steps, {rows[0]['episodes']:,} episodes, one "
        f"thread; fine-tuning took {fitting:.0f} s.",
        f"Commit {commit(ROOT)}; {machine()}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="seeds that run at once")
    parser.add_argument("--models", type=Path, help="keep the fine-tuned models in this folder")
    given = parser.parse_args()
    graph = Graph()
    reached = set(graph.shortest[1:])
    print(
        f"{int(graph.edges[1:].sum())} edges besides the goal's, {int(graph.edges.sum())} in all, "
        f"L* {min(reached):.0f} to {max(reached):.0f}, a uniform walk scores {graph.uniform():.3f}"
    )
    seeds = range(1, given.seeds + 1)
    with (
        tempfile.TemporaryDirectory() as home,
        ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool,
    ):
        parts = pool.map(partial(run, models=given.models or Path(home)), seeds)
        rows = [row for part in parts for row in part]
    RESULTS.joinpath("randomwalks.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    lines = table(rows)
    RESULTS.joinpath("randomwalks.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
