"""Curves of runs: readings over environment steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from proximo.types import Row

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values."""


def curves_of(rows: Iterable[Row]) -> dict[str, Curve]:
    """Key -> curve, of everything in the rows that is a number."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items() if type(row.get("steps")) is int else ():
            if type(value) in (int, float):
                points.setdefault(key, []).append((row["steps"], value))
    arrays = {key: np.array(pairs, float) for key, pairs in points.items()}
    return {key: (array[:, 0], array[:, 1]) for key, array in arrays.items()}


def align(curves: Sequence[Curve]) -> Curve:
    """Steps, and the values [run, step] of all curves there.

    Runs may have logged at different steps: all of them are interpolated at those of the longest,
    as far as the shortest goes.
    """
    steps = max(curves, key=lambda curve: len(curve[0]))[0]
    begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    steps = steps[(steps >= begin) & (steps <= end)]
    return steps, np.stack([np.interp(steps, x, y) for x, y in curves])
