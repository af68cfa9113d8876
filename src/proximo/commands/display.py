"""The progress of a run: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from proximo.commands.arguments import say
from proximo.run.callbacks import Row

READINGS = (
    ("return", "return_mean", "{:.1f}"),
    ("best smoothed", "best", "{:.1f}"),
    ("KL", "approx_kl", "{:.4f}"),
    ("clip fraction", "clip_fraction", "{:.3f}"),
    ("beta", "beta", "{:.3g}"),
    ("step", "step_share", "{:.2f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("explained variance", "explained_variance", "{:.2f}"),
)
"""Label, key of the row, format. The return is the mean of the last 100 episodes.

What an algorithm has no reading of is not shown.
"""


def _readings(row: Row) -> list[tuple[str, str, str]]:
    return [reading for reading in READINGS if reading[1] in row]


def _format(row: Row, key: str, form: str) -> str:
    value = row.get(key)
    return "-" if value is None or math.isnan(value) else form.format(value)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Pace:
    """Steps per second since training began here, and the time that is left at that pace."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._first: tuple[int, float] | None = None

    def read(self, row: Row) -> tuple[float, float]:
        now = time.perf_counter()
        if self._first is None:
            self._first = (row["steps"], now)
        steps, begin = self._first
        taken = row["steps"] - steps
        speed: float = taken / (now - begin) if taken else row["steps_per_second"]
        return speed, max(0, self.total - row["steps"]) / speed


class LiveDisplay:
    """A panel that is redrawn in place: four times a second, or less where that took over 0.5%."""

    INTERVAL = 0.25

    def __init__(self, total: int, note: Callable[[str], None]) -> None:
        self._pace, self._note = _Pace(total), note
        self._live = Live(auto_refresh=False, transient=False)
        self._due = 0.0
        self._row: Row | None = None

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._row:
            self._draw(self._row)
            self._note(plain(self._row, *self._pace.read(self._row), self._pace.total))
        self._live.__exit__(kind, error, trace)

    def show(self, row: Row) -> None:
        self._row = row
        if time.perf_counter() >= self._due:
            self._draw(row)

    def _draw(self, row: Row) -> None:
        begin = time.perf_counter()
        speed, left = self._pace.read(row)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=self._pace.total, completed=row["steps"], width=30),
            f"{row['steps']:,} of {self._pace.total:,} steps",
            f"{speed:,.0f} steps/s",
            f"{_time(left)} left",
        )
        body = Table.grid(padding=(0, 2))
        for label, _, _ in _readings(row):
            body.add_column(min_width=len(label))
        body.add_row(*(Text(label, style="dim") for label, _, _ in _readings(row)))
        body.add_row(
            *(
                Text(_format(row, key, form), style="bold" if key == "return_mean" else "")
                for _, key, form in _readings(row)
            )
        )
        self._live.update(Group(head, body), refresh=True)
        now = time.perf_counter()
        self._due = now + max(self.INTERVAL, 200 * (now - begin))


class PlainDisplay:
    """A line every five seconds, for logs and pipes."""

    INTERVAL = 5.0

    def __init__(self, total: int, note: Callable[[str], None]) -> None:
        self._pace, self._note = _Pace(total), note
        self._printed = time.perf_counter()
        self._row: Row | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._row:
            self._print(self._row)

    def show(self, row: Row) -> None:
        self._row = row
        speed = self._pace.read(row)
        if time.perf_counter() - self._printed >= self.INTERVAL:
            self._print(row, speed)

    def _print(self, row: Row, pace: tuple[float, float] | None = None) -> None:
        self._printed = time.perf_counter()
        line = plain(row, *(pace or self._pace.read(row)), self._pace.total)
        self._note(line)
        say(line)
        self._row = None


def plain(row: Row, speed: float, left: float, total: int) -> str:
    """One line with everything that the panel shows."""
    readings = "  ".join(
        f"{label} {_format(row, key, form)}" for label, key, form in _readings(row)
    )
    return f"{row['steps']:,}/{total:,} steps  {readings}  {speed:,.0f} steps/s  {_time(left)} left"
