"""The teaching presets beside plain re-writings of their listings: what they reach, and when.

Both train the same number of episodes with the same settings, in turn, each on one thread; the time
is that of the whole process. Writes benchmarks/results/teaching.json and .md.

    python benchmarks/teaching/compare.py [--seeds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
TASKS = {"cartpole": 500, "pendulum": 2000}
PUBLISHED = {"cartpole": 187.2, "pendulum": -236.0}


def timed(command: list[str]) -> tuple[str, float]:
    begin = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout, time.perf_counter() - begin


def ours(task: str, seed: int) -> tuple[list[float], float]:
    """Returns of the episodes in training, and the seconds of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = ["--preset", f"teaching-{task}", "--seed", str(seed), "--run-dir", str(run)]
        _, seconds = timed([sys.executable, "-m", "proximo", "train", *words, "--quiet"])
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["return_latest"] for line in lines], seconds


def plain(task: str, seed: int) -> tuple[list[float], float]:
    text, seconds = timed([sys.executable, str(HERE / "plain.py"), task, "--seed", str(seed)])
    return json.loads(text)["returns"], seconds


def reached(returns: list[float], level: float) -> int | None:
    """The first episode at which the mean of the last 10 is this high."""
    for end in range(10, len(returns) + 1):
        if statistics.mean(returns[end - 10 : end]) >= level:
            return end
    return None


def measure(seeds: int) -> dict[str, object]:
    found: dict[str, list[dict[str, object]]] = {task: [] for task in TASKS}
    for seed in range(1, seeds + 1):
        for task, episodes in TASKS.items():
            for name, run in (("ours", ours), ("plain", plain)):
                returns, seconds = run(task, seed)
                assert len(returns) == episodes, (task, name, len(returns))
                row = {
                    "who": name,
                    "seed": seed,
                    "seconds": round(seconds, 2),
                    "last_10": statistics.mean(returns[-10:]),
                    "reached_200": reached(returns, 200.0) if task == "cartpole" else None,
                    "tenths": [
                        statistics.mean(returns[k * episodes // 10 - 10 : k * episodes // 10])
                        for k in range(1, 11)
                    ],
                }
                found[task].append(row)
                print(task, row, flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    return {"commit": commit, "machine": platform.processor() or platform.machine(), "runs": found}


def summarize(found: dict) -> str:
    lines = [
        "| preset | who | last 10 episodes, mean of seeds | each seed | "
        "last 10 at 200 by episode | "
        "seconds, median | times as fast | published end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, rows in found["runs"].items():
        time_of = {}
        for who in ("plain", "ours"):
            own = [row for row in rows if row["who"] == who]
            ends = [row["last_10"] for row in own]
            time_of[who] = statistics.median(row["seconds"] for row in own)
            by = ", ".join(str(row["reached_200"] or "never") for row in own)
            ratio = f"{time_of['plain'] / time_of['ours']:.1f}" if who == "ours" else ""
            lines.append(
                f"| teaching-{task} | {'Proximo' if who == 'ours' else 'plain listing'} | "
                f"{statistics.mean(ends):.1f} | {', '.join(f'{e:.1f}' for e in ends)} | "
                f"{by if task == 'cartpole' else ''} | {time_of[who]:.1f} | {ratio} | "
                f"{PUBLISHED[task]} |"
            )
    lines += [
        "",
        "Returns of the episodes in training (sampled actions), plain and Proximo in turn, whole "
        "processes on one thread each. `benchmarks/teaching/compare.py`, commit "
        f"{found['commit']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    found = measure(parser.parse_args().seeds)
    (RESULTS / "teaching.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "teaching.md").write_text(summarize(found))
    print(summarize(found))


if __name__ == "__main__":
    main()
