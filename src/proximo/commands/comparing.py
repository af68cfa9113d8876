"""`proximo compare`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from proximo.commands.arguments import parse, show
from proximo.disk import replace
from proximo.errors import UsageError
from proximo.run.config import algorithm_type, from_tables

EVALUATIONS = 20
"""Along each run, about evenly apart, for its curve and its steps to the threshold."""
EPISODES = 10
"""Of each of them."""
RESAMPLES = 2_000
"""Of the seeds, for the interval of the interquartile mean."""
PATIENCE = 10.0
"""Seconds that a run has to end when it is told to."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train several algorithms in one env with the same seeds, and lay their scores side by side.

    Every run is what `proximo train ALGORITHM ENV` and `proximo eval` make of it by themselves:
    the settings of a preset where there is one for this algorithm in this env, else plain
    defaults. Besides, the policy is evaluated along the way, which changes nothing that is learned.
    DIR keeps the table, the learning curves, all numbers and the run folders.
    """

    env: Annotated[Positional[str], arg(metavar="ENV", help_behavior_hint="")] = ""
    """Where: a Gymnasium id such as CartPole-v1, or module:Class."""
    algorithms: Annotated[str, arg(metavar="NAME,NAME,...", help_behavior_hint="")] = ""
    """What to compare, such as a2c,trpo,ppo."""
    seeds: int = 5
    """K: every algorithm is trained with each of the seeds 1 to K."""
    processes: int = 1
    """Runs at a time; they share the processor, so the times of more are longer."""
    total_steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Environment steps of every run; by default what its settings say."""
    episodes: int = 100
    """Episodes of the evaluation of every run at its end."""
    threshold: Annotated[float | None, arg(metavar="R", help_behavior_hint="")] = None
    """Return to reach; by default the one at which Gymnasium calls ENV solved, if it names one."""
    dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """A new or empty folder; by default runs/compare-ENV."""

    @property
    def seeds_in_words(self) -> str:
        return "seed 1" if self.seeds == 1 else f"seeds 1 to {self.seeds}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run of one algorithm and seed came to."""

    algorithm: str
    seed: int
    folder: str
    score: float  # mean return of the evaluation
    evaluation: dict[str, Any]  # as `proximo eval --json` prints it
    total_steps: int  # what was asked for
    steps: int  # what whole updates made of it
    steps_to_threshold: int | None
    seconds: float  # of training


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that did not get there."""

    algorithm: str
    seed: int
    folder: str
    verb: str  # the one that failed
    code: int
    error: list[str]  # its last lines

    def __str__(self) -> str:
        head = f"{self.algorithm} seed {self.seed} failed ({self.verb}, exit code {self.code})"
        return "\n  ".join([f"{head}:", *self.error])


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The runs of one algorithm in numbers; NaN where there are too few."""

    algorithm: str
    runs: int
    mean: float = math.nan
    half_width: float = math.nan
    iqm: float = math.nan
    iqm_low: float = math.nan
    iqm_high: float = math.nan
    reached: int = 0
    steps_to_threshold: float = math.nan
    seconds: float = math.nan


def main(arguments: list[str]) -> int:
    command = parse(Compare, "compare", arguments)
    names = _check(command)

    from proximo.commands.pictures import draw_comparison, figure
    from proximo.envs.config import EnvConfig
    from proximo.envs.layers import close_all
    from proximo.envs.make import make_env, return_threshold
    from proximo.run.folder import RunFolder

    # What would fail after hours, or in every run, is said now.
    figure()
    folder, place = _free_folder(command), Path.cwd()
    env = EnvConfig(id=command.env)
    close_all([make_env(env)])
    if command.threshold is None:
        command = dataclasses.replace(command, threshold=return_threshold(env))
    os.chdir(place)  # where the env has left it, the runs would not find its module
    _make_folder(folder)
    head = f"{', '.join(names)} on {command.env}"
    show(f"{head}, {command.seeds_in_words}, in {folder}")
    try:
        runs, failures = _run_all(command, names, folder)
    except KeyboardInterrupt as stop:
        show(f"stopped; the runs so far are in {folder}", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)

    own = {name: [run for run in runs if run.algorithm == name] for name in names}
    summaries = [summarize(name, own[name]) for name in names]
    rows = table(summaries, command.seeds, command.threshold)
    how = measured(command, own)
    _write_numbers(folder / "compare.json", command, runs, failures, summaries)
    _write_page(folder / "compare.md", head, rows, how, failures, picture=bool(runs))
    _show(rows, how)
    if runs:
        groups = {name: [(RunFolder(run.folder), run.score) for run in own[name]] for name in names}
        title = (
            f"{command.env}: evaluations of {EPISODES} deterministic episodes, the last (the "
            f"score) of {command.episodes}\nmean over seeds, band from the lowest to the highest"
        )
        draw_comparison(groups, folder / "compare.png", title, command.threshold)
    show(f"table{', curves' if runs else ''} and all numbers in {folder}")
    return 1 if failures else 0


