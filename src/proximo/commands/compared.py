"""The folder of a comparison: its record, from which it goes on, its tables and its figures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from proximo import disk
from proximo.errors import UsageError, printable
from proximo.insight import tables
from proximo.insight.comparison import Comparison, Plan, Run, steps_to
from proximo.insight.curves import Curve, curves_of
from proximo.run.folder import RunFolder, versions
from proximo.types import Row

Curves = Mapping[str, Mapping[str, Sequence[Curve]]]
"""Env -> algorithm -> the curve of each run."""
LONGEST = 2**28
"""Bytes of compare.json."""
TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("env", "algorithm", "folder"), str),
    **dict.fromkeys(("seed", "total_steps", "steps"), int),
    **dict.fromkeys(("score", "seconds"), (int, float)),
    "evaluation": dict,
    "steps_to_threshold": (int, type(None)),
}
"""Fields of a recorded run."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Verb of a run that ended with an error."""

    env: str
    algorithm: str
    seed: int
    folder: str
    verb: str
    code: int
    error: list[str]  # its last lines

    def __str__(self) -> str:
        head = f"{self.algorithm} seed {self.seed} on {self.env} failed"
        return "\n  ".join([f"{head} ({self.verb}, exit code {self.code}):", *self.error])


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a comparison needs to go on."""

    plan: Plan
    runs: list[Run]
    processes: int = 1
    """Runs that trained at a time."""
    thresholds: dict[str, float | None] = field(default_factory=dict)
    at_random: dict[str, float] = field(default_factory=dict)
    """Scores of a random policy."""
    given: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Reference scores."""


