"""Curves and replays. The one place that imports matplotlib and imageio."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from proximo.disk import replace as replace_file
from proximo.disk import writable
from proximo.envs.layers import title
from proximo.errors import UsageError, explain, faults, printable
from proximo.functional.schedules import Schedule
from proximo.run.config import Config, RunConfig, success_threshold, to_tables, to_toml
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
"""Title, and what is drawn: key of a row of metrics.jsonl, label."""

LENGTH = "run.total_steps"
MOST_IN_A_LABEL = 3
"""Settings by which a label tells runs of one algorithm apart."""
PICTURE = (
    "with the render_mode rgb_array, which its __init__ is given and must keep, it must return an "
    "array [height, width, 3] of uint8"
)
"""What `render` must do to be filmed."""
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
        made = _extra("matplotlib.figure").Figure(**settings, layout="constrained")
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
    _extra("matplotlib").rcParams["text.parse_math"] = False  # a name may have a $ in it
    return made


def _save(drawn: Any, out: Path) -> None:
    """Raises `UsageError` if the disk does not take it."""
    data = io.BytesIO()
    drawn.savefig(data, format=out.suffix[1:], dpi=110)
    with writable(out):
        replace_file(out, data.getvalue())


def draw_curves(folders: Sequence[RunFolder], out: Path) -> list[str]:
    """Every reading over the environment steps; several runs as their mean and deviation.

    Runs of other algorithms or settings are curves of their own. Returns what the reader of the
    picture should know besides.

    Raises `UsageError` for a run without metrics, and for runs of different envs.
    """
    runs = [folder.read_metrics() for folder in folders]
    for folder, rows in zip(folders, runs, strict=True):
        if not rows:
            raise UsageError(f"{folder.name} has no metrics yet: nothing can be drawn")
    configs = [folder.read_config() for folder in folders]
    envs = sorted({config.env.id for config in configs})
    if len(envs) > 1:
        raise UsageError(f"the runs are of different envs ({', '.join(envs)}): draw them apart")
    groups = [
        Group(label, [runs[i] for i in members], color)
        for (label, members), color in zip(
            group_runs(folders, configs).items(), itertools.cycle(COLORS), strict=False
        )
    ]
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
        for members, key, label, color in _lines(groups, curves, labelled=index == 0):
            _draw(axes, members, key, label, color)
        if title == "success rate":
            axes.set_ylim(-0.03, 1.03)
            if threshold is not None:
                title += f": share at {threshold:g} or more"
        over = ", mean of the last 100 episodes" if index == 0 and len(groups) > 1 else ""
        axes.set_title(title + over, fontsize=10, loc="left")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(_thousands)
        axes.set_xlabel("environment steps", fontsize=8)
        axes.tick_params(labelsize=8)
        if title == "return":
            if len(groups) == 1:
                raw = [_curve(rows, "return_latest") for rows in runs]
                x, y = (np.concatenate(values) for values in zip(*raw, strict=True))
                axes.plot(
                    x, y, ".", color="#86a8cf", markersize=4, zorder=1, label="raw, per update"
                )
                _draw_evaluations(axes, runs)
            if threshold is not None:
                axes.axhline(threshold, color="#888888", linestyle=":", label="solved")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    drawn.suptitle(_title(configs, len(groups)), fontsize=12)
    _save(drawn, out)
    return [note for group in groups for note in _caveats(group, named=len(groups) > 1)]


class Group(NamedTuple):
    """Runs that differ in their seeds alone."""

    label: str
    runs: list[list[dict[str, Any]]]
    color: str


def _lines(
    groups: Sequence[Group], curves: Sequence[tuple[str, str]], *, labelled: bool
) -> Iterator[tuple[list[list[dict[str, Any]]], str, str, str]]:
    """Runs, key, label and color of what a panel shows.

    All readings of a group alone; of several groups the first that each of them has.
    """
    if len(groups) == 1:
        for color, (key, label) in zip(COLORS, curves, strict=False):
            yield groups[0].runs, key, label if len(curves) > 1 else "", color
        return
    for label, runs, color in groups:
        count = f" ({len(runs)} runs)" if len(runs) > 1 else ""
        for key in [key for key, _ in curves if _has(runs, key)][:1]:
            yield runs, key, f"{label}{count}" if labelled else "", color


def _title(configs: Sequence[Config], groups: int) -> str:
    names = ", ".join(dict.fromkeys(config.algorithm.name for config in configs))
    many = f", seed {configs[0].run.seed}" if len(configs) == 1 else ""
    if len(configs) > groups:
        mean = f"mean of {len(configs)} runs" if groups == 1 else "means of runs"
        many = f", {mean} ± one standard deviation"
    env = printable(configs[0].env.id, keep="") or "an env made by a program"
    return f"{names} on {env}{many}"


def group_runs(folders: Sequence[RunFolder], configs: Sequence[Config]) -> dict[str, list[int]]:
    """Label -> which of the runs have one algorithm and settings.

    What a run is called, how long it is and what it keeps tell no groups apart, unless a schedule
    runs over its length. The label names the algorithm, and of several groups with the same one
    what is set otherwise or, where that is much, the first run.
    """
    members: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        moves = any(isinstance(value, Schedule) for value in vars(config.algorithm).values())
        run = RunConfig(total_steps=config.run.total_steps) if moves else RunConfig()
        members.setdefault(to_toml(replace(config, run=run)), []).append(i)
    groups = list(members.values())
    tables = [_flat(configs[group[0]]) for group in groups]
    labels: dict[str, list[int]] = {}
    for group, own in zip(groups, tables, strict=True):
        name = own["algorithm.name"]
        rivals = [other for other in tables if other["algorithm.name"] == name]
        differ = [key for key in own if any(other[key] != own[key] for other in rivals)]
        differ = [key for key in differ if key != LENGTH] or differ
        if len(rivals) > 1:
            if len(differ) > MOST_IN_A_LABEL:
                name = f"{name}, {folders[group[0]].path.name}"
            else:
                settings = (f"{key.rpartition('.')[2]} {_shown(own[key])}" for key in differ)
                name = f"{name}, {', '.join(settings)}"
        # What is equal by its name alone still stands apart.
        labels[name if name not in labels else f"{name} ({len(labels) + 1})"] = group
    return labels


def _flat(config: Config) -> dict[str, Any]:
    tables = to_tables(config)
    shown = {f"{name}.{key}": x for name, table in tables.items() for key, x in table.items()}
    return {key: x for key, x in shown.items() if key == LENGTH or not key.startswith("run.")}


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _caveats(group: Group, *, named: bool) -> list[str]:
    ends = [rows[-1]["steps"] for rows in group.runs]
    if min(ends) == max(ends):
        return []
    of = f" of {group.label}" if named else ""
    return [f"the mean{of} ends at {min(ends):,} steps, where the shortest of its runs ends"]


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
    groups: Mapping[str, Sequence[tuple[RunFolder, float]]],
    out: Path,
    title: str,
    threshold: float | None,
) -> None:
    """Evaluations over the environment steps, each group of runs as its mean in its range.

    groups: name -> runs, each with what its last policy scored, where its curve ends.
    """
    drawn = figure(figsize=(9, 5))
    axes = drawn.subplots()
    ends = []
    for color, (name, runs) in zip(itertools.cycle(COLORS), groups.items(), strict=False):
        if not runs:
            continue
        curves = []
        for folder, score in runs:
            rows = folder.read_metrics()
            end = {"steps": rows[-1]["steps"], "evaluation": score}
            curves.append(
                _curve([row for row in rows if row["steps"] < end["steps"]] + [end], "evaluation")
            )
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
    axes.set_ylabel("return of an evaluation")
    axes.set_title(printable(title, keep="\n"), fontsize=11, loc="left")
    _save(drawn, out)


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


RATE = 30.0
"""Frames a second, where an env does not say."""
RATES = 0.1, 1000.0
"""The lowest and the highest that a file can show."""


def frame_rate(metadata: dict[str, Any]) -> tuple[float, str]:
    """The frames a second that an env's metadata ask for, and what is to be said of them."""
    rate = metadata.get("render_fps", RATE)
    number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
    if number and RATES[0] <= rate <= RATES[1]:
        return float(rate), ""
    said = f"render_fps of its metadata is {rate!r}: shown at {RATE:g} frames a second"
    return RATE, "" if rate is None else said


