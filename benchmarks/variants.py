"""Options that papers added to PPO, each against the default, under one protocol.

    python benchmarks/variants.py [--processes N] [--seeds N] [--only TASK] [--variants NAME]

One setting for all tasks (`SETTING`), and each option is that setting with one thing changed. Adds
a line per run to benchmarks/results/variants.jsonl, leaves out what stands there, so that it goes
on after a kill, and writes variants.md from all lines. --table: train nothing, write the table.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proximo import UsageError, evaluate
from proximo.errors import TrainingError, explain
from proximo.insight.statistics import Scores, improvement, interval, iqm, normalized
from proximo.loop import run_control
from proximo.run.config import Config
from proximo.run.control import make_session

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE / "speed")]
from bench import ROOT, commit  # noqa: E402 beside the folder of this script

from scores import machine  # noqa: E402

LINES = HERE / "results" / "variants.jsonl"
PAGE = HERE / "results" / "variants.md"
EPISODES = 30
"""Of the evaluation of the last policy: deterministic, on seeds of their own."""
FIRST_SEED = 1001
"""Seed of the first run. Settings were looked at on seeds 1 and 2."""
Settings = dict[str, Any]
"""Section.setting -> value."""
SETTING: Settings = {
    "env.num_envs": 8,
    "rollout.steps": 128,
    "algorithm.epochs": 6,
    "algorithm.minibatch_size": 128,
    "algorithm.learning_rate": "linear:1e-3:0",
    "algorithm.normalize_reward": True,
    "run.threads": 1,
    "run.health": False,
}
"""That of all tasks and variants; observations are standardised too, where they are numbers."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """An env, its budget, and the scores that become 0 and 1."""

    steps: int
    low: float  # of a random policy
    high: float  # of a good one
    images: bool = False
    settings: Settings = field(default_factory=dict)


GRID = {"images": True, "low": 0.0, "high": 0.95}
TASKS = {
    "CartPole-v1": Task(steps=20_000, low=22, high=500),
    "Acrobot-v1": Task(steps=30_000, low=-500, high=-80),
    "MountainCar-v0": Task(steps=200_000, low=-200, high=-105),
    "MountainCarContinuous-v0": Task(steps=100_000, low=-33, high=94),
    "Pendulum-v1": Task(steps=60_000, low=-1230, high=-150),
    "LunarLander-v3": Task(steps=200_000, low=-180, high=250),
    "InvertedPendulum-v5": Task(steps=20_000, low=6, high=1000),
    "Hopper-v5": Task(steps=200_000, low=18, high=2500),
    # Its own limits, said again so that they are counted where `env.stagger` can move them.
    "MiniGrid-Empty-8x8-v0": Task(steps=50_000, settings={"env.max_episode_steps": 256}, **GRID),
    "MiniGrid-DoorKey-5x5-v0": Task(steps=100_000, settings={"env.max_episode_steps": 250}, **GRID),
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An option: what it changes, and where it comes from."""

    source: str
    settings: Settings
    images: bool = False  # it acts on images alone


HISTOGRAM: Settings = {"net.value_symlog": True, "net.value_bins": 101}
VARIANTS = {
    "default": Variant(source="", settings={}),
    "Adam-Rel": Variant(source="Ellis et al. 2024", settings={"algorithm.adam_reset": "step"}),
    "Adam, moments reset": Variant(
        source="Ellis et al. 2024", settings={"algorithm.adam_reset": "moments"}
    ),
    "staggered first episodes": Variant(
        source="rsl_rl; arXiv 2511.21011", settings={"env.stagger": True}
    ),
    "layer norm": Variant(source="Ba et al. 2016", settings={"net.norm": "layer"}),
    "symlog values": Variant(source="Hafner et al. 2023", settings={"net.value_symlog": True}),
    "HL-Gauss values": Variant(source="Farebrother et al. 2024", settings=HISTOGRAM),
    "two-hot values": Variant(
        source="Hafner et al. 2023", settings=HISTOGRAM | {"net.value_sigma": 0.0}
    ),
    "SPO": Variant(source="Xie et al. 2024", settings={"algorithm.surrogate": "spo"}),
    "outer rate 0.7": Variant(
        source="Tan et al. 2024", settings={"algorithm.outer_learning_rate": 0.7}
    ),
    "outer rate 1.5": Variant(
        source="Tan et al. 2024", settings={"algorithm.outer_learning_rate": 1.5}
    ),
    "outer momentum 0.3": Variant(
        source="Tan et al. 2024", settings={"algorithm.outer_momentum": 0.3}
    ),
    "rate by the KL": Variant(source="Rudin et al. 2021", settings={"algorithm.desired_kl": 0.01}),
    "gamma by the time limit": Variant(source="", settings={"algorithm.discount_horizon": 0}),
    "average pooling": Variant(
        source="Trumpp et al. 2025", settings={"net.cnn_pool": "average"}, images=True
    ),
}
Job = tuple[str, str, int]
"""Variant, task, seed."""


