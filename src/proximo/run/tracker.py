"""The one write of all trackers: the readings of a run as numbers at a step, off its path."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Set
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

from proximo.disk import read, replace
from proximo.errors import UsageError, explain, nearest
from proximo.run.callbacks import Callback, RunInfo
from proximo.run.config import RunSettings, to_tables
from proximo.run.folder import RunFolder
from proximo.run.readings import READINGS, tag, tagged
from proximo.types import Row

INTERVAL = 1.0
"""Seconds between batches of rows."""
FREE, SHARE = 0.1, 0.004
"""Seconds of the processor that a tracker's writes may take, and share of the run's after that."""
MOST_WAITING = 10_000
"""Rows that wait for a tracker: one that is slower than that is switched off."""
PATIENCE = 60.0
"""Seconds for what is left when the run has ended."""
SCORES = ("return_mean", "best", "evaluation", "score", "held_out_score", "loss")
"""Readings by which trackers compare runs: those that a run has."""

Settings = dict[str, bool | int | float | str]


class Tracker(Callback, ABC):
    """A logger: each reading of a run goes to a service, as a number with a name at a step.

    A subclass has `open` and `write`, and what it needs of the rest. They are called in a thread
    of their own, batch by batch. Whatever they raise is said once, as a warning, and switches the
    tracker off: it never ends a run. Rows are left out evenly where writing them would take more
    than `SHARE` of the run's processor time; one with a reading that the last one lacked, such as
    an evaluation, never is. A tracker only watches: a run folder does not record it.
    """

    recorded = False
    package: ClassVar[str] = ""
    """Package that it needs, an extra of Proximo's; empty: none."""
    price: ClassVar[float] = 0.001
    """Seconds of the processor for a row, until it is measured."""

    def __init__(self, *, names: str = "proximo") -> None:
        """names: see `RunSettings.log_names`. Raises `UsageError`, also for a missing package."""
        known = get_args(get_type_hints(RunSettings)["log_names"])
        if names not in known:
            raise UsageError(f"names is {names!r:.80}. {nearest(str(names), known)}")
        if self.package and importlib.util.find_spec(self.package) is None:
            install = f'pip install "proximo[{self.package}]"'
            raise UsageError(f"the tracker {self.package} is not installed: {install}")
        self.names = names
        self._feed: Feed | None = None

    @abstractmethod
    def open(self, run: RunInfo, key: str, settings: Settings) -> int:
        """Begin or continue the run of this key; returns the last step that is there, or -1.

        Rows up to that step are not written again. key: random, kept in the run folder.
        """

    @abstractmethod
    def write(self, values: dict[str, float], step: int, when: float) -> None:
        """Take in the readings at a step: environment steps, or updates of a language model.

        when: seconds since the epoch.
        """

    def flush(self) -> None:
        """Called after each batch of rows."""

    def video(self, path: Path, step: int) -> None:
        """Take in a video of the policy, .gif or .mp4."""

    def finish(self, scores: dict[str, float], step: int, *, well: bool) -> None:
        """Called once, in the end. scores: numbers of result.json; well: no error ended the run."""

    def ready(self, run: RunInfo) -> None:
        self._feed = Feed(self, run)

    def __call__(self, state: Any, rollout: Any, row: Row) -> None:
        if self._feed:
            self._feed.put(row)

    def add_video(self, path: Path) -> None:
        """Show a video of the policy with the run, where it ends."""
        if self._feed:
            self._feed.videos.append(path)

    def end(self, state: Any, result: Row) -> None:
        if self._feed:
            numbers = {name: x for name, x in result.items() if isinstance(x, int | float)}
            self._feed.scores = {
                f"result/{name}": float(x) for name, x in numbers.items() if math.isfinite(x)
            }
            self._feed.well = True

    def close(self) -> None:
        if self._feed:
            self._feed.close()
            self._feed = None

    def __str__(self) -> str:
        return self.package or type(self).__name__


PASSING = {name for name, reading in READINGS.items() if reading.group == "health"}
"""Readings of now and then for whose sake no row is passed on."""


