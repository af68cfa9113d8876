"""The lifecycle of a run, whatever is trained: folder, checkpoints, callbacks, profile, result."""

from __future__ import annotations

import contextlib
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from proximo.disk import warn, writable
from proximo.errors import TrainingError
from proximo.run.callbacks import (
    BestTracker,
    Callback,
    Checked,
    Clock,
    Display,
    MetricsLogger,
    RunInfo,
)
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import RunSettings
from proximo.run.folder import RunFolder, lost_rows
from proximo.run.health import HealthMonitor
from proximo.run.keeping import CheckpointManager, dump_first_skip
from proximo.run.named_callbacks import pack_callbacks, restore_callbacks
from proximo.run.profile import Profile
from proximo.types import Extra, Metrics, Row


class RunLog:
    """Messages of a run: notes on its setup, and warnings, which result.json holds too."""

    def __init__(self, folder: RunFolder | None) -> None:
        self.folder = folder
        self.setup_notes: list[str] = []
        """What the user should know about how this run was set up."""
        self.warnings: list[str] = []
        """What may be wrong with the run, seen before training or in it."""
        self._skips = False

    def note(self, *texts: str, doubtful: bool = False) -> None:
        """Add notes on the setup. doubtful: they are warnings as well."""
        self.setup_notes += texts
        self.warnings += texts if doubtful else ()

    def warn(self, text: str, trace: str = "") -> None:
        """Add a warning, to the log too. trace: a traceback that belongs to it, for the log."""
        self.warnings.append(text)
        if self.folder:
            for part in filter(None, (text, trace)):
                self.folder.note(part)

    def alert(self, text: str) -> None:
        """Warn at once, on stderr: the user can mend it while training continues."""
        warn(text)
        self.setup_notes.append(text)
        self.warn(text)

    def tell(self, text: str) -> None:
        """Say at once what result.json holds in a place of its own."""
        warn(text)
        if self.folder:
            self.folder.note(text)

    def record_skip(self, text: str, tensors: dict[str, Tensor], record: dict[str, Any]) -> str:
        """Warn of the first gradient step that is skipped and log the others: see `SkipSink`."""
        place = ""
        if self.folder:
            place = dump_first_skip(self.folder.nonfinite, tensors, record)
        text = f"a gradient step was left out: {text}{place and f' (the first: {place})'}"
        if not self._skips:
            self.warn(text)
        elif self.folder:
            self.folder.note(text)
        self._skips = True
        return place


class Task(ABC):
    """What is trained: how experience is collected, and how the weights learn from it."""

    config: Any
    """The whole configuration, a dataclass of sections, with every `auto` settled."""
    run: RunSettings
    state: Any
    """Everything that changes while training."""
    counter: str = "steps"
    """Attribute of the state, and key of the rows, that counts the experience."""
    best_by: str
    """Key of the rows that decides on the best policy."""
    saves_best_at_once = False
    """The best policy is written when it is found; else with the next `last`, as a copy."""

    @abstractmethod
    def collect(self, state: Any) -> Any:
        """Experience of the policy as it is."""

    @abstractmethod
    def prepare(self, state: Any, rollout: Any) -> Any:
        """What an update needs of a rollout, once: advantages and value targets."""

    @abstractmethod
    def update(self, state: Any, batch: Any) -> Metrics:
        """Move the weights; returns what to report."""

    @abstractmethod
    def snapshot(self, best: float | None, extra: Extra) -> Callable[[Path], None]:
        """Copy the state, with this best score; returns what writes it and `extra` to a file."""

    @abstractmethod
    def best_snapshot(self, folder: RunFolder) -> Callable[[], None]:
        """Copy the policy, the best so far; returns what writes it to the folder."""

    def enter(self, folder: RunFolder) -> None:  # noqa: B027 most tasks have nothing to do
        """Bring files of the task's own in a run folder to where the state stands."""

    def first(self, folder: RunFolder, extra: Extra) -> None:
        """Write the checkpoint of update 0. Raises `OSError`."""
        self.snapshot(None, extra)(folder.checkpoint(0))

    def monitors(self, callbacks: Sequence[Callback]) -> list[Callback]:
        """The task's own callbacks, which come before the user's."""
        return []

    def timed(self, profile: Profile) -> Task:
        """The same task, whose work the profile measures."""
        return self

    def result(self, folder: RunFolder | None, *, finished: bool) -> Row:
        """The task's part of result.json; writes what a finished run leaves. Raises `OSError`."""
        return {}

    def close(self) -> list[str]:
        """Close what is open. Returns what failed, in words: no result depends on it any more."""
        return []


