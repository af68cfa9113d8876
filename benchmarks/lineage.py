"""Every algorithm on the same tasks and budgets, with its preset, through the command line.

    python benchmarks/lineage.py [--only TASK ...] [--algorithms NAME ...] [--processes 2]

Adds a line per run to benchmarks/results/lineage.jsonl and writes the table lineage.md of them.
"""

import argparse
import json
import statistics
import tempfile
import time
import tomllib
from pathlib import Path

from scores import RESULTS, interval, machine, proximo, several

LINES = RESULTS / "lineage.jsonl"
ALGORITHMS = ("reinforce", "qac", "a2c", "trpo", "ppo-penalty", "ppo")

# task: (budget, seeds, bar of each algorithm in turn; None: not asked for)
TASKS = {
    "CartPole-v1": (200_000, 5, (450, 400, 475, 490, 490, 495)),
    "Pendulum-v1": (300_000, 5, (None, None, -400, -180, -180, -175)),
    "LunarLander-v3": (1_000_000, 5, (None, None, 50, 180, 200, 230)),
    "HalfCheetah-v5": (1_000_000, 3, (None, None, 1000, 1500, 1700, 2000)),
}


def run(task, algorithm, seed, folder):
    """Train, evaluate, and say how it went."""
    where = folder / f"{task}-{algorithm}-{seed}"
    words = ("--seed", str(seed), "--run-dir", str(where), "--run.threads", "1", "--quiet")
    begin = time.perf_counter()
    proximo("train", algorithm, task, "--total-steps", str(TASKS[task][0]), *words)
    seconds = time.perf_counter() - begin
    scores = json.loads(proximo("eval", str(where), "--json"))
    result = json.loads((where / "result.json").read_text())
    versions = json.loads((where / "versions.json").read_text())
    row = {
        "task": task,
        "algorithm": algorithm,
        "train_seed": seed,
        "steps": result["steps"],
        "seconds": round(seconds, 1),
        **{"eval_seed" if key == "seed" else key: value for key, value in scores.items()},
        **versions,
        "cpu": machine(),
    }
    if algorithm in ("trpo", "ppo-penalty"):
        lines = (where / "metrics.jsonl").read_text().splitlines()
        settings = tomllib.loads((where / "config.toml").read_text())["algorithm"]
        bound = settings["max_kl" if algorithm == "trpo" else "kl_target"]
        row |= {"kl_bound": bound, **kl_readings([json.loads(line) for line in lines], bound)}
    with LINES.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{task} {algorithm} {seed}: {row['return_mean']:.1f} in {seconds:.0f} s", flush=True)


def kl_readings(rows, target):
    """The exact KL of the updates: the largest, and over the last half its median and spread."""
    kl = [row["kl"] for row in rows]
    half = kl[len(kl) // 2 :]
    outside = sum(not target / 1.5 <= d <= target * 1.5 for d in half)
    return {
        "kl_largest": max(kl),
        "kl_median": statistics.median(half) / target,
        "kl_outside": outside / len(half),
    }


def summarize():
    rows = [json.loads(line) for line in LINES.read_text().splitlines()]
    latest = {(row["task"], row["algorithm"], row["train_seed"]): row for row in rows}
    lines = [f"| task, steps | {' | '.join(ALGORITHMS)} |", "|---|" + "---|" * len(ALGORITHMS)]
    short = []
    for task, (budget, seeds, bars) in TASKS.items():
        cells = []
        for algorithm, bar in zip(ALGORITHMS, bars, strict=True):
            own = [latest.get((task, algorithm, seed)) for seed in range(1, seeds + 1)]
            if bar is None or None in own:
                cells.append("")
                continue
            returns = [row["return_mean"] for row in own]
            mean = statistics.fmean(returns)
            cells.append(f"{mean:.0f} ± {interval(returns):.0f} (bar {bar})")
            if mean < bar:
                short.append(f"{algorithm} on {task}")
        lines.append(f"| {task}, {budget:,} ({seeds} seeds) | {' | '.join(cells)} |")
    commits = sorted({str(row["commit"])[:12] for row in latest.values()})
    penalty = [row for row in latest.values() if row["algorithm"] == "ppo-penalty"]
    trust = [row for row in latest.values() if row["algorithm"] == "trpo"]
    lines += [
        "",
        "Mean over seeds 1, 2, ... of the mean return of 100 deterministic episodes on unseen "
        "seeds, ± half the 95% interval (Student's t); one thread a run. Below its bar: "
        f"{', '.join(short) or 'none'}.",
    ]
    if trust:
        lines.append(
            "TRPO: the largest exact KL of any update of these runs is "
            f"{max(row['kl_largest'] / row['kl_bound'] for row in trust):.4f} of its bound."
        )
    if penalty:
        lines.append(
            "PPO-penalty, last half of each run: median d from "
            f"{min(row['kl_median'] for row in penalty):.2f} to "
            f"{max(row['kl_median'] for row in penalty):.2f} d_targ over the runs, share of "
            f"updates outside [d_targ/1.5, 1.5 d_targ] "
            f"{statistics.fmean(row['kl_outside'] for row in penalty):.0%} on average."
        )
    lines.append(f"Commit {', '.join(commits)}; {', '.join(sorted({r['cpu'] for r in rows}))}.")
    (RESULTS / "lineage.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--algorithms", nargs="*", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    chosen = parser.parse_args()
    folder = chosen.runs or Path(tempfile.mkdtemp(prefix="proximo-lineage-"))
    jobs = [
        (task, algorithm, seed, folder)
        for task in chosen.only
        for algorithm, bar in zip(ALGORITHMS, TASKS[task][2], strict=True)
        if bar is not None and algorithm in chosen.algorithms
        for seed in range(1, TASKS[task][1] + 1)
    ]
    several(run, jobs, chosen.processes)
    summarize()


if __name__ == "__main__":
    main()
