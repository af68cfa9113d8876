"""What a run folder tells: how the run ended, what it reached, what is wrong, how it goes on.

Nothing is written, and no code of the user's own is imported. A folder may be damaged, or made by
somebody else: what cannot be read is named, and the rest is told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from proximo import disk
from proximo.errors import UsageError
from proximo.insight.installation import Line, State
from proximo.language.config import PPOConfig, StageConfig, read_stage
from proximo.language.state import read_checkpoint
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import Config, title
from proximo.run.consent import Named, unnamed
from proximo.run.control import continued
from proximo.run.folder import RunFolder, versions
from proximo.run.health import Finding, diagnose_run
from proximo.run.profile import PHASES
from proximo.run.toml import read_tables
from proximo.types import Row

TAIL = 2**14
"""Bytes of the end of the log that are looked at."""
LONGEST = 400
"""Characters of a text out of a folder that are shown."""
MOST = 20
"""Warnings that are shown."""
POINTS = 60
"""Points of a curve."""
ENDS = {
    "total_steps": "finished: all its steps are done",
    "total_episodes": "finished: all its episodes are done",
    "updates": "finished: all its updates are done",
    "stop_at": "finished early: it reached its stop_at",
    "callback": "ended by a callback",
    "interrupted": "interrupted by a signal, and saved",
}
SCORES = {
    "return_mean": "mean return of the last 100 training episodes",
    "return_smoothed": "smoothed return",
    "evaluation": "evaluation of the policy",
    "best": "best score so far",
    "score": "score of the completions",
    "held_out_score": "score of held-out prompts",
    "loss": "loss",
    "accuracy": "accuracy",
}
"""Metrics of a run that are its scores, for people."""


@dataclass
class Explanation:
    """A run, as far as its folder tells."""

    path: str
    task: str
    lines: list[Line] = field(default_factory=list)
    """How it ended, its checkpoints and its versions."""
    progress: dict[str, float] = field(default_factory=dict)
    """Counters: done, total, updates, episodes, seconds, steps per second."""
    unit: str = "steps"
    scores: list[tuple[str, float, float]] = field(default_factory=list)
    """What, the first and the last value."""
    curve: list[float] = field(default_factory=list)
    """The first of these scores over the run, evenly chosen."""
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    """Share of the time by phase, where it was measured."""
    resume: tuple[str, dict[str, list[str]]] | None = None
    """Verb and the code to name again; None: it cannot be resumed."""
    more: tuple[str, int] | None = None
    """Flag and number with which a finished run trains on."""


def explain_run(path: str | Path) -> Explanation:
    """Read a run folder. Raises `UsageError` where its configuration cannot be read."""
    folder = RunFolder.open(path)
    language = "lm" in read_tables(folder.config_file)
    config: Any = read_stage(folder.config_file) if language else folder.read_config()
    told = Explanation(path=folder.name, task=_task(config, language=language))
    told.unit = "updates" if language else "steps"
    rows, result = folder.read_metrics(), folder.read_result()
    saved = _checkpoints(told, folder, language=language)
    _counters(told, rows, result, config)
    _end(told, folder, result, saved, over=saved is not None and _is_over(config, folder, saved))
    _versions(told, folder)
    _scores(told, rows)
    _texts(told, result)
    told.phases = _phases(result)
    if saved:
        code = _code_of_stage(config) if language else _code(config)
        told.resume = ("lm resume" if language else "resume", code)
        if _is_over(config, folder, saved):
            flag = "--updates" if language else "--total-steps"
            told.more = (flag, 2 * int(told.progress["total"]))
    try:
        told.findings = diagnose_run(folder)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        found = f"cannot be judged, for they are not what a run writes ({error})"
        told.lines.append(Line(state="warning", subject="readings", found=_short(found)))
    return told


def _task(config: Config | StageConfig, *, language: bool) -> str:
    if isinstance(config, Config):
        return f"{title(config.algorithm)} on {config.env.id or 'an env made by a program'}"
    assert language
    return f"{config.lm.stage} of {config.model.path}"


def _checkpoints(told: Explanation, folder: RunFolder, *, language: bool) -> Checkpoint | None:
    """The checkpoint that `resume` would take; a line for it, and for each that is damaged."""
    if folder.is_vacant():
        return None
    paths = [folder.checkpoint("last"), *(p for _, p in folder.numbered("last", "update"))]
    damaged = False
    for path in paths[:MOST]:
        try:
            saved = read_checkpoint(folder, path) if language else Checkpoint(path)
            number = saved.updates
        except UsageError as error:
            damaged = True
            said = str(error).split(": the run has")[0]
            told.lines.append(Line(state="broken", subject="checkpoint", found=_short(said)))
            continue
        told.lines.append(
            Line(
                state="ok",
                subject="checkpoint",
                found=f"{path.name} is whole: after update {number:,}"
                + (", from which `resume` continues" if damaged else ""),
            )
        )
        return saved
    remedy = "begin a new run"
    found = "none is whole: the run cannot be resumed"
    told.lines.append(Line(state="broken", subject="checkpoint", found=found, remedy=remedy))
    return None


def _counters(told: Explanation, rows: list[Row], result: Mapping[str, Any], config: Any) -> None:
    last: Mapping[str, Any] = {**(rows[-1] if rows else {}), **result}
    if told.unit == "steps":
        done, total = number(last.get("steps")), config.run.total_steps
    else:
        done, total = number(last.get("updates", last.get("update"))), config.run.updates
    told.progress = {"done": done or 0.0, "total": float(total)}
    for name, key in (("updates", "update"), ("episodes", "episodes"), ("seconds", "seconds")):
        value = number(last.get(name, last.get(key)))
        if value is not None:
            told.progress[name] = value
    if told.progress.get("seconds"):
        told.progress["per_second"] = told.progress["done"] / told.progress["seconds"]


def _end(
    told: Explanation,
    folder: RunFolder,
    result: Mapping[str, Any],
    saved: Checkpoint | None,
    *,
    over: bool,
) -> None:
    """A line on how the run ended, before all others."""
    if _is_running(folder):
        found = "still running: what follows is as of now"
        told.lines.insert(0, Line(state="ok", subject="end", found=found))
        return
    by = result.get("stopped_by")
    if by:
        known = ENDS.get(str(by))
        text = known or f"stopped by {_short(str(by))}"
        told.lines.insert(0, Line(state="ok", subject="end", found=text))
        if saved and number(result.get("updates")) != saved.updates:
            found = (
                f"result.json is of update {_short(str(result.get('updates')))}, not of this one"
            )
            told.lines.append(Line(state="warning", subject="result", found=found))
        return
    if folder.is_vacant():
        found = "killed while it began: nothing was learned"
        remedy = "type the line again that began it"
        told.lines.insert(0, Line(state="warning", subject="end", found=found, remedy=remedy))
        return
    if over:
        found = "at its end, but killed before its result was written"
        remedy = "resume it, which writes the result"
        told.lines.insert(0, Line(state="warning", subject="end", found=found, remedy=remedy))
        return
    error = _last_error(folder)
    found = f"failed: {error}" if error else "killed, or the power went: it wrote no result"
    remedy = f"see {folder.name}/log for the traceback" if error else ""
    state: State = "broken" if error else "warning"
    told.lines.insert(0, Line(state=state, subject="end", found=found, remedy=remedy))


def _is_over(config: Any, folder: RunFolder, saved: Checkpoint) -> bool:
    """The run has reached its end, so that `resume` alone trains no further."""
    if isinstance(config, Config):
        return bool(continued(config, folder, saved, {})[1])
    return bool(saved.updates >= config.run.updates and saved.record.get("finished"))


def _is_running(folder: RunFolder) -> bool:
    try:
        folder.claim()
    except (UsageError, OSError):
        return True
    folder.release()
    return False


def _last_error(folder: RunFolder) -> str:
    """The last line of the traceback at the end of the log, or empty."""
    try:
        with disk.opened(folder.log_file) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            text = file.read(TAIL).decode(errors="replace")
    except OSError:
        return ""
    _, mark, trace = text.rpartition("Traceback (most recent call last)")
    lines = [line for line in trace.splitlines() if line and not line.startswith((" ", ":"))]
    return _short(lines[-1]) if mark and lines else ""


def _versions(told: Explanation, folder: RunFolder) -> None:
    """A line on what has changed since, where a resumed run may have other bits by it."""
    try:
        then = json.loads(disk.read(folder.path / "versions.json", 2**16))
    except (OSError, ValueError, RecursionError):
        return
    now = versions()
    keys = ("python", "proximo", "torch", "numpy", "gymnasium", "machine")
    changed = [
        f"{key} {_short(str(then[key]), 40)} (now {now[key]})"
        for key in keys
        if isinstance(then, dict) and key in then and then[key] != now[key]
    ]
    if changed:
        found = f"made with {', '.join(changed)}: a resumed run may have other bits"
        told.lines.append(Line(state="warning", subject="versions", found=found))


def _scores(told: Explanation, rows: list[Row]) -> None:
    for key, what in SCORES.items():
        values = [x for row in rows if (x := number(row.get(key))) is not None]
        if not values:
            continue
        told.scores.append((what, values[0], values[-1]))
        if not told.curve:
            places = np.linspace(0, len(values) - 1, min(len(values), POINTS)).round()
            told.curve = [values[int(place)] for place in places]


def _texts(told: Explanation, result: Mapping[str, Any]) -> None:
    found = result.get("warnings")
    texts = [x for x in found if isinstance(x, str)] if isinstance(found, list) else []
    told.warnings = [_short(text) for text in texts[:MOST]]
    if len(texts) > MOST:
        told.warnings.append(f"and {len(texts) - MOST} more, in result.json")


def _phases(result: Mapping[str, Any]) -> dict[str, float]:
    profile = result.get("profile")
    found = profile.get("phases") if isinstance(profile, dict) else None
    if not isinstance(found, dict):
        return {}
    shares = {
        name: number(part.get("share")) for name, part in found.items() if isinstance(part, dict)
    }
    return {name: x for name, x in shares.items() if x is not None and name in PHASES}


def _code(config: Config) -> dict[str, list[str]]:
    """Code of a run of control that `resume` wants named again."""
    found = {argument: names for argument, names in unnamed(config, Named()).items() if names}
    return found if config.env.id else {"env": ["module:Class"], **found}


def _code_of_stage(config: StageConfig) -> dict[str, list[str]]:
    return config.score.unnamed(reward=(), env="") if isinstance(config, PPOConfig) else {}


def number(value: Any) -> float | None:
    """A finite number out of a file, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else None


def _short(text: str, most: int = LONGEST) -> str:
    """A text out of a folder, in one line that is not too long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def curve_of(values: list[float], width: int, levels: str) -> Iterator[str]:
    """A curve as a row of so many characters, from the lowest level to the highest."""
    low, high = min(values), max(values)
    for place in np.linspace(0, len(values) - 1, width).round():
        share = (values[int(place)] - low) / (high - low) if high > low else 0.0
        yield levels[min(int(share * len(levels)), len(levels) - 1)]