def configuration(variant: str, task: str, seed: int) -> Config:
    """The settings of a run. Raises `UsageError`."""
    about = TASKS[task]
    values = SETTING | {"net.normalize_obs": not about.images}
    values |= {"env.id": task, "run.total_steps": about.steps, "run.seed": seed}
    tables: dict[str, Settings] = {}
    for name, value in (values | about.settings | VARIANTS[variant].settings).items():
        section, _, setting = name.partition(".")
        tables.setdefault(section, {})[setting] = value
    return Config.of(tables, {})


def run(job: Job) -> dict[str, Any]:
    """Train and evaluate; returns the line. A run that fails has the score of a random policy."""
    variant, task, seed = job
    line: dict[str, Any] = {"variant": variant, "task": task, "seed": seed}
    begin = time.process_time()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            agent = run_control(make_session(configuration(*job)))
        line["train_seconds"] = round(time.process_time() - begin, 2)
        line["engine"] = agent.config.run.engine
        line["score"] = evaluate(agent, episodes=EPISODES).mean
    except TrainingError as error:
        line |= {"score": TASKS[task].low, "error": explain(error)}
    seconds = round(time.process_time() - begin, 2)
    return {**line, "steps": TASKS[task].steps, "seconds": seconds}


def stored() -> dict[Job, dict[str, Any]]:
    """The lines so far; what a kill has torn is left out."""
    found = {}
    for text in LINES.read_text().splitlines() if LINES.exists() else []:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            found[line["variant"], line["task"], line["seed"]] = line
    return found


def applies(variant: str, task: str) -> bool:
    return TASKS[task].images or not VARIANTS[variant].images


def jobs_of(variants: Sequence[str], tasks: Sequence[str], seeds: range) -> list[Job]:
    """Seed after seed, so that whatever ends it leaves a table over all tasks."""
    return [
        (variant, task, seed)
        for seed in seeds
        for task in tasks
        for variant in variants
        if applies(variant, task)
    ]


def train_all(jobs: Sequence[Job], processes: int) -> None:
    """One process a core, each of one thread; a line is written as soon as its run is over."""
    done = stored()
    left = [job for job in jobs if job not in done]
    about = {"commit": commit(ROOT), "cpu": machine(), "torch": torch.__version__}
    torn = LINES.exists() and not LINES.read_bytes().endswith(b"\n")
    context = get_context("spawn")
    with (
        ProcessPoolExecutor(
            processes, context, functools.partial(torch.set_num_threads, 1)
        ) as pool,
        LINES.open("a") as file,
    ):
        file.write("\n" * torn)
        for number, result in enumerate(as_completed([pool.submit(run, job) for job in left]), 1):
            line = result.result()
            file.write(json.dumps(line | about) + "\n")
            file.flush()
            os.fsync(file.fileno())
            print(
                f"{number} of {len(left)}: {line['variant']} on {line['task']}, seed "
                f"{line['seed']}: {line['score']:.2f} in {line['seconds']:.0f} s",
                flush=True,
            )


def scores_of(
    lines: dict[Job, dict[str, Any]], variant: str, tasks: Sequence[str]
) -> dict[str, np.ndarray]:
    """Task -> the scores of its runs, for tasks with two of them or more."""
    found = {}
    for task in tasks:
        runs = [x["score"] for (v, t, _), x in sorted(lines.items()) if (v, t) == (variant, task)]
        if len(runs) > 1:
            found[task] = np.array(runs)
    return found


def scaled(scores: dict[str, np.ndarray], tasks: Sequence[str]) -> Scores:
    return [normalized(scores[task], TASKS[task].low, TASKS[task].high) for task in tasks]


def gain(scores: Scores, others: Scores) -> np.ndarray:
    """Difference of the interquartile means."""
    return iqm(scores) - iqm(others)


def with_interval(value: float, ends: tuple[Any, Any], sign: str = "") -> str:
    low, high = map(float, ends)
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def summary(lines: dict[Job, dict[str, Any]]) -> list[str]:
    """Each variant over all its tasks, against the default on the same ones."""
    rows = [
        "| variant | source | tasks, runs | interquartile mean | gain on the default | "
        "P(better than the default) | processor time of training |",
        "|---|---|---|---|---|---|---|",
    ]
    default = scores_of(lines, "default", list(TASKS))
    for name, variant in VARIANTS.items():
        found = scores_of(lines, name, list(TASKS))
        tasks = [task for task in TASKS if task in found and task in default]
        if not tasks:
            continue
        own, other = scaled(found, tasks), scaled(default, tasks)
        cells = [with_interval(float(iqm(own)), interval(iqm, own))]
        if name == "default":
            cells += ["", "", ""]
        else:
            win = float(improvement(own, other))
            cells += [
                with_interval(float(gain(own, other)), interval(gain, own, other), "+"),
                with_interval(win, interval(improvement, own, other)),
                f"x {time_of(lines, name, tasks) / time_of(lines, 'default', tasks):.2f}",
            ]
        runs = f"{len(tasks)}, {sum(map(len, own))}"
        rows.append(f"| {name} | {variant.source} | {runs} | {' | '.join(cells)} |")
    return rows


