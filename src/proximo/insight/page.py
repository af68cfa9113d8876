"""The report as one HTML page, which asks nothing of a network."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
from pathlib import Path
from typing import Any

import orjson

from proximo.insight.report import Document, plain

PARTS = Path(__file__).parent / "page"
"""The page's own files, and uPlot's (https://github.com/leeoniya/uPlot), with its licence."""
MARK = '<meta name="generator" content="Proximo report">'
"""Near the beginning of every report: the sign that a file may be replaced by another one."""
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@functools.cache
def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def to_json(document: Document) -> bytes:
    """The document as JSON of printable text."""
    return orjson.dumps(plain(document))


def policy(*, live: bool = False) -> str:
    """Content security policy: the page's own script and style, pictures in it, nothing else.

    live: it may ask the server that it came from.
    """
    scripts = " ".join(map(_digest, (_part("uPlot.iife.min.js"), _part("page.js"))))
    styles = " ".join(map(_digest, (_part("uPlot.min.css"), _part("page.css"))))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; "
        f"media-src data:; {'connect-src ' + chr(39) + 'self' + chr(39) + '; ' if live else ''}"
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page(document: Document, *, live: bool = False) -> bytes:
    """The whole page. live: it asks its server for newer data."""
    data = to_json({**document, "live": live}).decode()
    for character, escape in ESCAPES.items():
        data = data.replace(character, escape)
    values: dict[str, Any] = {
        "mark": MARK,
        "policy": html.escape(policy(live=live), quote=True),
        "title": html.escape(str(plain(document["title"]))),
        "uplot_css": _part("uPlot.min.css"),
        "css": _part("page.css"),
        "data": data,
        "uplot_js": _part("uPlot.iife.min.js"),
        "js": _part("page.js"),
    }
    # In one pass: a value may hold what looks like the name of another one.
    pieces = _part("page.html").split("{{")
    text = pieces[0] + "".join(_filled(piece, values) for piece in pieces[1:])
    return text.encode()


def _filled(piece: str, values: dict[str, Any]) -> str:
    name, _, rest = piece.partition("}}")
    return f"{values[name]}{rest}"
