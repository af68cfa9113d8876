"""Progress of a run: a live panel in a terminal, a table in a notebook, lines elsewhere."""

from __future__ import annotations

import contextlib
import errno
import html
import importlib
import math
import multiprocessing
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from rich.console import Console, Group
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from proximo.errors import UsageError, printable
from proximo.run.folder import RunFolder


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
        return [f"{speed} {unit}/s", f"{clock(left)} left"]


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours if there are any: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


NARROW = 40
"""Width under which each metric has a line of its own."""
SPACE = "  "


@dataclass(frozen=True)
class View:
    """Progress at one moment, as text: what every screen shows in its own way."""

    title: str
    count: int
    total: int
    unit: str
    pace: tuple[str, ...]
    """Units per second and time left, once they are known."""
    metrics: tuple[tuple[str, str], ...]
    """Labels and values of the last update."""
    activity: str
    """What is going on between updates."""
    health: str
    """Names of the findings so far."""
    notes: tuple[str, ...] = ()
    """Notes on the setup of the run."""

    @property
    def share(self) -> float:
        """Part of the run that is done, from 0 to 1."""
        return min(1.0, self.count / max(1, self.total))

    @property
    def words(self) -> tuple[str, ...]:
        """Units so far, pace, time left."""
        return (f"{self.count:,} of {self.total:,} {self.unit}", *self.pace)

    @property
    def introduction(self) -> list[str]:
        """Lines that are said once, before the first drawing."""
        return [text for text in (self.title, *self.notes) if text]

    def lines(self, width: int, *, ascii_only: bool = False) -> list[Text]:
        """Lines of a panel, none wider than `width`."""
        lines = [*self._head(width, ascii_only=ascii_only), *self._body(width)]
        lines += [Text(self.activity, "dim")] if self.activity else []
        lines += [Text(f"health: {self.health}", "yellow")] if self.health else []
        for line in lines:
            line.no_wrap = True
            line.truncate(width, overflow="crop" if ascii_only else "ellipsis")
        return lines

    def _head(self, width: int, *, ascii_only: bool) -> list[Text]:
        """A bar and words in one line, or where that is too narrow in several."""
        words = SPACE.join(self.words)
        beside = width - len(words) - len(SPACE)
        if beside >= 10:
            return [_bar(self.share, min(30, beside), ascii_only).append(f"{SPACE}{words}")]
        packed = [SPACE.join(row) for row in _packed(self.words, width, len)]
        return [_bar(self.share, min(30, width), ascii_only), *map(Text, packed)]

    def _body(self, width: int) -> list[Text]:
        """Labels over values, or beside them where it is narrow; the first value stands out."""
        if width < NARROW:
            room = max((len(label) for label, _ in self.metrics), default=0)
            return [
                Text.assemble((f"{label:{room}}{SPACE}", "dim"), (value, "" if i else "bold"))
                for i, (label, value) in enumerate(self.metrics)
            ]
        lines = list[Text]()
        for row in _packed(self.metrics, width, lambda cell: max(map(len, cell))):
            room_of = [max(map(len, cell)) for cell in row]
            labels, values = (
                [f"{text:{n}}" for text, n in zip(texts, room_of, strict=True)]
                for texts in zip(*row, strict=True)
            )
            first = "" if lines else "bold"
            lines.append(Text(SPACE.join(labels), "dim"))
            lines.append(Text.assemble((values[0], first), SPACE, SPACE.join(values[1:])))
        for line in lines:
            line.rstrip()
        return lines

    def line(self) -> str:
        """All of it in one line, for a log."""
        named = [f"{label} {value}" for label, value in self.metrics]
        head = [f"{self.count:,}/{self.total:,} {self.unit}", *named]
        if not named:
            head = [self.words[0], self.activity]
        findings = [f"health {self.health}"] if self.health else []
        return SPACE.join([*head, *self.pace, *findings])

    def __repr__(self) -> str:
        """The panel as plain text, which notebooks show where they take no HTML."""
        return "\n".join([*filter(None, [self.title]), *(line.plain for line in self.lines(80))])

    def _repr_html_(self) -> str:
        """A small table for notebooks, in their own colours."""
        muted, cell = "opacity:.65", "padding:0 1.4em 0 0;border:0;background:none;text-align:left"
        done, esc = f"{100 * self.share:.1f}%", html.escape
        parts = [f'<div style="font-weight:600">{esc(self.title)}</div>'] if self.title else []
        parts.append(
            '<div style="display:flex;align-items:center;gap:1em;flex-wrap:wrap">'
            '<div style="width:14em;height:.5em;border-radius:.25em;overflow:hidden;'
            f'background:rgba(128,128,128,.3)"><div style="width:{done};height:100%;'
            f'background:#1f77b4"></div></div><span>{esc(" · ".join(self.words))}</span></div>'
        )
        if self.metrics:
            labels, values = (map(esc, column) for column in zip(*self.metrics, strict=True))
            head = "".join(
                f'<th style="{cell};font-weight:400;{muted}">{label}</th>' for label in labels
            )
            body = "".join(
                f'<td style="{cell};font-weight:{400 if i else 600};'
                f'font-variant-numeric:tabular-nums">{value}</td>'
                for i, value in enumerate(values)
            )
            row = '<tr style="background:none">{}</tr>'.format
            parts.append(
                '<table style="font:inherit;border:0;border-collapse:collapse;margin:.3em 0">'
                f"{row(head)}{row(body)}</table>"
            )
        parts += [f'<div style="{muted}">{esc(text)}</div>' for text in [self.activity] if text]
        if self.health:
            parts.append(f'<div style="color:#b8860b">health: {esc(self.health)}</div>')
        if self.notes:
            inner = "".join(f"<div>{esc(note)}</div>" for note in self.notes)
            parts.append(f'<details style="{muted}"><summary>setup</summary>{inner}</details>')
        return f'<div style="font-size:13px;line-height:1.6">{"".join(parts)}</div>'