def time_of(lines: dict[Job, dict[str, Any]], variant: str, tasks: Sequence[str]) -> float:
    """Seconds of the processor to train once in each of these tasks."""
    total = 0.0
    for task in tasks:
        times = [
            x["train_seconds"]
            for (v, t, _), x in lines.items()
            if (v, t) == (variant, task) and "train_seconds" in x
        ]
        total += float(np.mean(times)) if times else 0.0
    return total


def by_task(lines: dict[Job, dict[str, Any]]) -> list[str]:
    """Mean score of each variant in each task."""
    known = {task: scores_of(lines, "default", [task]) for task in TASKS}
    tasks = [task for task in TASKS if known[task]]
    rows = [f"| variant | {' | '.join(tasks)} |", "|---|" + "---|" * len(tasks)]
    for name in VARIANTS:
        found = scores_of(lines, name, tasks)
        if found:
            means = (f"{found[t].mean():.4g}" if t in found else "" for t in tasks)
            rows.append(f"| {name} | {' | '.join(means)} |")
    budgets = (f"{TASKS[task].steps:,}" for task in tasks)
    ends = (f"{TASKS[task].low:g} to {TASKS[task].high:g}" for task in tasks)
    return [*rows, f"| steps | {' | '.join(budgets)} |", f"| scale | {' | '.join(ends)} |"]


def hours(lines: dict[Job, dict[str, Any]], seeds: int) -> str:
    """Processor time of the whole table, from the mean of the runs so far in each cell."""
    total, missing = 0.0, 0
    for variant, task, _ in jobs_of(list(VARIANTS), list(TASKS), range(1)):
        cell = [x["seconds"] for (v, t, _), x in lines.items() if (v, t) == (variant, task)]
        total += seeds * float(np.mean(cell)) if cell else 0.0
        missing += not cell
    beyond = f", without {missing} cells that have no run yet" if missing else ""
    return f"{total / 3600:.2f} hours of one processor for {seeds} seeds{beyond}"


def page(lines: dict[Job, dict[str, Any]], seeds: int) -> str:
    failed = [f"{v} on {t}, seed {s}" for (v, t, s), x in sorted(lines.items()) if "error" in x]
    rows = lines.values()
    setting = ", ".join(f"`{name} = {value}`" for name, value in SETTING.items())
    return "\n".join(
        [
            "# Options of PPO, each against the default",
            "",
            "Written by `benchmarks/variants.py` from `variants.jsonl`.",
            "",
            f"One setting for all tasks: {setting}, observations standardised where they are "
            "numbers, and PPO's defaults for the rest. A variant changes one thing and nothing "
            "is tuned for it. A score is the mean return of "
            f"{EPISODES} deterministic episodes of the last policy on unseen seeds, brought to a "
            "scale on which a random policy has 0 and a good one 1 (below). In brackets are "
            "95% intervals by the stratified bootstrap over runs (Agarwal et al. 2021); a gain "
            "is a difference of interquartile means. Symlog, histograms and layer normalisation "
            "run on the torch engine, the others on the native one where the network allows: "
            "part of their time is that.",
            "",
            *summary(lines),
            "",
            "Mean scores, in each task's own units:",
            "",
            *by_task(lines),
            "",
            "Runs that failed, and have the score of a random policy: "
            f"{', '.join(failed) or 'none'}.",
            f"The whole table takes {hours(lines, seeds)}.",
            f"Commit {', '.join(sorted({str(x['commit']) for x in rows}))}; "
            f"{', '.join(sorted({x['cpu'] for x in rows}))}; one thread a run.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="train nothing, write the table")
    chosen = parser.parse_args()
    if not chosen.table:
        seeds = range(FIRST_SEED, FIRST_SEED + chosen.seeds)
        jobs = jobs_of(chosen.variants, chosen.only, seeds)
        for variant, task, seed in jobs:  # what cannot be is said before anything is trained
            try:
                configuration(variant, task, seed)
            except UsageError as error:
                raise SystemExit(f"{variant} on {task}: {error}") from error
        train_all(jobs, chosen.processes)
    lines = stored()
    if not lines:
        raise SystemExit(f"{LINES} has no runs yet")
    PAGE.write_text(page(lines, chosen.seeds))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