class Feed:
    """The thread that feeds a tracker. All but `put`, `close` and what they call runs in it."""

    def __init__(self, tracker: Tracker, run: RunInfo) -> None:
        self.videos = list[Path]()
        self.scores: dict[str, float] = {}
        self.well = False
        self._tracker, self._run, self._key = tracker, run, run_key(run.folder)
        self._rows = deque[tuple[Row, float]]()
        self._left_out: Row | None = None
        self._names: Set[str] = set()  # of the last row
        # Seconds of the processor for so many rows.
        self._spent, self._written, self._accepted = tracker.price, 1, 0
        self._budget = FREE
        self._fault, self._off = "", False
        self._ended = threading.Event()
        # A daemon: a service that hangs does not keep the process.
        self._thread = threading.Thread(target=self._work, name=str(tracker), daemon=True)
        self._thread.start()

    def put(self, row: Row) -> None:
        """Pass a row on, if its turn has come."""
        names = row.keys() - PASSING
        is_new, self._names = not names <= self._names, names
        cost = self._accepted * self._spent / self._written
        if is_new or cost <= self._budget:
            self._accept(row)
        else:
            self._left_out = row
        if self._fault:
            self._switch_off()

    def _accept(self, row: Row) -> None:
        if len(self._rows) >= MOST_WAITING and not self._fault:
            self._fault = f"{MOST_WAITING:,} updates wait for it, it is slower than the run"
        if not self._fault:
            self._rows.append((row, time.time()))
        self._accepted += 1
        self._left_out = None

    def _switch_off(self) -> None:
        """Say once that the tracker gets no more rows."""
        if not self._off:
            self._off = True
            self._run.alert(
                f"{self._tracker} is switched off ({self._fault}): training goes on, and "
                "metrics.jsonl has every reading"
            )

    def close(self) -> None:
        """Write what is left, the last row in any case."""
        if self._left_out:
            self._accept(self._left_out)
        self._ended.set()
        self._thread.join(0 if self._off else PATIENCE)
        if self._thread.is_alive() and not self._fault:
            self._fault = f"it has not ended within {PATIENCE:g} seconds"
        if self._fault:
            self._switch_off()

    def _work(self) -> None:
        tracker, began = self._tracker, time.process_time()
        try:
            self._held = tracker.open(self._run, self._key, settings_of(self._run.config))
            while not self._ended.wait(INTERVAL) and not self._fault:
                self._write()
                self._budget = FREE + SHARE * (time.process_time() - began)
            self._write()
            step = max(self._held, self._run.step)
            for path in self.videos:
                tracker.video(path, step)
            tracker.finish(self.scores, step, well=self.well)
        except BaseException as error:  # whatever a library raises, SystemExit too
            self._fault = self._fault or explain(error)

    def _write(self) -> None:
        """Write the rows that wait, as one batch."""
        begin, count = time.thread_time(), 0
        while self._rows and not self._fault:
            row, when = self._rows.popleft()
            step = step_of(row)
            if step > self._held:
                self._tracker.write(tagged(row, self._tracker.names), step, when)
                self._held, count = step, count + 1
        if count:
            self._tracker.flush()
            self._spent += time.thread_time() - begin
            self._written += count


def step_of(row: Row) -> int:
    """The step of a row in trackers: environment steps, or updates of a language model."""
    return int(row["steps"] if "steps" in row else row["update"])


def settings_of(config: Any) -> Settings:
    """The configuration as flat names and values, for a tracker's table of runs."""
    tables = to_tables(config).items()
    flat = {f"{section}.{name}": x for section, table in tables for name, x in table.items()}
    return {name: x if isinstance(x, bool | int | float) else _text(x) for name, x in flat.items()}


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return "none" if value is None else str(value)


def score_tags(names: str) -> list[str]:
    """Names of the readings by which runs are compared, in this style."""
    return [tag(name, names)[0] for name in SCORES]


def run_key(folder: RunFolder | None) -> str:
    """The key by which trackers know a run: the same one when it is resumed."""
    key = secrets.token_hex(8)
    if folder is None:
        return key
    file = folder.path / "tracker-key"
    with contextlib.suppress(OSError):
        if found := re.fullmatch(rb"([0-9a-f]{16})\s*", read(file, 64)):
            return found[1].decode()
    with contextlib.suppress(OSError):  # the run then begins anew in trackers when it is resumed
        replace(file, key.encode(), within=folder.path)
    return key


def subfolder(run: RunInfo, name: str) -> Path:
    """A folder of the run folder for a library that writes by itself, not through a link."""
    assert run.folder
    place = run.folder.path / name
    if place.is_symlink():
        raise OSError(f"{place} is a link")
    place.mkdir(exist_ok=True)
    return place