def _bar(share: float, width: int, ascii_only: bool) -> Text:
    """A bar whose two parts differ without colours too."""
    done, rest = "#-" if ascii_only else "━─"
    full = round(share * width)
    return Text.assemble((done * full, "cyan"), (rest * (width - full), "dim"))


def _packed(cells: Iterable[Any], width: int, size: Callable[[Any], int]) -> list[list[Any]]:
    """Cells in rows, each as full as the width allows."""
    rows: list[list[Any]] = [[]]
    room = width
    for cell in cells:
        if rows[-1] and size(cell) > room:
            rows.append([])
            room = width
        rows[-1].append(cell)
        room -= size(cell) + len(SPACE)
    return [row for row in rows if row]


class Screen(ABC):
    """Where progress is shown."""

    scrolls = False
    """Each drawing stays where it is, below the last one."""

    @abstractmethod
    def pause(self, spent: float) -> float:
        """Seconds until the next drawing. spent: what the last one took."""

    @abstractmethod
    def draw(self, view: View) -> None:
        """Show it. Raises `OSError` if nobody reads it any more."""

    def open(self, view: View) -> None:  # noqa: B027 most have nothing to do
        """Before the first drawing."""

    def close(self) -> None:  # noqa: B027
        """After the last one."""


class Panel(Screen):
    """A panel in a terminal that is redrawn in place, as wide as the terminal is by then.

    What is printed meanwhile stands above it. The cursor stays visible: a process that is killed
    cannot bring it back.
    """

    INTERVAL = 0.25
    """Seconds between two drawings, or more where they would take over 0.5% of the time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._widths: list[int] = []
        # What is printed to a file or a pipe is not ours to redirect.
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
        )

    def pause(self, spent: float) -> float:
        return max(self.INTERVAL, 200 * spent)

    def open(self, view: View) -> None:
        for text in view.introduction:
            self.console.print(Text(text), soft_wrap=True)
        self._live.start()
        self.console.show_cursor(True)

    def draw(self, view: View) -> None:
        width, height = self.console.size
        lines = view.lines(width, ascii_only=self.console.options.ascii_only)
        lines = lines[: max(1, height - 1)]
        self._erase_wrapped(width)
        self._live.update(Group(*lines), refresh=True)
        self._widths = [line.cell_len for line in lines]

    def _erase_wrapped(self, width: int) -> None:
        """Erase the rows that the last lines take up more, if the terminal has become narrower.

        Terminals wrap what stands there; `Live` goes up by the number of lines that it has drawn.
        """
        more = sum(max(0, math.ceil(line / width) - 1) for line in self._widths)
        if more:
            up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * more
            erase = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up)
            self.console.control(erase)

    def close(self) -> None:
        self._live.stop()


class Lines(Screen):
    """A line every five seconds, for a pipe, a file, or a terminal that cannot move its cursor."""

    scrolls = True
    INTERVAL = 5.0

    def __init__(self, console: Console) -> None:
        self.console = console

    def pause(self, spent: float) -> float:
        return self.INTERVAL

    def open(self, view: View) -> None:
        for text in view.introduction:
            self._print(text)

    def draw(self, view: View) -> None:
        self._print(view.line())

    def _print(self, text: str) -> None:
        encoding = self.console.encoding
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        self.console.print(Text(shown), soft_wrap=True)
        self.console.file.flush()


class Notebook(Screen):
    """One table in the output of a notebook's cell, which is updated in place."""

    INTERVAL = 0.5

    def __init__(self, show: Callable[..., Any]) -> None:
        """show: `IPython.display.display`."""
        self._show = show
        self._handle: Any = None

    def pause(self, spent: float) -> float:
        return max(self.INTERVAL, 200 * spent)

    def open(self, view: View) -> None:
        self._handle = self._show(view, display_id=True)

    def draw(self, view: View) -> None:
        self._handle.update(view)