def _check(command: Compare) -> list[str]:
    """The algorithms, if all that was given can be worked with. Raises `UsageError`."""
    if not command.env:
        raise UsageError("name an env, as in: proximo compare CartPole-v1 --algorithms a2c,ppo")
    if not command.algorithms:
        raise UsageError("name the algorithms to compare, as in: --algorithms a2c,trpo,ppo")
    # By the name of its class: an algorithm may have several.
    names = [algorithm_type(name.strip()).name for name in command.algorithms.split(",")]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--algorithms is {command.algorithms}: name {name} only once")
    for name in ("seeds", "processes", "episodes", "total_steps"):
        value = getattr(command, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}: give at least 1")
    if command.threshold is not None and not math.isfinite(command.threshold):
        raise UsageError(f"--threshold is {command.threshold}: give a finite number")
    place = command.dir
    if place and place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UsageError(f"--dir is {place}: it exists and is no empty folder; name a new one")
    return names


def _free_folder(command: Compare) -> Path:
    base = Path("runs") / f"compare-{re.sub(r'[^A-Za-z0-9._-]+', '-', command.env)}"
    others = (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))
    return command.dir or next(p for p in itertools.chain([base], others) if not p.exists())


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be made: {error.strerror}") from error


class Children:
    """Processes of the command line that end with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[str]] = []
        self._ended = False

    def run(self, words: Sequence[str]) -> tuple[int, str, str]:
        """`proximo WORDS` to its end: exit code, output, errors."""
        with self._lock:
            if self._ended:
                raise KeyboardInterrupt
            child = subprocess.Popen(  # noqa: S603 our own command line, with words it has checked
                [sys.executable, "-m", "proximo", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self._running.append(child)
        out, err = child.communicate()
        with self._lock:
            self._running.remove(child)
        return child.returncode, out, err

    def end(self) -> None:
        """Let them end as by Ctrl-C, which a terminal may have told them already, or kill them."""
        with self._lock:
            self._ended = True
            running = list(self._running)
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()


def _run_all(
    command: Compare, names: Sequence[str], folder: Path
) -> tuple[list[Run], list[Failure]]:
    """Every algorithm with every seed; `KeyboardInterrupt` once all of them have ended."""
    children = Children()
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, _stop)
    if hasattr(signal, "SIGUSR1"):  # it is meant for those that train, which then save
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Seed by seed, so that a machine that is slower for a while is so for all the algorithms.
    tasks = [(name, seed) for seed in range(1, command.seeds + 1) for name in names]
    runs: list[Run] = []
    failures: list[Failure] = []
    with ThreadPoolExecutor(command.processes) as pool:
        try:
            futures = [
                pool.submit(_run, children, command, name, seed, folder / f"{name}-seed{seed}")
                for name, seed in tasks
            ]
            for number, future in enumerate(as_completed(futures), 1):
                done = future.result()
                if isinstance(done, Run):
                    runs.append(done)
                    show(
                        f"{done.algorithm} seed {done.seed}: score {done.score:.2f} in "
                        f"{done.seconds:.1f} s ({number} of {len(tasks)})"
                    )
                else:
                    failures.append(done)
                    show(str(done), file=sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.end()
            raise
    return sorted(runs, key=lambda r: r.seed), sorted(failures, key=lambda f: f.seed)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _run(
    children: Children, command: Compare, algorithm: str, seed: int, place: Path
) -> Run | Failure:
    from proximo.run.folder import RunFolder

    train = ["train", algorithm, command.env, "--seed", str(seed), "--run-dir", str(place)]
    train += ["--quiet", *_evaluating(command, algorithm)]
    if command.total_steps is not None:
        train += ["--total-steps", str(command.total_steps)]
    score = ["eval", str(place), "--episodes", str(command.episodes), "--json"]
    if ":" in command.env:
        score += ["--env", command.env]
    for words in (train, score):
        code, out, err = children.run(words)
        if code:
            return Failure(
                algorithm=algorithm,
                seed=seed,
                folder=str(place),
                verb=words[0],
                code=code,
                error=err.rstrip().splitlines()[-5:],
            )
    # An env may print as well.
    scores = json.loads(next(line for line in out.splitlines()[::-1] if line.startswith("{")))
    run = RunFolder(place)
    result = run.read_result()
    return Run(
        algorithm=algorithm,
        seed=seed,
        folder=str(place),
        score=scores["return_mean"],
        evaluation=scores,
        total_steps=run.read_config().run.total_steps,
        steps=result["steps"],
        steps_to_threshold=steps_to(
            [*run.read_metrics(), {"steps": result["steps"], "evaluation": scores["return_mean"]}],
            command.threshold,
        ),
        seconds=result["seconds"],
    )


def _evaluating(command: Compare, algorithm: str) -> list[str]:
    """What `train` is told besides, to evaluate the policy along the way."""
    from proximo.run.presets import find_preset

    preset = find_preset(algorithm, command.env)
    config = from_tables(preset.tables if preset else {"algorithm": {"name": algorithm}})
    steps = config.env.num_envs * config.rollout.steps
    updates = -(-(command.total_steps or config.run.total_steps) // steps)
    every = ["--run.eval-every", str(max(1, updates // EVALUATIONS))]
    return [*every, "--run.eval-episodes", str(EPISODES)]


def steps_to(rows: Iterable[dict[str, Any]], threshold: float | None) -> int | None:
    """The steps after which an evaluation first was this high."""
    for row in rows:
        mean = row.get("evaluation")
        if threshold is not None and mean is not None and mean >= threshold:
            return int(row["steps"])
    return None


def student(freedom: int) -> float:
    """The quantile of Student's t for a 95% interval, to a tenth of a percent."""
    known = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    if freedom <= len(known):
        return known[freedom - 1]
    return 1.960 + 2.372 / freedom + 2.822 / freedom**2  # its expansion about the normal one


