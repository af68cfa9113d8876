"""Curves and replays. The one place that imports matplotlib and imageio."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.run.config import Config, success_threshold, to_toml
from proximo.run.folder import RunFolder
from proximo.types import UsageError

PANELS = (
    ("return", (("return_mean", "last 100 episodes"), ("return_smoothed", "smoothed"))),
    ("success rate", (("success_rate", ""),)),
    ("policy loss", (("policy_loss", ""),)),
    ("value loss", (("value_loss", ""),)),
    ("KL(old, new) in nats", (("approx_kl", "estimated"), ("kl", "exact"))),
    ("clip fraction", (("clip_fraction", ""),)),
    ("weight of the KL penalty (beta)", (("beta", ""),)),
    ("share of the full step", (("step_share", ""),)),
    ("entropy in nats", (("entropy", ""),)),
    ("explained variance", (("explained_variance", ""),)),
    ("learning rate", (("learning_rate", "policy"), ("critic_learning_rate", "critic"))),
    ("steps per second", (("steps_per_second", ""),)),
)
"""Title, and what is drawn: key of a row of metrics.jsonl, label."""

COLORS = ("#1f5fa8", "#d1690e", "#1b8a6b", "#9b3f8f", "#444444", "#a88a00")


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f'pictures need {error.name}: pip install "proximo[pictures]"') from error


def figure(**settings: Any) -> Any:
    """A figure for a file, which needs no backend. Raises `UsageError` without matplotlib."""
    # As a notebook sets it, for a backend that may not be installed here: it is read on import.
    chosen = os.environ.pop("MPLBACKEND", None)
    try:
        return _extra("matplotlib.figure").Figure(**settings, layout="constrained")
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen


def draw_curves(folders: Sequence[RunFolder], out: Path) -> list[str]:
    """Every reading over the environment steps; several runs as their mean and deviation.

    Returns what the reader of the picture should know besides.

    Raises `UsageError` for a run without metrics, and for runs of different worlds.
    """
    runs = [folder.read_metrics() for folder in folders]
    for folder, rows in zip(folders, runs, strict=True):
        if not rows:
            raise UsageError(f"{folder.name} has no metrics yet: nothing can be drawn")
    configs = [folder.read_config() for folder in folders]
    worlds = sorted({config.env.id for config in configs})
    if len(worlds) > 1:
        raise UsageError(f"the runs are of different worlds ({', '.join(worlds)}): draw them apart")
    panels = [
        (title, [c for c in curves if _has(runs, c[0])])
        for title, curves in PANELS
        if any(_has(runs, key) for key, _ in curves)
    ]
    thresholds = {success_threshold(config) for config in configs}
    threshold = thresholds.pop() if len(thresholds) == 1 else None
    drawn = figure(figsize=(12, 3.4 + 2.1 * -(-(len(panels) - 1) // 3)))
    grid = drawn.add_gridspec(
        1 + -(-(len(panels) - 1) // 3), 3, height_ratios=[1.7] + [1] * (-(-(len(panels) - 1) // 3))
    )
    for index, (name, curves) in enumerate(panels):
        title = name
        place = grid[0, :] if index == 0 else grid[1 + (index - 1) // 3, (index - 1) % 3]
        axes = drawn.add_subplot(place)
        for color, (key, label) in zip(COLORS, curves, strict=False):
            _draw(axes, runs, key, label if len(curves) > 1 else "", color)
        if title == "success rate":
            axes.set_ylim(-0.03, 1.03)
            if threshold is not None:
                title += f": share at {threshold:g} or more"
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(_thousands)
        axes.set_xlabel("environment steps", fontsize=8)
        axes.tick_params(labelsize=8)
        if title == "return":
            raw = [_curve(rows, "return_latest") for rows in runs]
            x, y = (np.concatenate(values) for values in zip(*raw, strict=True))
            axes.plot(x, y, ".", color="#86a8cf", markersize=4, zorder=1, label="raw, per update")
            _draw_evaluations(axes, runs)
            if threshold is not None:
                axes.axhline(threshold, color="#888888", linestyle=":", label="solved")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    many = (
        f", mean of {len(runs)} runs ± one deviation"
        if len(runs) > 1
        else f", seed {configs[0].run.seed}"
    )
    drawn.suptitle(
        f"{configs[0].algorithm.name} on {worlds[0] or 'a world made by a program'}{many}",
        fontsize=12,
    )
    drawn.savefig(out, dpi=110)
    return _caveats(runs, configs)


def _caveats(runs: Sequence[list[dict[str, Any]]], configs: Sequence[Config]) -> list[str]:
    notes = []
    ends = [rows[-1]["steps"] for rows in runs]
    if min(ends) < max(ends):
        notes.append(f"means end at {min(ends):,} steps, where the shortest of the runs ends")
    alike = {to_toml(replace(c, run=replace(c.run, seed=0))) for c in configs}
    if len(alike) > 1:
        notes.append("the settings of these runs differ in more than the seed (see config.toml)")
    return notes


def _has(runs: Sequence[list[dict[str, Any]]], key: str) -> bool:
    return any(len(_curve(rows, key)[0]) for rows in runs)


def _curve(rows: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    read = ((row.get("steps"), row.get(key)) for row in rows)
    points = [(x, y) for x, y in read if type(x) is int and type(y) in (int, float)]
    return np.array([x for x, _ in points], float), np.array([y for _, y in points], float)


def _draw(
    axes: Any, runs: Sequence[list[dict[str, Any]]], key: str, label: str, color: str
) -> None:
    curves = [curve for curve in (_curve(rows, key) for rows in runs) if len(curve[0])]
    if len(curves) == 1:
        axes.plot(*curves[0], color=color, linewidth=1.2, label=label)
        return
    steps, values = _together(curves)
    mean, deviation = values.mean(0), values.std(0)
    axes.plot(steps, mean, color=color, linewidth=1.2, label=label)
    low = mean - deviation
    if (values >= 0).all():
        low = low.clip(0)
    axes.fill_between(steps, low, mean + deviation, color=color, alpha=0.2, linewidth=0)


def _together(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the values of all curves there.

    Runs may have logged at different steps: all of them are read where the longest has points, as
    far as the shortest goes.
    """
    steps = max(curves, key=lambda curve: len(curve[0]))[0]
    begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    steps = steps[(steps >= begin) & (steps <= end)]
    return steps, np.stack([np.interp(steps, x, y) for x, y in curves])


