"""Everything that a report shows of one or several runs, as one document for JSON."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

import proximo
from proximo import disk
from proximo.errors import UsageError, printable
from proximo.insight.groups import LENGTHS, OF_A_RUN, algorithm_of, group_runs, settings_of
from proximo.insight.readings import AXES, OWN, SECTIONS, describe
from proximo.insight.statistics import summary
from proximo.insight.thinning import POINTS, SEED_POINTS, Columns, bands, columns, numbers, thinned
from proximo.language.config import read_stage
from proximo.run.config import Config, UnimportedAlgorithm, from_tables, success_threshold
from proximo.run.folder import MOST_ROWS, RunFolder
from proximo.run.health import diagnose_run
from proximo.run.presets import find_preset
from proximo.run.profile import PHASES
from proximo.run.toml import read_tables

MOST_READINGS = 80
"""Readings of a page; those that callbacks add are the first to be left out."""
LOG_BYTES, LOG_LINES = 2**15, 200
"""Size of the excerpt of a log: its end."""
LONGEST_VERSIONS = 2**16
SAMPLED_UPDATES = 24
"""Updates whose completions are shown, evenly chosen."""
SAMPLES_AT_ONCE = 4
MOST_UPDATES = 8 * SAMPLED_UPDATES
"""Updates whose completions are held in memory."""
LONGEST_SAMPLE = 2**24
LONGEST_TEXT = 2_000
"""Characters of a prompt or of a completion."""
LATEST = 10
"""Last rows whose mean is the score of a language model."""
ENDINGS = {
    "total_steps": "trained its {steps} steps",
    "total_episodes": "trained its episodes",
    "updates": "trained its {updates} updates",
    "stop_at": "reached its goal",
    "callback": "stopped by a callback",
    "interrupted": "interrupted",
}
"""`stopped_by` of a result -> how the run ended."""
TITLES = {
    "ppo": "PPO",
    "ppo-penalty": "PPO with a KL penalty",
    "trpo": "TRPO",
    "a2c": "A2C",
    "qac": "QAC",
    "reinforce": "REINFORCE",
    "sft": "Fine-tuning",
    "reward": "Reward model",
}
"""Names of algorithms and stages in a headline."""
TASK = ("env.id", "lm.stage", "lm.data")
"""What runs are about: no setting that a preset could have."""
AUTOMATIC = {"auto", "0"}
"""Values by which a setting is chosen as the run begins."""

MOST = 1e300
"""Numbers beyond this are none."""

Document = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder as it is read for a report."""

    folder: RunFolder
    config: Any
    """`Config` of control, or the settings of a stage of a language model."""
    table: Columns
    result: dict[str, Any]

    @property
    def counter(self) -> str:
        return "steps" if self.is_control else "tokens"

    @property
    def is_control(self) -> bool:
        return isinstance(self.config, Config)

    @property
    def task(self) -> str:
        """What the runs of one report have in common."""
        if self.is_control:
            return str(self.config.env.id) or "an env made by a program"
        return f"{self.config.lm.stage} of a language model"

    def last(self, key: str) -> float | None:
        """The last value of a reading."""
        there = self.table.values.get(key, np.empty(0))
        there = there[np.isfinite(there)]
        return float(there[-1]) if len(there) else None

    def latest(self, key: str) -> float | None:
        """Mean of the last values of a reading."""
        there = self.table.values.get(key, np.empty(0))
        there = there[np.isfinite(there)]
        return float(there[-LATEST:].mean()) if len(there) else None


def read_run(path: str | Path) -> Run:
    """A run folder of control or of a language model. Raises `UsageError`."""
    folder = RunFolder.open(path)
    config: Any
    if "lm" in read_tables(folder.config_file):
        config = read_stage(folder.config_file)
    else:
        config = folder.read_config()
    counter = "steps" if isinstance(config, Config) else "tokens"
    return Run(folder, config, columns(folder.read_metrics(), counter), folder.read_result())


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """The runs of one report. Raises `UsageError` for runs of different tasks."""
    runs = [read_run(path) for path in paths]
    if len(tasks := sorted({run.task for run in runs})) > 1:
        raise UsageError(
            f"the runs are of different tasks ({', '.join(tasks)}): give each task a report"
        )
    return runs


