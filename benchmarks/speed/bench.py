"""Everything that is said about speed, measured side by side in one run.

    python benchmarks/speed/bench.py [--only ROW ...] [--rounds 5] [--quick]
        [--checkout cleanrl=FOLDER] [--checkout purejaxrl=FOLDER]

Every measurement is a process of its own. Within a group the libraries alternate, and each runs
with one and with two threads: the better median counts, both are kept. Peers from the package index
get environments of their own, .venv-peers and .venv-peers-jax; those that are not on it run only if
a checkout is given. Nothing else should run on the machine meanwhile.

Writes benchmarks/results/speed.json (every figure) and speed.md (the tables). --only measures some
groups anew (the peak memory is of the runs of cartpole) and leaves the others as they stand.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
from scores import machine  # noqa: E402 beside the folder of this script

ROOT = HERE.parents[1]
RESULTS = HERE.parent / "results"
ENVIRONMENTS = {
    "peers": (ROOT / ".venv-peers", HERE / "peers.txt"),
    "contrib": (ROOT / ".venv-peers-contrib", HERE / "peers-contrib.txt"),
    "jax": (ROOT / ".venv-peers-jax", HERE / "peers-jax.txt"),
    "trl": (ROOT / ".venv-peers-trl", HERE.parent / "language" / "trl.txt"),
}
PACKAGES = ["stable-baselines3", "sbx-rl", "rejax", "gymnax", "jax", "optax", "envpool", "mujoco"]
PACKAGES = ["torch", "numpy", "sb3-contrib", "gymnasium", *PACKAGES]


@dataclass(frozen=True)
class Job:
    """One library at one setting."""

    script: str
    words: str
    home: str = "own"  # the environment it runs in
    steps: int | None = None
    threads: tuple[int, ...] = (1, 2)
    seeded: bool = False  # the seed is the number of the round
    checkout: str | None = None


@dataclass(frozen=True)
class Group:
    """Jobs that alternate."""

    jobs: dict[str, Job]
    key: str = "steps_per_second"  # decides which number of threads is the better
    rounds: int | None = None  # instead of --rounds


@dataclass(frozen=True)
class Row:
    """A line of the table: ours against the best of some peers, or against the bar itself."""

    group: str
    work: str
    ours: str
    peers: tuple[str, ...]
    bar: float
    goal: float
    key: str = "steps_per_second"
    goal_value: float | None = None  # the goal is on our figure itself, not on the ratio


def throughput(work: str, ours: int, **peers: Job) -> Group:
    return Group({"proximo": Job("ours.py", work, steps=ours), **peers})


def sb3(work: str, steps: int, **more) -> Job:
    return Job("peer_sb3.py", work, "peers", steps, **more)


def contrib(work: str, steps: int) -> Job:
    return Job("peer_contrib.py", work, "contrib", steps)


def learns(work: str) -> Job:
    return Job("learns.py", work, steps=300_000, threads=(1,), seeded=True)


def cold(library: str, home: str, threads: tuple[int, ...] = (1, 2)) -> Job:
    return Job("coldstart.py", library, home, threads=threads, seeded=True)


GROUPS = {
    "cartpole": Group(
        {
            "proximo": Job("ours.py", "cartpole", steps=150_000),
            "stable-baselines3": sb3("cartpole", 20_000),
            "cleanrl": Job("peer_cleanrl.py", "cartpole", "jax", 15_000, checkout="cleanrl"),
            "proximo, Gymnasium's env": Job("ours.py", "cartpole --backend sync", steps=100_000),
            "proximo, engine torch": Job(
                "ours.py", "cartpole --engine torch", steps=40_000, threads=(1,)
            ),
        }
    ),
    "cartpole64": Group(
        {
            "proximo": Job("ours.py", "cartpole64", steps=400_000),
            "rejax": Job("peer_rejax.py", "cartpole64", "jax", 200_000),
            "purejaxrl": Job(
                "peer_purejaxrl.py", "cartpole64", "jax", 200_000, checkout="purejaxrl"
            ),
        }
    ),
    "halfcheetah": Group(
        {
            "proximo": Job("ours.py", "halfcheetah", steps=40_000),
            "the env alone": Job("envs_only.py", "halfcheetah", steps=40_000),
            "stable-baselines3": sb3("halfcheetah", 8192),
            "sbx": Job("peer_sb3.py", "halfcheetah --sbx", "jax", 8192),
        }
    ),
    "pendulum": Group(
        {
            "proximo": Job("ours.py", "pendulum", steps=120_000),
            "stable-baselines3": sb3("pendulum", 16_384),
        }
    ),
    "lunarlander": Group(
        {
            "proximo": Job("ours.py", "lunarlander", steps=65_536),
            "proximo, EnvPool": Job("ours.py", "lunarlander --backend envpool", steps=98_304),
            "stable-baselines3": sb3("lunarlander", 49_152),
        }
    ),
    "halfcheetah64": Group(
        {
            "proximo": Job("ours.py", "halfcheetah64", steps=65_536),
            "Gymnasium's envs alone": Job("envs_only.py", "halfcheetah64", steps=40_000),
            "proximo, EnvPool": Job("ours.py", "halfcheetah-envpool", steps=65_536),
            "EnvPool's envs alone": Job("envs_only.py", "halfcheetah-envpool", steps=100_000),
        }
    ),
    "memory": Group(
        {
            "proximo": Job("ours.py", "memory", steps=40_000),
            "proximo, through whole episodes": Job("ours.py", "memory-whole", steps=40_000),
            "RecurrentPPO": contrib("memory", 5_120),
        }
    ),
    "memory64": Group(
        {
            "proximo": Job("ours.py", "memory64", steps=120_000),
            "proximo, through whole episodes": Job("ours.py", "memory64-whole", steps=120_000),
            "RecurrentPPO": contrib("memory64", 8_192),
        }
    ),
    "masks": Group(
        {
            "proximo": Job("ours.py", "masks", steps=150_000),
            "MaskablePPO": contrib("masks", 16_384),
        }
    ),
    "pong": Group(
        {
            "proximo": Job("ours.py", "pong", steps=6_144),
            "stable-baselines3": contrib("pong", 6_144),
        }
    ),
    "coldstart": Group(
        {
            "proximo": cold("ours", "own", threads=(0,)),
            "stable-baselines3": cold("sb3", "peers"),
            "rejax": cold("rejax", "jax"),
        },
        key="seconds",
    ),
    "step": Group(
        {
            "proximo": Job("our_step.py", "", steps=6_000),
            "jax": Job("jax_step.py", "", "jax", steps=3_000),
        },
        key="us_64",
    ),
    "rltools": Group(
        {
            "proximo": Job("our_rltools.py", "", steps=300_000, threads=(1,), seeded=True),
            "rltools": Job("peer_rltools.py", "", threads=(1,), checkout="rltools"),
            "rltools, OpenBLAS": Job("peer_rltools.py", "--blas", threads=(1,), checkout="rltools"),
        },
        key="cpu_seconds",
    ),
    "learns": Group(
        {"cartpole": learns("cartpole"), "cartpole64": learns("cartpole64")},
        key="score",
        rounds=3,
    ),
}

CARTPOLE = "CartPole-v1, 4 envs x 128 steps, 4 epochs x 4 minibatches of 128"
CARTPOLE64 = "CartPole-v1, 64 envs x 128 steps, 4 epochs x 32 minibatches of 256"
CHEETAH = "HalfCheetah-v5, 1 env x 2048 steps, 10 epochs x 32 minibatches of 64"
CHEETAH64 = "HalfCheetah-v5, 64 envs x 32 steps, 10 epochs x 32 minibatches of 64"
LANDER = "LunarLander-v3, 16 envs x 1024 steps, 4 epochs x 256 minibatches of 64"
BASELINES = ("stable-baselines3",)
LSTM = "CartPole-v1, LSTM of {} units each, 8 envs x 128 steps, 10 epochs x 8 minibatches of 128"
WHOLE = "proximo, through whole episodes"
RLTOOLS = "Pendulum-v1, 4 envs x 1024 steps, 2 epochs x 16 minibatches of 256, 300,000 steps"

ROWS = (
    Row("cartpole", CARTPOLE, "proximo", BASELINES, 25, 35),
    Row("cartpole", CARTPOLE, "proximo, Gymnasium's env", BASELINES, 13, 13),
    Row("cartpole", CARTPOLE, "proximo", ("cleanrl",), 12, 15),
    Row("cartpole64", CARTPOLE64, "proximo", ("rejax",), 2, 3),
    Row("cartpole64", CARTPOLE64, "proximo", ("purejaxrl",), 2, 3),
    Row("halfcheetah", CHEETAH, "proximo", BASELINES, 9, 10),
    Row("halfcheetah", CHEETAH, "proximo", ("sbx",), 6, 7),
    Row("halfcheetah", CHEETAH, "proximo", ("the env alone",), 0.8, 0.8),
    Row(
        "pendulum",
        "Pendulum-v1, 4 envs x 1024 steps, 10 epochs x 64 minibatches of 64",
        "proximo",
        BASELINES,
        9,
        10,
    ),
    Row("lunarlander", LANDER, "proximo", BASELINES, 5, 5),
    Row("lunarlander", LANDER + ", ours on EnvPool", "proximo, EnvPool", BASELINES, 10, 10),
    Row("halfcheetah64", CHEETAH64, "proximo", ("Gymnasium's envs alone",), 0.9, 0.9),
    Row("halfcheetah64", CHEETAH64, "proximo", ("EnvPool's envs alone",), 0.9, 0.9),
    Row("halfcheetah64", CHEETAH64, "proximo, EnvPool", ("EnvPool's envs alone",), 0.9, 0.9),
    Row("memory", LSTM.format(256), "proximo", ("RecurrentPPO",), 3, 3),
    Row("memory", LSTM.format(256) + ", bptt_steps 128", WHOLE, ("RecurrentPPO",), 3, 3),
    Row("memory64", LSTM.format(64), "proximo", ("RecurrentPPO",), 3, 3),
    Row("memory64", LSTM.format(64) + ", bptt_steps 128", WHOLE, ("RecurrentPPO",), 3, 3),
    Row(
        "masks",
        "A masked grid, 8 envs x 128 steps, 10 epochs x 16 minibatches of 64",
        "proximo",
        ("MaskablePPO",),
        5,
        5,
    ),
    Row(
        "pong",
        "ALE/Pong-v5 from pixels, 8 envs x 128 steps, 4 epochs x 4 minibatches of 256",
        "proximo",
        BASELINES,
        1,
        1,
    ),
    Row(
        "coldstart",
        "A new process to a saved CartPole-v1 policy of 475 or more",
        "proximo",
        ("stable-baselines3", "rejax"),
        0.5,
        0.5,
        key="seconds",
        goal_value=5.0,
    ),
    *(
        Row(
            "step",
            f"One gradient step, minibatch {size}",
            "proximo",
            ("jax",),
            0.45,
            0.45,
            key=f"us_{size}",
        )
        for size in (64, 128, 512)
    ),
    Row("rltools", RLTOOLS, "proximo", ("rltools",), 0.3, 0.3, key="cpu_seconds"),
    Row("rltools", RLTOOLS, "proximo", ("rltools, OpenBLAS",), 2, 1, key="cpu_seconds"),
    Row("cartpole", "Peak memory of " + CARTPOLE, "proximo", BASELINES, 1, 1, key="peak_mib"),
    Row("learns", CARTPOLE + ", 300,000 steps", "cartpole", (), 475, 475, key="score"),
    Row("learns", CARTPOLE64 + ", 300,000 steps", "cartpole64", (), 475, 475, key="score"),
)

LESS_IS_BETTER = ("seconds", "cpu_seconds", "us_64", "us_128", "us_512", "peak_mib")
UNITS = {
    "steps_per_second": "{:,.0f} steps/s",
    "seconds": "{:.1f} s",
    "cpu_seconds": "{:.2f} s",
    "peak_mib": "{:,.0f} MiB",
    "score": "{:.1f}",
    **{f"us_{size}": "{:.1f} µs" for size in (64, 128, 512)},
}
VALUES = {
    "steps_per_second": "steps/s",
    "seconds": "s",
    "cpu_seconds": "s of the processor",
    "peak_mib": "MiB at the peak",
    "score": "mean return",
    **{f"us_{size}": f"µs, minibatch {size}" for size in (64, 128, 512)},
}


# --- measuring ---


@dataclass
class Bench:
    """What was chosen on the command line."""

    rounds: int
    quick: bool
    checkouts: dict[str, Path] = field(default_factory=dict)
    # At the start, as the results that are written meanwhile are files of the checkout too.
    commit: str | None = field(default_factory=lambda: commit(ROOT))

    def jobs(self, name: str) -> dict[str, Job]:
        """Those that can run: without its checkout a library is left out."""
        found = {}
        for label, job in GROUPS[name].jobs.items():
            if job.checkout is None or job.checkout in self.checkouts:
                found[label] = job
            else:
                print(f"{name}: without {label}: give --checkout {job.checkout}=FOLDER", flush=True)
        return found

    def measure(self, name: str) -> dict:
        """All rounds of a group -> its entry in speed.json."""
        group, jobs = GROUPS[name], self.jobs(name)
        rounds = 1 if self.quick else group.rounds or self.rounds
        found = {label: {str(t): [] for t in job.threads} for label, job in jobs.items()}
        for number in range(1, rounds + 1):
            for label, job in jobs.items():
                for threads in job.threads:
                    result = self.run(job, threads, number)
                    found[label][str(threads)].append(result)
                    what = result.get("error") or " ".join(
                        UNITS[key].format(result[key]) for key in UNITS if key in result
                    )
                    print(
                        f"{name} {number}/{rounds}: {label}, {threads or 'own'} threads: {what}",
                        flush=True,
                    )
        return {
            "jobs": {
                label: {"command": self.told(job), "by_threads": found[label]}
                for label, job in jobs.items()
            },
            "rounds": rounds,
            "quick": self.quick,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": self.commit,
            "cpu": machine(),
            "versions": versions({job.home for job in jobs.values()}),
            "checkouts": {
                job.checkout: commit(self.checkouts[job.checkout])
                for job in jobs.values()
                if job.checkout
            },
        }

    def words(self, job: Job) -> list[str]:
        words = job.words.split()
        if job.steps is not None:
            words += ["--steps", str(job.steps // 8 if self.quick else job.steps)]
        return words

    def told(self, job: Job) -> str:
        """The command as it is recorded, which names no folder of this machine."""
        checkout = ["--checkout", job.checkout.upper()] if job.checkout else []
        return " ".join([job.script, *self.words(job), *checkout])

    def run(self, job: Job, threads: int, number: int) -> dict:
        """One measurement in a process of its own; what went wrong, if it did."""
        command = [str(python(job.home)), str(HERE / job.script), *self.words(job)]
        command += ["--threads", str(threads)]
        if job.seeded:
            command += ["--seed", str(number)]
        if job.checkout:
            command += ["--checkout", str(self.checkouts[job.checkout])]
        only_cpu = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        with tempfile.TemporaryDirectory() as folder:  # some libraries leave files where they stand
            try:
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    cwd=folder,
                    timeout=900,
                    env=os.environ | only_cpu,
                )
            except subprocess.TimeoutExpired:
                return {"error": "not done after 15 minutes"}
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            return {"error": f"exit {done.returncode}: {lines[-1][:300]}"}
        return json.loads(done.stdout.splitlines()[-1])


def python(home: str) -> Path:
    if home == "own":
        return Path(sys.executable)
    return ENVIRONMENTS[home][0] / "bin" / "python"


def install(home: str) -> None:
    """Make an environment what its list says, unless it is that already."""
    folder, wanted = ENVIRONMENTS[home]
    marker = folder / "installed.txt"
    if marker.exists() and marker.read_text() == wanted.read_text():
        return
    print(f"installing {wanted.name} into {folder.name} (once)", flush=True)
    if not python(home).exists():
        venv.create(folder, with_pip=True)
        (folder / ".gitignore").write_text("*\n")
    pip = [str(python(home)), "-m", "pip", "install", "--quiet", "-r", str(wanted)]
    subprocess.run(pip, check=True)
    marker.write_text(wanted.read_text())


def versions(homes: set[str]) -> dict[str, dict[str, str]]:
    """What is installed in these environments, of what a figure depends on."""
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))\n"
    )
    found = {}
    for home in sorted(homes):
        command = [str(python(home)), "-c", code, *PACKAGES]
        done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
        found[home] = json.loads(done.stdout)
    return found


def commit(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run([*command, "--match="], capture_output=True, text=True)
    return done.stdout.strip() or None


# --- the tables ---


@dataclass(frozen=True)
class Figure:
    """A library's figure at the better number of threads."""

    median: float
    low: float
    high: float
    threads: str

    def text(self, key: str) -> str:
        return UNITS[key].format(self.median)


