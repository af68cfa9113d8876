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
from tyro.conf import Positional

from proximo.commands.arguments import check_least, optional, parse, show
from proximo.disk import replace
from proximo.errors import UsageError
from proximo.insight.statistics import RESAMPLES, median, summary
from proximo.run.config import algorithm_type, from_tables

EVALUATIONS = 20
"""Evaluations along each run, about evenly apart: its curve and its steps to the threshold."""
EPISODES = 10
"""Episodes of each of them."""
Table = list[list[str]]
"""Head and rows of words."""
PATIENCE = 10.0
"""Seconds that a run has to end after SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train several algorithms in one env with the same seeds, and compare their scores.

    Every run is made by `proximo train ALGORITHM ENV` and scored by `proximo eval`: with the
    preset of this algorithm for this env, or else plain defaults. Evaluations along the way, which
    change nothing that is learned, give the curves. DIR keeps the table, the learning curves, all
    numbers and the run folders.
    """

    env: Annotated[Positional[str], optional("ENV")] = ""
    """Environment: a Gymnasium id such as CartPole-v1, or module:Class."""
    algorithms: Annotated[str, optional("NAME,NAME,...")] = ""
    """Algorithms to compare, such as a2c,trpo,ppo."""
    seeds: int = 5
    """K: every algorithm is trained with each of the seeds 1 to K."""
    processes: int = 1
    """Runs at a time; they share the processor, so each takes longer."""
    total_steps: Annotated[int | None, optional("N")] = None
    """Environment steps of every run; by default those of its settings."""
    episodes: int = 100
    """Episodes of the evaluation at the end of every run."""
    threshold: Annotated[float | None, optional("R")] = None
    """Return to reach; by default the one at which Gymnasium calls ENV solved, if it names one."""
    dir: Annotated[Path | None, optional("DIR")] = None
    """A new or empty folder; by default runs/compare-ENV."""

    @property
    def seeds_in_words(self) -> str:
        return "seed 1" if self.seeds == 1 else f"seeds 1 to {self.seeds}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Result of a run of one algorithm and seed."""

    algorithm: str
    seed: int
    folder: str
    score: float  # mean return of the evaluation
    evaluation: dict[str, Any]  # as `proximo eval --json` prints it
    total_steps: int  # as asked for
    steps: int  # rounded up to whole updates
    steps_to_threshold: int | None
    seconds: float  # of training


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Verb of a run that ended with an error."""

    algorithm: str
    seed: int
    folder: str
    verb: str
    code: int
    error: list[str]  # its last lines

    def __str__(self) -> str:
        head = f"{self.algorithm} seed {self.seed} failed ({self.verb}, exit code {self.code})"
        return "\n  ".join([f"{head}:", *self.error])


def main(arguments: list[str]) -> int:
    command = parse(Compare, "compare", arguments)
    names = _check(command)

    from proximo.commands.pictures import draw_comparison, figure
    from proximo.envs.config import EnvConfig
    from proximo.envs.layers import close_all
    from proximo.envs.make import make_env, return_threshold
    from proximo.run.folder import RunFolder

    # Fail now with what would fail after hours, or in every run.
    figure()
    folder, here = command.dir or _free_folder(command.env), Path.cwd()
    env = EnvConfig(id=command.env)
    close_all([make_env(env)])
    if command.threshold is None:
        command = dataclasses.replace(command, threshold=return_threshold(env))
    os.chdir(here)  # an env may have changed it, and the runs would not find its module
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be made: {error.strerror}") from error
    head = f"{', '.join(names)} on {command.env}"
    show(f"{head}, {command.seeds_in_words}, in {folder}")
    try:
        runs, failures = _run_all(command, names, folder)
    except KeyboardInterrupt as stop:
        show(f"stopped; the runs so far are in {folder}", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)

    by_name = {name: [run for run in runs if run.algorithm == name] for name in names}
    summaries = [summarize(name, by_name[name]) for name in names]
    rows = table(summaries, command.seeds, command.threshold)
    legend = explain_table(command, by_name)
    parts: dict[str, Any] = {"table": summaries, "runs": runs, "failures": failures}
    _write(folder, command, head, legend, rows, **parts)
    _print_table(rows)
    show(legend)
    if runs:
        title = (
            f"{command.env}: evaluations of {EPISODES} deterministic episodes, the last (the "
            f"score) of {command.episodes}\nmean over seeds, band from the lowest to the highest"
        )
        groups = {n: [(RunFolder(r.folder), r.score) for r in by_name[n]] for n in names}
        draw_comparison(groups, folder / "compare.png", title, command.threshold)
    show(f"table{', curves' if runs else ''} and all numbers in {folder}")
    return 1 if failures else 0


def _check(command: Compare) -> list[str]:
    """Names of the algorithms. Raises `UsageError` for settings that cannot be worked with."""
    if not command.env:
        raise UsageError("name an env, as in: proximo compare CartPole-v1 --algorithms a2c,ppo")
    if not command.algorithms:
        raise UsageError("name the algorithms to compare, as in: --algorithms a2c,trpo,ppo")
    # By the name of its class: an algorithm may have several.
    names = [algorithm_type(name.strip()).name for name in command.algorithms.split(",")]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--algorithms is {command.algorithms}: name {name} only once")
    check_least(command, seeds=1, processes=1, episodes=1, total_steps=1)
    if command.threshold is not None and not math.isfinite(command.threshold):
        raise UsageError(f"--threshold is {command.threshold}: give a finite number")
    place = command.dir
    if place and place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UsageError(f"--dir is {place}: it exists and is no empty folder; name a new one")
    return names


def _free_folder(env: str) -> Path:
    name = f"compare-{re.sub(r'[^A-Za-z0-9._-]+', '-', env)}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


class Children:
    """Processes of the command line that end with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[str]] = []
        self._ended = False

    def run(self, words: Sequence[str]) -> tuple[int, str, str]:
        """Run `proximo WORDS` to its end; returns exit code, output, errors."""
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
        """Terminate them as by Ctrl-C, which a terminal may have sent them already, or kill."""
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
    if hasattr(signal, "SIGUSR1"):  # it is meant for the runs, which then save
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
                outcome = future.result()
                if isinstance(outcome, Run):
                    runs.append(outcome)
                    show(
                        f"{outcome.algorithm} seed {outcome.seed}: score {outcome.score:.2f} in "
                        f"{outcome.seconds:.1f} s ({number} of {len(tasks)})"
                    )
                else:
                    failures.append(outcome)
                    show(str(outcome), file=sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.end()
            raise
    return sorted(runs, key=lambda r: r.seed), sorted(failures, key=lambda f: f.seed)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _run(
    children: Children, command: Compare, algorithm: str, seed: int, folder: Path
) -> Run | Failure:
    from proximo.run.folder import RunFolder

    train = ["train", algorithm, command.env, "--seed", str(seed), "--run-dir", str(folder)]
    train += ["--quiet", *_evaluating(command, algorithm)]
    if command.total_steps is not None:
        train += ["--total-steps", str(command.total_steps)]
    score = ["eval", str(folder), "--episodes", str(command.episodes), "--json"]
    if ":" in command.env:
        score += ["--env", command.env]
    task: dict[str, Any] = {"algorithm": algorithm, "seed": seed, "folder": str(folder)}
    for words in (train, score):
        code, out, err = children.run(words)
        if code:
            error = err.rstrip().splitlines()[-5:]
            return Failure(**task, verb=words[0], code=code, error=error)
    # An env may print as well.
    scores = json.loads(next(line for line in out.splitlines()[::-1] if line.startswith("{")))
    run = RunFolder(folder)
    result = run.read_result()
    end = {"steps": result["steps"], "evaluation": scores["return_mean"]}
    return Run(
        **task,
        score=scores["return_mean"],
        evaluation=scores,
        total_steps=run.read_config().run.total_steps,
        steps=result["steps"],
        steps_to_threshold=steps_to([*run.read_metrics(), end], command.threshold),
        seconds=result["seconds"],
    )


def _evaluating(command: Compare, algorithm: str) -> list[str]:
    """Flags of `train` that evaluate the policy along the way."""
    from proximo.run.presets import find_preset

    preset = find_preset(algorithm, command.env)
    config = from_tables(preset.tables if preset else {"algorithm": {"name": algorithm}})
    steps = config.env.num_envs * config.rollout.steps
    updates = -(-(command.total_steps or config.run.total_steps) // steps)
    every = ["--run.eval-every", str(max(1, updates // EVALUATIONS))]
    return [*every, "--run.eval-episodes", str(EPISODES)]


def steps_to(rows: Iterable[dict[str, Any]], threshold: float | None) -> int | None:
    """Steps after which an evaluation first was this high."""
    for row in rows:
        mean = row.get("evaluation")
        if threshold is not None and mean is not None and mean >= threshold:
            return int(row["steps"])
    return None


def summarize(algorithm: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Statistics of the runs of an algorithm; NaN where there are too few."""
    reached = [run.steps_to_threshold for run in runs if run.steps_to_threshold is not None]
    return {
        "algorithm": algorithm,
        "runs": len(runs),
        **summary(np.array([run.score for run in runs])),
        "reached": len(reached),
        "steps_to_threshold": median(reached),
        "seconds": median([run.seconds for run in runs]),
    }


def table(summaries: Iterable[dict[str, Any]], seeds: int, threshold: float | None) -> Table:
    """Head and rows in words; without a threshold there is no column for it."""
    rows = [["algorithm", "mean score", "IQM", "seconds a run"]]
    if threshold is not None:
        rows[0].insert(3, f"steps to {threshold:g}")
    for s in summaries:
        count = s["runs"]
        name = s["algorithm"] + (f" ({count} of {seeds} runs)" if count != seeds else "")
        mean, iqm = _number(s["mean"]), _number(s["iqm"])
        if count > 1:
            mean += f" ± {_number(s['half_width'])}"
            iqm += f" [{_number(s['iqm_low'])}, {_number(s['iqm_high'])}]"
        rows.append([name, mean, iqm, _number(s["seconds"], ".1f")])
        if threshold is not None:
            steps = _number(s["steps_to_threshold"], ",.0f")
            rows[-1].insert(3, f"{steps} ({s['reached']} of {count})")
    return rows


def _number(value: float, form: str = ".2f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def explain_table(command: Compare, by_name: Mapping[str, Sequence[Run]]) -> str:
    """Legend of the table."""
    lengths = {name: runs[0].total_steps for name, runs in by_name.items() if runs}
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


def _write(
    folder: Path, command: Compare, head: str, legend: str, rows: Table, **all_: Any
) -> None:
    """The numbers as compare.json, the table as compare.md."""
    import orjson

    from proximo.run.folder import versions

    settings = ("env", "seeds", "episodes", "total_steps", "threshold", "processes")
    numbers = {name: getattr(command, name) for name in settings} | all_ | {"versions": versions()}
    # orjson knows dataclasses, and writes null for NaN.
    data = orjson.dumps(numbers, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    replace(folder / "compare.json", data)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    blocks = [f"# {head}", "\n".join(lines), legend]
    if all_["failures"]:
        blocks.append("\n".join(["```", *map(str, all_["failures"]), "```"]))
    if all_["runs"]:
        blocks.append("![Learning curves](compare.png)")
    replace(folder / "compare.md", ("\n\n".join(blocks) + "\n").encode())


def _print_table(rows: Table) -> None:
    from rich import table
    from rich.console import Console
    from rich.text import Text

    shown = table.Table()
    for number, title in enumerate(rows[0]):
        shown.add_column(title, justify="right" if number else "left")
    for row in rows[1:]:
        shown.add_row(*map(Text, row))
    # A file or a pipe has no width to which a row would have to be broken.
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
