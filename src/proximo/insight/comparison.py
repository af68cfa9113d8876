"""A comparison: runs of several algorithms in one env or several, and what their scores say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from proximo.insight.references import Reference
from proximo.insight.statistics import (
    Scores,
    improvement,
    interval,
    iqm,
    mean,
    median,
    normalized,
    optimality_gap,
    summary,
)
from proximo.types import Row

SCORED = 100
"""Episodes of a score, unless a flag says otherwise."""
EVALUATIONS = 20
"""Evaluations along each run, about evenly apart: its curve and its steps to the threshold."""
EPISODES = 10
"""Episodes of each of them."""
AGGREGATES = {"iqm": iqm, "median": median, "mean": mean, "optimality_gap": optimality_gap}
"""Statistics over all envs, of normalised scores."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a comparison consists of."""

    envs: tuple[str, ...]
    algorithms: tuple[str, ...]
    seeds: int
    """Runs of each algorithm in each env."""
    total_steps: int | None
    episodes: int
    """Episodes of a score."""
    threads: int | None
    """Threads of every run; None: runs of other commands."""

    @property
    def title(self) -> str:
        return f"{', '.join(self.algorithms)} on {', '.join(self.envs)}"

    @property
    def seeds_in_words(self) -> str:
        if self.threads is None:
            return "one run each" if self.seeds == 1 else f"up to {self.seeds} runs each"
        return "seed 1" if self.seeds == 1 else f"seeds 1 to {self.seeds}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Result of a run of one algorithm and seed."""

    env: str
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
class Comparison:
    """Runs of algorithms in envs, in the order of the plan."""

    plan: Plan
    runs: Sequence[Run]
    thresholds: Mapping[str, float | None]
    references: Mapping[str, Reference]

    def of(self, env: str, algorithm: str) -> list[Run]:
        return [run for run in self.runs if (run.env, run.algorithm) == (env, algorithm)]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Statistics of each algorithm in each env, in the env's own units of return."""
        return [
            {"env": env, "algorithm": name, **summarize(self.of(env, name))}
            for env in self.plan.envs
            for name in self.plan.algorithms
        ]

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """Normalised scores of each algorithm that has runs in every env."""
        return self._scores(normalize=True)

    def _scores(self, *, normalize: bool) -> dict[str, Scores]:
        scores = dict[str, Scores]()
        for name in self.plan.algorithms:
            tasks = []
            for env in self.plan.envs:
                runs = np.array([run.score for run in self.of(env, name)])
                if normalize and len(runs):
                    ends = self.references[env]
                    runs = normalized(runs, ends.low, ends.high)
                tasks.append(runs)
            if all(map(len, tasks)):
                scores[name] = tasks
        return scores

    @cached_property
    def aggregates(self) -> list[dict[str, Any]]:
        """Every aggregate of each algorithm with its 95% interval; none for a single env."""
        rows = []
        for name, scores in self.scores.items() if len(self.plan.envs) > 1 else ():
            row: dict[str, Any] = {"algorithm": name}
            for key, statistic in AGGREGATES.items():
                low, high = interval(statistic, scores)
                row |= {key: float(statistic(scores))}
                row |= {f"{key}_low": float(low), f"{key}_high": float(high)}
            rows.append(row)
        return rows

    @cached_property
    def improvements(self) -> list[dict[str, Any]]:
        """P(X > Y) with its 95% interval for each two algorithms, the one more likely better first.

        Of the scores as they are: no normalisation changes it.
        """
        rows = []
        everything = list(self._scores(normalize=False).items())
        for place, (x, first) in enumerate(everything):
            for y, second in everything[place + 1 :]:
                p = float(improvement(first, second))
                low, high = map(float, interval(improvement, first, second))
                better, worse = x, y
                if p < 0.5:
                    (p, low, high), better, worse = (1 - p, 1 - high, 1 - low), y, x
                rows.append({"x": better, "y": worse, "p": p, "low": low, "high": high})
        return rows

    def run_rows(self) -> list[dict[str, Any]]:
        """Each run in a row, for other programs."""
        rows = []
        for run in self.runs:
            ends = self.references[run.env]
            scaled = float(normalized(np.array(run.score), ends.low, ends.high))
            names = ("steps", "steps_to_threshold", "seconds", "folder")
            row: dict[str, Any] = {"env": run.env, "algorithm": run.algorithm, "seed": run.seed}
            row |= {"score": run.score, "normalized_score": scaled}
            rows.append(row | {name: getattr(run, name) for name in names})
        return rows

    def numbers(self) -> dict[str, Any]:
        """What follows from the runs, for a file."""
        return {
            "thresholds": self.thresholds,
            "references": {env: asdict(ends) for env, ends in self.references.items()},
            "table": self.rows,
            "aggregates": self.aggregates,
            "improvements": self.improvements,
        }


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """Statistics of the runs of an algorithm in one env; NaN where there are too few."""
    reached = [run.steps_to_threshold for run in runs if run.steps_to_threshold is not None]
    return {
        "runs": len(runs),
        **summary(np.array([run.score for run in runs])),
        "reached": len(reached),
        "steps_to_threshold": _middle(reached),
        "seconds": _middle([run.seconds for run in runs]),
    }


def _middle(values: Sequence[float]) -> float:
    """Median; NaN for no values."""
    return float(np.median(values)) if values else math.nan


def steps_to(rows: Iterable[Row], threshold: float | None) -> int | None:
    """Steps after which an evaluation first was this high."""
    for row in rows:
        reached = row.get("evaluation")
        if threshold is not None and reached is not None and reached >= threshold:
            return int(row["steps"])
    return None
