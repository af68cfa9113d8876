"""Statistics of the scores of several seeds: mean and interquartile mean, with 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2_000
"""Bootstrap resamples of the seeds."""
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5% quantiles of Student's t for 1, 2, ... degrees of freedom."""


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


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean without the lowest and the highest n // 4, along the last axis."""
    count = scores.shape[-1]
    middle = np.sort(scores, axis=-1)[..., count // 4 : count - count // 4]
    return np.asarray(middle.mean(-1))


def bootstrap_interval(scores: np.ndarray) -> tuple[float, float]:
    """95% interval of the interquartile mean: percentiles of it over resampled scores.

    Agarwal et al. 2021 (arXiv 2108.13264), for one task. NaN for fewer than two scores.
    """
    if len(scores) < 2:
        return math.nan, math.nan
    resamples = np.random.default_rng(0).choice(scores, (RESAMPLES, len(scores)))
    low, high = np.percentile(interquartile_mean(resamples), (2.5, 97.5))
    return float(low), float(high)


def median(values: Sequence[float]) -> float:
    """NaN for no values."""
    return float(np.median(values)) if values else math.nan


def summary(scores: np.ndarray) -> dict[str, float]:
    """Mean and interquartile mean with their intervals; NaN where there are too few scores."""
    names = ("mean", "half_width", "iqm", "iqm_low", "iqm_high")
    if not len(scores):
        return dict.fromkeys(names, math.nan)
    means = float(scores.mean()), half_width(scores), float(interquartile_mean(scores))
    return dict(zip(names, (*means, *bootstrap_interval(scores)), strict=True))