@np.errstate(all="ignore")  # files may hold numbers of any size
def document(runs: Sequence[Run]) -> Document:
    """All of a report but what has to be played."""
    labels = group_runs([run.folder for run in runs], [run.config for run in runs])
    measure, meaning = _measure(runs)
    scores = [_score(run, measure) for run in runs]
    several = len(runs) > 1
    main, shown = _main(runs), _readings(runs)
    return {
        "title": _title(runs, labels),
        "task": runs[0].task,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "proximo": proximo.__version__,
        "counter": runs[0].counter,
        "axes": [{"key": key, "label": AXES[key]} for key in _axes(runs[0])],
        "score": meaning,
        "lower_is_better": measure == "loss",
        "threshold": _threshold(runs),
        "runs": [
            {
                **_about(run, score),
                "curves": thinned(
                    run.table, SEED_POINTS if several else POINTS, spread=len(labels) == len(runs)
                ),
            }
            for run, score in zip(runs, scores, strict=True)
        ],
        "groups": [
            {"label": label, "runs": members, **_summary([scores[i] for i in members])}
            for label, members in labels.items()
        ],
        "bands": [_bands([runs[i].table for i in members]) for members in labels.values()],
        "main": [key for key in main if key in shown],
        "readings": shown,
        "findings": _findings(runs),
        "settings": _settings(runs, list(labels.values())),
        "time": [_time(run) for run in runs],
        "samples": [_samples(run) for run in runs] if not runs[0].is_control else [],
    }


