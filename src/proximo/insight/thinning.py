"""Curves of a run for a page: as many points as a screen shows, and bands over several seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from proximo.insight.statistics import student
from proximo.types import Row

POINTS = 400
"""Points of a curve: more rows become means of as many buckets."""
SEED_POINTS = 250
"""Points of a curve that stands among others."""
MOST_KEYS = 200
"""Keys of a run that are read: those of the first rows."""
Numbers = list[float | None]
"""Values for JSON, None where there is none."""


class Columns(NamedTuple):
    """Rows of metrics.jsonl as columns, in the order of their updates."""

    axes: dict[str, np.ndarray]
    """update, seconds and the counter, which never fall."""
    values: dict[str, np.ndarray]
    """Readings by key, NaN where a row has none."""


def columns(rows: Sequence[Row], counter: str) -> Columns:
    """Every number of the rows. counter: the key that counts the experience."""
    whole, last = list[Row](), -math.inf
    for row in rows:
        if _number(row.get(counter)) is not None and row["update"] > last:
            whole.append(row)
            last = row["update"]
    names = (counter, "seconds", "update")
    axes = {name: np.array([row[name] for row in whole], float) for name in names}
    axes = {name: np.maximum.accumulate(x) if len(x) else x for name, x in axes.items()}
    every = dict.fromkeys(key for row in whole for key in row if key not in axes)
    keys = list(every)[:MOST_KEYS]
    found = {key: _column([row.get(key) for row in whole]) for key in keys}
    return Columns(axes, {key: x for key, x in found.items() if np.isfinite(x).any()})


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and math.isfinite(value) else None


def _column(values: list[Any]) -> np.ndarray:
    """Numbers as they are, and NaN for everything else."""
    if not set(map(type, values)) <= {int, float, type(None)}:
        values = [x if type(x) in (int, float) else None for x in values]
    return np.array(values, float)


def thinned(table: Columns, points: int, *, spread: bool) -> dict[str, Any]:
    """Axes and values of at most so many points: the means of buckets of consecutive rows.

    spread: with the lowest and highest value of each bucket, so that no spike is lost.
    """
    size = len(table.axes["update"])
    if size <= points:
        values = {key: numbers(x) for key, x in table.values.items()}
        return {"axes": {k: counts(x) for k, x in table.axes.items()}, "values": values}
    begins = np.linspace(0, size, points + 1)[:-1].astype(int)
    ends = np.append(begins[1:], size) - 1
    thin: dict[str, Any] = {"axes": {k: counts(x[ends]) for k, x in table.axes.items()}}
    means, low, high = {}, {}, {}
    for key, x in table.values.items():
        there = np.isfinite(x)
        number = np.add.reduceat(there.astype(int), begins)
        total = np.add.reduceat(np.where(there, x, 0.0), begins)
        mean = np.full(points, math.nan)
        np.divide(total, number, out=mean, where=number > 0)
        means[key] = numbers(mean)
        if spread and (x[there] != x[there][0]).any():
            low[key] = numbers(np.fmin.reduceat(x, begins))
            high[key] = numbers(np.fmax.reduceat(x, begins))
    return {**thin, "values": means, **({"low": low, "high": high} if spread else {})}


def bands(tables: Sequence[Columns], axis: str, points: int) -> dict[str, Any]:
    """Mean over runs of each reading, with the 95% interval of the mean (Student's t).

    The runs are interpolated at common places of this axis, as far as the shortest of them goes.
    """
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for table in tables for key in table.values):
        curves = [
            _present(table.axes[axis], table.values[key]) for table in tables if key in table.values
        ]
        begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
        if len(curves) < 2 or begin > end:
            continue
        places = _places([x for x, _ in curves], begin, end, points)
        values = np.stack([np.interp(places, x, y) for x, y in curves])
        mean = values.mean(0)
        half = student(len(curves) - 1) * values.std(0, ddof=1) / math.sqrt(len(curves))
        low = (mean - half).clip(0) if (values >= 0).all() else mean - half
        found[key] = {
            "x": counts(places),
            "mean": numbers(mean),
            "low": numbers(low),
            "high": numbers(mean + half),
            "runs": len(curves),
        }
    return found


def _present(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    there = np.isfinite(y)
    return x[there], y[there]


def _places(axes: Sequence[np.ndarray], begin: float, end: float, points: int) -> np.ndarray:
    """The longest run's own places, where they are few enough; else evenly spaced ones."""
    longest = max(axes, key=len)
    longest = longest[(longest >= begin) & (longest <= end)]
    return longest if 0 < len(longest) <= points else np.linspace(begin, end, points)


def numbers(values: Iterable[float]) -> Numbers:
    """Values to five digits."""
    return [float(f"{x:.5g}") if math.isfinite(x) else None for x in map(float, values)]


def counts(values: Iterable[float]) -> list[float]:
    """Places on an axis: whole numbers as they are, seconds to three decimals."""
    return [int(x) if x == int(x) else round(x, 3) for x in map(float, values)]
