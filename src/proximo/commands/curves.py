"""Learning curves of runs, as `proximo plot` draws them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from proximo.commands.pictures import COLORS, figure, finish, save
from proximo.errors import UsageError, printable
from proximo.insight.curves import Curve, align, curves_of
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
    runs = [curves_of(folder.read_metrics()) for folder in folders]
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
    save(drawn, out)
    return [note for group in groups for note in _notes(group, named=len(groups) > 1)]


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
    finish(axes, title, fontsize=10)
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
    steps, values = align(curves)
    mean, std = values.mean(0), values.std(0)
    axes.plot(steps, mean, color=color, linewidth=1.2, label=label)
    if len(curves) > 1:
        low = (mean - std).clip(0) if (values >= 0).all() else mean - std
        axes.fill_between(steps, low, mean + std, color=color, alpha=0.2, linewidth=0)
