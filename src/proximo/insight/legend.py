"""Sentences under the tables of a comparison: what its numbers are."""

from __future__ import annotations

from proximo.insight.comparison import EPISODES, EVALUATIONS, Comparison
from proximo.insight.statistics import RESAMPLES


def legend(comparison: Comparison, processes: int) -> list[str]:
    """All of them. processes: runs that trained at a time."""
    return [
        _origin(comparison),
        *_statistics(comparison),
        *_steps(comparison),
        "Seconds: of training and the evaluations along the way, median over seeds"
        + (f", {_at_a_time(processes)}." if comparison.plan.threads else "."),
    ]


def _at_a_time(processes: int) -> str:
    return f"{processes} runs at a time" if processes > 1 else "one run at a time"


def _origin(comparison: Comparison) -> str:
    """Where the runs come from, and how long they are."""
    plan = comparison.plan
    lengths = {
        name: sorted({run.total_steps for run in comparison.runs if run.algorithm == name})
        for name in plan.algorithms
    }
    shown = {name: " to ".join(f"{n:,}" for n in {*s[:1], *s[-1:]}) for name, s in lengths.items()}
    steps = ", ".join(f"{count} ({name})" for name, count in shown.items() if count)
    if len(set(shown.values())) == 1:
        steps = next(iter(shown.values()))
    steps = f"; steps of a run: {steps}" if steps else ""
    if plan.threads is None:
        return f"Runs with the settings in their own folders{steps}."
    threads = "one thread" if plan.threads == 1 else f"{plan.threads} threads"
    return (
        f"Each algorithm with {plan.seeds_in_words} and the settings that `proximo train` picks "
        f"by itself, on {threads}{steps}."
    )


def _steps(comparison: Comparison) -> list[str]:
    limits = {env: limit for env, limit in comparison.thresholds.items() if limit is not None}
    if not limits:
        return []
    head = "Steps to threshold"
    if len(comparison.plan.envs) == 1:
        head = f"Steps to {next(iter(limits.values())):g}"
    else:
        head += f" ({', '.join(f'{env} {limit:g}' for env, limit in limits.items())})"
    along = f"of {EPISODES} deterministic episodes about {EVALUATIONS} times along a run"
    if comparison.plan.threads is None:
        along = "along a run where its settings have them"
    return [
        f"{head}: until an evaluation was that high, {along} or of {comparison.plan.episodes} at "
        "its end (the score); median over the seeds that got there, and how many did."
    ]


def _statistics(comparison: Comparison) -> list[str]:
    """What is measured, and over what."""
    lines = [
        f"Score of a run: mean return of {comparison.plan.episodes} deterministic episodes of its "
        "last policy, on seeds unseen in training.",
        "±: half of the 95% interval of the mean over training seeds (Student's t). "
        "IQM: interquartile mean over them, with its 95% interval by percentile bootstrap "
        f"({RESAMPLES:,} resamples; Agarwal et al. 2021).",
    ]
    if comparison.aggregates:
        lines.append(
            "Aggregates: over all envs and runs, of scores that are (score - low) / (high - low), "
            "with low and high of each env as in the table of the normalisation. Their intervals: "
            "stratified bootstrap, runs resampled within each env."
        )
    if comparison.improvements:
        lines.append(
            "P(X > Y): probability that a run of X scores higher than a run of Y, mean over the "
            "envs, ties counting one half; it needs no normalisation."
        )
    lacking = [name for name in comparison.plan.algorithms if name not in comparison.scores]
    if lacking and comparison.runs:
        lines.append(f"Not in the aggregates, with no run in some env: {', '.join(lacking)}.")
    return lines
