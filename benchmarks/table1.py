"""The PPO paper's Table 1 in small: clip, adaptive and fixed KL penalty, and neither.

    python benchmarks/table1.py [--processes 2]

Schulman et al. 2017 (arXiv 1707.06347), section 6.1, with its settings (Table 3) and its scoring:
the mean return of the last 100 episodes of a run, shifted and scaled per task so that a random
policy has 0 and the best setting 1, then averaged. Adds a line per run to results/table1.jsonl
and writes table1.md.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import gymnasium as gym

from scores import RESULTS, machine, proximo, several

LINES = RESULTS / "table1.jsonl"
STEPS, SEEDS = 300_000, 3

PENALTY = ("--algorithm.beta", "1")
SETTINGS = {  # name: (what the paper found, algorithm, flags)
    "no clipping or penalty": (-0.39, "ppo", ("--algorithm.clip", "none")),
    **{
        f"clipping, ε = {clip}": (paper, "ppo", ("--algorithm.clip", str(clip)))
        for clip, paper in ((0.1, 0.76), (0.2, 0.82), (0.3, 0.70))
    },
    **{
        f"adaptive KL, d_targ = {kl}": (
            paper,
            "ppo-penalty",
            (*PENALTY, "--algorithm.kl-target", str(kl)),
        )
        for kl, paper in ((0.003, 0.68), (0.01, 0.74), (0.03, 0.71))
    },
    **{
        f"fixed KL, β = {beta}": (
            paper,
            "ppo-penalty",
            ("--algorithm.beta", str(beta), "--algorithm.kl-target", "none"),
        )
        for beta, paper in ((0.3, 0.62), (1, 0.71), (3, 0.72), (10, 0.69))
    },
}
# Pendulum is not among the paper's tasks, and does not learn with its discount of 0.99.
TASKS = {"Hopper-v5": (), "HalfCheetah-v5": (), "Pendulum-v1": ("--algorithm.gamma", "0.9")}
PAPER = (
    *("--preset", "none", "--env.num-envs", "1", "--rollout.steps", "2048"),
    *("--algorithm.learning-rate", "3e-4", "--algorithm.epochs", "10"),
    *("--algorithm.minibatch-size", "64", "--algorithm.gamma", "0.99", "--algorithm.lam", "0.95"),
    *("--net.hidden", "64", "64", "--net.normalize-obs", "--run.threads", "1", "--quiet"),
    *("--total-steps", str(STEPS)),
)


def run(task, name, seed, folder):
    _, algorithm, flags = SETTINGS[name]
    where = folder / f"{task}-{list(SETTINGS).index(name)}-{seed}"
    words = ("--seed", str(seed), "--run-dir", str(where))
    proximo("train", algorithm, task, *PAPER, *flags, *TASKS[task], *words)
    result = json.loads((where / "result.json").read_text())
    versions = json.loads((where / "versions.json").read_text())
    row = {"task": task, "setting": name, "seed": seed, "score": result["return_mean"], **versions}
    with LINES.open("a") as file:
        file.write(json.dumps({**row, "cpu": machine()}) + "\n")
    print(f"{task} {name} {seed}: {row['score']:.1f}", flush=True)


def random_score(task):
    """Mean return of 100 episodes of actions drawn evenly from the env's bounds."""
    env, returns = gym.make(task), []
    env.action_space.seed(0)
    for episode in range(100):
        env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return statistics.fmean(returns)


def summarize():
    rows = [json.loads(line) for line in LINES.read_text().splitlines()]
    latest = {(row["task"], row["setting"], row["seed"]): row for row in rows}
    scores = {
        (task, name): [latest[task, name, seed]["score"] for seed in range(1, SEEDS + 1)]
        for task in TASKS
        for name in SETTINGS
    }
    zero = {task: random_score(task) for task in TASKS}
    best = {task: max(statistics.fmean(scores[task, name]) for name in SETTINGS) for task in TASKS}

    def normalized(task, name):
        return [(s - zero[task]) / (best[task] - zero[task]) for s in scores[task, name]]

    lines = [
        f"| setting | paper | here | {' | '.join(TASKS)} |",
        "|---|---|---|" + "---|" * len(TASKS),
    ]
    for name, (paper, *_) in SETTINGS.items():
        here = statistics.fmean(x for task in TASKS for x in normalized(task, name))
        cells = [
            f"{statistics.fmean(normalized(task, name)):.2f} "
            f"({statistics.fmean(scores[task, name]):,.0f})"
            for task in TASKS
        ]
        lines.append(f"| {name} | {paper} | {here:.2f} | {' | '.join(cells)} |")
    commits = sorted({str(row["commit"])[:12] for row in latest.values()})
    randoms = ", ".join(f"{task} {score:,.0f}" for task, score in zero.items())
    lines += [
        "",
        f"Paper: seven MuJoCo tasks (gym 2017), 1M steps, 3 seeds. Here: {STEPS:,} steps, {SEEDS} "
        "seeds; per task the normalised score and in brackets the mean return of the last 100 "
        f"episodes. A random policy, which has 0: {randoms}. `benchmarks/table1.py`, commit "
        f"{', '.join(commits)}.",
    ]
    (RESULTS / "table1.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="proximo-table1-"))
    jobs = [
        (task, name, seed, folder)
        for seed in range(1, SEEDS + 1)
        for task in TASKS
        for name in SETTINGS
    ]
    several(run, jobs, chosen.processes)
    summarize()


if __name__ == "__main__":
    main()