def plain(value: Any) -> Any:
    """The document with text that controls nothing and numbers that JSON has."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) > 2**53:  # more than JSON or JavaScript can count
        return float(value)
    return value


def _title(runs: Sequence[Run], labels: dict[str, list[int]]) -> str:
    found = dict.fromkeys(algorithm_of(settings_of(run.config)) for run in runs)
    names = ", ".join(TITLES.get(name, name) for name in found)
    return f"{names} on {runs[0].task}" if runs[0].is_control else f"{names} of a language model"


def _threshold(runs: Sequence[Run]) -> float | None:
    if not runs[0].is_control:
        return None
    found = {success_threshold(run.config) for run in runs}
    return found.pop() if len(found) == 1 else None


def _axes(run: Run) -> tuple[str, ...]:
    """Keys of the axes, the first of which is shown at first."""
    return ("steps", "seconds", "update") if run.is_control else ("update", "tokens", "seconds")


def _measure(runs: Sequence[Run]) -> tuple[str, str]:
    """Key of the score that all runs have, and what it is."""
    if runs[0].is_control:
        if all(_number(run.result.get("evaluation")) is not None for run in runs):
            return "evaluation", "mean return of the evaluation of the last policy"
        return "return_mean", "mean return of the last 100 training episodes, sampled actions"
    for key, what in (("held_out_score", "held-out score"), ("score", "score"), ("loss", "loss")):
        if all(key in run.table.values for run in runs):
            return key, f"mean {what} of the last {LATEST} readings"
    return "loss", "loss"


def _score(run: Run, measure: str) -> float | None:
    if measure == "evaluation":
        return _number(run.result.get("evaluation"))
    return run.last(measure) if run.is_control else run.latest(measure)


def _summary(scores: Sequence[float | None]) -> Document:
    there = [score for score in scores if score is not None]
    return {"scored": len(there), **summary(np.array(there))}


def _about(run: Run, score: float | None) -> Document:
    """A run in words."""
    result, axes = run.result, run.table.axes
    reason = result.get("stopped_by")
    counted = {name: int(x[-1]) if len(x) else 0 for name, x in axes.items()}
    shown = {name: f"{number:,}" for name, number in counted.items()}
    shown["updates"] = shown["update"]
    ended = ENDINGS.get(str(reason), str(reason)).format_map(collections.defaultdict(str, shown))
    warnings = result.get("warnings")
    lines, cut = _log(run.folder)
    return {
        "name": run.folder.path.name,
        "path": run.folder.name,
        "seed": run.config.run.seed,
        "score": score,
        "best": run.last("best"),
        "count": counted[run.counter],
        "updates": counted["update"],
        "total": getattr(run.config.run, "total_steps", None) or run.config.run.updates,
        "seconds": numbers([float(axes["seconds"][-1])])[0] if counted["update"] else 0,
        "ended": ended if result else "",
        "warnings": [str(w) for w in warnings] if isinstance(warnings, list) else [],
        "versions": _versions(run.folder),
        "log": lines,
        "log_cut": cut,
    }


def _number(value: Any) -> float | None:
    """A number of a file that anybody may have written."""
    if type(value) not in (int, float) or not -MOST < value < MOST:
        return None
    return float(value)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _versions(folder: RunFolder) -> dict[str, str]:
    try:
        found = json.loads(disk.read(folder.path / "versions.json", LONGEST_VERSIONS))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(name)[:80]: str(x)[:200] for name, x in _dict(found).items() if x is not None}


def _log(folder: RunFolder) -> tuple[list[str], bool]:
    """The last lines of the log, and whether there are more."""
    try:
        with disk.opened(folder.log_file) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_BYTES))
            text = file.read(LOG_BYTES).decode(errors="replace")
    except OSError:
        return [], False
    lines = text.splitlines()
    cut = size > LOG_BYTES
    lines = lines[1:] if cut else lines
    return lines[-LOG_LINES:], cut or len(lines) > LOG_LINES


def _main(runs: Sequence[Run]) -> tuple[str, ...]:
    """Keys of the learning curves, the first of which is the largest."""
    if runs[0].is_control:
        return "return_mean", "evaluation", "success_rate"
    if runs[0].config.lm.stage == "ppo":
        return "score", "held_out_score", "reward"
    return "loss", "accuracy"


def _readings(runs: Sequence[Run]) -> dict[str, Document]:
    """Key -> words of a reading, in the order of their sections."""
    counter = runs[0].counter
    found = dict.fromkeys(key for run in runs for key in run.table.values)
    places = [*SECTIONS, OWN]
    order = {key: i for i, key in enumerate(key for known in SECTIONS.values() for key in known)}
    words = {key: describe(key, counter) for key in found}
    keys = sorted(found, key=lambda k: (places.index(words[k][0]), order.get(k, 0), k))
    return {
        key: {"section": words[key][0], **words[key][1]._asdict()} for key in keys[:MOST_READINGS]
    }


def _bands(tables: Sequence[Columns]) -> Document:
    """Axis -> reading -> band over the seeds of a group."""
    if len(tables) < 2 or not all(len(table.axes["update"]) for table in tables):
        return {}
    return {axis: bands(tables, axis, SEED_POINTS) for axis in tables[0].axes}


def _findings(runs: Sequence[Run]) -> list[Document]:
    """Findings of all runs, those of one rule together, in the order of the first run's."""
    found: dict[tuple[str, str], Document] = {}
    for i, run in enumerate(runs):
        for finding in diagnose_run(run.folder):
            about = {**dataclasses.asdict(finding), "link": finding.link}
            same = found.setdefault((finding.rule, finding.remedy), {**about, "seen": []})
            same["seen"].append({"run": i, "update": finding.update, "evidence": finding.evidence})
    return sorted(found.values(), key=lambda one: -len(one["seen"]))


