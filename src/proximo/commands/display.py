"""Progress of a run: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from proximo.commands.arguments import say, show


class Columns(NamedTuple):
    """Metrics of one kind of run, as its progress shows them."""

    unit: str
    """Unit of progress."""
    key: str
    """Key of the row with the number of units so far."""
    metrics: tuple[tuple[str, str, str], ...]
    """Label, key of the row, format; what a row does not have is not shown."""
    first: str
    """Text before the first row."""


CONTROL = Columns(
    "steps",
    "steps",
    (
        ("return", "return_mean", ".1f"),  # mean of the last 100 episodes
        ("best smoothed", "best", ".1f"),
        ("KL", "approx_kl", ".4f"),
        ("clip fraction", "clip_fraction", ".3f"),
        ("beta", "beta", ".3g"),
        ("step", "line_search_fraction", ".2f"),
        ("entropy", "entropy", ".3f"),
        ("explained variance", "explained_variance", ".2f"),
    ),
    "collecting what the first update learns from",
)
FITTING = Columns(
    "updates",
    "update",
    (("loss", "loss", ".4f"), ("accuracy", "accuracy", ".2f")),
    "the first update",
)
COMPLETIONS = Columns(
    "updates",
    "update",
    (
        ("score", "score", ".3f"),
        ("held out", "held_out_score", ".3f"),
        ("KL", "kl", ".3f"),
        ("beta", "beta", ".3g"),
        ("length", "length", ".1f"),
        ("turns", "turns", ".1f"),
        ("stopped", "stopped", ".2f"),
        ("repeated", "repeated", ".2f"),
        ("explained variance", "explained_variance", ".2f"),
    ),
    "generating what the first update learns from",
)


class _Pace:
    """Units per second since training began, and the time that is left at that pace.

    It begins anew with the first update that has ended, which had more to prepare.
    """

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0
        self._first: tuple[int, float] | None = None
        self._speed = 0.0
        self._warm = False

    def move(self, count: int) -> None:
        self.count, now = count, time.perf_counter()
        self._first = self._first or (count, now)
        begin, then = self._first
        if count > begin:
            self._speed = (count - begin) / (now - then)

    def update(self, count: int, speed: float) -> None:
        if not self._warm:
            self._first, self._speed, self._warm = None, speed, True
        self.move(count)

    def words(self, unit: str) -> list[str]:
        """Pace and time left; nothing before there is a pace."""
        if not self._speed:
            return []
        left = max(0, self.total - self.count) / self._speed
        speed = f"{self._speed:,.0f}" if self._speed >= 10 else f"{self._speed:.1f}"
        return [f"{speed} {unit}/s", f"{_clock(left)} left"]


class Display:
    """A panel that is redrawn in place (live), or lines.

    The panel moves four times a second, or less where that would take over 0.5% of the time; lines
    come every five seconds. The lines, and the last state of the panel, go to the run's log too.
    """

    PANEL, LINES = 0.25, 5.0
    """Seconds between two of them."""

    def __init__(
        self, columns: Columns, total: int, note: Callable[[str], None], *, live: bool | None = None
    ) -> None:
        """live: None is for a terminal."""
        live = sys.stdout.isatty() if live is None else live
        self._columns, self._pace, self._note = columns, _Pace(total), note
        self._live = Live(auto_refresh=False) if live else None
        self._due = 0.0 if self._live else time.perf_counter() + self.LINES
        self._row: Mapping[str, Any] = {}
        self._activity = ""

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._activity = ""
        if self._row:
            self._pace.move(self._row[self._columns.key])
            self._draw()
        if self._live:
            if self._row:
                self._note(self._line())
            self._live.__exit__(None, None, None)

    def show(self, row: Mapping[str, Any]) -> None:
        """Take in the row of the update that has just ended."""
        self._row, self._activity = row, ""
        self._pace.update(row[self._columns.key], row.get("steps_per_second", 0.0))
        self._draw_if_due()

    def move(self, count: int, activity: str) -> None:
        """Show how far it is within an update, and what it does if it collects no rollout."""
        self._pace.move(count)
        self._draw_if_due(activity)

    def _draw_if_due(self, activity: str = "") -> None:
        if time.perf_counter() >= self._due:
            self._activity = activity
            self._draw()

    def _draw(self) -> None:
        begin = time.perf_counter()
        if self._live:
            self._live.update(self._panel(self._live.console.width), refresh=True)
            now = time.perf_counter()
            self._due = now + max(self.PANEL, 200 * (now - begin))
            return
        line = self._line()
        if self._row:
            self._note(line)
        say(line)
        self._row, self._due = {}, begin + self.LINES

    def _metrics(self) -> list[tuple[str, str]]:
        """Labels and values of the row."""
        shown = [
            (label, self._row[key], f)
            for label, key, f in self._columns.metrics
            if key in self._row
        ]
        return [
            (label, "-" if value is None or math.isnan(value) else format(value, form))
            for label, value, form in shown
        ]

    def _progress(self) -> str:
        return f"{self._pace.count:,} of {self._pace.total:,} {self._columns.unit}"

    def _line(self) -> str:
        unit = self._columns.unit
        if self._row:
            head = f"{self._row[self._columns.key]:,}/{self._pace.total:,} {unit}"
            words = [head, *(f"{label} {value}" for label, value in self._metrics())]
        else:
            words = [self._progress(), self._activity or "collecting"]
        return "  ".join([*words, *self._pace.words(unit)])

    def _panel(self, width: int) -> RenderableType:
        pace = self._pace
        bar = ProgressBar(total=pace.total, completed=pace.count, width=min(30, max(5, width - 55)))
        head = Table.grid(padding=(0, 2))
        words = (self._progress(), *pace.words(self._columns.unit))
        head.add_row(bar, *(Text(word, no_wrap=True) for word in words))
        parts: list[RenderableType] = [head]
        if metrics := self._metrics():
            body = Table.grid(padding=(0, 2))
            labels, values = zip(*metrics, strict=True)
            for label in labels:
                body.add_column(min_width=len(label))
            body.add_row(*(Text(label, style="dim") for label in labels))
            body.add_row(*(Text(v, style="" if i else "bold") for i, v in enumerate(values)))
            parts.append(body)
        if activity := self._activity or ("" if self._row else self._columns.first):
            parts.append(Text(activity, style="dim"))
        return Group(*parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Patience:
    """Says on stderr every five seconds how far a verb is that prints only at its end."""

    INTERVAL = 5.0

    def __init__(self) -> None:
        self._begin = self._printed = time.perf_counter()

    def __call__(self, ended: int, total: int) -> None:
        """Take in how many episodes have ended."""
        now = time.perf_counter()
        if now - self._printed < self.INTERVAL:
            return
        self._printed, spent = now, now - self._begin
        left = f", {_clock(spent / ended * (total - ended))} left" if ended else ""
        show(f"episode {ended + 1} of {total}, {_clock(spent)} so far{left}", file=sys.stderr)


SLOW = 5.0
"""Seconds after which a command says what it is doing."""


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
