"""The progress of a run: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from proximo.commands.arguments import say, show
from proximo.run.callbacks import Row

READINGS = (
    ("return", "return_mean", "{:.1f}"),
    ("best smoothed", "best", "{:.1f}"),
    ("KL", "approx_kl", "{:.4f}"),
    ("clip fraction", "clip_fraction", "{:.3f}"),
    ("beta", "beta", "{:.3g}"),
    ("step", "line_search_fraction", "{:.2f}"),
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
    """Steps per second since training began here, and the time that is left at that pace.

    It begins anew with the first update that has ended, in which there was more to be got ready.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.steps = 0
        self._first: tuple[int, float] | None = None
        self._speed = 0.0
        self._warm = False

    def move(self, steps: int) -> None:
        self.steps = steps
        now = time.perf_counter()
        if self._first is None:
            self._first = (steps, now)
        begin, then = self._first
        if steps > begin:
            self._speed = (steps - begin) / (now - then)

    def update(self, row: Row) -> None:
        if not self._warm:
            self._first, self._speed, self._warm = None, row["steps_per_second"], True
        self.move(row["steps"])

    def words(self) -> list[str]:
        """The pace and the time; nothing before there is a pace."""
        if not self._speed:
            return []
        left = max(0, self.total - self.steps) / self._speed
        speed = f"{self._speed:,.0f}" if self._speed >= 10 else f"{self._speed:.1f}"
        return [f"{speed} steps/s", f"{_time(left)} left"]


class LiveDisplay:
    """A panel that is redrawn in place: four times a second, or less where that took over 0.5%."""

    INTERVAL = 0.25

    def __init__(self, total: int, note: Callable[[str], None]) -> None:
        self._pace, self._note = _Pace(total), note
        self._live = Live(auto_refresh=False, transient=False)
        self._due = 0.0
        self._row: Row | None = None
        self._doing = ""

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
            self._pace.move(self._row["steps"])
            self._doing = ""
            self._draw()
            self._note(plain(self._pace, self._row))
        self._live.__exit__(kind, error, trace)

    def show(self, row: Row) -> None:
        self._row, self._doing = row, ""
        self._pace.update(row)
        if time.perf_counter() >= self._due:
            self._draw()

    def move(self, steps: int, doing: str) -> None:
        self._pace.move(steps)
        if time.perf_counter() >= self._due:
            self._doing = doing
            self._draw()

    def _draw(self) -> None:
        begin = time.perf_counter()
        pace, row = self._pace, self._row
        bar = min(30, max(5, self._live.console.width - 55))
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=pace.total, completed=pace.steps, width=bar),
            *(Text(word, no_wrap=True) for word in (_of(pace), *pace.words())),
        )
        parts: list[RenderableType] = [head]
        if row:
            body = Table.grid(padding=(0, 2))
            readings = _readings(row)
            for label, _, _ in readings:
                body.add_column(min_width=len(label))
            body.add_row(*(Text(label, style="dim") for label, _, _ in readings))
            body.add_row(
                *(
                    Text(_format(row, key, form), style="bold" if key == "return_mean" else "")
                    for _, key, form in readings
                )
            )
            parts.append(body)
        if doing := self._doing or ("" if row else FIRST):
            parts.append(Text(doing, style="dim"))
        self._live.update(Group(*parts), refresh=True)
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
            self._print()

    def show(self, row: Row) -> None:
        self._row = row
        self._pace.update(row)
        if self._is_due():
            self._print()

    def move(self, steps: int, doing: str) -> None:
        self._pace.move(steps)
        if self._is_due():
            self._printed = time.perf_counter()
            say("  ".join([_of(self._pace), doing or "collecting", *self._pace.words()]))

    def _is_due(self) -> bool:
        return time.perf_counter() - self._printed >= self.INTERVAL

    def _print(self) -> None:
        self._printed = time.perf_counter()
        assert self._row
        line = plain(self._pace, self._row)
        self._note(line)
        say(line)
        self._row = None


FIRST = "collecting what the first update learns from"


def _of(pace: _Pace) -> str:
    return f"{pace.steps:,} of {pace.total:,} steps"


def plain(pace: _Pace, row: Row) -> str:
    """One line with everything that the panel shows."""
    readings = "  ".join(
        f"{label} {_format(row, key, form)}" for label, key, form in _readings(row)
    )
    return "  ".join([f"{row['steps']:,}/{pace.total:,} steps", readings, *pace.words()])


class Patience:
    """Says on stderr every five seconds what a verb is busy with that prints only at its end."""

    INTERVAL = 5.0

    def __init__(self) -> None:
        self._begun = self._said = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """This many episodes are done."""
        now = time.perf_counter()
        if now - self._said < self.INTERVAL:
            return
        self._said, spent = now, now - self._begun
        left = f", {_time(spent / done * (total - done))} left" if done else ""
        show(f"episode {done + 1} of {total}, {_time(spent)} so far{left}", file=sys.stderr)


SLOW = 5.0
"""Seconds after which it is said what is going on."""


@contextlib.contextmanager
def said_if_slow(text: str) -> Iterator[None]:
    """Say what is going on if it is still going on after a while."""
    timer = threading.Timer(SLOW, say, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
