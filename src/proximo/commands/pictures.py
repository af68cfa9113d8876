"""Figures for files, and the one place that imports matplotlib."""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path
from typing import Any

from proximo.disk import replace, writable
from proximo.errors import UsageError

COLORS = ("#1f5fa8", "#d1690e", "#1b8a6b", "#9b3f8f", "#444444", "#a88a00")

SETTINGS = {
    "text.parse_math": False,  # a name may have a $ in it
    # Text stays text, which a journal can set and a reader can search.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "proximo",
}


def extra(module: str) -> Any:
    """A module of the extra `pictures`. Raises `UsageError` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f'pictures need {error.name}: pip install "proximo[pictures]"') from error


def figure(**settings: Any) -> Any:
    """A figure for a file, which needs no backend. Raises `UsageError` without matplotlib."""
    # A notebook sets a backend that may not be installed here, and matplotlib reads it on import.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        drawn = extra("matplotlib.figure").Figure(**settings, layout="constrained")
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    extra("matplotlib").rcParams.update(SETTINGS)
    return drawn


def save(drawn: Any, out: Path, dpi: int = 110) -> None:
    """Write a figure; the same figure is the same file. Raises `UsageError` if the disk fails."""
    data, kind = io.BytesIO(), out.suffix[1:]
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    drawn.savefig(data, format=kind, dpi=dpi, metadata=dates.get(kind))
    with writable(out):
        replace(out, data.getvalue())


def finish(axes: Any, title: str, **fonts: Any) -> None:
    """Title, grid and axis of steps, as every panel has them."""
    axes.set_title(title, loc="left", **fonts)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(thousands)


def thousands(value: float, _: object) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