def _settings(runs: Sequence[Run], groups: Sequence[Sequence[int]]) -> Document:
    """Every setting of each group and of its preset, those that differ first."""
    own = [[settings_of(runs[i].config) for i in members] for members in groups]
    references = [_reference(runs[members[0]]) for members in groups]
    names = dict.fromkeys(name for tables in own for table in tables for name in table)
    rows = []
    for name in names:
        values = [
            ", ".join(dict.fromkeys(table.get(name, "") for table in tables)) for tables in own
        ]
        before = [settings.get(name) for _, settings in references]
        chosen = name in OF_A_RUN and name not in LENGTHS
        changed = [
            x is not None and x != value and not (x in AUTOMATIC or chosen or name in TASK)
            for value, x in zip(values, before, strict=True)
        ]
        differs = any(changed) or (len(set(values)) > 1 and not chosen)
        about = {"name": name, "values": values, "preset": before}
        rows.append({**about, "changed": changed, "differs": differs})
    return {"references": [name for name, _ in references], "rows": rows}


def _reference(run: Run) -> tuple[str, dict[str, str]]:
    """Name and settings of the preset of a run, or of the defaults."""
    if not run.is_control:
        kind = type(run.config)
        return "defaults", settings_of(kind(lm=run.config.lm))
    name = settings_of(run.config)["algorithm.name"]
    preset = find_preset(name, run.config.env.id)
    if isinstance(run.config.algorithm, UnimportedAlgorithm) and ":" in name:
        return "", {}
    tables = preset.tables if preset else {"algorithm": {"name": name}}
    return (f"preset {preset.name}" if preset else "defaults"), settings_of(from_tables(tables))


def _time(run: Run) -> Document:
    """Where the time of a run went, as far as it was measured."""
    profile = _dict(run.result.get("profile"))
    phases = _dict(profile.get("phases"))
    parts = []
    for name, words in PHASES.items():
        phase = _dict(phases.get(name))
        if (share := _number(phase.get("share"))) is not None:
            micro = _number(phase.get("microseconds_per_step")) if run.is_control else None
            parts.append({"name": name, "words": words, "share": share, "microseconds": micro})
    seconds = run.table.axes["seconds"]
    count = run.table.axes[run.counter]
    mean = float(count[-1] / seconds[-1]) if len(seconds) and seconds[-1] > 0 else None
    ceiling = _number(profile.get("ceiling")) if run.is_control else None
    return {"phases": parts, "speed": mean, "ceiling": ceiling}


def _samples(run: Run) -> list[Document]:
    """Completions of some updates, evenly chosen: of the first, of the last, and between."""
    kept: dict[int, list[Document]] = {}
    own, seen, stride, last = list[Document](), -1, 1, 0
    try:
        for line in disk.lines(run.folder.path / "samples.jsonl", LONGEST_SAMPLE, MOST_ROWS):
            if (sample := _sample(line)) is None:
                continue
            if sample["update"] != last:
                own, seen, last = [], seen + 1, sample["update"]
                if seen % stride == 0:
                    kept[last] = own
                if len(kept) > MOST_UPDATES:
                    kept, stride = dict([*kept.items()][::2]), 2 * stride
            if len(own) < SAMPLES_AT_ONCE:
                own.append(sample)
    except OSError:
        return []
    if own:
        kept[last] = own
    updates = sorted(kept)
    chosen = np.linspace(0, len(updates) - 1, min(SAMPLED_UPDATES, len(updates))).astype(int)
    return [{"update": updates[i], "samples": kept[updates[i]]} for i in chosen]


def _sample(line: bytes) -> Document | None:
    try:
        row = orjson.loads(line)
        update = row["update"]
    except (ValueError, TypeError, LookupError):
        return None
    if type(update) is not int:
        return None
    texts = {name: _text(row.get(name)) for name in ("prompt", "completion")}
    return {"update": update, **texts, **{k: _number(row.get(k)) for k in ("score", "kl")}}


def _text(value: Any) -> str:
    """A prompt or a completion: text, or the messages of a chat, one by one."""
    if isinstance(value, list):
        parts = itertools.islice(value, 64)
        value = "\n".join(
            f"{m.get('role', '')}: {m.get('content', '')}" if isinstance(m, dict) else str(m)
            for m in parts
        )
    text = str(value if value is not None else "")
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"