def draw_comparison(
    groups: Mapping[str, Sequence[RunFolder]], out: Path, title: str, threshold: float | None
) -> list[str]:
    """Returns over the environment steps, each group of runs as its mean in its range.

    Returns what the reader of the picture should know besides.
    """
    drawn = figure(figsize=(9, 5))
    axes = drawn.subplots()
    notes, ends = [], []
    for color, (name, folders) in zip(itertools.cycle(COLORS), groups.items(), strict=False):
        curves = [_curve(folder.read_metrics(), "return_mean") for folder in folders]
        curves = [curve for curve in curves if len(curve[0])]
        if not curves:
            notes.append(f"{name} has no curve: no episode ended in its runs")
            continue
        steps, values = _together(curves)
        mean = values.mean(0)
        axes.plot(steps, mean, color=color, linewidth=1.5)
        axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
        ends.append((mean[-1], steps[-1], name, color))
    if threshold is not None:
        axes.axhline(threshold, color="#888888", linestyle="--", linewidth=1, zorder=1)
        axes.annotate(
            f"threshold {threshold:g}",
            (0.005, threshold),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color="#666666",
            fontsize=8,
        )
    axes.set_xlim(0, max((end for _, end, _, _ in ends), default=None))
    axes.set_ylim(*axes.get_ylim())
    _name_ends(axes, ends)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(_thousands)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return, mean of the last 100 episodes")
    axes.set_title(title, fontsize=11, loc="left")
    drawn.savefig(out, dpi=110)
    return notes


def _name_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Each (y, x, name, color) at the right edge, as near to y as the other names allow."""
    low, high = axes.get_ylim()
    ordered = sorted(ends, reverse=True)
    places = [(y - low) / (high - low) for y, *_ in ordered]
    gap = 0.05
    room = 1.0
    for i, place in enumerate(places):  # from the top down, then what fell below from the bottom up
        places[i] = min(place, room)
        room = places[i] - gap
    room = 0.0
    for i in reversed(range(len(places))):
        places[i] = max(places[i], room)
        room = places[i] + gap
    for (y, x, name, color), place in zip(ordered, places, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": color, "linestyle": ":", "linewidth": 0.8},
            annotation_clip=False,
            verticalalignment="center",
            color=color,
            fontweight="bold",
        )


def _draw_evaluations(axes: Any, runs: Sequence[list[dict[str, Any]]]) -> None:
    points = [_curve(rows, "evaluation") for rows in runs]
    if any(len(x) for x, _ in points):
        x, y = (np.concatenate(values) for values in zip(*points, strict=True))
        axes.plot(x, y, "o", color="#2b7a3d", markersize=3.5, label="evaluation")


def _thousands(value: float, _: object) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


class Video:
    """Frames of a world, written to a .gif or .mp4 one by one as they come.

    A GIF shows at most 25 frames a second, leaving frames out evenly so that its time stays true:
    browsers slow down what is faster, and the file is half as large.
    """

    def __init__(self, path: Path, rate: float, world: gym.Env) -> None:
        """`rate`: the world's frames per second."""
        self._world, self._gif = world, path.suffix == ".gif"
        self._stride = max(1, round(rate / 25)) if self._gif else 1
        self.frames = 0
        imageio = _extra("imageio.v2")
        if self._gif:
            duration = 1000 * self._stride / rate  # milliseconds a frame
            options: dict[str, Any] = {"duration": duration, "loop": 0, "subrectangles": True}
        else:
            _extra("imageio_ffmpeg")
            options = {"fps": rate, "macro_block_size": 1}
        self._writer = imageio.get_writer(path, **options)

    def watch(self) -> None:
        """Take a picture of the world as it stands now."""
        if self.frames % self._stride == 0:
            frame = np.asarray(self._world.render())
            height, width = (side // 2 * 2 for side in frame.shape[:2])  # mp4 wants even sides
            self._writer.append_data(frame if self._gif else frame[:height, :width])
        self.frames += 1

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
