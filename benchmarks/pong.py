"""The learning curves of Proximo and Stable-Baselines3 on Atari's Pong, at the same settings.

    python benchmarks/pong.py [--seeds N] [--steps N]

Two runs at a time, one thread each. Needs the environment of `make bench` for the peer. Writes
results/pong.json (the curves) and results/pong.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "speed"))
from bench import ROOT, commit, install, python
from ours import learn
from settings import WORKS

from scores import machine

RESULTS = Path(__file__).parent / "results"
EVERY = 20_480


def ours(seed, steps):
    """[(steps, mean return of the last 100 episodes)] after every rollout."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"from pong import learn_pong; learn_pong({seed}, {steps}, {folder!r})"
        here = Path(__file__).parent
        subprocess.run([sys.executable, "-c", code], check=True, cwd=here, stdout=subprocess.PIPE)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def learn_pong(seed, steps, folder):
    learn(WORKS["pong"], steps, Path(folder) / "run", seed=seed)


def theirs(seed, steps):
    script = Path(__file__).parent / "speed" / "pong_peer.py"
    command = [str(python("contrib")), str(script), "--seed", str(seed), "--steps", str(steps)]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def curve(rows):
    """The mean return at every so many steps."""
    found = {}
    for row in rows:
        mark = row["steps"] // EVERY * EVERY
        if mark and mark not in found and row.get("return_mean") is not None:
            found[mark] = row["return_mean"]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=204_800)
    chosen = parser.parse_args()
    install("contrib")
    seeds = range(1, chosen.seeds + 1)
    with ThreadPoolExecutor(2) as pool:
        jobs = {
            (name, seed): pool.submit(run, seed, chosen.steps)
            for seed in seeds
            for name, run in (("proximo", ours), ("stable-baselines3", theirs))
        }
        curves = {key: curve(job.result()) for key, job in jobs.items()}
    by_name = {
        name: {seed: found for (own, seed), found in curves.items() if own == name}
        for name in ("proximo", "stable-baselines3")
    }
    kept = {"commit": commit(ROOT), "cpu": machine(), "curves": by_name}
    (RESULTS / "pong.json").write_text(json.dumps(kept, indent=1) + "\n")
    marks = sorted(set.intersection(*(set(found) for found in curves.values())))
    lines = ["| steps | " + " | ".join(by_name) + " |", "|---|" + "---|" * len(by_name)]
    for mark in marks:
        means = [
            statistics.fmean(found[mark] for found in each.values()) for each in by_name.values()
        ]
        lines.append(f"| {mark:,} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    lines += [
        "",
        f"ALE/Pong-v5, mean return of the last 100 episodes, mean of {chosen.seeds} seeds; the "
        "settings of `pong` in speed/settings.py for both.",
        f"Commit {kept['commit']}; {kept['cpu']}.",
    ]
    (RESULTS / "pong.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
