"""Steps per second and memory of Proximo against the size of everything, one thing at a time.

    python benchmarks/speed/scaling.py [--only PANEL ...] [--rounds 1] [--quick] [--fresh]

From CartPole-v1, 64 envs in one vector env x 128 steps, 4 epochs, minibatches of 256, two hidden
layers of 64 (minibatches of 128 where the number of envs changes, as one env has no more; 32 steps
where the width does, as the widest take minutes). Each measurement is a process of its own, with
one and with two threads; the better counts.

A point that is measured at this commit stays, so that a table that was cut off continues; --fresh
measures anew.
At the end it says how the cost grows between neighbouring sizes, as the exponent of the size: 1 is
linear, more is worse. Writes benchmarks/results/scaling.json and scaling.png.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import HERE, RESULTS, commit, machine

ENGINES = ("native", "torch")
MANY = (1, 4, 16, 64, 256, 1024, 4096, 16384)
WIDTHS = {"native": (32, 64, 128, 256, 512), "torch": (32, 64, 128, 256, 512, 1024, 2048)}


def weights(*hidden: int) -> int:
    """Weights of the actor for CartPole: the arithmetic of a sample is proportional to them."""
    sizes = (4, *hidden, 2)
    return sum(a * b for a, b in itertools.pairwise(sizes))


# panel: (label of the axis, {line: {value: arguments of ours.py}})
PANELS = {
    "envs": (
        "parallel envs",
        {
            backend: {n: f"--backend {backend} --minibatch 128 --num-envs {n}" for n in counts}
            for backend, counts in {
                "compiled": MANY,
                "vector": MANY,
                "sync": (1, 4, 16, 64, 256),
            }.items()
        },
    ),
    "width": (
        "width of the two hidden layers",
        {
            engine: {n: f"--engine {engine} --rollout 32 --hidden {n} {n}" for n in WIDTHS[engine]}
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
            engine: {n: f"--engine {engine} --minibatch {n}" for n in (16, 64, 256, 1024, 4096)}
            for engine in ENGINES
        },
    ),
}
NAMES = {
    "compiled": "compiled envs",
    "vector": "one vector env",
    "sync": "single envs in turn",
    "native": "engine native (C++)",
    "torch": "engine torch",
}
# panel: what a size costs, from its steps per second: seconds of an update, a sample or a minibatch
COSTS: dict[str, tuple[str, Callable[[int], float], Callable[[int, float], float]]] = {
    "envs": ("the envs", float, lambda n, speed: n / speed),
    "width": ("the weights", lambda n: weights(n, n), lambda n, speed: 1 / speed),
    "depth": ("the weights", lambda n: weights(*[64] * n), lambda n, speed: 1 / speed),
    "minibatch": ("the samples", float, lambda n, speed: n / speed),
}


def measure(words: str, steps: int, threads: int) -> dict:
    words = words.replace("--backend compiled", "--backend native")
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


def exponents(panel: str, line: dict) -> list[tuple[float, int, int]]:
    """How the cost grows from each size to the next: (exponent, size, next size)."""
    _, size, cost = COSTS[panel]
    found = points(line)
    return [
        (math.log(cost(b, fast) / cost(a, slow)) / math.log(size(b) / size(a)), a, b)
        for (a, slow), (b, fast) in itertools.pairwise(found)
    ]


def memory(line: dict, steps: int = 128) -> list[tuple[int, float, float]]:
    """(envs, MiB at the peak, KiB per env and step above one env), where every run worked."""
    found = []
    for value, by_threads in sorted(line.items(), key=lambda item: int(item[0])):
        results = [result for results in by_threads.values() for result in results]
        if not any("error" in result for result in results):
            found.append((int(value), min(result["peak_mib"] for result in results)))
    first, least = found[0] if found else (0, 0.0)
    return [
        (n, mib, 1024 * (mib - least) / ((n - first) * steps) if n > first else math.nan)
        for n, mib in found
    ]


def tables(panels: dict) -> str:
    """Steps per second, memory and the worst exponents, as Markdown."""
    lines = []
    for panel, (label, own) in PANELS.items():
        measured = panels.get(panel, {})
        if not measured:
            continue
        sizes = sorted({int(value) for line in measured.values() for value in line})
        lines += [f"| {label} | " + " | ".join(f"{n:,}" for n in sizes) + " |"]
        lines += ["|---" * (len(sizes) + 1) + "|"]
        for line in own:
            speeds = dict(points(measured.get(line, {})))
            cells = [f"{speeds[n]:,.0f}" if n in speeds else "" for n in sizes]
            lines.append(f"| {NAMES[line]}, steps/s | " + " | ".join(cells) + " |")
        if panel == "envs":
            for line in own:
                room = {n: (mib, kib) for n, mib, kib in memory(measured.get(line, {}))}
                cells = [f"{room[n][0]:,.0f}" if n in room else "" for n in sizes]
                lines.append(f"| {NAMES[line]}, MiB at the peak | " + " | ".join(cells) + " |")
                if room:
                    n = max(room)
                    lines.append(
                        f"| {NAMES[line]}, MiB per env and step | "
                        + " | ".join("" if k != n else f"{room[n][1] / 1024:.6f}" for k in sizes)
                        + " |"
                    )
        lines.append("")
    return "\n".join(lines)


def worst(panels: dict) -> list[str]:
    """A sentence per line: the worst exponent between neighbouring sizes."""
    said = []
    for panel, lines in panels.items():
        for line, values in lines.items():
            if steps := exponents(panel, values):
                exponent, a, b = max(steps)
                said.append(
                    f"{panel}, {NAMES[line]}: cost grows at most as {COSTS[panel][0]} to the "
                    f"{exponent:.2f}, from {a:,} to {b:,}"
                )
    return said


def draw(panels: dict, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    def short(value: float, _position: int = 0) -> str:
        return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"

    colours = {"compiled": "C3", "vector": "C0", "sync": "C2", "native": "C0", "torch": "C1"}
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
    parser.add_argument("--fresh", action="store_true", help="measure again what is measured")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args()
    steps = chosen.steps // 4 if chosen.quick else chosen.steps
    file = chosen.out / "scaling.json"
    chosen.out.mkdir(parents=True, exist_ok=True)
    at = commit(HERE)  # before any result is written, which is a file of the checkout too
    record = {
        "cpu": machine(),
        "commit": at,
        "quick": chosen.quick,
        "rounds": chosen.rounds,
        "panels": {},
    }
    kept = json.loads(file.read_text()) if file.exists() else {}
    same = all(kept.get(key) == record[key] for key in ("quick", "rounds", "cpu"))
    # The results that are written meanwhile are files of the checkout too.
    same = same and str(kept.get("commit")).split("-")[0] == str(at).split("-")[0]
    if same and not chosen.fresh:
        names = kept["panels"].keys() & PANELS.keys()
        record["panels"] = {name: kept["panels"][name] for name in PANELS if name in names}
    panels, begin = record["panels"], time.perf_counter()
    for name in chosen.only:
        for line, values in PANELS[name][1].items():
            found = panels.setdefault(name, {}).setdefault(line, {})
            for value in list(values)[:: 2 if chosen.quick else 1]:
                if str(value) in found and dict(points(found)).get(value):
                    continue
                found[str(value)] = {
                    str(threads): [
                        measure(values[value], steps, threads) for _ in range(chosen.rounds)
                    ]
                    for threads in (1, 2)
                }
                best = dict(points(found)).get(value)
                print(
                    f"{name} {value}, {line}: " + (f"{best:,.0f} steps/s" if best else "failed"),
                    flush=True,
                )
                file.write_text(json.dumps(record, indent=1) + "\n")
    draw(panels, chosen.out / "scaling.png")
    print(tables(panels))
    print("\n".join(worst(panels)))
    print(f"{(time.perf_counter() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
