"""Steps per second of Proximo against the size of everything, one thing changed at a time.

    python benchmarks/speed/scaling.py [--only PANEL ...] [--rounds 1] [--quick]

From CartPole-v1, 64 envs in one vector env x 128 steps, 4 epochs, minibatches of 256, two
hidden layers of 64 (minibatches of 128 where the number of envs changes, as one env has no
more). Each measurement is a process of its own, with one and with two threads; the better counts.

Writes benchmarks/results/scaling.json and scaling.png.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import HERE, RESULTS, commit, machine

ENGINES = ("native", "torch")
# panel: (label of the axis, {line: {value: arguments of ours.py}})
PANELS = {
    "envs": (
        "parallel envs",
        {
            backend: {n: f"--backend {backend} --minibatch 128 --num-envs {n}" for n in counts}
            for backend, counts in {
                "vector": (1, 4, 16, 64, 256, 1024, 4096),
                "sync": (1, 4, 16, 64),
            }.items()
        },
    ),
    "width": (
        "width of the two hidden layers",
        {
            engine: {n: f"--engine {engine} --hidden {n} {n}" for n in (32, 64, 128, 256, 512)}
            for engine in ENGINES
        },
    ),
    "depth": (
        "hidden layers of 64",
        {
            engine: {n: f"--engine {engine} --hidden" + " 64" * n for n in (1, 2, 3, 4)}
            for engine in ENGINES
        },
    ),
    "minibatch": (
        "samples in a minibatch",
        {
            engine: {
                n: f"--engine {engine} --minibatch {n}"
                for n in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
            }
            for engine in ENGINES
        },
    ),
}
NAMES = {
    "vector": "one vector env",
    "sync": "single envs in turn",
    "native": "engine native (C++)",
    "torch": "engine torch",
}


def measure(words: str, steps: int, threads: int) -> dict:
    command = [sys.executable, str(HERE / "ours.py"), "cartpole64", *words.split()]
    command += ["--steps", str(steps), "--threads", str(threads)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=900)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def points(line: dict) -> list[tuple[int, float]]:
    """Value and median steps a second at the better number of threads, where every run worked."""
    found = []
    for value, by_threads in line.items():
        medians = [
            statistics.median(result["steps_per_second"] for result in results)
            for results in by_threads.values()
            if not any("error" in result for result in results)
        ]
        if medians:
            found.append((int(value), max(medians)))
    return sorted(found)


def draw(panels: dict, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    def short(value: float, _position: int = 0) -> str:
        return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"

    colours = {"vector": "C0", "sync": "C2", "native": "C0", "torch": "C1"}
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    for axis, (name, (label, _)) in zip(axes.flat, PANELS.items(), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        ticks = set()
        for line, values in panels.get(name, {}).items():
            found = points(values)
            ticks |= {x for x, _ in found}
            if found:
                axis.plot(*zip(*found, strict=True), "o-", color=colours[line], label=NAMES[line])
        axis.set_xlabel(label)
        axis.set_ylabel("environment steps per second")
        axis.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
        axis.minorticks_off()
        low, high = axis.get_ylim()
        marks = [m * 10**e for e in range(2, 8) for m in (1, 2, 5)]
        # A little more room than the lines need, and round numbers at the axis.
        axis.set_ylim(low / 1.2, high * 1.2)
        axis.set_yticks([mark for mark in marks if low / 1.2 <= mark <= high * 1.2])
        axis.yaxis.set_major_formatter(FuncFormatter(short))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        if ticks:
            axis.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PANELS, default=list(PANELS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80_000, help="at least 3 updates in any case")
    parser.add_argument("--quick", action="store_true", help="every other point, fewer steps")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args()
    steps = chosen.steps // 4 if chosen.quick else chosen.steps
    file = chosen.out / "scaling.json"
    chosen.out.mkdir(parents=True, exist_ok=True)
    at = commit(HERE)  # before any result is written, which is a file of the checkout too
    panels = json.loads(file.read_text())["panels"] if file.exists() else {}
    for name in chosen.only:
        panels[name] = {}
        for line, values in PANELS[name][1].items():
            found = panels[name][line] = {}
            for value in list(values)[:: 2 if chosen.quick else 1]:
                words = values[value]
                found[str(value)] = {
                    str(threads): [measure(words, steps, threads) for _ in range(chosen.rounds)]
                    for threads in (1, 2)
                }
                best = dict(points(found)).get(value)
                print(
                    f"{name} {value}, {line}: " + (f"{best:,.0f} steps/s" if best else "failed"),
                    flush=True,
                )
        record = {
            "cpu": machine(),
            "commit": at,
            "quick": chosen.quick,
            "rounds": chosen.rounds,
            "panels": panels,
        }
        file.write_text(json.dumps(record, indent=1) + "\n")
    draw(panels, chosen.out / "scaling.png")


if __name__ == "__main__":
    main()
