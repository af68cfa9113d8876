"""Learning curves, and the one place that imports matplotlib."""

from __future__ import annotations

import importlib
import io
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from proximo.disk import replace as replace_file
from proximo.disk import writable
from proximo.errors import UsageError, printable
from proximo.insight.groups import group_runs
from proximo.run.config import Config, success_threshold
from proximo.run.folder import RunFolder

PANELS = (
    ("return", (("return_mean", "last 100 episodes"), ("return_smoothed", "smoothed"))),
    ("success rate", (("success_rate", ""),)),
    ("policy loss", (("policy_loss", ""),)),
    ("value loss", (("value_loss", ""),)),
    ("KL(old, new) in nats", (("approx_kl", "estimated"), ("kl", "exact"))),
    ("clip fraction", (("clip_fraction", ""),)),
    ("weight of the KL penalty (beta)", (("beta", ""),)),
    ("share of the full step", (("line_search_fraction", ""),)),
    ("entropy in nats", (("entropy", ""),)),
    ("explained variance", (("explained_variance", ""),)),
    ("learning rate", (("learning_rate", "policy"), ("critic_learning_rate", "critic"))),
    ("steps per second", (("steps_per_second", ""),)),
)
"""Title of a panel, and its curves: key of a row of metrics.jsonl, label."""
DOTS = (
    ("return_latest", "raw, per update", ".", "#86a8cf", 4),
    ("evaluation", "evaluation", "o", "#2b7a3d", 3.5),
)
"""Points of the first panel: key, label, mark, color, size."""
COLUMNS = 3
COLORS = ("#1f5fa8", "#d1690e", "#1b8a6b", "#9b3f8f", "#444444", "#a88a00")

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values."""


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
    extra("matplotlib").rcParams["text.parse_math"] = False  # a name may have a $ in it
    return drawn


def _save(drawn: Any, out: Path) -> None:
    """Raises `UsageError` if the disk fails."""
    data = io.BytesIO()
    drawn.savefig(data, format=out.suffix[1:], dpi=110)
    with writable(out):
        replace_file(out, data.getvalue())


def _finish(axes: Any, title: str, **fonts: Any) -> None:
    """Title, grid and axis of steps, as every panel has them."""
    axes.set_title(title, loc="left", **fonts)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(_thousands)


class Group(NamedTuple):
    """Curves, by key, of runs that differ in their seeds alone."""

    label: str
    runs: list[dict[str, Curve]]
    color: str

    def curves(self, key: str) -> list[Curve]:
        """Curves of the runs that have this one."""
        return [run[key] for run in self.runs if key in run]


def draw_curves(folders: Sequence[RunFolder], out: Path) -> list[str]:
    """Every metric over the environment steps; several runs as their mean with a band.

    Runs of other algorithms or settings are curves of their own. Returns notes for the reader of
    the picture.

    Raises `UsageError` for a run without metrics, and for runs of different envs.
    """
    runs = [_curves(folder.read_metrics()) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if not run:
            raise UsageError(f"{folder.name} has no metrics yet: nothing can be drawn")
    configs = [folder.read_config() for folder in folders]
    envs = sorted({config.env.id for config in configs})
    if len(envs) > 1:
        raise UsageError(f"the runs are of different envs ({', '.join(envs)}): draw them apart")
    members = group_runs(folders, configs)
    groups = [
        Group(label, [runs[i] for i in indices], color)
        for (label, indices), color in zip(members.items(), itertools.cycle(COLORS), strict=False)
    ]
    keys = {key for run in runs for key in run}
    shown = [(title, [c for c in curves if c[0] in keys]) for title, curves in PANELS]
    panels = [(title, curves) for title, curves in shown if curves]
    thresholds = {success_threshold(config) for config in configs}
    threshold = thresholds.pop() if len(thresholds) == 1 else None
    below = -(-(len(panels) - 1) // COLUMNS)
    drawn = figure(figsize=(12, 3.4 + 2.1 * below))
    grid = drawn.add_gridspec(1 + below, COLUMNS, height_ratios=[1.7] + [1] * below)
    places = [grid[0, :], *(grid[1 + i // COLUMNS, i % COLUMNS] for i in range(len(panels) - 1))]
    for place, (title, curves) in zip(places, panels, strict=True):
        _draw_panel(drawn.add_subplot(place), title, curves, groups, threshold)
    drawn.suptitle(_title(configs, len(groups)), fontsize=12)
    _save(drawn, out)
    return [note for group in groups for note in _notes(group, named=len(groups) > 1)]


def _curves(rows: Iterable[dict[str, Any]]) -> dict[str, Curve]:
    """Key -> curve, of everything in the rows that is a number."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items() if type(row.get("steps")) is int else ():
            if type(value) in (int, float):
                points.setdefault(key, []).append((row["steps"], value))
    arrays = {key: np.array(pairs, float) for key, pairs in points.items()}
    return {key: (array[:, 0], array[:, 1]) for key, array in arrays.items()}