class Video:
    """Frames of an env, written to a .gif or .mp4 one by one as they come.

    A GIF shows at most 25 frames a second, leaving frames out evenly so that its time stays true:
    browsers slow down what is faster, and the file is half as large. The file takes its place when
    it is whole: a replay that fails leaves none behind, and an older one as it was.
    """

    def __init__(self, path: Path, rate: float, env: gym.Env) -> None:
        """`rate`: the env's frames per second. Raises `UsageError`."""
        self._path, self._env, self._gif = path, env, path.suffix == ".gif"
        self._stride = max(1, round(rate / 25)) if self._gif else 1
        self._scale, self._shape = 255, (0, 0)
        self.frames = 0
        imageio = _extra("imageio.v2")
        if self._gif:
            duration = 1000 * self._stride / rate  # milliseconds a frame
            options: dict[str, Any] = {"duration": duration, "loop": 0, "subrectangles": True}
        else:
            _extra("imageio_ffmpeg")
            # Its report would stand among ours; what it cannot write is seen in the end.
            options = {"fps": rate, "macro_block_size": 1, "ffmpeg_log_level": "quiet"}
        with self._written():
            self._aside = tempfile.TemporaryDirectory(dir=path.parent, prefix=".proximo-")
            self._file = Path(self._aside.name, path.name)
            self._writer = imageio.get_writer(self._file, **options)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error).strip().splitlines()[0]
            raise UsageError(f"the video {self._path} cannot be written: {reason}") from error

    def watch(self) -> None:
        """Take a picture of the env as it stands now. Raises `UsageError` if it gives none."""
        if self.frames % self._stride == 0:
            frame = self._fit(self._picture())
            with self._written():
                self._writer.append_data(frame)
        self.frames += 1

    def _picture(self) -> np.ndarray:
        """[height, width, 3] uint8, from a picture of bytes, or of fractions of one, or grey."""
        name = title(self._env)
        try:
            drawn: Any = self._env.render()
        except NotImplementedError as error:
            raise UsageError(f"{name} has no method render: {PICTURE}") from error
        except faults() as error:
            raise UsageError(f"the method render of {name} failed: {explain(error)}") from error
        try:
            picture = np.asarray(drawn)
        except Exception:
            picture = np.empty(0, object)
        if picture.dtype.kind not in "buif":
            raise UsageError(f"the method render of {name} returned {_short(drawn)}: {PICTURE}")
        if picture.ndim == 2:
            picture = picture[..., None]
        if picture.ndim != 3 or picture.shape[-1] not in (1, 3, 4) or not picture.size:
            raise UsageError(
                f"the method render of {name} returned an array of shape {np.shape(drawn)}: "
                f"{PICTURE}"
            )
        if picture.dtype == bool:
            picture = picture * np.uint8(255)
        low, high = picture.min(), picture.max()
        if not 0 <= low <= high <= 255:
            raise UsageError(
                f"the method render of {name} returned numbers from {low:g} to {high:g}: {PICTURE}"
            )
        if picture.dtype.kind == "f":
            if high > 1:  # so those before were all but black
                self._scale = 1
            picture = np.rint(picture * self._scale)
        picture = picture[..., :3]  # without transparency
        return np.broadcast_to(picture, (*picture.shape[:2], 3)).astype(np.uint8)

    def _fit(self, picture: np.ndarray) -> np.ndarray:
        """The picture in the size of the first one: a video has one. An mp4 wants even sides."""
        if not self.frames:
            even = 1 if self._gif else 2
            self._shape = tuple(-(-side // even) * even for side in picture.shape[:2])
        if picture.shape[:2] == self._shape:
            return picture
        rows, columns = (
            np.arange(size) * own // size
            for size, own in zip(self._shape, picture.shape[:2], strict=True)
        )
        fitted: np.ndarray = picture[rows][:, columns]
        return fitted

    def close(self) -> None:
        """Finish the file. Raises `UsageError` if there is none then."""
        with self._written():
            self._writer.close()
            if not self._file.is_file() or not self._file.stat().st_size:
                raise OSError("the encoder wrote nothing")
            os.replace(self._file, self._path)
        self._aside.cleanup()

    def discard(self) -> None:
        """Leave no file."""
        with contextlib.suppress(Exception):
            self._writer.close()
        self._aside.cleanup()


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