def failures(job: dict) -> list[str]:
    """What went wrong in the runs of a job."""
    results = [result for found in job["by_threads"].values() for result in found]
    return [result["error"] for result in results if "error" in result]


def figures(entry: dict, label: str, key: str) -> dict[str, list[float]]:
    """Threads -> the figures of the rounds; without those in which a run failed."""
    results = entry["jobs"].get(label, {}).get("by_threads", {})
    return {
        threads: [result[key] for result in found]
        for threads, found in results.items()
        if not any("error" in result for result in found)
    }


def best(entry: dict, label: str, key: str, by: str) -> Figure | None:
    """At the number of threads that is the better by `by`; None: it did not run."""
    deciding = figures(entry, label, by)
    if not deciding:
        return None
    pick = min if by in LESS_IS_BETTER else max
    threads = pick(deciding, key=lambda t: statistics.median(deciding[t]))
    values = figures(entry, label, key)[threads]
    return Figure(statistics.median(values), min(values), max(values), threads)


def deciding_key(row: Row) -> str:
    """Memory is that of the faster setting; of the sizes of a step each has its own best."""
    return GROUPS[row.group].key if row.key == "peak_mib" else row.key


def line(row: Row, entry: dict) -> str | None:
    """A line of the first table; None if one of the two sides has not run."""
    by = deciding_key(row)
    ours = best(entry, row.ours, row.key, by)
    if ours is None:
        return None
    less = row.key in LESS_IS_BETTER
    if not row.peers:  # the bar is on the figure, and the worst run has to hold it
        verdict = judge(ours.low, row.bar, row.goal, less)
        worst = f"worst of {entry['rounds']} seeds {UNITS[row.key].format(ours.low)}"
        return f"| {row.work} | {worst} | | | {row.bar:g} | {row.goal:g} | {verdict} |"
    peers = {label: best(entry, label, row.key, by) for label in row.peers}
    peers = {label: figure for label, figure in peers.items() if figure is not None}
    if not peers:
        return None
    pick = min if less else max
    name = pick(peers, key=lambda label: peers[label].median)
    ratio = ours.median / peers[name].median
    share = less or row.bar < 1

    def show(value: float) -> str:
        return f"{value:.2f}" if share else f"{value:.1f}x"

    measured = f"{ratio:.3f}" if share else f"{ratio:.2f}x"

    if row.goal_value is None:
        verdict, goal = judge(ratio, row.bar, row.goal, less), show(row.goal)
    else:
        verdict, goal = judge(ratio, row.bar, row.goal, less), UNITS[row.key].format(row.goal_value)
        if verdict == "goal":
            verdict = "goal" if ours.median < row.goal_value else "bar"
    scores = figures(entry, row.ours, "score") if row.group == "coldstart" else {}
    lowest = min((score for found in scores.values() for score in found), default=None)
    if lowest is not None and lowest < 475:
        verdict = f"no: a policy scored {lowest:.0f}"
    sign = "at most " if less else ""
    return (
        f"| {row.work} | {ours.text(row.key)} | {name} {peers[name].text(row.key)} "
        f"| {measured} | {sign}{show(row.bar)} | {goal} | {verdict} |"
    )


