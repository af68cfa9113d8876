"""Cost of Proximo against the size of everything, one thing changed at a time.

    python benchmarks/speed/scaling.py [--only PANEL ...] [--rounds 1] [--short] [--again]

From CartPole-v1, 64 envs x 128 steps, 4 epochs, minibatches of 256, two hidden layers of 64, with
the number of threads that `auto` chooses. Each measurement is a process of its own; its first
update is not timed.

Every point is written when it is measured: a run that was cut off continues where it stopped, and
--again measures what is there too. Beside steps per second it states how the cost grows: the
exponent k between neighbouring sizes, cost ~ work^k, where 1 is linear, and the worst of them. What
cost and work are stands under the table. Writes benchmarks/results/scaling.json, scaling.md and
scaling.png, and puts the table into docs/speed.md. Nothing else should run on the machine
meanwhile.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench import HERE, RESULTS, commit, machine

INPUTS, OUTPUTS = 4, 3  # CartPole's numbers, and logits with the value
ENVS, STEPS, MINIBATCH = 64, 128, 256


def arithmetic(*hidden: int) -> int:
    """Multiplications of actor and critic for one observation."""
    widths = [INPUTS, *hidden]
    inner = 2 * sum(a * b for a, b in pairwise(widths))
    return inner + widths[-1] * OUTPUTS


@dataclass(frozen=True)
class Panel:
    """One thing that grows: `lines` are the ways to run it, with the sizes of each."""

    label: str
    lines: dict[str, tuple[int, ...]]
    words: Callable[[str, int], str]  # line, size: arguments of ours.py
    work: str  # that cost is compared with
    amount: Callable[[int], float]  # of work, at a size
    cost: str
    of_step: Callable[[int], float]  # by which the seconds of an env step are multiplied
    stored: Callable[[int], int] | None = None  # rows of a rollout at a size: where memory is told
    usual: int | None = None  # the size from which on fewer env steps are taken


PANELS = {
    "envs": Panel(
        "parallel envs",
        {
            "native": (1, 4, 16, 64, 256, 1024, 4096, 16384),
            "vector": (1, 4, 16, 64, 256, 1024, 4096, 16384),
            "sync": (1, 4, 16, 64, 256, 1024),
        },
        lambda line, n: f"--backend {line} --minibatch 128 --num-envs {n}",
        *("samples of an update", lambda n: n * STEPS),
        *("seconds of an update", lambda n: n * STEPS),
        stored=lambda n: n * STEPS,
    ),
    "rollout": Panel(
        "steps in each env per update",
        {"native": (8, 32, 128, 512, 2048, 8192), "vector": (8, 32, 128, 512, 2048, 8192)},
        lambda line, n: f"--backend {line} --rollout {n}",
        *("samples of an update", lambda n: n * ENVS),
        *("seconds of an update", lambda n: n * ENVS),
        stored=lambda n: n * ENVS,
    ),
    "width": Panel(
        "width of the two hidden layers",
        {
            "native engine": (32, 64, 128, 256, 512),
            "torch engine": (32, 64, 128, 256, 512, 1024, 2048),
        },
        lambda line, n: f"--engine {line.split()[0]} --hidden {n} {n} --rollout 16",
        *("multiplications of the networks", lambda n: arithmetic(n, n)),
        *("seconds of an env step", lambda _: 1),
        usual=128,
    ),
    "depth": Panel(
        "hidden layers of 64",
        {"native engine": (1, 2, 4, 6), "torch engine": (1, 2, 4, 6)},
        lambda line, n: f"--engine {line.split()[0]} --hidden" + " 64" * n,
        *("multiplications of the networks", lambda n: arithmetic(*[64] * n)),
        *("seconds of an env step", lambda _: 1),
    ),
    "minibatch": Panel(
        "samples in a minibatch",
        {
            "native engine": (16, 64, 256, 1024, 4096),
            "torch engine": (16, 64, 256, 1024, 4096),
        },
        lambda line, n: f"--engine {line.split()[0]} --minibatch {n}",
        *("samples of a minibatch", lambda n: n),
        *("seconds of a gradient step", lambda n: n),
    ),
}
NAMES = {
    "native": "compiled envs",
    "vector": "one vector env",
    "sync": "single envs in turn",
    "native engine": "engine native (C++)",
    "torch engine": "engine torch",
}
COLOURS = dict(zip(NAMES, ("C0", "C1", "C2", "C0", "C1"), strict=True))
PAGE = HERE.parents[1] / "docs" / "speed.md"
MARKS = ("<!-- scaling.md begins -->", "<!-- scaling.md ends -->")
SHORT = 256  # the largest number of envs, steps and width of a short run


def measure(words: str, steps: int) -> dict:
    """What ours.py reports, or the last line of its error."""
    command = [sys.executable, str(HERE / "ours.py"), "cartpole64", *words.split()]
    command += ["--steps", str(steps), "--threads", "0"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=900)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def points(line: dict, key: str = "steps_per_second") -> list[tuple[int, float]]:
    """Size and median of this figure, where every run worked."""
    return sorted(
        (int(size), statistics.median(result[key] for result in results))
        for size, results in line.items()
        if results and not any("error" in result for result in results)
    )


def exponents(panel: Panel, line: dict) -> list[tuple[int, int, float]]:
    """(size, next size, k) where cost ~ work^k, for the sizes that were measured."""
    found = points(line)
    cost = {size: panel.of_step(size) / speed for size, speed in found}
    return [
        (a, b, math.log(cost[b] / cost[a]) / math.log(panel.amount(b) / panel.amount(a)))
        for (a, _), (b, _) in pairwise(found)
    ]


def per_row(panel: Panel, line: dict) -> float | None:
    """MiB that a step of an env adds to the peak, from the smallest size to the largest."""
    found = points(line, "peak_mib")
    if panel.stored is None or len(found) < 2:
        return None
    (small, least), (large, most) = found[0], found[-1]
    return (most - least) / (panel.stored(large) - panel.stored(small))


def report(record: dict) -> str:
    """The table of docs/speed.md."""
    panels = record["panels"]
    lines = ["| what grows | how | steps/s by size | MiB at the peak | worst exponent |"]
    lines += ["|---|---|---|---|---|"]
    worst, rows = [], []
    for name, panel in PANELS.items():
        for line in panel.lines:
            measured = panels.get(name, {}).get(line, {})
            found, memory = points(measured), points(measured, "peak_mib")
            if len(found) < 2:
                continue
            k, at = max((k, f"{a:,} to {b:,}") for a, b, k in exponents(panel, measured))
            worst.append((k, f"{panel.label}, {NAMES[line]}, {at}"))
            speeds, peaks = (
                "; ".join(f"{n:,}: {value:,.0f}" for n, value in figures)
                for figures in (found, memory)
            )
            lines.append(f"| {panel.label} | {NAMES[line]} | {speeds} | {peaks} | {k:.2f}, {at} |")
            if (mib := per_row(panel, measured)) is not None:
                rows.append(f"{panel.label}, {NAMES[line]}: {mib:.6f} ({mib * 2**20:,.0f} bytes)")
    definitions = [f"{panel.label}: {panel.cost} against {panel.work}" for panel in PANELS.values()]
    k, where = max(worst) if worst else (math.nan, "nothing measured")
    return "\n".join(
        [
            *lines,
            "",
            f"Worst exponent between neighbouring sizes: {k:.2f} ({where}); 1 is linear.",
            f"Cost and work: {'; '.join(definitions)}.",
            f"MiB that one step of one env adds to the peak: {'; '.join(rows)}.",
            f"Commit {record['commit']}; {record['cpu']}; rounds: {record['rounds']}"
            + (
                "; a short run, which only shows that the script works." if record["short"] else "."
            ),
        ]
    )


def draw(panels: dict, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    def short(value: float, _position: int = 0) -> str:
        return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"

    figure, axes = plt.subplots(2, 3, figsize=(15, 7.5), layout="constrained")
    memory = axes.flat[-1]
    for axis, (name, panel) in zip(axes.flat, PANELS.items(), strict=False):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        ticks = set()
        for line, values in panels.get(name, {}).items():
            found = points(values)
            ticks |= {x for x, _ in found}
            if found:
                axis.plot(*zip(*found, strict=True), "o-", color=COLOURS[line], label=NAMES[line])
        axis.set_xlabel(panel.label)
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
    panel = PANELS["envs"]
    for line, values in panels.get("envs", {}).items():
        if found := points(values, "peak_mib"):
            memory.plot(*zip(*found, strict=True), "o-", color=COLOURS[line], label=NAMES[line])
    memory.set_xscale("log", base=2)
    memory.set_yscale("log", base=2)
    memory.set_xlabel(f"{panel.label}, {STEPS} steps each")
    memory.set_ylabel("peak memory of the process, MiB")
    memory.set_xticks([*PANELS["envs"].lines["native"]], PANELS["envs"].lines["native"])
    memory.minorticks_off()
    memory.yaxis.set_major_formatter(FuncFormatter(short))
    memory.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def continues(kept: dict, record: dict) -> bool:
    """Results of a run like this one, of the same commit: what they write makes it dirty."""

    def clean(entries: dict) -> dict:
        names = {*entries} - {"panels"}
        return {name: str(entries[name]).removesuffix("-dirty") for name in names}

    return clean(kept) == clean(record)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PANELS, default=list(PANELS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80_000, help="at least 3 updates in any case")
    parser.add_argument("--short", action="store_true", help=f"sizes up to {SHORT}, few steps")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args()
    steps = chosen.steps // 10 if chosen.short else chosen.steps
    file = chosen.out / "scaling.json"
    chosen.out.mkdir(parents=True, exist_ok=True)
    # Before any result is written, which is a file of the checkout too.
    record = {"cpu": machine(), "commit": commit(HERE), "short": chosen.short}
    record["rounds"] = chosen.rounds
    kept = json.loads(file.read_text()) if file.exists() else {}
    panels = kept["panels"] if continues(kept, record) and not chosen.again else {}
    for name in chosen.only:
        for line, sizes in PANELS[name].lines.items():
            found = panels.setdefault(name, {}).setdefault(line, {})
            for size in sizes:
                done = str(size) in found and not any("error" in run for run in found[str(size)])
                if done or (chosen.short and size > SHORT):
                    continue
                panel = PANELS[name]
                less = max(1, panel.amount(size) / panel.amount(panel.usual)) if panel.usual else 1
                words = panel.words(line, size)
                runs = [measure(words, round(steps / less)) for _ in range(chosen.rounds)]
                found[str(size)] = runs
                best = dict(points(found)).get(size)
                text = f"{best:,.0f} steps/s" if best else found[str(size)][0].get("error")
                print(f"{name} {size}, {line}: {text}", flush=True)
                file.write_text(json.dumps({**record, "panels": panels}, indent=1) + "\n")
    table = report({**record, "panels": panels})
    print(table)
    (chosen.out / "scaling.md").write_text(table + "\n")
    if chosen.out == RESULTS and not chosen.short:
        before, _, rest = PAGE.read_text().partition(MARKS[0])
        PAGE.write_text(f"{before}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    draw(panels, chosen.out / "scaling.png")


if __name__ == "__main__":
    main()
