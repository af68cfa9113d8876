"""Statistics of scores over tasks and runs: aggregates, profiles, and their bootstrap intervals.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(arXiv 2108.13264). In the equations x_mn is the score of run n of N_m in task m of M. Aggregates
over several tasks need scores of one scale: see `normalized`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

RESAMPLES = 10_000
"""Bootstrap resamples of an interval."""
BAND_RESAMPLES = 2_000
"""Bootstrap resamples of an interval at each of many points, as of a curve."""
BLOCK = 500
"""Resamples, and points of a curve, that are in memory at a time."""
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5% quantiles of Student's t for 1, 2, ... degrees of freedom."""

Scores = Sequence[np.ndarray]
"""Scores of one algorithm: for every task an array [..., runs].

Tasks may have different numbers of runs. A statistic reduces tasks and runs and keeps the axes
before: those of a curve's steps, or of resamples.
"""
Statistic = Callable[..., np.ndarray]
"""Scores of one algorithm or several -> array [...]."""
Draws = Sequence[np.ndarray]
"""Resamples of one algorithm: for every task the indices of its runs, [resamples, runs]."""
Band = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Values at each point, and the low and high ends of their intervals."""


def student(freedom: int) -> float:
    """Quantile of Student's t for a 95% interval, to a tenth of a percent."""
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    return 1.960 + 2.372 / freedom + 2.822 / freedom**2  # its expansion about the normal one


def half_width(scores: np.ndarray) -> float:
    """Half of the 95% interval of the mean: t s / sqrt(n); NaN for fewer than two scores."""
    count = len(scores)
    if count < 2:
        return math.nan
    return student(count - 1) * float(scores.std(ddof=1)) / math.sqrt(count)


def normalized(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scores in units of the distance between two references: (x - low) / (high - low).

    low becomes 0 and high becomes 1. Where both are the same, as where all runs of a min-max
    normalisation are equal, the score is 1 at this value and above it, and 0 below.
    """
    if low == high:
        return np.where(scores >= high, 1.0, 0.0)
    return np.asarray((scores - low) / (high - low))


def iqm(scores: Scores) -> np.ndarray:
    """Interquartile mean: mean of the middle half of all x_mn, of all tasks and runs together.

    Σ x_(i) / (n - 2k) over the sorted scores i = k+1 ... n-k, with n = Σ_m N_m and k = ⌊n / 4⌋.
    """
    together = np.sort(np.concatenate(scores, axis=-1), axis=-1)
    cut = together.shape[-1] // 4
    return np.asarray(together[..., cut : together.shape[-1] - cut].mean(-1))


def mean(scores: Scores) -> np.ndarray:
    """Mean over tasks of the mean over runs: 1/M Σ_m 1/N_m Σ_n x_mn."""
    return np.asarray(_of_tasks(scores).mean(-1))


def median(scores: Scores) -> np.ndarray:
    """Median over tasks m of the mean over runs: median of 1/N_m Σ_n x_mn."""
    return np.asarray(np.median(_of_tasks(scores), axis=-1))


def optimality_gap(scores: Scores, target: float = 1.0) -> np.ndarray:
    """Mean distance of the runs from the target γ: γ - 1/M Σ_m 1/N_m Σ_n min(x_mn, γ).

    What a run has beyond the target counts nothing; lower is better.
    """
    return target - mean([np.minimum(runs, target) for runs in scores])


def profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Performance profile, [thresholds, ...]: the share of runs with a score above each of them.

    F(τ) = 1/M Σ_m 1/N_m Σ_n 1[x_mn > τ], which the paper calls the run-score distribution.
    """
    return np.stack([mean([runs > threshold for runs in scores]) for threshold in thresholds])


def improvement(scores: Scores, others: Scores) -> np.ndarray:
    """Probability that a run of one algorithm scores higher than a run of another, P(X > Y).

    1/M Σ_m 1/(N_m K_m) Σ_n Σ_k S(x_mn, y_mk), with S = 1 for x > y, 1/2 for x = y and 0 for x < y:
    the mean over tasks of Mann and Whitney's U. No normalisation changes it.
    """
    wins = [
        ((x[..., :, None] > y[..., None, :]).mean((-2, -1)))
        + 0.5 * (x[..., :, None] == y[..., None, :]).mean((-2, -1))
        for x, y in zip(scores, others, strict=True)
    ]
    return np.asarray(np.mean(wins, axis=0))


def _of_tasks(scores: Scores) -> np.ndarray:
    """Mean over the runs of each task, [..., tasks]."""
    return np.stack([runs.mean(-1) for runs in scores], axis=-1)


def interval(
    statistic: Statistic, *scores: Scores, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high end of the 95% interval of a statistic, by the stratified bootstrap.

    Percentiles 2.5 and 97.5 of the statistic over resamples. A resample draws N_m runs of each task
    with replacement, from this task alone: the tasks are the strata, and each is the same in every
    experiment. Of a curve, whole runs are drawn. The same scores give the same interval. NaN where
    a task has fewer than two runs.

    scores: those of each algorithm that the statistic takes; they are resampled independently.
    """
    if any(runs.shape[-1] < 2 for tasks in scores for runs in tasks):
        nothing = np.full(np.shape(statistic(*scores)), math.nan)
        return nothing, nothing
    generator = np.random.default_rng(0)
    blocks = (
        [
            [generator.integers(runs.shape[-1], size=(count, runs.shape[-1])) for runs in tasks]
            for tasks in scores
        ]
        for count in [min(BLOCK, resamples - begin) for begin in range(0, resamples, BLOCK)]
    )
    return percentile_interval(statistic, scores, blocks)


def percentile_interval(
    statistic: Statistic, scores: Sequence[Scores], blocks: Iterable[Sequence[Draws]]
) -> tuple[np.ndarray, np.ndarray]:
    """`interval` for resamples that are drawn already, in blocks."""
    values = []
    for block in blocks:
        again = [
            [runs[..., indices] for runs, indices in zip(tasks, draws, strict=True)]
            for tasks, draws in zip(scores, block, strict=True)
        ]
        values.append(statistic(*again))
    low, high = np.percentile(np.concatenate(values, axis=-1), (2.5, 97.5), axis=-1)
    return low, high


def band(curves: Scores) -> Band:
    """Interquartile mean of curves at each step, and its 95% interval.

    curves: for every task an array [steps, runs]. NaN for the interval of fewer than two runs.
    """
    ends = [
        interval(iqm, [runs[begin : begin + BLOCK] for runs in curves], resamples=BAND_RESAMPLES)
        for begin in range(0, len(curves[0]), BLOCK)
    ]
    low, high = (np.concatenate(end) for end in zip(*ends, strict=True))
    return iqm(curves), low, high


def summary(scores: np.ndarray) -> dict[str, float]:
    """Mean and interquartile mean of one task with their intervals; NaN for too few scores."""
    names = ("mean", "half_width", "iqm", "iqm_low", "iqm_high")
    if not len(scores):
        return dict.fromkeys(names, math.nan)
    values = (scores.mean(), half_width(scores), iqm([scores]), *interval(iqm, [scores]))
    return dict(zip(names, map(float, values), strict=True))