class RunWriter(Callback):
    """Checkpoints: update 0, the last few, the best, and every `save_every` updates."""

    phase = "checkpoints"

    def __init__(
        self, task: Task, folder: RunFolder, manager: CheckpointManager, extra: Callable[[], Extra]
    ) -> None:
        """extra: called before a checkpoint, for what it holds besides the state."""
        self._task, self._folder, self._manager, self._extra = task, folder, manager, extra
        self._best: Callable[[], None] | None = None  # writes the best, which is not written yet
        # Scores of the best policies: so far, and on the disk.
        self._seen = self._written = task.state.best

    def __str__(self) -> str:
        return str(self._manager)

    def first(self) -> None:
        """Write update 0 and `last`. Raises `OSError`."""
        self._task.first(self._folder, self._extra())
        self._write_last()

    def __call__(self, state: Any, rollout: Any, row: Row) -> None:
        if state.best != self._seen:
            self._best, self._seen = self._task.best_snapshot(self._folder), state.best
            if self._task.saves_best_at_once:
                self._manager.attempt("best", self._write_best)
        every = self._task.run.save_every
        if every and state.updates % every == 0:
            path = self._folder.checkpoint(state.updates)
            self._manager.attempt("best", self._write_best)
            self._manager.attempt("numbered", lambda: self._snapshot()(path))
        self._manager.now_and_then(self._write)

    def attempt(self) -> bool:
        """Whether all of it could be written."""
        return self._manager.attempt("last", self._write) and not self._best

    def flush(self) -> None:
        """Write the best and the last, each though the other fails. Raises `OSError`."""
        try:
            self._write_best()
        finally:
            self._write_last()

    def _write(self) -> None:
        self._manager.attempt("best", self._write_best)
        self._write_last()

    def _write_best(self) -> None:
        if self._best:
            self._best()
            self._best, self._written = None, self._seen

    def _write_last(self) -> None:
        self._manager.last(self._task.state.updates, self._snapshot())

    def _snapshot(self) -> Callable[[Path], None]:
        """The state to resume from, which must not know of a best policy that could be lost."""
        extra = self._extra()
        return self._task.snapshot(self._written, extra)


