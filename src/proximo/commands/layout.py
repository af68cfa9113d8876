"""Pages for a terminal: headings, lines with a state, labels, tables, and commands to paste.

A page fits its width: where that is small, texts stand below their labels. Colours only repeat what
words say. Text is laid out as it is shown, with control characters as escapes.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Literal

from rich.console import RenderableType
from rich.padding import Padding
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table
from rich.text import Text

from proximo.commands.arguments import page, present
from proximo.errors import printable

NARROW = 64
"""Columns below which texts stand below their labels."""
STYLES = {"ok": "green", "warning": "yellow", "broken": "bold red", "absent": "dim"}
WORDS = {"absent": "-"}
"""States that are shown by another word."""
LABELS = 18
"""Columns of a label."""


def plain(text: str) -> str:
    """A text in one line, as it is shown."""
    return printable(" ".join(text.split()), keep="")


class Page:
    """What a command prints, part by part."""

    def __init__(self) -> None:
        console = page()
        self.width, self._ascii = console.width, console.options.ascii_only
        self.narrow = self.width < NARROW
        self._first = True

    def title(self, text: str, beside: str = "") -> None:
        """The name of what is examined."""
        gap = "  " if beside else ""
        self._put(Text.assemble((plain(text), "bold"), gap, (plain(beside), "dim")))
        self._first = False

    def heading(self, text: str) -> None:
        """A heading, with room above it."""
        self._put(*([] if self._first else [Text("")]), Text(plain(text), style="bold cyan"))
        self._first = False

    def line(self, state: str, subject: str, found: str, remedy: str = "", cause: str = "") -> None:
        """One thing that was looked at: its state, what was found, why, and what to do."""
        word, style = WORDS.get(state, state), STYLES[state]
        quiet = "dim" if state == "absent" else ""
        texts = [Text(plain(found), style=quiet)]
        if cause:
            texts.append(Text(plain(cause), style="dim"))
        if remedy:
            arrow = "->" if self._ascii else "→"
            texts.append(Text.assemble((f"{arrow} ", "bold"), (plain(remedy), quiet or "bold")))
        if self.narrow:
            head = Text.assemble((f"{word:9}", style), (plain(subject), quiet or "bold"))
            self._put(head, *(Padding(text, (0, 0, 0, 2)) for text in texts))
            return
        grid = self._grid(9, LABELS)
        for number, text in enumerate(texts):
            first = number == 0
            grid.add_row(
                "",
                Text(word if first else "", style=style),
                Text(plain(subject) if first else "", style=quiet),
                text,
            )
        self._put(grid)

    def pair(self, label: str, text: str) -> None:
        """A label and what belongs to it."""
        if self.narrow:
            self._put(Text(plain(label), style="dim"), Padding(Text(plain(text)), (0, 0, 0, 2)))
            return
        grid = self._grid(LABELS)
        grid.add_row("", Text(plain(label), style="dim"), Text(plain(text)))
        self._put(grid)

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Labels and texts, with the labels as wide as the widest of them."""
        if self.narrow:
            for label, text in rows:
                self.pair(label, text)
            return
        grid = self._grid(min(max((len(label) for label, _ in rows), default=0), self.width // 2))
        for label, text in rows:
            grid.add_row("", Text(plain(label), style="dim"), Text(plain(text)))
        self._put(grid)

    def text(self, text: str, style: str = "") -> None:
        """A paragraph."""
        self._put(Padding(Text(plain(text), style=style), (0, 0, 0, 2)))

    def item(self, text: str) -> None:
        """One of several paragraphs."""
        grid = self._grid(1)
        grid.add_row("", "-" if self._ascii else "•", Text(plain(text)))
        self._put(grid)

    def gap(self) -> None:
        """An empty line."""
        self._put(Text(""))

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> None:
        """A table; numbers: how many of its last columns are numbers."""
        grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        for place, name in enumerate(header):
            right: Literal["left", "right"] = "right" if place >= len(header) - numbers else "left"
            grid.add_column(Text(plain(name)), justify=right, overflow="fold")
        for row in rows:
            grid.add_row(*(Text(plain(cell)) for cell in row))
        self._put(Padding(grid, (0, 0, 0, 2)))

    def command(self, words: Sequence[str]) -> None:
        """A command to paste: in one line if it fits, else in several, joined by backslashes."""
        quoted = [printable(shlex.quote(word), keep="") for word in words]
        whole = " ".join(quoted)
        lines = [whole] if len(whole) + 2 <= self.width else _broken(quoted, self.width - 4)
        for number, line in enumerate(lines):
            # As it is: a terminal breaks a word that is longer than the page, and it pastes whole.
            shown = "  " * (1 + (number > 0)) + line
            self._put(Segments([Segment(shown, Style(bold=True, color="green"))]))

    def bars(self, rows: Iterable[tuple[str, float, str]]) -> None:
        """Shares as bars, with a label before each and a text behind it where there is room."""
        block, room = "#" if self._ascii else "█", 10 if self.narrow else 20
        grid = Table.grid(padding=(0, 1, 0, 0))
        for width in (1, 12, 6, room):
            grid.add_column(width=width, justify="right" if width == 6 else "left")
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for label, share, text in rows:
            filled = block * max(round(share * room), 1 if share > 0 else 0)
            behind = "" if self.narrow else plain(text)
            grid.add_row(
                "", plain(label), f"{share:.1%}", Text(filled, "cyan"), Text(behind, "dim")
            )
        self._put(grid)

    def levels(self) -> str:
        """Characters of a curve, from the lowest to the highest."""
        return "_.-=^" if self._ascii else "▁▂▃▄▅▆▇█"

    def _grid(self, *widths: int) -> Table:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=1)
        for width in widths:
            grid.add_column(width=width, overflow="fold")
        grid.add_column(overflow="fold", ratio=1)
        return grid

    @staticmethod
    def _put(*parts: RenderableType) -> None:
        present(parts)


def _broken(words: Sequence[str], width: int) -> list[str]:
    """A command in several lines, joined by backslashes: a flag stays with its values."""
    groups, lines = list[list[str]](), list[str]()
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    for group in (" ".join(group) for group in groups):
        if lines and len(lines[-1]) + len(group) + 3 <= width:
            lines[-1] += f" {group}"
        else:
            lines.append(group)
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