def half_width(scores: np.ndarray) -> float:
    """Half of the 95% interval of the mean: t s / sqrt(n); NaN for fewer than two scores."""
    count = len(scores)
    if count < 2:
        return math.nan
    return student(count - 1) * float(scores.std(ddof=1)) / math.sqrt(count)


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """The mean without the lowest and the highest n // 4, along the last axis."""
    count = scores.shape[-1]
    middle = np.sort(scores, axis=-1)[..., count // 4 : count - count // 4]
    return np.asarray(middle.mean(-1))


def bootstrap_interval(scores: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the interquartile mean: percentiles of it over resampled scores.

    Agarwal et al. 2021 (arXiv 2108.13264), for one task. NaN for fewer than two scores.
    """
    if len(scores) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).choice(scores, (RESAMPLES, len(scores)))
    low, high = np.percentile(interquartile_mean(drawn), (2.5, 97.5))
    return float(low), float(high)


def summarize(algorithm: str, runs: Sequence[Run]) -> Summary:
    """What the table says about the runs of an algorithm."""
    if not runs:
        return Summary(algorithm=algorithm, runs=0)
    scores = np.array([run.score for run in runs])
    low, high = bootstrap_interval(scores)
    reached = [run.steps_to_threshold for run in runs if run.steps_to_threshold is not None]
    return Summary(
        algorithm=algorithm,
        runs=len(runs),
        mean=float(scores.mean()),
        half_width=half_width(scores),
        iqm=float(interquartile_mean(scores)),
        iqm_low=low,
        iqm_high=high,
        reached=len(reached),
        steps_to_threshold=float(np.median(reached)) if reached else math.nan,
        seconds=float(np.median([run.seconds for run in runs])),
    )


def table(summaries: Iterable[Summary], seeds: int, threshold: float | None) -> list[list[str]]:
    """Head and rows in words; without a threshold there is no column for it."""
    rows = [["algorithm", "mean score", "IQM", "seconds a run"]]
    if threshold is not None:
        rows[0].insert(3, f"steps to {threshold:g}")
    for s in summaries:
        name = s.algorithm if s.runs == seeds else f"{s.algorithm} ({s.runs} of {seeds} runs)"
        mean, iqm = _number(s.mean), _number(s.iqm)
        if s.runs > 1:
            mean += f" ± {_number(s.half_width)}"
            iqm += f" [{_number(s.iqm_low)}, {_number(s.iqm_high)}]"
        rows.append([name, mean, iqm, _number(s.seconds, ".1f")])
        if threshold is not None:
            steps = _number(s.steps_to_threshold, ",.0f")
            rows[-1].insert(3, f"{steps} ({s.reached} of {s.runs})")
    return rows


def _number(value: float, form: str = ".2f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def measured(command: Compare, own: Mapping[str, Sequence[Run]]) -> str:
    """What the numbers of the table are."""
    lengths = {name: runs[0].total_steps for name, runs in own.items() if runs}
    steps = ", ".join(f"{count:,} ({name})" for name, count in lengths.items())
    if len(set(lengths.values())) == 1:
        steps = f"{next(iter(lengths.values())):,}"
    lines = [
        f"Each algorithm with {command.seeds_in_words} and the settings that `proximo train` picks "
        f"by itself{f'; steps of a run: {steps}' if steps else ''}.",
        f"Score of a run: mean return of {command.episodes} deterministic episodes of its last "
        "policy, on seeds unseen in training.",
        "±: half of the 95% interval of the mean over training seeds (Student's t). "
        "IQM: interquartile mean over them, with its 95% interval by percentile bootstrap "
        f"({RESAMPLES:,} resamples; Agarwal et al. 2021).",
    ]
    if command.threshold is not None:
        lines.append(
            f"Steps to {command.threshold:g}: until an evaluation was that high, of {EPISODES} "
            f"deterministic episodes about {EVALUATIONS} times along a run or of "
            f"{command.episodes} at its end (the score); median over the seeds that got there, and "
            "how many did."
        )
    at_a_time = f"{command.processes} runs" if command.processes > 1 else "one run"
    lines.append(
        "Seconds: of training and the evaluations along the way, median over seeds, "
        f"{at_a_time} at a time."
    )
    return "\n".join(lines)


def _write_numbers(
    path: Path,
    command: Compare,
    runs: Sequence[Run],
    failures: Sequence[Failure],
    summaries: Sequence[Summary],
) -> None:
    import orjson

    from proximo.run.folder import versions

    numbers = {
        "env": command.env,
        "seeds": command.seeds,
        "episodes": command.episodes,
        "total_steps": command.total_steps,
        "threshold": command.threshold,
        "processes": command.processes,
        "table": summaries,
        "runs": runs,
        "failures": failures,
        "versions": versions(),
    }
    # orjson knows dataclasses, and writes null for what does not exist (NaN).
    replace(path, orjson.dumps(numbers, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _write_page(
    path: Path,
    head: str,
    rows: Sequence[Sequence[str]],
    how: str,
    failures: Sequence[Failure],
    *,
    picture: bool,
) -> None:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    blocks = [f"# {head}", "\n".join(lines), how]
    if failures:
        blocks.append("\n".join(["```", *map(str, failures), "```"]))
    if picture:
        blocks.append("![Learning curves](compare.png)")
    replace(path, ("\n\n".join(blocks) + "\n").encode())


def _show(rows: Sequence[Sequence[str]], how: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table()
    for number, title in enumerate(rows[0]):
        shown.add_column(title, justify="right" if number else "left")
    for row in rows[1:]:
        shown.add_row(*map(Text, row))
    # A file or a pipe has no width that a row would have to be broken to.
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
    show(how)