def _draw_panel(
    axes: Any,
    title: str,
    curves: Sequence[tuple[str, str]],
    groups: Sequence[Group],
    threshold: float | None,
) -> None:
    """All curves of a single group; of several groups the first that each of them has."""
    returns, alone = title == "return", groups[0] if len(groups) == 1 else None
    if alone:
        for color, (key, label) in zip(COLORS, curves, strict=False):
            _draw(axes, alone.curves(key), label if len(curves) > 1 else "", color)
    for group in groups if not alone else ():
        count = f" ({len(group.runs)} runs)" if len(group.runs) > 1 else ""
        first = next((key for key, _ in curves if group.curves(key)), "")
        _draw(axes, group.curves(first), f"{group.label}{count}" if returns else "", group.color)
    if title == "success rate":
        axes.set_ylim(-0.03, 1.03)
        if threshold is not None:
            title += f": share at {threshold:g} or more"
    if returns and alone:
        for key, label, mark, color, size in DOTS:
            for i, points in enumerate(alone.curves(key)):
                style = {"color": color, "markersize": size, "zorder": 1 + (mark == "o")}
                axes.plot(*points, mark, label="" if i else label, **style)
    elif returns:
        title += ", mean of the last 100 episodes"
    if returns and threshold is not None:
        axes.axhline(threshold, color="#888888", linestyle=":", label="solved")
    _finish(axes, title, fontsize=10)
    axes.set_xlabel("environment steps", fontsize=8)
    axes.tick_params(labelsize=8)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _title(configs: Sequence[Config], groups: int) -> str:
    names = ", ".join(dict.fromkeys(config.algorithm.name for config in configs))
    many = f", seed {configs[0].run.seed}" if len(configs) == 1 else ""
    if len(configs) > groups:
        mean = f"mean of {len(configs)} runs" if groups == 1 else "means of runs"
        many = f", {mean} ± one standard deviation"
    env = printable(configs[0].env.id, keep="") or "an env made by a program"
    return f"{names} on {env}{many}"


def _notes(group: Group, *, named: bool) -> list[str]:
    ends = [int(steps[-1]) for steps, _ in group.curves("steps")]
    if min(ends) == max(ends):
        return []
    of = f" of {group.label}" if named else ""
    return [f"the mean{of} ends at {min(ends):,} steps, where the shortest of its runs ends"]


def _draw(axes: Any, curves: Sequence[Curve], label: str, color: str) -> None:
    """A curve, or the mean of several within one standard deviation."""
    if not curves:
        return
    steps, values = _aligned(curves)
    mean, std = values.mean(0), values.std(0)
    axes.plot(steps, mean, color=color, linewidth=1.2, label=label)
    if len(curves) > 1:
        low = (mean - std).clip(0) if (values >= 0).all() else mean - std
        axes.fill_between(steps, low, mean + std, color=color, alpha=0.2, linewidth=0)


def _aligned(curves: Sequence[Curve]) -> Curve:
    """Steps, and the values [run, step] of all curves there.

    Runs may have logged at different steps: all of them are interpolated at those of the longest,
    as far as the shortest goes.
    """
    steps = max(curves, key=lambda curve: len(curve[0]))[0]
    begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    steps = steps[(steps >= begin) & (steps <= end)]
    return steps, np.stack([np.interp(steps, x, y) for x, y in curves])


def draw_comparison(
    groups: Mapping[str, Sequence[tuple[RunFolder, float]]],
    out: Path,
    title: str,
    threshold: float | None,
) -> None:
    """Evaluations over the environment steps: mean and range of each group of runs.

    groups: name -> runs, each with the score of its last policy, where its curve ends.
    """
    drawn = figure(figsize=(9, 5))
    axes = drawn.subplots()
    for color, (name, runs) in zip(itertools.cycle(COLORS), groups.items(), strict=False):
        if not runs:
            continue
        curves = []
        for folder, score in runs:
            *before, last = folder.read_metrics()
            rows = [row for row in before if row["steps"] < last["steps"]]
            end = {"steps": last["steps"], "evaluation": score}
            curves.append(_curves([*rows, end])["evaluation"])
        steps, values = _aligned(curves)
        axes.plot(steps, values.mean(0), color=color, linewidth=1.5, label=name)
        axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
    lines = sorted(axes.get_lines(), key=lambda line: -line.get_ydata()[-1])
    if threshold is not None:
        label = f"threshold {threshold:g}"
        style = {"color": "#888888", "linestyle": "--", "linewidth": 1, "zorder": 1}
        lines.append(axes.axhline(threshold, label=label, **style))
    axes.set_xlim(0)
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
    axes.legend(handles=lines, labelcolor="linecolor", **beside)  # from the best end down
    _finish(axes, printable(title, keep="\n"), fontsize=11)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return of an evaluation")
    _save(drawn, out)


def _thousands(value: float, _: object) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
