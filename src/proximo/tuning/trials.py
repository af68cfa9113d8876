"""The folder of a search: its plan, and the trials so far, from which it goes on."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import orjson

from proximo import disk
from proximo.errors import UsageError
from proximo.run.folder import RunFolder, versions

Curves = Sequence[Sequence[float]]
"""Of each seed of a trial its evaluations, about evenly apart; the last is the score."""
LONGEST = 2**22
"""Bytes of a plan, and of a line of a trial."""
MOST = 2**30
"""Bytes of all trials."""
STATES = ("complete", "pruned", "failed")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings, and how well the algorithm learned with them."""

    number: int
    origin: str
    """Where the settings come from: a preset, the defaults, or the sampler."""
    settings: Mapping[str, Any]
    state: Literal["begun", "complete", "pruned", "failed"] = "begun"
    curves: Curves = ()
    score: float | None = None
    """Mean over the seeds of the return of the last policy; of a complete trial alone."""
    seconds: float = 0.0
    error: str = ""

    @property
    def scores(self) -> list[float]:
        """Of each seed, of a complete trial."""
        return [curve[-1] for curve in self.curves]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A run with the settings of a trial on seeds that the search has not used."""

    number: int
    seed: int
    score: float


class TuneFolder:
    """tune.json, trials.jsonl, check.jsonl, the report and the run folders of one search."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        """As the user gave it, for messages."""
        self.path = path.absolute()  # an env may change the current folder
        self.plan_file = self.path / "tune.json"
        self._trials_file = self.path / "trials.jsonl"
        self._check_file = self.path / "check.jsonl"
        self._lock = RunFolder(path)

    def window(self, otherwise: int) -> int:
        """Trials that may run at a time, of the search that is here, or this number."""
        if not self.plan_file.exists():
            return otherwise
        window: int = self._plan()["window"]
        return window

    def open(self, plan: Mapping[str, Any]) -> None:
        """Make the folder, or go on in it with the same plan, and lock it. Raises `UsageError`."""
        begun = self.plan_file.exists()
        if not begun and self.path.exists() and any(self.path.iterdir()):
            raise UsageError(
                f"--run-dir is {self.name}: it exists, and is no empty folder and no search of "
                "proximo tune; name a new one"
            )
        with disk.writable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock.claim()
        if begun:
            self._check_same(plan)
        data = orjson.dumps(
            {"plan": plan, "versions": versions()},
            option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
        )
        with disk.writable(self.plan_file):
            disk.sweep(self.path)
            disk.replace(self.plan_file, data)
            for file in (self._trials_file, self._check_file):
                _drop_torn_line(file)

    def close(self) -> None:
        self._lock.release()

    def _check_same(self, plan: Mapping[str, Any]) -> None:
        """Refuse a plan whose trials could not be compared with those that are here."""
        before, now = self._plan(), json.loads(orjson.dumps(plan))
        more = ("trials", "check_seeds")
        if different := [n for n in now if n not in more and before.get(n) != now[n]]:
            raise UsageError(
                f"the search in {self.name} has another {' and another '.join(different)}: type "
                "the line that began it, or give a new --run-dir"
            )

    def _plan(self) -> dict[str, Any]:
        try:
            plan = json.loads(disk.read(self.plan_file, LONGEST))["plan"]
            if type(plan["window"]) is int and plan["window"] > 0:
                return dict(plan)
            raise ValueError(f"window is {plan['window']!r:.20}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"{self.plan_file} is damaged: {error!r:.100}") from error

    def trials(self) -> list[Trial]:
        """The trials that have ended, by their numbers. Raises `UsageError` for a damaged file."""
        found = {trial.number: trial for trial in self._read(self._trials_file, _trial)}
        return [found[number] for number in sorted(found)]

    def checked(self) -> list[Checked]:
        """The runs on fresh seeds so far."""
        return self._read(self._check_file, lambda record: Checked(**record))

    def add(self, part: Trial | Checked) -> None:
        """Record what has ended, on the disk when it returns. Raises `UsageError`."""
        file = self._trials_file if isinstance(part, Trial) else self._check_file
        with disk.writable(file):
            with disk.grow(file) as lines:
                lines.write(orjson.dumps(asdict(part), option=orjson.OPT_APPEND_NEWLINE))
            disk.sync(file)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the report. Raises `UsageError`."""
        with disk.writable(self.path / name):
            disk.replace(self.path / name, text.encode("utf-8", "replace"))
        return self.path / name

    def _read(self, file: Path, read: Any) -> list[Any]:
        if not file.exists():
            return []
        try:
            return [read(json.loads(line)) for line in disk.lines(file, LONGEST, MOST)]
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(
                f"{file} is damaged ({error!r:.100}): bring back a copy of it, or begin a new "
                "search with another --run-dir"
            ) from error


def _trial(record: Any) -> Trial:
    """A recorded trial. Raises `ValueError` for one that no search has written."""
    known = {field.name for field in fields(Trial)}
    trial = Trial(**{name: _plain(value) for name, value in record.items() if name in known})
    numbers = [x for curve in trial.curves for x in curve]
    complete = trial.state == "complete"
    if trial.state not in STATES or type(trial.number) is not int or trial.number < 0:
        raise ValueError(f"trial {trial.number!r:.20} is {trial.state!r:.20}")
    if not isinstance(trial.settings, dict) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"trial {trial.number} has no finite evaluations")
    if complete and not (isinstance(trial.score, float) and math.isfinite(trial.score)):
        raise ValueError(f"the score of trial {trial.number} is {trial.score!r:.20}")
    if (complete and not all(trial.curves)) or (trial.state == "pruned" and not numbers):
        raise ValueError(f"trial {trial.number} has no evaluations")
    return trial


def _plain(value: Any) -> Any:
    """Lists as the tuples that they were."""
    if isinstance(value, list):
        return tuple(map(_plain, value))
    return {k: _plain(x) for k, x in value.items()} if isinstance(value, dict) else value


def _drop_torn_line(file: Path) -> None:
    """Remove the end of a file that was killed within a line. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError):
        data = disk.read(file, MOST)
        if whole := data[: data.rfind(b"\n") + 1] if not data.endswith(b"\n") else None:
            disk.replace(file, whole)
        elif whole is not None:
            file.unlink()