def _notebook() -> Callable[..., Any] | None:
    """IPython's `display`, where this process is the kernel of a notebook; it is not loaded."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if getattr(shell, "kernel", None) is None:
        return None
    show: Callable[..., Any] = importlib.import_module("IPython.display").display
    return show


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not getattr(stream, "closed", False) and stream.isatty()


class _Stream(Console):
    """A console whose reader may go away: Rich would end the process, and with it the training."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def screen_for(console: Console | None = None) -> Screen:
    """A panel where the console, stdout, is a terminal that can move its cursor; else lines."""
    console = console or _Stream()
    moves = console.is_terminal and not console.is_dumb_terminal
    return Panel(console) if moves and _is_terminal(console.file) else Lines(console)


def screen_of_call(progress: bool | None) -> Screen | None:
    """The screen of a call from Python: a notebook or stderr, as stdout belongs to the program.

    progress: show any; None: only in a notebook or a terminal, which no other live view and no
    parent process has taken. Raises `UsageError` for anything else.
    """
    if progress not in (None, True, False):
        raise UsageError(f"progress is {progress!r}: give True, False or None")
    if progress is False:
        return None
    if show := _notebook():
        return Notebook(show)
    taken = isinstance(sys.stderr, FileProxy) or multiprocessing.parent_process() is not None
    if progress is None and (taken or not _is_terminal(sys.stderr)):
        return None
    if sys.stderr is None:  # a program without a console
        return None
    console = _Stream(stderr=True)
    return Lines(console) if taken else screen_for(console)


def make_display(
    screen: Screen | None, columns: Columns, total: int, folder: RunFolder | None, task: str = ""
) -> Display | None:
    """The display on a screen, if there is one. task: what is trained, if it is not said yet."""
    if screen is None:
        return None
    where = f", run folder {folder.name}" if folder and task else ""
    note = folder.note if folder else lambda text: None
    return Display(columns, total, note, screen, title=f"{task}{where}")


class Display:
    """Shows rows and moves of a run on a screen now and then, at its pace.

    Lines, and the last state of a panel or a table, go to the run's log too.
    """

    def __init__(
        self,
        columns: Columns,
        total: int,
        note: Callable[[str], None],
        screen: Screen,
        *,
        title: str = "",
    ) -> None:
        """note: writes a line to the log. title: stands above, where it was not said before."""
        self._columns, self._pace, self._note = columns, _Pace(total), note
        self._screen, self._title = screen, printable(title, keep="")
        self._due = time.perf_counter() + screen.pause(0) if screen.scrolls else 0.0
        self._row: Mapping[str, Any] = {}
        self._activity, self._health = "", dict[str, None]()
        self._broken = False
        self.notes: Sequence[str] = ()
        """Notes on the setup, which it shows first."""

    def __enter__(self) -> Self:
        self._attempt(self._screen.open)
        return self

    def __exit__(self, *error: object) -> None:
        self._activity = ""
        if self._row:
            self._pace.move(self._row[self._columns.key])
            self._draw()
        if self._row:
            self._note(self._view().line())
        with contextlib.suppress(OSError, ValueError):
            self._screen.close()

    def show(self, row: Mapping[str, Any]) -> None:
        """Take in the row of the update that has just ended."""
        self._row, self._activity = row, ""
        self._pace.update(row[self._columns.key], row.get("steps_per_second", 0.0))
        if findings := row.get("health"):
            names = map(str.strip, printable(str(findings), keep="").split(","))
            self._health |= dict.fromkeys(filter(None, names))
        self._draw_if_due()

    def move(self, count: int, activity: str) -> None:
        """Take in how far it is within an update, and what it does if it collects no rollout."""
        self._pace.move(count)
        self._draw_if_due(activity)

    def _draw_if_due(self, activity: str = "") -> None:
        if time.perf_counter() >= self._due:
            self._activity = activity
            self._draw()

    def _draw(self) -> None:
        begin = time.perf_counter()
        self._attempt(self._screen.draw)
        now = time.perf_counter()
        scrolls = self._screen.scrolls
        self._due = (begin if scrolls else now) + self._screen.pause(now - begin)
        if scrolls and self._row:
            self._note(self._view().line())
            self._row = {}

    def _attempt(self, act: Callable[[View], None]) -> None:
        """Where the reader has gone, the disk is full or the stream closed, show nothing more."""
        if not self._broken:
            try:
                act(self._view())
            except (OSError, ValueError):  # or text that its encoding lacks
                self._broken = True

    def _view(self) -> View:
        row, pace, columns = self._row, self._pace, self._columns
        doing, scrolls = self._activity, self._screen.scrolls
        if not row:
            doing = doing or ("collecting" if scrolls else columns.first)
        shown = [(label, row[key], form) for label, key, form in columns.metrics if key in row]
        return View(
            title=self._title,
            count=row[columns.key] if row and scrolls else pace.count,
            total=pace.total,
            unit=columns.unit,
            pace=tuple(pace.words(columns.unit)),
            metrics=tuple(
                (label, "-" if value is None or math.isnan(value) else format(value, form))
                for label, value, form in shown
            ),
            activity=doing,
            health=", ".join(self._health),
            notes=tuple(printable(note, keep="") for note in self.notes),
        )