class Session:
    """Task, callbacks and folder of one run; leaving it closes them all.

    An error before the first update removes the folder of a new run: there is nothing to keep,
    unless it is a `TrainingError`, after which the first minibatch that went wrong stands there.
    """

    def __init__(
        self,
        build: Callable[[RunLog], Task],
        *,
        folder: RunFolder | None = None,
        callbacks: Sequence[Callback] = (),
        display: Display | None = None,
        resume: Checkpoint | None = None,
    ) -> None:
        """Build the task, enter the folder. callbacks: the user's. resume: where `build` stands."""
        self._folder, self._is_new = folder, resume is None
        self.log = RunLog(folder)
        self.interruption = "callback"
        """What `stopped_by` says when a callback has ended the run."""
        self.profile: Profile | None = None
        self.callbacks: list[Callback] = []
        self._own = callbacks
        try:
            with contextlib.ExitStack() as stack:
                if folder:
                    folder.claim()
                self.task = build(self.log)
                stack.callback(self._close)
                self._attach(display, resume)
                stack.pop_all()
        except BaseException:
            if self._is_new and folder:
                folder.remove()
            elif folder:
                folder.release()
            raise

    @property
    def state(self) -> Any:
        return self.task.state

    @property
    def run(self) -> RunSettings:
        return self.task.run

    def _attach(self, display: Display | None, resume: Checkpoint | None) -> None:
        """Make the callbacks, in the order in which they are called, and enter the folder."""
        task, run, state, folder, own = self.task, self.run, self.state, self._folder, self._own
        count = getattr(state, task.counter)
        monitors = task.monitors(own)
        for callback in own:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(run.seed)
                callback.start(state)
        if resume:
            restore_callbacks(own, resume.tensors, resume.record)
        # What can be refused has been: from here on the folder is changed.
        rows = self._enter(folder) if folder else []
        last = rows[-1] if rows else {}
        here = last if last.get(task.counter) == count else {}
        self._clock = Clock(task.counter, last.get("seconds", 0.0), count)
        with writable(folder.metrics_file if folder else ""):
            self._logger = MetricsLogger(folder, display, run, here, self.log.alert)
        checked = [Checked(callback, self.log.alert) for callback in own]
        best = BestTracker(task.best_by)
        over = partial(type(state).finished, run=run)
        self._health = HealthMonitor(task.config, rows, self.log.tell, over) if run.health else None
        watching = [self._health] if self._health else []
        self.callbacks = [self._clock, *monitors, *watching, best, *checked, self._logger]
        self._writer: RunWriter | None = None
        if folder:
            manager = CheckpointManager(folder, run.keep_last, self.log.alert, resume)
            self._writer = RunWriter(task, folder, manager, self._before_checkpoint)
            if not resume:
                with writable(folder.path):
                    self._writer.first()
            self.callbacks.append(self._writer)
        if run.profile and not state.finished(run):
            self.profile = Profile()
            self.task = task.timed(self.profile)
            self.callbacks = [
                self.profile.timed(callback, __call__=callback.phase) for callback in self.callbacks
            ]
        name = folder.path.name if folder else f"seed{run.seed}"
        step = state.steps if task.counter == "steps" else state.updates
        info = RunInfo(name, task.config, folder, step, self.log.note, self.log.alert)
        for callback in own:
            callback.ready(info)

    def _enter(self, folder: RunFolder) -> list[Row]:
        """Bring the folder to this state, so that a kill at any time is safe; returns its rows."""
        state, run, counter = self.state, self.run, self.task.counter
        with writable(folder.path):
            folder.enter()
            folder.write_config(self.task.config)  # first: it says whether the run has ended here
            ended = bool(state.finished(run))
            rows, lost = folder.cut_metrics(state.updates, run.log_every, ended=ended)
            folder.remove_result()
            self.task.enter(folder)
        if lack := lost_rows(rows, lost, state.updates, **{counter: getattr(state, counter)}):
            self.log.note(lack, doubtful=True)
        return rows

    def _before_checkpoint(self) -> Extra:
        """Bring rows and log to the disk, which must outlive it; returns the callbacks' states."""
        for callback in (*self.callbacks, *self._own):
            callback.sync()
        if self._folder:
            self._folder.sync_log()
        return pack_callbacks(self._own)

    def save(self) -> bool:
        """Write the state as it stands; returns whether the run is kept and the disk took it."""
        return self._writer is not None and self._writer.attempt()

    def __enter__(self) -> Self:
        if self.profile:
            self.profile.start(self.state)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(well=error is None)
        if error and self._folder:
            if self._is_new and not self.state.updates and not isinstance(error, TrainingError):
                self._folder.remove()
            else:
                self._folder.note("".join(traceback.format_exception(kind, error, trace)))

    def _close(self, *, well: bool = False) -> None:
        """Close what is open. well: nothing worse is to be said than what fails here."""
        for callback in (*self.callbacks, *self._own):
            with contextlib.suppress(OSError):  # `finish` has said so, or there is worse to say
                callback.close()
        failed = self.task.close()
        for text in dict.fromkeys(failed if well else ()):
            self.log.alert(text)
        if self._folder:
            self._folder.release()

    def finish(self, *, stopped: bool) -> Row:
        """Save, and write how the run ended. Raises `TrainingError` if the disk fails."""
        state, row = self.state, self._logger.row
        reason = state.finished(self.run)
        finished = bool(reason)
        if stopped and reason in ("", "total_steps"):
            reason = self.interruption
        try:
            result = {
                "stopped_by": reason,
                "updates": state.updates,
                **self.task.result(self._folder, finished=finished),
                "seconds": round(self._clock.seconds, 3),
            }
            if "evaluation" in row:  # of the policy as it is now, not of those that came before it
                result["evaluation"] = row["evaluation"]
            if self._health and (health := self._health.report()):
                result["health"] = health
            if self.log.warnings:
                result["warnings"] = self.log.warnings
            if self.profile:
                result["profile"] = self.profile.report()
            if self._folder and self._writer:
                self._writer.flush()
                self._folder.write_result(result)
            for callback in self.callbacks:
                callback.close()
        except OSError as error:
            raise TrainingError(
                f"training has ended, but {error.filename} could not be written "
                f"({error.strerror}); {self._writer}"
            ) from error
        for callback in self._own:
            callback.end(state, result)
        return result
