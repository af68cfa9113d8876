"""Fine-tuning, a reward model and PPO on one task, over seeds and β: the score against the KL.

    python benchmarks/language/frontier.py reviews|docstrings [--seeds 3]
        [--betas 0 0.02 0.05 0.1 0.5] [--jobs 1] [--draw]
    python benchmarks/language/frontier.py reviews --data FOLDER

A task has texts, and a hidden score of what is written. The reward model sees pairs only, of which
the one with the higher hidden score is preferred; PPO sees the reward model; the hidden score is
what is measured. reviews: sentences made here. docstrings: the sentences in the docstrings of
Python's own library, scored by a lexicon, the pairs being what the fine-tuned model writes.

Writes benchmarks/results/TASK.jsonl and docs/TASK.png, and prints the table of docs/language.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import docstrings
import reviews
import torch
from task import Task

from proximo.language import TOKEN_PPO, KLConfig, ScoreConfig, TrainingConfig, fit_reward, ppo, sft

ROOT = Path(__file__).parents[2]
TASKS = {"reviews": reviews.TASK, "docstrings": docstrings.TASK}


def run(task: Task, seed: int, betas: list[float]) -> list[dict[str, Any]]:
    """One seed: both models, then PPO at each β."""
    texts, prompts = task.texts(seed)
    begin = time.perf_counter()
    base = sft(task.model, texts, updates=task.fitting[0], seed=seed, algorithm=task.rate)
    pairs = task.pairs(seed, prompts, base)
    judge = fit_reward(base, pairs, updates=task.fitting[1], seed=seed, algorithm=task.rate)
    fitted = time.perf_counter() - begin
    asked = prompts * (400 // len(prompts))
    before = base.generate(asked, task.sampling, seed=seed)
    scores = [task.worth(text) for text in before]
    rows = []
    for beta in betas:
        begin = time.perf_counter()
        tuned = ppo(
            base,
            prompts,
            judge,
            updates=task.updates,
            seed=seed,
            algorithm=dataclasses.replace(TOKEN_PPO, **task.algorithm),
            sampling=task.sampling,
            kl=KLConfig(coef=beta),
            score=ScoreConfig(missing_eos_penalty=1.0),
            run=TrainingConfig(sequences=128, micro_batch=128),
        )
        after = tuned.generate(asked, seed=seed)
        last = {
            name: statistics.mean(row[name] for row in tuned.rows[-5:])
            for name in ("kl", "score", "length")
        }
        rows.append(
            {
                "seed": seed,
                "beta": beta,
                "held_out_accuracy": judge.final["held_out_accuracy"],
                "before": statistics.mean(scores),
                "spread": statistics.stdev(scores),
                "after": statistics.mean(map(task.worth, after)),
                **last,
                "distinct": len(set(after)) / len(after),
                "seconds_fitting": round(fitted, 1),
                "seconds_ppo": round(time.perf_counter() - begin, 1),
                "samples": [
                    [prompt + old, prompt + new]
                    for prompt, old, new in list(zip(asked, before, after, strict=True))[:4]
                ],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def one(name: str, seed: int, betas: list[float]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return run(TASKS[name], seed, betas)


def at(rows: list[dict[str, Any]], beta: float, name: str) -> list[float]:
    """A figure of every seed at this β; `gain` is in deviations of the texts before PPO."""
    own = [row for row in rows if row["beta"] == beta]
    if name == "gain":
        return [(row["after"] - row["before"]) / row["spread"] for row in own]
    return [row[name] for row in own]


def draw(rows: list[dict[str, Any]], betas: list[float], path: Path) -> None:
    """What PPO sees, and what is measured, against the KL: a point per run, lines of means."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    axes.axhline(0, color="grey", linestyle="--", linewidth=1)
    kls = [statistics.mean(at(rows, beta, "kl")) for beta in betas]
    for name, label, colour in (
        ("score", "reward model", "#999999"),
        ("gain", "hidden score", "#3465a4"),
    ):
        for beta in betas:
            points = at(rows, beta, "kl"), at(rows, beta, name)
            axes.plot(*points, "o", color=colour, alpha=0.4, markersize=4)
        means = [statistics.mean(at(rows, beta, name)) for beta in betas]
        axes.plot(kls, means, "-", color=colour, label=label)
    top = 1.15 * axes.get_ylim()[1]
    axes.set_ylim(top=top)
    for beta, kl in zip(betas, kls, strict=True):
        axes.axvline(kl, color="#dddddd", linewidth=0.8, zorder=0)
        axes.annotate(
            f"β {beta:g}",
            (kl, top),
            (2, 0),
            textcoords="offset points",
            rotation=90,
            va="top",
            size=8,
        )
    axes.set(
        xscale="log",
        xlabel="KL to the model before PPO, nats per completion",
        ylabel="gained, deviations",
    )
    axes.legend(frameon=False, loc="lower center")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def table(rows: list[dict[str, Any]], betas: list[float]) -> list[str]:
    def mean(beta: float, name: str) -> float:
        return statistics.mean(at(rows, beta, name))

    lines = [
        "| beta | KL, nats | hidden score, deviations (each seed) | reward model | distinct |",
        "|---|---|---|---|---|",
    ]
    for beta in betas:
        each = ", ".join(f"{gain:.2f}" for gain in at(rows, beta, "gain"))
        lines.append(
            f"| {beta:g} | {mean(beta, 'kl'):.1f} | **{mean(beta, 'gain'):+.2f}** ({each}) "
            f"| {mean(beta, 'score'):+.2f} | {mean(beta, 'distinct'):.2f} |"
        )
    right = [row["held_out_accuracy"] for row in rows if row["beta"] == betas[0]]
    return [
        *lines,
        "",
        "Reward models, held-out pairs: " + ", ".join(f"{100 * share:.0f}%" for share in right),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.0, 0.02, 0.05, 0.1, 0.5])
    parser.add_argument("--jobs", type=int, default=1, help="seeds that run at once")
    parser.add_argument("--draw", action="store_true", help="only draw what was measured")
    parser.add_argument("--data", type=Path, help="only write the data, to this folder")
    given = parser.parse_args()
    task = TASKS[given.task]
    if given.data:
        given.data.mkdir(parents=True, exist_ok=True)
        texts, prompts = task.texts(1)
        kinds = {"texts": texts, "prompts": [{"prompt": prompt} for prompt in prompts]}
        if given.task == "reviews":  # the others' pairs are written by a model
            kinds["pairs"] = task.pairs(1, prompts, None)
        for name, lines in kinds.items():
            file = given.data / f"{name}.jsonl"
            file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return
    results = ROOT / "benchmarks" / "results" / f"{given.task}.jsonl"
    if not given.draw:
        results.write_text("".join(f"{json.dumps(row)}\n" for row in train(given)))
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    draw(rows, given.betas, ROOT / "docs" / f"{given.task}.png")
    print("\n".join(table(rows, given.betas)))


def train(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Every seed, some of them at once."""
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        parts = [
            pool.submit(one, given.task, seed, given.betas) for seed in range(1, given.seeds + 1)
        ]
        return [row for part in parts for row in part.result()]


if __name__ == "__main__":
    main()
