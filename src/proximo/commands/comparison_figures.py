"""Figures of a comparison, for a paper: a column or a page wide, as PNG, SVG and PDF."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proximo.commands.pictures import extra, figure, save, thousands
from proximo.errors import printable
from proximo.insight.comparison import AGGREGATES, Comparison
from proximo.insight.curves import Curve, align
from proximo.insight.statistics import BAND_RESAMPLES, Scores, band, interval, normalized, profile
from proximo.insight.tables import NAMES

COLUMN, PAGE = 3.3, 6.9
"""Widths in inches."""
KINDS = ("png", "svg", "pdf")
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.4,
}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito 2008, told apart by people with any colour vision."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.2)), (0, (1.2, 1)), (0, (5, 1, 1.2, 1)))
"""Lines are told apart without colours too."""
GREY = "#777777"
LONG = 16
"""Letters of a name that fit beside the axes in a column."""
POINTS = 201
"""Points of a profile, and of curves over several envs."""

Curves = Mapping[str, Mapping[str, Sequence[Curve]]]
"""Env -> algorithm -> the curve of each run."""


def draw_comparison(
    comparison: Comparison, curves: Curves, reading: str, folder: Path
) -> list[tuple[str, str]]:
    """Draw all figures that the runs allow; returns title and file, without its ending, of each.

    reading: what the curves show.
    """
    parts = {
        "compare": (
            "Learning curves",
            bool(curves) and (lambda: _draw_curves(comparison, curves, reading)),
        ),
        "aggregates": (
            "Aggregates of normalised scores",
            bool(comparison.aggregates) and (lambda: _draw_aggregates(comparison)),
        ),
        "profiles": (
            "Performance profiles",
            bool(comparison.aggregates) and (lambda: _draw_profiles(comparison)),
        ),
        "improvement": (
            "Probability of improvement",
            bool(comparison.improvements) and (lambda: _draw_improvements(comparison)),
        ),
    }
    drawn = []
    for name, (title, draw) in parts.items():
        if draw:
            with _style():
                picture = draw()
                picture.draw_without_rendering()  # which places everything, once for all files
                picture.set_layout_engine("none")
                for kind in KINDS:
                    save(picture, folder / f"{name}.{kind}", dpi=300)
            drawn.append((title, name))
    return drawn


@contextlib.contextmanager
def _style() -> Iterator[None]:
    with extra("matplotlib").rc_context(STYLE):
        yield


def _look(comparison: Comparison, name: str) -> dict[str, Any]:
    """Colour and dashes of an algorithm, the same in every figure."""
    place = list(comparison.plan.algorithms).index(name)
    return {
        "color": COLORS[place % len(COLORS)],
        "linestyle": DASHES[place % len(DASHES)],
        "label": _shown(name),
    }


def _shown(text: str) -> str:
    return printable(text, keep="")


def _fill(axes: Any, x: np.ndarray, ends: Sequence[np.ndarray], color: str, **how: Any) -> None:
    axes.fill_between(x, *ends, color=color, alpha=0.18, linewidth=0, **how)


def _draw_curves(comparison: Comparison, curves: Curves, reading: str) -> Any:
    """A panel for each env, and one over all of them."""
    together = bool(comparison.aggregates) and all(
        curves.get(env, {}).get(name) for env in comparison.plan.envs for name in comparison.scores
    )
    panels = len(curves) + together
    columns = 2 if panels == 4 else min(3, panels)
    lines = math.ceil(panels / columns)
    width = COLUMN if columns == 1 else PAGE
    drawn = figure(figsize=(width, (2.1 if columns < 3 else 1.75) * lines))
    grid = drawn.add_gridspec(lines, columns)
    cells = [drawn.add_subplot(grid[i // columns, i % columns]) for i in range(panels)]
    for axes, (env, groups) in zip(cells, curves.items(), strict=False):
        for name, runs in groups.items():
            steps, values = align(runs)
            _draw_band(axes, steps, [values.T], _look(comparison, name))
        threshold = comparison.thresholds[env]
        if threshold is not None:
            axes.axhline(threshold, color=GREY, linestyle=":", linewidth=1, zorder=1)
        axes.set_title(_shown(env))
        axes.set_xlim(0)
        axes.xaxis.set_major_formatter(thousands)
        axes.set_xlabel("environment steps")
    if together:
        _draw_together(cells[-1], comparison, curves)
    for row in range(lines):
        cells[row * columns].set_ylabel(reading)
    if panels > 1 and together:
        cells[-1].set_ylabel("normalised score")
    handles = {label: h for axes in cells for h, label in zip(*_legend(axes), strict=True)}
    if any(limit is not None for limit in comparison.thresholds.values()):
        handles["threshold"] = extra("matplotlib.lines").Line2D(
            [], [], color=GREY, linestyle=":", linewidth=1
        )
    _add_legend(drawn, handles, "outside lower center")
    return drawn


def _add_legend(drawn: Any, handles: Mapping[str, Any], place: str) -> None:
    """A legend outside the axes, in as many columns as fit, for which the figure grows."""
    width, height = drawn.get_size_inches()
    fit = int(width / (0.55 + 0.068 * max(map(len, handles))))
    lines = math.ceil(len(handles) / max(1, fit))
    drawn.set_size_inches(width, height + 0.1 + 0.16 * lines)
    columns = math.ceil(len(handles) / lines)
    drawn.legend(handles.values(), handles.keys(), loc=place, ncols=columns, columnspacing=1.4)


def _legend(axes: Any) -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return handles, labels


def _draw_band(axes: Any, x: np.ndarray, curves: Scores, look: Mapping[str, Any]) -> None:
    """Interquartile mean and its interval. curves: [points, runs] of each env."""
    middle, low, high = band(curves)
    axes.plot(x, middle, **look)
    _fill(axes, x, (low, high), look["color"])


def _draw_together(axes: Any, comparison: Comparison, curves: Curves) -> None:
    """Normalised curves of all envs, over the share of their steps."""
    for name in comparison.scores:
        tasks, begin, end = [], 0.0, 1.0
        for env in comparison.plan.envs:
            steps, values = align(curves[env][name])
            ends = comparison.references[env]
            share = steps / max(run.steps for run in comparison.of(env, name))
            tasks.append((share, normalized(values, ends.low, ends.high)))
            begin, end = max(begin, share[0]), min(end, share[-1])
        share = np.linspace(begin, end, POINTS)
        same = [np.stack([np.interp(share, x, y) for y in values], -1) for x, values in tasks]
        _draw_band(axes, 100 * share, same, _look(comparison, name))
    axes.set_title("all envs, normalised")
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of a run's steps")


def _draw_profiles(comparison: Comparison) -> Any:
    """Share of runs above each normalised score."""
    drawn = figure(figsize=(COLUMN, 2.2))
    axes = drawn.subplots()
    every = np.concatenate([runs for tasks in comparison.scores.values() for runs in tasks])
    # A profile falls at scores alone: it is exact there, or where they are many, on a grid.
    thresholds = np.unique([0.0, *every[every > 0], max(1.0, every.max())])
    if len(thresholds) > POINTS:
        thresholds = np.linspace(0, thresholds[-1], POINTS)
    for name, scores in comparison.scores.items():
        look = _look(comparison, name)
        axes.plot(thresholds, profile(scores, thresholds), drawstyle="steps-post", **look)
        ends = interval(lambda x: profile(x, thresholds), scores, resamples=BAND_RESAMPLES)
        _fill(axes, thresholds, ends, look["color"], step="post")
    axes.set_xlim(0, thresholds[-1])
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("normalised score τ")
    axes.set_ylabel("share of runs above τ")
    handles, labels = _legend(axes)
    _add_legend(drawn, dict(zip(labels, handles, strict=True)), "outside upper center")
    return drawn


def _draw_aggregates(comparison: Comparison) -> Any:
    """A panel for each aggregate, a bar for the interval of each algorithm."""
    names = [row["algorithm"] for row in comparison.aggregates]
    drawn = figure(figsize=(_width(names), 0.6 + 2 * (0.35 + 0.21 * len(names))))
    for axes, key in zip(drawn.subplots(2, 2, sharey=True).flat, AGGREGATES, strict=True):
        for place, row in enumerate(comparison.aggregates):
            color = _look(comparison, row["algorithm"])["color"]
            _draw_interval(axes, place, row[key], row[f"{key}_low"], row[f"{key}_high"], color)
        axes.set_title(f"{NAMES[key]} {'↓' if key == 'optimality_gap' else '↑'}")
        axes.grid(visible=False, axis="y")
        axes.use_sticky_edges = False  # a bar may not end at the frame
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=3, min_n_ticks=3)
        axes.set_yticks(range(len(names)), [_shown(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    drawn.supxlabel("normalised score (↑ higher, ↓ lower is better)", fontsize=8)
    return drawn


def _width(names: Sequence[str]) -> float:
    """A column, unless long names beside the axes would fill it."""
    return COLUMN if max(map(len, names)) <= LONG else PAGE


def _draw_interval(
    axes: Any, place: float, value: float, low: float, high: float, color: str
) -> None:
    if not math.isnan(low):
        axes.barh(place, high - low, left=low, height=0.62, color=color, alpha=0.45, linewidth=0)
    axes.plot([value, value], [place - 0.31, place + 0.31], color=color, linewidth=2)


def _draw_improvements(comparison: Comparison) -> Any:
    """P(X > Y) with its interval for each two algorithms: X on the left, Y on the right."""
    rows = comparison.improvements
    width = _width([row["x"] for row in rows] + [row["y"] for row in rows])
    drawn = figure(figsize=(width, 0.65 + 0.24 * len(rows)))
    axes = drawn.subplots()
    for place, row in enumerate(rows):
        color = _look(comparison, row["x"])["color"]
        _draw_interval(axes, place, row["p"], row["low"], row["high"], color)
    axes.axvline(0.5, color=GREY, linestyle=":", linewidth=1, zorder=1)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1)
    axes.set_xlabel("P(X > Y)")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [_shown(row["x"]) for row in rows])
    other = axes.twinx()
    other.set_ylim(axes.get_ylim())
    other.set_yticks(range(len(rows)), [_shown(row["y"]) for row in rows])
    other.grid(visible=False)
    for side, title, alignment in ((axes, "X", "right"), (other, "Y", "left")):
        side.tick_params(axis="y", length=0)
        side.spines[["left", "right"]].set_visible(False)
        side.set_title(title, loc="left" if side is axes else "right")
        for label in side.get_yticklabels():
            label.set_horizontalalignment(alignment)
    return drawn
