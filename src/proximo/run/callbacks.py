"""Callbacks, called after each update with (state, rollout, row): logs, checkpoints, user code."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import orjson
import torch
from torch import Tensor

from proximo.disk import Lines
from proximo.run.config import RunSettings
from proximo.run.folder import RunFolder
from proximo.types import Row


class RunInfo(NamedTuple):
    """The run that a callback is part of."""

    name: str
    config: Any  # a dataclass of sections
    folder: RunFolder | None
    step: int  # environment steps so far, of a language model updates: 0 in a new run
    note: Callable[[str], None]  # adds a line to what is said of the setup
    alert: Callable[[str], None]  # warns at once


class Callback:
    """Base of callbacks: a part of the run that sees each update, and may change what is learned.

    Every method is optional. Where a class has arguments, make it a dataclass: a run folder names
    it by `module:Class` with the values of its fields. A plain function of (state, rollout, row)
    is a callback too, one that only watches: it is not recorded. A logger is a callback that hands
    `row` to its sink. There is no hook per step of an env; `before_advantages` comes where
    Stable-Baselines3 calls `on_rollout_end`.
    """

    phase: ClassVar[str] = "callbacks"
    """The phase of `run.profile` in which its time counts."""
    kept: ClassVar[tuple[str, ...]] = ()
    """Attributes that `state_dict` holds: modules, optimizers, tensors, moments, numbers, text."""
    recorded: ClassVar[bool] = True
    """A run folder names it, and resuming asks for it; not of one that only watches."""

    def __call__(self, state: Any, rollout: Any, row: Row) -> bool | None:
        """Called after each update; True ends the training.

        row: everything that is logged of the update, by name; what is added is logged too.
        """
        return None

    def start(self, state: Any) -> None:
        """Called before the first update, of a resumed run too, with PyTorch's generator seeded."""

    def ready(self, run: RunInfo) -> None:
        """Called once when all is set up, before the first update: a logger begins here."""

    def before_advantages(self, state: Any, rollout: Any) -> Any:
        """The rollout to learn from, such as one with other rewards (`dataclasses.replace`)."""
        return rollout

    def loss(self, policy: Any, batch: Any) -> Tensor:
        """A term that is added to the loss of every minibatch, on the torch engine."""
        raise NotImplementedError

    def evaluate(self, state: Any) -> dict[str, float]:
        """Scores, every `run.eval_every` updates, in place of the run's own evaluation.

        The one named `evaluation` decides which policy is the best where `run.keep_best` says so.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What must be restored for a resumed run to continue to the bit: the attributes `kept`.

        Dicts and lists of tensors, numbers, text, true, false and None; in every checkpoint.
        """
        parts = {name: getattr(self, name) for name in self.kept}
        return {
            name: part.state_dict() if hasattr(part, "state_dict") else part
            for name, part in parts.items()
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; called after `start` where a run is resumed."""
        for name, part in saved.items():
            before = getattr(self, name)
            if hasattr(before, "load_state_dict"):
                before.load_state_dict(part)
            else:
                setattr(self, name, before._make(part) if hasattr(before, "_make") else part)

    def end(self, state: Any, result: Row) -> None:
        """Called once when training has ended and the result is written; not after an error."""

    def sync(self) -> None:
        """Called before a checkpoint: what was logged up to it must outlive it."""

    def close(self) -> None:
        """Called in any case when the run is over, after an error too."""


class Display(Protocol):
    """What shows the progress of a run."""

    def show(self, row: Row) -> None:
        """Take in the row of the update that has just ended."""


class Watcher(Callback):
    """A plain function as a callback."""

    def __init__(self, function: Callable[[Any, Any, Row], bool | None]) -> None:
        self._function = function

    def __call__(self, state: Any, rollout: Any, row: Row) -> bool | None:
        return self._function(state, rollout, row)


def as_callback(callback: Callback | Callable[..., Any]) -> Callback:
    """A callback, or a plain function as one."""
    return callback if isinstance(callback, Callback) else Watcher(callback)


def overrides(callback: Callback, method: str) -> bool:
    """The callback has this method, rather than the one of `Callback`."""
    return getattr(type(callback), method) is not getattr(Callback, method)


class Checked(Callback):
    """A callback of the user's own: what it adds to the row becomes numbers, or is left out."""

    def __init__(self, callback: Callback, say: Callable[[str], None]) -> None:
        """say: told once of each name whose value is no number."""
        self._callback, self._say = callback, say
        self._left_out = set[Any]()

    def __call__(self, state: Any, rollout: Any, row: Row) -> bool | None:
        stops = self._callback(state, rollout, row)
        self.plain(row)
        return stops

    def plain(self, row: Row) -> None:
        """Let every value be a number or text, as JSON can hold it."""
        for name, value in list(row.items()):
            if type(name) is str and type(value) is float:
                continue
            try:
                row[name] = _number(name, value)
            except (TypeError, ValueError, RuntimeError):
                del row[name]
                if name not in self._left_out:
                    self._left_out.add(name)
                    self._say(
                        f"row[{name!r}] is {value!r:.80}, which is not one number with a name: "
                        "a callback has put it there, and it is not logged"
                    )


def _number(name: Any, value: Any) -> Any:
    """A value as JSON can hold it: the one number of a tensor or an array. Raises if it cannot."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        value = value.item()
    if not (isinstance(name, str) and isinstance(value, str | int | float | None)):
        raise TypeError
    return float(value) if isinstance(value, int) and abs(value) >= 2**63 else value


class Clock(Callback):
    """Add `seconds` since the run began and the speed, such as `steps_per_second`, to the row."""

    def __init__(self, counter: str, seconds: float, count: int) -> None:
        """counter: its name in the state; seconds, count: where the run stands."""
        self._counter, self.seconds, self._count = counter, seconds, count
        self._time = time.perf_counter()

    def __call__(self, state: Any, rollout: Any, row: Row) -> None:
        now, count = time.perf_counter(), getattr(state, self._counter)
        elapsed, self._time = now - self._time, now
        self.seconds += elapsed
        row["seconds"] = round(self.seconds, 3)
        row[f"{self._counter}_per_second"] = round((count - self._count) / elapsed, 1)
        self._count = count


class BestTracker(Callback):
    """Note the best score in the state; `RunWriter` writes the policy that had it."""

    def __init__(self, measure: str) -> None:
        """measure: the name of the score in the row."""
        self._measure = measure

    def __call__(self, state: Any, rollout: Any, row: Row) -> None:
        score = row.get(self._measure)
        if score is not None and (state.best is None or score > state.best):
            state.best = row["best"] = score


PAUSE = 0.05
"""Seconds between two writes to metrics.jsonl: a write costs as much as making three rows."""


class MetricsLogger(Callback):
    """One row per update: to the display, and every `log_every` updates to metrics.jsonl."""

    def __init__(
        self,
        folder: RunFolder | None,
        display: Display | None,
        run: RunSettings,
        last: Row,
        say: Callable[[str], None],
    ) -> None:
        """last: the row logged last. say: told once if disk or display fail. Raises `OSError`."""
        self._file = Lines(folder.metrics_file, say, PAUSE) if folder else None
        self._display, self._run, self._say = display, run, say
        self.row, self._written = last, True

    def __call__(self, state: Any, rollout: Any, row: Row) -> None:
        self.row, self._written = row, False
        if state.updates % self._run.log_every == 0 or state.finished(self._run):
            self._write()  # the last row before the state in which the run has ended is saved
        try:
            if self._display:
                self._display.show(row)
        except OSError as error:  # what reads it has gone, or a full disk
            self._display = None
            self._say(f"progress cannot be shown any more ({error.strerror}): training goes on")

    def _write(self) -> None:
        if self._file and not self._written:
            # A reading that does not exist (NaN) is null.
            how = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
            self._file.write(orjson.dumps(self.row, option=how))
            self._written = True

    def sync(self) -> None:
        if self._file:
            self._file.sync()

    def close(self) -> None:
        """Write the last row too, whether or not its turn had come. Raises `OSError`."""
        self._write()
        if self._file:
            self._file.close()
