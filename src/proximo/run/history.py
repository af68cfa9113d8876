"""The readings of a run as arrays, which the rules of health look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from proximo.types import Row

T = TypeVar("T")
KEPT = 64
"""Rows that a history keeps, evenly chosen, and as many of those with further readings."""
MEASURED = "reward_max"
"""A reading that only rows with the further ones have (`readings.py`)."""


class Sign(NamedTuple):
    """A rule applies: what a `Finding` says of it."""

    evidence: str
    cause: str
    remedy: str
    update: int


def thinned(rows: Sequence[Row]) -> list[Row]:
    """At most 2 `KEPT` + 1 of the rows: evenly chosen, of both kinds, and the last."""
    if len(rows) <= KEPT:
        return list(rows)
    kept = [rows[-1]]
    for measured in (True, False):
        kind = [row for row in rows[:-1] if (MEASURED in row) is measured]
        kept += kind[:: -(-len(kind) // KEPT) or 1]
    return sorted(kept, key=lambda row: row["update"])


def once_by_name(method: Callable[[History, str], T]) -> Callable[[History, str], T]:
    """A method of a history that computes its value for each name once."""

    def kept(history: History, name: str) -> T:
        values = history.values.setdefault(method.__name__, {})
        if name not in values:
            values[name] = method(history, name)
        found: T = values[name]
        return found

    return kept


class History:
    """Rows of a run in order, and its settings as tables.

    A reading that a row lacks is NaN, and so is what follows from it: no comparison with it holds,
    and no rule applies.
    """

    def __init__(self, rows: Sequence[Row], settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._rows, self._settings = rows, settings
        self._columns: dict[str, np.ndarray] = {}
        self.values: dict[str, dict[str, Any]] = {}
        self.updates = self["update"]
        self._begin, self._quarter = np.searchsorted(
            self.updates, [self.last / 10, 0.75 * self.last]
        ).tolist()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            values = [row.get(name) for row in self._rows]
            try:
                self._columns[name] = np.array(values, float)
            except (TypeError, ValueError):  # a callback has put text there
                numbers = [x if isinstance(x, int | float) else np.nan for x in values]
                self._columns[name] = np.array(numbers, float)
        return self._columns[name]

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting, such as algorithm.clip, or the default where the run has none of that name."""
        section, _, key = name.partition(".")
        table = self._settings.get(section, {})
        value = table.get(key, default) if isinstance(table, Mapping) else default
        return None if value == "none" else value

    def number(self, name: str, default: float = 0.0) -> float:
        """A setting that is a number; for none, a schedule and anything else the default."""
        value = self.setting(name)
        return float(value) if type(value) in (int, float) else default

    @once_by_name
    def known(self, name: str) -> np.ndarray:
        """The values of a reading, where it has one."""
        column: np.ndarray = self[name]
        known: np.ndarray = column[np.isfinite(column)]
        return known

    def highest(self, name: str) -> float:
        """The largest value of a reading."""
        known = self.known(name)
        return float(known.max()) if len(known) else np.nan

    def peak(self, name: str) -> int:
        """The row of the largest value of a reading that has one."""
        return int(np.argmax(np.nan_to_num(self[name], nan=-np.inf)))

    def first(self, name: str) -> float:
        """The first value of a reading."""
        known = self.known(name)
        return float(known[0]) if len(known) else np.nan

    @once_by_name
    def median(self, name: str) -> float:
        """The median of a reading over the run."""
        return middle(self.known(name))

    @once_by_name
    def early(self, name: str) -> float:
        """The median of a reading over the first tenth of the updates, or its first value."""
        column = self[name][: max(1, self._begin)]
        known = column[np.isfinite(column)]
        return middle(known) if len(known) else self.first(name)

    @once_by_name
    def recent(self, name: str) -> float:
        """The median of a reading over the last quarter of the updates, or its last value."""
        column = self[name][self._quarter :]
        known = column[np.isfinite(column)]
        if len(known):
            return middle(known)
        return float(self.known(name)[-1]) if len(self.known(name)) else np.nan

    def since(self, holds: Callable[[History], np.ndarray]) -> int:
        """The first update in which this holds, or the last one."""
        found = np.flatnonzero(holds(self))
        return int(self.updates[found[0]]) if len(found) else int(self.last)

    @property
    def last(self) -> float:
        """The last update."""
        return float(self.updates[-1])

    @property
    def span(self) -> str:
        """The last quarter of the updates, in words."""
        begin = self.updates[self._quarter]
        return f"updates {begin:.0f} to {self.last:.0f}"

    @property
    def long_enough(self) -> bool:
        """There is enough of the run for a rule of medians: 16 updates, of 8,192 steps in all."""
        return self.last >= 16 and not self["steps"][-1] < 8192

    @cached_property
    def progress(self) -> float:
        """Share of the planned experience."""
        total = self.number("run.total_steps")
        if total > 0:
            return float(self["steps"][-1]) / total
        return self.last / max(1.0, self.number("run.updates", self.last))

    @cached_property
    def score(self) -> str:
        """The reading that is to rise: of control, or of a language model."""
        return "return_mean" if len(self.known("return_mean")) else "score"

    @cached_property
    def gain(self) -> float:
        """The score now, less the one of the beginning."""
        return self.recent(self.score) - self.early(self.score)

    @cached_property
    def noise(self) -> float:
        """Usual distance of the episodes of one update from the mean of the last 100."""
        gap = self["return_latest"] - self["return_mean"]
        return float(middle(np.abs(gap[np.isfinite(gap)])))

    @cached_property
    def least_gain(self) -> float:
        """A gain of the score that is more than noise."""
        known = [0.1 * abs(self.early(self.score)), 0.5 * self.noise]
        return max(1e-9, *(x for x in known if np.isfinite(x)), 1e-9)

    @property
    def improved(self) -> bool:
        """The score is higher than at the beginning, or good enough."""
        return self.gain > self.least_gain or self.solved

    @property
    def solved(self) -> bool:
        """At least half of the last episodes reach the env's threshold."""
        return self.recent("success_rate") >= 0.5

    @property
    def stalled(self) -> bool:
        """A good part of the run is over, and the score has never risen."""
        if not (self.long_enough and self.progress >= 0.25) or self.solved:
            return False
        scores = self.known(self.score)
        if not len(scores):
            return False
        rise = scores.max() - scores[0]  # some learn in one update
        later = scores[len(scores) // 10 :].max() - self.early(self.score)
        return bool(max(rise, later) <= self.least_gain)


def middle(values: np.ndarray) -> float:
    """The median, of an even number the upper one; NaN of nothing."""
    return float(np.sort(values)[len(values) // 2]) if len(values) else np.nan
