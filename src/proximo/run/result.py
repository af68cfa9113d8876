"""How a run ended, as people read it: in a terminal and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from proximo.errors import printable
from proximo.run.profile import in_words

Pairs = Iterable[tuple[str, str]]
"""Names and values, as text."""


class RunResult(dict[str, Any]):
    """result.json: a dict, which `print` and notebooks show as a table."""

    def pairs(self) -> list[tuple[str, str]]:
        """Names and values; a list has a line for each of its parts."""
        found = list[tuple[str, str]]()
        for name, value in self.items():
            values = value if isinstance(value, list) else [value]
            if name == "profile":
                values = in_words(value)
            names = [printable(name.replace("_", " "), keep=""), *[""] * len(values)]
            found += zip(names, map(_shown, values), strict=False)
        return found

    def __str__(self) -> str:
        pairs = self.pairs()
        room = max((len(name) for name, _ in pairs), default=0)
        return "\n".join(f"{name:{room}}  {value}" for name, value in pairs)

    def _repr_html_(self) -> str:
        return html_table("", self.pairs())


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else printable(str(value), keep="")


def html_table(title: str, pairs: Pairs) -> str:
    """A table for a notebook, in its own colours; everything in it is text."""
    cell = "padding:0 1.4em 0 0;border:0;text-align:left;vertical-align:top;white-space:pre-wrap"
    rows = "".join(
        f'<tr style="background:none"><td style="{cell};opacity:.65">{html.escape(name)}</td>'
        f'<td style="{cell};font-variant-numeric:tabular-nums">{html.escape(value)}</td></tr>'
        for name, value in pairs
    )
    head = f'<div style="font-weight:600">{html.escape(title)}</div>' if title else ""
    table = f'<table style="font:inherit;border:0;border-collapse:collapse;margin:0">{rows}</table>'
    return f'<div style="font-size:13px;line-height:1.6">{head}{table}</div>'
