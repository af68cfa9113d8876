"""Train and score every task of the results table with its preset, through the command line.

    python benchmarks/scores.py [--only TASK ...] [--seeds N] [--runs FOLDER]

Adds a line per run to benchmarks/results/scores.jsonl (score, seed, commit, versions, machine) and
writes the table benchmarks/results/scores.md from all of them.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
LINES = RESULTS / "scores.jsonl"

# task: (seeds, bar for the mean, bar for the worst)
TASKS = {
    "CartPole-v1": (5, 475, 475),
    "Pendulum-v1": (5, -180, -220),
    "LunarLander-v3": (5, 230, 200),
    "LunarLanderContinuous-v3": (5, 240, None),
    "MountainCar-v0": (5, -120, -120),
    "HalfCheetah-v5": (5, 2000, None),
}


def proximo(*words):
    done = subprocess.run(
        [sys.executable, "-m", "proximo", *words], check=True, text=True, stdout=subprocess.PIPE
    )
    return done.stdout


def machine():
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = f"{names[0].split(':')[1].strip()} x {len(names)}" if names else name
    return name


def score(task, seed, runs):
    folder = runs / f"{task}-{seed}"
    begin = time.perf_counter()
    # One thread, so that several of these can run side by side; the bits are those of two.
    words = ("--run-dir", str(folder), "--run.threads", "1", "--quiet")
    proximo("train", "ppo", task, "--seed", str(seed), *words)
    seconds = time.perf_counter() - begin
    scores = json.loads(proximo("eval", str(folder), "--json"))
    result = json.loads((folder / "result.json").read_text())
    versions = json.loads((folder / "versions.json").read_text())
    return {
        "task": task,
        "train_seed": seed,
        "steps": result["steps"],
        "seconds": round(seconds, 1),
        **{"eval_seed" if key == "seed" else key: value for key, value in scores.items()},
        **versions,
        "cpu": machine(),
    }


def several(run, jobs, processes):
    """run(*job) for each of them, so many at a time; the first error ends it."""
    with ThreadPoolExecutor(processes) as pool:
        for done in [pool.submit(run, *job) for job in jobs]:
            done.result()


def interval(values):
    """Half the width of the 95% interval of the mean, by Student's t."""
    quantiles = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 10: 2.262}
    count = len(values)
    if count < 2:
        return float("nan")
    return quantiles.get(count, 1.96) * statistics.stdev(values) / count**0.5


def table(rows):
    """The newest row of each (task, seed), summed up per task."""
    latest = {(row["task"], row["train_seed"]): row for row in rows}
    lines = [
        "| task | steps | bar | mean of seeds | worst seed | each seed | seconds a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, (_, mean_bar, worst_bar) in TASKS.items():
        found = [row for (name, _), row in sorted(latest.items()) if name == task]
        if not found:
            continue
        returns = [row["return_mean"] for row in found]
        mean = statistics.fmean(returns)
        half = interval(returns)
        bar = f"mean >= {mean_bar}" + ("" if worst_bar is None else f", each >= {worst_bar}")
        each = ", ".join(f"{value:.1f}" for value in returns)
        seconds = statistics.median(row["seconds"] for row in found)
        lines.append(
            f"| {task} | {found[0]['steps']:,} | {bar} | {mean:.1f} ± {half:.1f} "
            f"| {min(returns):.1f} | {each} | {seconds:.0f} |"
        )
    commits = sorted({str(row["commit"])[:12] for row in latest.values()})
    cpus = sorted({row["cpu"] for row in latest.values()})
    short = [
        f"{task} seed {seed}"
        for (task, seed), row in sorted(latest.items())
        if TASKS[task][2] is not None and row["return_mean"] < TASKS[task][2]
    ]
    lines += [
        "",
        "Mean return of 100 deterministic episodes on unseen seeds, last checkpoint; ± is half the "
        "95% interval of the mean over training seeds (Student's t).",
        "Seeds 1 to 5, on some of which the presets were tuned, and 11 to 15, which were run "
        f"afterwards. Below the bar for each: {', '.join(short) or 'none'}.",
        f"Commit {', '.join(commits)}; {', '.join(cpus)}; one thread a run.",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, help="seeds per task, instead of the table's")
    parser.add_argument("--first", type=int, default=1, help="first seed")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    chosen = parser.parse_args()
    runs = chosen.runs or Path(tempfile.mkdtemp(prefix="proximo-scores-"))
    RESULTS.mkdir(exist_ok=True)
    for task in chosen.only:
        for seed in range(chosen.first, chosen.first + (chosen.seeds or TASKS[task][0])):
            row = score(task, seed, runs)
            with LINES.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{task} seed {seed}: {row['return_mean']:.1f} in {row['seconds']:.0f} s",
                flush=True,
            )
    summarize()


def summarize():
    rows = [json.loads(line) for line in LINES.read_text().splitlines()]
    (RESULTS / "scores.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
