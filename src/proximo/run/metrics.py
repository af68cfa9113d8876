"""metrics.jsonl as a table, and the one place that imports pandas."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proximo.run.folder import RunFolder
from proximo.types import Row


def read_metrics(run: str | Path) -> Any:
    """The readings of a run, a row per logged update: a pandas `DataFrame`, or a dict of arrays.

    run: a run folder, of control or of a language model; the run may still be training. Columns
    have the names of docs/metrics.md, in the order in which they first came, and all one length;
    without pandas they are NumPy arrays by name. Where a row has no value for a name, or null, a
    column of numbers is NaN and one of text None. A last line that is not written whole is left
    out; of a file over 32 MiB every second, fourth, ... row is read, and the last.

    Raises `UsageError` for a folder that is no run.
    """
    columns = as_columns(RunFolder.open(run).read_metrics())
    if importlib.util.find_spec("pandas") is None:
        return columns
    import pandas as pd

    return pd.DataFrame(columns)


def as_columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Name -> values of all rows [R]: int64 or bool where every row has one, float64, objects."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _column(values: list[Any]) -> np.ndarray:
    kinds = {type(value) for value in values}
    if kinds in ({int}, {bool}):
        return np.array(values)
    if kinds <= {int, float, bool, type(None)}:
        return np.array([np.nan if value is None else value for value in values], float)
    column = np.empty(len(values), object)
    column[:] = values
    return column
