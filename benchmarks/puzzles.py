"""Train every kind of policy on an env whose best score is known, through the command line.

    python benchmarks/puzzles.py [--only TASK ...] [--processes N] [--runs FOLDER]

Masked, recurrent, hybrid and image envs of `proximo.envs.testing.puzzles`, some beside a control: a
policy that is not recurrent, or a penalty for illegal actions instead of masks. Adds a line per run
to results/puzzles.jsonl and writes results/puzzles.md from all of them.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from proximo.envs.testing.puzzles import Maze
from scores import interval, machine, proximo, several

RESULTS = Path(__file__).parent / "results"
LINES = RESULTS / "puzzles.jsonl"
ROLLOUT = "--env.num-envs 8 --rollout.steps 128"
SOON = "--env.num-envs 1 --algorithm.learning-rate linear:5e-3:0 --algorithm.epochs 20"
QUICK = f"{SOON} --rollout.steps 250 --algorithm.gamma 0"
CART = (
    f"{ROLLOUT} --algorithm.gamma 0.98 --algorithm.learning-rate linear:1e-3:0 "
    "--algorithm.minibatch-size 256"
)
LSTM = "--net.recurrent lstm"


@dataclass(frozen=True)
class Task:
    """One env with one policy."""

    what: str
    env: str
    steps: int
    words: str
    bar: float | None  # none: a control, for its steps alone
    at_most: bool = False  # the bar of a control
    reach: float | None = None  # when this return was reached is also of interest


TASKS = {
    "identity-discrete": Task(
        "identity, Discrete", "Identity", 2_000, f"{QUICK} --env.kwargs kind discrete", 95
    ),
    "identity-multi-discrete": Task(
        "identity, MultiDiscrete",
        "Identity",
        2_000,
        f"{QUICK} --env.kwargs kind multi-discrete",
        95,
    ),
    "identity-binary": Task(
        "identity, MultiBinary", "Identity", 2_000, f"{QUICK} --env.kwargs kind binary", 95
    ),
    "identity-box": Task(
        "identity, Box",
        "Identity",
        2_000,
        f"{SOON} --rollout.steps 125 --algorithm.gamma 0 --algorithm.minibatch-size 32 "
        "--env.kwargs kind box --net.log-std -0.7",
        95,
    ),
    "workshop": Task(
        "tool and strength (hybrid)", "Workshop", 150_000, f"{ROLLOUT} --algorithm.gamma 0.5", 9.5
    ),
    "copy": Task(
        "copy after 4 steps, LSTM",
        "Copy",
        500_000,
        "--env.num-envs 16 --rollout.steps 72 --algorithm.minibatch-size 288 --algorithm.gamma 0.5 "
        f"--algorithm.learning-rate linear:2e-3:0 --algorithm.epochs 4 {LSTM}",
        0.95,
    ),
    "cartpole": Task(
        "CartPole without velocities, LSTM", "still_cartpole", 200_000, f"{CART} {LSTM}", 475
    ),
    "cartpole-control": Task(
        "the same, not recurrent", "still_cartpole", 200_000, CART, 120, at_most=True
    ),
    "cartpole-200": Task(
        "the same, LSTM, limit of 200 steps",
        "still_cartpole",
        410_000,
        f"{CART} {LSTM} --env.kwargs limit 200",
        193,
    ),
    "pendulum": Task(
        "Pendulum without its velocity, LSTM",
        "still_pendulum",
        300_000,
        "--env.num-envs 8 --rollout.steps 256 --algorithm.minibatch-size 256 --algorithm.gamma 0.9 "
        f"--algorithm.learning-rate linear:1e-3:0 --algorithm.normalize-reward {LSTM}",
        -250,
    ),
    "catch": Task(
        "Catch, from pixels",
        "Catch",
        200_000,
        "--env.num-envs 16 --rollout.steps 64 --algorithm.epochs 4 --algorithm.minibatch-size 256 "
        "--algorithm.learning-rate linear:5e-4:0 --algorithm.entropy-coef linear:0.05:0 "
        "--net.trunk shared",
        0.95,
    ),
    "maze": Task("maze, masked", "Maze", 200_000, ROLLOUT, 0.64, reach=0.9 * Maze().best()),
    "maze-penalty": Task(
        "the same, illegal moves cost 0.1",
        "Maze",
        1_000_000,
        f"{ROLLOUT} --env.kwargs masks False",
        None,
        reach=0.9 * Maze().best(),
    ),
    "cards": Task(
        "cards, masked",
        "Cards",
        200_000,
        f"{ROLLOUT} --algorithm.gamma 0.2 --algorithm.learning-rate 1e-3",
        9.0,
        reach=9.0,
    ),
    "cards-penalty": Task(
        "the same, illegal cards cost 1",
        "Cards",
        1_000_000,
        f"{ROLLOUT} --algorithm.gamma 0.2 --algorithm.learning-rate 1e-3 --env.kwargs masks False",
        None,
        reach=9.0,
    ),
}


def run(name, seed, folder):
    task = TASKS[name]
    home, env = folder / f"{name}-{seed}", f"proximo.envs.testing.puzzles:{task.env}"
    begin = time.perf_counter()
    words = ["--total-steps", str(task.steps), "--seed", str(seed), "--run-dir", str(home)]
    proximo(
        *("train", "ppo", env, "--preset", "none", *task.words.split(), *words),
        *("--run.threads", "1", "--quiet"),
    )
    seconds = time.perf_counter() - begin
    scores = json.loads(proximo("eval", str(home), "--env", env, "--json"))
    rows = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    reached = None
    if task.reach is not None:  # the mean of the last 100 episodes
        far = (r["steps"] for r in rows if r["episodes"] >= 100 and r["return_mean"] >= task.reach)
        reached = next(far, None)
    row = {
        "task": name,
        "train_seed": seed,
        "steps": rows[-1]["steps"],
        "return_mean": scores["return_mean"],
        "reached": reached,
        "seconds": round(seconds, 1),
        **json.loads((home / "versions.json").read_text()),
        "cpu": machine(),
    }
    with LINES.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{name} seed {seed}: {row['return_mean']:.3f} in {seconds:.0f} s", flush=True)


def summarize():
    rows = [json.loads(line) for line in LINES.read_text().splitlines()]
    latest = {(row["task"], row["train_seed"]): row for row in rows}
    lines = [
        "| env | steps | bar | mean of seeds | each seed | steps to 90% of the best |",
        "|---|---|---|---|---|---|",
    ]
    medians = {}
    for name, task in TASKS.items():
        found = [row for (own, _), row in sorted(latest.items()) if own == name]
        if not found:
            continue
        returns = [row["return_mean"] for row in found]
        digits = 3 if abs(returns[0]) <= 1 else 1
        bar = "" if task.bar is None else f"{'<' if task.at_most else '>='} {task.bar}"
        reached = ""
        if task.reach is not None:
            each = [row["reached"] or float("inf") for row in found]
            medians[name] = statistics.median(each)
            reached = f"{medians[name]:,.0f} ({', '.join(f'{x:,.0f}' for x in each)})"
        lines.append(
            f"| {task.what} | {task.steps:,} | {bar} "
            f"| {statistics.fmean(returns):.{digits}f} ± {interval(returns):.{digits}f} "
            f"| {', '.join(f'{x:.{digits}f}' for x in returns)} | {reached} |"
        )
    lines += [
        "",
        "Mean return of 100 deterministic episodes on unseen seeds; ± is half the 95% interval of "
        "the mean over training seeds (Student's t). The envs of "
        "`proximo.envs.testing.puzzles`; a masked one raises an error at an illegal "
        "action, so that a finished run has made none.",
    ]
    for masked in ("maze", "cards"):
        if {masked, f"{masked}-penalty"} <= medians.keys():
            ratio = medians[f"{masked}-penalty"] / medians[masked]
            lines.append(
                f"{masked.capitalize()}: with a penalty it takes {ratio:.1f} times the steps that "
                "it takes with masks (medians)."
            )
    commits = sorted({str(row["commit"])[:12] for row in latest.values()})
    lines.append(f"Commit {', '.join(commits)}; {', '.join(sorted({r['cpu'] for r in rows}))}.")
    (RESULTS / "puzzles.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    chosen = parser.parse_args()
    folder = chosen.runs or Path(tempfile.mkdtemp(prefix="proximo-puzzles-"))
    jobs = [(name, seed, folder) for name in chosen.only for seed in range(1, chosen.seeds + 1)]
    several(run, jobs, chosen.processes)
    summarize()


if __name__ == "__main__":
    main()