class ComparisonFolder:
    """compare.json, tables, figures and run folders of one comparison."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        """As the user gave it, for messages."""
        self.path = path.absolute()  # an env may change the current folder
        self.record = self.path / "compare.json"

    def create(self) -> None:
        """Raises `UsageError` where it cannot be made."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the folder {self.name} cannot be made: {error.strerror}") from error

    def relative(self, path: Path) -> str:
        """A run folder as the record names it, so that all of it may move."""
        return os.path.relpath(path.absolute(), self.path)

    def run_folder(self, run: Run) -> RunFolder:
        return RunFolder(self.path / run.folder)

    def read(self) -> Record:
        """Raises `UsageError` where there is none that a comparison has written."""
        try:
            return _record(json.loads(disk.read(self.record, LONGEST)))
        except OSError as error:
            raise UsageError(f"{self.record} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"{self.record} is damaged: {error!r:.100}") from error

    def write(self, record: Record, **more: Any) -> None:
        """Write compare.json. more: what is not needed to go on. Raises `UsageError`."""
        import orjson

        plan, parts = asdict(record.plan), vars(record) | more | {"versions": versions()}
        del parts["plan"]
        # orjson knows dataclasses, and writes null for NaN.
        data = orjson.dumps(plan | parts, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        with disk.writable(self.record):
            disk.replace(self.record, data)

    def read_curves(
        self, runs: Iterable[Run], thresholds: Mapping[str, float | None]
    ) -> tuple[list[Run], Curves, str]:
        """Runs with their steps to these thresholds, their curves, and what those show.

        Curves of evaluations, or of episodes in training where a run has no evaluations. A run
        whose own files are gone has no curve, and keeps the steps of its record.
        """
        found = [(run, self.run_folder(run).read_metrics()) for run in runs]
        evaluated = all(any("evaluation" in row for row in rows) for _, rows in found if rows)
        reading = "evaluation" if evaluated else "return_mean"
        timed, curves = list[Run](), dict[str, dict[str, list[Curve]]]()
        for run, rows in found:
            end: Row = {"steps": run.steps, "evaluation": run.score}
            steps = steps_to([*rows, end], thresholds[run.env])
            timed.append(replace(run, steps_to_threshold=steps if rows else run.steps_to_threshold))
            # The score is of other episodes than the evaluations: it would end a curve with a step.
            if curve := curves_of(rows).get(reading):
                curves.setdefault(run.env, {}).setdefault(run.algorithm, []).append(curve)
        shown = "return of an evaluation" if evaluated else "return, last 100 episodes"
        return timed, curves, shown

    def write_tables(
        self,
        comparison: Comparison,
        legend: Sequence[str],
        failures: Sequence[Failure],
        figures: Sequence[tuple[str, str]],
    ) -> None:
        """Write tables as Markdown, LaTeX and CSV. figures: title and file of each."""
        first, *others = tables.tables_of(comparison)
        blocks = [f"# {printable(comparison.plan.title, keep='')}", tables.markdown(first)]
        for table in others:
            blocks += [f"## {table.title}", tables.markdown(table)]
        blocks += ["\n\n".join(legend)]
        if failures:
            blocks += ["\n".join(["```", *map(str, failures), "```"])]
        blocks += [f"![{text}]({file}.png)" for text, file in figures]
        self._write("compare.md", "\n\n".join(blocks) + "\n")
        self._write("compare.tex", _latex(comparison, legend))
        self._write("compare.csv", tables.as_csv(comparison.rows))
        self._write("aggregates.csv", tables.as_csv(comparison.aggregates))
        self._write("improvement.csv", tables.as_csv(comparison.improvements))
        self._write("runs.csv", tables.as_csv(comparison.run_rows()))

    def _write(self, name: str, text: str) -> None:
        """Raises `UsageError` where the disk fails. An empty file is not written, and removed."""
        file = self.path / name
        with disk.writable(file):
            if text:
                disk.replace(file, text.encode("utf-8", "replace"))
            else:
                file.unlink(missing_ok=True)


def _latex(comparison: Comparison, legend: Sequence[str]) -> str:
    """Tables for a paper: scores, aggregates, probability of improvement."""
    plan = comparison.plan
    parts = [
        "% " + "\n% ".join(legend),
        r"% \usepackage{booktabs}",
        tables.latex(
            tables.score_matrix(comparison),
            f"{plan.title}: mean return over {plan.seeds} training seeds, ± half of its 95% "
            "interval (Student's t). Bold: the highest mean of an env.",
            "tab:scores",
        ),
    ]
    if comparison.aggregates:
        parts.append(
            tables.latex(
                tables.aggregate_table(comparison),
                "Aggregates of normalised scores over all envs, with 95% stratified bootstrap "
                "intervals.",
                "tab:aggregates",
            )
        )
    if comparison.improvements:
        parts.append(
            tables.latex(
                tables.improvement_table(comparison),
                "Probability that a run of X scores higher than a run of Y, with 95% stratified "
                "bootstrap intervals.",
                "tab:improvement",
            )
        )
    return "\n\n".join(parts) + "\n"


def _record(found: dict[str, Any]) -> Record:
    """Raises what a file raises that no comparison has written."""
    plan = Plan(
        envs=tuple(map(str, found["envs"])),
        algorithms=tuple(map(str, found["algorithms"])),
        seeds=int(found["seeds"]),
        total_steps=None if found["total_steps"] is None else int(found["total_steps"]),
        episodes=int(found["episodes"]),
        threads=None if found["threads"] is None else int(found["threads"]),
    )
    limits = found["thresholds"].items()
    record = Record(
        plan=plan,
        runs=[_run(part) for part in found["runs"]],
        processes=int(found["processes"]),
        thresholds={env: None if limit is None else float(limit) for env, limit in limits},
        at_random={env: float(score) for env, score in found["at_random"].items()},
        given={env: (float(low), float(high)) for env, (low, high) in found["given"].items()},
    )
    for run in record.runs:
        if run.env not in plan.envs or run.algorithm not in plan.algorithms:
            raise ValueError(f"{run.algorithm} on {run.env} is not of its plan")
    return record


def _run(record: dict[str, Any]) -> Run:
    """A recorded run. Raises `ValueError` for one that no comparison has written."""
    for name, kinds in TYPES.items():
        if isinstance(record[name], bool) or not isinstance(record[name], kinds):
            raise ValueError(f"{name} of a run is {record[name]!r:.20}")
    if not math.isfinite(record["score"]):
        raise ValueError(f"score of a run is {record['score']}")
    return Run(**{field.name: record[field.name] for field in fields(Run)})