def judge(value: float, bar: float, goal: float, less: bool) -> str:
    if value <= goal if less else value >= goal:
        return "goal"
    return "bar" if (value <= bar if less else value >= bar) else "no"


def report(groups: dict[str, dict]) -> str:
    """speed.json -> speed.md."""
    lines = [
        "| work | Proximo | against | ratio | bar | goal | holds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        text = line(row, groups[row.group]) if row.group in groups else None
        if text:
            lines.append(text)
    lines += [
        "",
        "What is behind these: median (lowest to highest). The better median of a library counts "
        "above.",
        "",
        "| group | library | figure | one thread | two threads |",
        "|---|---|---|---|---|",
    ]
    for name, entry in groups.items():
        keys = dict.fromkeys([GROUPS[name].key, *(r.key for r in ROWS if r.group == name)])
        keys |= {"score": None} if name == "coldstart" else {}
        for label, job in entry["jobs"].items():
            for key in keys:
                found = {t: spread(key, v) for t, v in figures(entry, label, key).items()}
                if "0" in found:
                    found["1"] = f"own choice of threads: {found['0']}"
                if found:
                    cells = f"{found.get('1', '')} | {found.get('2', '')}"
                    lines.append(f"| {name} | {label} | {VALUES[key]} | {cells} |")
            for error in dict.fromkeys(failures(job)):
                lines.append(f"| {name} | {label} | failed | {error} | |")
    return "\n".join([*lines, "", *notes(groups)]) + "\n"


def spread(key: str, values: list[float]) -> str:
    median, low, high = (
        UNITS[key].format(pick(values)).split()[0] for pick in (statistics.median, min, max)
    )
    return median if len(values) == 1 else f"{median} ({low} to {high})"


def notes(groups: dict[str, dict]) -> list[str]:
    """What all figures have in common, and what they depend on."""
    packages: dict[str, set[str]] = {}
    checkouts: dict[str, set[str]] = {}
    for entry in groups.values():
        for home in entry["versions"].values():
            for name, version in home.items():
                packages.setdefault(name, set()).add(version)
        for name, at in entry["checkouts"].items():
            checkouts.setdefault(name, set()).add(str(at))
    rounds = sorted({entry["rounds"] for entry in groups.values()})
    found = [f"{name} {', '.join(sorted(v))}" for name, v in sorted(packages.items())]
    found += [f"{name} at {', '.join(sorted(v))}" for name, v in sorted(checkouts.items())]
    commits = sorted({str(entry["commit"]) for entry in groups.values()})
    cpus = sorted({entry["cpu"] for entry in groups.values()})
    quick = any(entry["quick"] for entry in groups.values())
    return [
        *(["**Some of these are quick runs, which only show that the scripts work.**"] * quick),
        f"Medians of {' or '.join(map(str, rounds))} runs that alternate, each a process of its "
        "own; the first tenth of a run is not timed. Separate 64-64 tanh networks, the same "
        "settings for all (benchmarks/speed/settings.py). Ours keeps its run folder, metrics and "
        "checkpoints. Rejax and PureJaxRL step their own envs in JAX; their compilation is "
        "not timed, except in the start from nothing.",
        f"Commit {', '.join(commits)}; {', '.join(cpus)}; {', '.join(found)}.",
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="ROW")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of an eighth of the steps")
    parser.add_argument("--checkout", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args()
    checkouts = {}
    for text in chosen.checkout:
        name, _, folder = text.partition("=")
        if name not in ("cleanrl", "purejaxrl") or not Path(folder).is_dir():
            parser.error(f"--checkout {text}: give cleanrl=FOLDER or purejaxrl=FOLDER")
        checkouts[name] = Path(folder).resolve()
    bench = Bench(chosen.rounds, chosen.quick, checkouts)
    file = chosen.out / "speed.json"
    chosen.out.mkdir(parents=True, exist_ok=True)
    kept = json.loads(file.read_text()) if file.exists() else {}
    groups = kept.get("groups", {})
    begin = time.perf_counter()
    for name in chosen.only:
        for home in {job.home for job in bench.jobs(name).values()} - {"own"}:
            install(home)
        groups[name] = bench.measure(name)
        # After every group, in the order of the table: a run that is cut off keeps what it has.
        groups = {key: groups[key] for key in GROUPS if key in groups}
        file.write_text(json.dumps({"groups": groups}, indent=1) + "\n")
        (chosen.out / "speed.md").write_text(report(groups))
    print(report(groups))
    print(f"{(time.perf_counter() - begin) / 60:.1f} minutes")
    sys.exit(any(failures(job) for name in chosen.only for job in groups[name]["jobs"].values()))


if __name__ == "__main__":
    main()
