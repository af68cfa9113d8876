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
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "speed"))
from bench import ROOT, commit, install, python
from ours import learn
from settings import WORKS

from scores import interval, machine, several

RESULTS = Path(__file__).parent / "results"
EVERY = 20_480
PEER = "stable-baselines3"


def ours(seed, steps, folder):
    code = f"from pong import learn_pong; learn_pong({seed}, {steps}, {str(folder)!r})"
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=here, stdout=subprocess.PIPE)


def learn_pong(seed, steps, folder):
    learn(WORKS["pong"], steps, Path(folder) / f"proximo-{seed}", seed=seed)


def theirs(seed, steps, folder):
    script = Path(__file__).parent / "speed" / "pong_peer.py"
    command = [str(python("contrib")), str(script), "--seed", str(seed), "--steps", str(steps)]
    with (folder / f"{PEER}-{seed}.jsonl").open("w") as file:
        subprocess.run(command, check=True, stdout=file)
    (folder / f"{PEER}-{seed}.done").touch()


def curve(path):
    """The mean return of the last 100 episodes at every so many steps."""
    found = {}
    for line in path.read_text().splitlines():
        if not line.startswith("{"):
            continue
        row = json.loads(line)
        mark = row["steps"] // EVERY * EVERY
        if mark and mark not in found and row.get("return_mean") is not None:
            found[mark] = row["return_mean"]
    return found


def summarize(folder, seeds):
    curves = {
        "proximo": [curve(folder / f"proximo-{seed}" / "metrics.jsonl") for seed in seeds],
        PEER: [curve(folder / f"{PEER}-{seed}.jsonl") for seed in seeds],
    }
    kept = {"commit": commit(ROOT), "cpu": machine(), "curves": curves}
    (RESULTS / "pong.json").write_text(json.dumps(kept, indent=1) + "\n")
    marks = sorted(set.intersection(*(set(found) for each in curves.values() for found in each)))
    lines = [
        "| steps | " + " | ".join(curves) + " | difference |",
        "|---|" + "---|" * (len(curves) + 1),
    ]
    values = {f"{mark:,}": [[c[mark] for c in each] for each in curves.values()] for mark in marks}
    values["all of these"] = [
        [statistics.fmean(c[mark] for mark in marks) for c in each] for each in curves.values()
    ]
    for name, (own, peers) in values.items():
        apart = [a - b for a, b in zip(own, peers, strict=True)]
        cells = (f"{statistics.fmean(v):.2f} ± {interval(v):.2f}" for v in (own, peers, apart))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "ALE/Pong-v5, mean return of the last 100 episodes (fewer before step 100,000: 16 to 24 "
        f"at the first mark), mean of {len(seeds)} seeds; the settings of `pong` in "
        "speed/settings.py for both. ± is half the 95% interval of the mean over seeds "
        "(Student's t).",
        f"Commit {kept['commit']}; {kept['cpu']}.",
    ]
    (RESULTS / "pong.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=204_800)
    parser.add_argument(
        "--runs", type=Path, help="keep the curves here, and make no run again that is here"
    )
    chosen = parser.parse_args()
    install("contrib")
    folder = chosen.runs or Path(tempfile.mkdtemp(prefix="proximo-pong-"))
    folder.mkdir(exist_ok=True)
    seeds = range(1, chosen.seeds + 1)
    marks = {ours: "proximo-{}/result.json", theirs: f"{PEER}-{{}}.done"}
    jobs = [
        (run, seed, chosen.steps, folder)
        for seed in seeds
        for run, mark in marks.items()
        if not (folder / mark.format(seed)).is_file()
    ]
    several(lambda run, *words: run(*words), jobs, 2)
    summarize(folder, seeds)


if __name__ == "__main__":
    main()
