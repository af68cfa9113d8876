"""A stage of training from its settings to its result: the loop, its folder, exact resume."""

from __future__ import annotations

import contextlib
import errno
import math
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import orjson
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from proximo.disk import Lines, lines, replacing, warn, writable
from proximo.engines.nonfinite import record_skip
from proximo.errors import TrainingError, UsageError
from proximo.functional.moments import no_moments
from proximo.language.config import TrainingConfig
from proximo.language.model import LanguageModel
from proximo.nets.optimizer import FlatOptimizer
from proximo.run.checkpoint import (
    Checkpoint,
    Keeper,
    keep_first,
    own_copy,
    write,
)
from proximo.run.folder import MOST_ROWS, RunFolder, lost_rows
from proximo.types import Metrics, SkipSink

Row = dict[str, Any]
LONGEST_SAMPLE = 2**24
"""Bytes of a line of samples.jsonl."""


class Display(Protocol):
    """What shows the progress of a run."""

    def show(self, row: Row) -> None:
        """Take in the row of the update that has just ended."""


class Learner(ABC):
    """All that changes while a stage trains, and what one update of it does."""

    stage: str

    def __init__(self, module: nn.Module, optimizer: FlatOptimizer, run: TrainingConfig) -> None:
        self.module, self.optimizer, self.run = module, optimizer, run
        self.generators: dict[str, torch.Generator] = {}
        self.counters: dict[str, Any] = {"updates": 0, "tokens": 0, "horizon": run.updates}
        self.carried: dict[str, Tensor] = {}
        """What else changes, by name; checkpoints hold it."""
        self.moments = no_moments()
        """Of all scores so far."""
        self.samples: list[Row] = []
        """A few completions of the last update."""
        self.final: Metrics = {}
        """What is measured once, at the end."""
        self._first: str | None = None  # SHA-256 of the checkpoint of update 0
        self.keep: SkipSink | None = None
        self.save_soon = False
        """Set by a callback: to have this update saved."""

    @property
    def updates(self) -> int:
        return int(self.counters["updates"])

    @property
    def progress(self) -> float:
        """Share of the updates that are done, in [0, 1]: the argument of every schedule."""
        return min(1.0, self.updates / float(self.counters["horizon"]))

    @property
    @abstractmethod
    def lm(self) -> LanguageModel:
        """The language model in it."""

    @abstractmethod
    def update(self) -> Metrics:
        """Train once; returns what to report."""

    def leave_out(
        self,
        what: str,
        where: str,
        tensors: dict[str, Tensor],
        record: dict[str, Any],
        budget: int,
    ) -> None:
        """Count a gradient step that is not env_action: see `proximo.engines.nonfinite`."""
        skipped = self.counters["skipped"] = self.counters.get("skipped", 0) + 1
        tensors = tensors | {f"policy.{name}": x for name, x in self.module.state_dict().items()}
        update = self.updates + 1
        record = record | {"update": update}
        record_skip(self.keep, what, f"update {update}{where}", tensors, record, skipped, budget)

    def is_best(self, metrics: Metrics) -> bool:
        """Whether no update before had a held-out score as high; it is then the one to reach."""
        score = metrics.get("held_out_score", -math.inf)
        if not score > self.counters.get("best", -math.inf):
            return False
        self.counters["best"] = score
        return True

    def finish(self) -> None:  # noqa: B027 most stages have nothing to do
        """What is done once, after the last update."""

    def save(self, path: Path, digest: str, *, finished: bool = False, first: bool = False) -> None:
        """Write a checkpoint: everything that the next update depends on. Raises `OSError`.

        first: of update 0. Frozen weights are in that alone; the others say which one that is.
        """
        tensors = {f"policy.{name}": x for name, x in self.module.state_dict().items()}
        named = self.module.named_parameters(remove_duplicate=False)
        frozen = {f"policy.{name}" for name, x in named if not x.requires_grad}
        if not first:
            tensors = {key: x for key, x in tensors.items() if key not in frozen}
        tensors |= self.carried | self.optimizer.tensors()
        tensors |= {f"generator.{name}": g.get_state() for name, g in self.generators.items()}
        tensors |= {f"moments.{name}": x for name, x in self.moments._asdict().items()}
        about = {
            "stage": self.stage,
            "counters": self.counters,
            "data": digest,
            "finished": finished,
            **({"frozen_in": self._first} if frozen and not first else {}),
        }
        sha256 = write(path, {n: own_copy(x) for n, x in tensors.items()}, about)
        if first:
            self._first = sha256

    def load(self, saved: Checkpoint, digest: str) -> None:
        """Go on from a checkpoint. Raises `UsageError` if it is of another stage or other data."""
        if saved.record.get("stage") != self.stage:
            raise UsageError(f"the checkpoint {saved.path} is of no run of {self.stage}")
        if saved.record["data"] != digest:
            raise UsageError(
                "the data are not those that this run began with: give the same, or begin a new run"
            )
        saved.load_policy(self.module)
        self._first = saved.record.get("frozen_in")
        if self.carried.keys() - saved.tensors.keys():
            raise UsageError(
                "kl.reference is ema, but this run was not begun with it: its checkpoints hold "
                "no average"
            )
        for name, tensor in saved.take(self.carried).items():
            self.carried[name].copy_(tensor)
        saved.load_optimizer(self.optimizer)
        for name, generator in self.generators.items():
            saved.load_generator(f"generator.{name}", generator)
        self.moments = saved.moments("moments")
        counters = saved.record["counters"]
        if None in counters.values() or self.counters.keys() - counters.keys():
            raise UsageError(f"the counters of the checkpoint {saved.path} are {counters!r:.200}")
        self.counters = dict(counters)


def read_checkpoint(folder: RunFolder, path: Path) -> Checkpoint:
    """A checkpoint of a stage, with the frozen weights that stand in that of update 0.

    Raises `UsageError` if that is another one than the run began with.
    """
    saved = Checkpoint(path)
    if expected := saved.record.get("frozen_in"):
        first = Checkpoint(folder.checkpoint(0))
        if first.sha256 != expected:
            raise UsageError(
                f"{folder.checkpoint(0)} is not the checkpoint that this run began with: its "
                "adapters belong to other weights"
            )
        saved.tensors = {**first.tensors, **saved.tensors}
    return saved


Callback = Callable[[Learner, list[Row], Metrics], bool | None]
"""Called with (learner, samples, metrics) after each update; True ends the training."""


def train(
    learner: Learner,
    run: TrainingConfig,
    folder: RunFolder | None,
    digest: str,
    callbacks: Sequence[Callback],
    display: Display | None,
    *,
    start: Checkpoint | None,
) -> list[Row]:
    """Update until the run is over or a callback ends it; returns the rows that were logged.

    start: what the run goes on from. An error before the first update removes the folder of a new
    run: there is nothing to keep, unless it is a `TrainingError`, after which the first minibatch
    that went wrong stands there.
    """
    stopped, row = False, dict[str, Any]()
    kept: _Kept | None = None
    try:
        kept = _Kept(folder, learner, run, digest, start) if folder else None
        rows = kept.rows if kept else []
        begin = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
        while learner.updates < run.updates and not stopped:
            metrics = learner.update()
            learner.counters["updates"] += 1
            is_best = learner.is_best(metrics)
            stopped = any([call(learner, learner.samples, metrics) for call in callbacks])  # noqa: C419 each is called
            row = {
                "update": learner.updates,
                "tokens": learner.counters["tokens"],
                **metrics,
                **({"skipped_steps": n} if (n := learner.counters.get("skipped")) else {}),
                "seconds": round(time.perf_counter() - begin, 3),
            }
            if logged := learner.updates % run.log_every == 0:
                rows.append(row)
            if display:
                display.show(row)
            if kept:
                kept.keep(row if logged else None, is_best=is_best)
        if finished := learner.updates >= run.updates:
            learner.finish()
        if "best" in learner.counters:
            learner.final["best_held_out_score"] = learner.counters["best"]
        if kept:
            kept.finish(row, finished=finished)
    except BaseException as error:
        nothing = not learner.updates and not isinstance(error, TrainingError)
        if folder and start is None and nothing:
            folder.remove()
        elif folder:
            folder.note(traceback.format_exc())
        raise
    finally:
        if kept:
            with contextlib.suppress(OSError):  # `finish` has said so, or there is worse to say
                kept.close()
    return rows


class _Kept:
    """What a stage leaves in its run folder, on a disk that may fail."""

    def __init__(
        self,
        folder: RunFolder,
        learner: Learner,
        run: TrainingConfig,
        digest: str,
        start: Checkpoint | None,
    ) -> None:
        """Raises `UsageError` if the disk fails already."""
        self._folder, self._learner, self._run, self._digest = folder, learner, run, digest
        self._doubts: list[str] = []
        self._keeper = Keeper(folder, run.keep_last, self._warn, start)
        learner.keep = self._keep_skipped
        samples = folder.path / "samples.jsonl"
        with writable(folder.path):
            folder.enter()
            self.rows, lost = folder.cut_metrics(learner.updates, run.log_every, done=False)
            sampled = _cut_samples(samples, learner.updates)
            folder.remove_result()
            self._metrics = Lines(folder.metrics_file, self._warn)
            self._samples = Lines(samples, self._warn)
            if not learner.updates:
                learner.save(folder.checkpoint(0), digest, first=True)
                self._keeper.last(0, self._save)
        tokens = learner.counters["tokens"]
        if doubt := lost_rows(self.rows, lost, learner.updates, tokens=tokens):
            self._warn(doubt)
        unsampled = learner.updates // run.log_every - sampled
        if learner.stage == "ppo" and unsampled > 0:
            self._warn(f"samples.jsonl lacks those of {unsampled} updates: lost, as in a power cut")

    def _keep_skipped(self, text: str, tensors: dict[str, Tensor], record: dict[str, Any]) -> str:
        place = keep_first(self._folder.nonfinite, record["update"], tensors, record)
        said = f"a gradient step was left out: {text}{place and f' (the first: {place})'}"
        self._folder.note(said)
        return place

    def _warn(self, text: str) -> None:
        warn(text)
        self._doubts.append(text)
        self._folder.note(text)

    def _save(self, path: Path, *, finished: bool = False) -> None:
        """What was logged up to a checkpoint is on the disk before it."""
        self._metrics.sync()
        self._samples.sync()
        self._folder.sync_log()
        self._learner.save(path, self._digest, finished=finished)

    def _save_model(self, name: str) -> None:
        """The model in a folder that transformers reads. Raises `OSError`."""
        place = self._folder.path / name
        try:
            self._learner.lm.save(place, within=self._folder.path)
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise OSError(errno.EIO, why, str(place)) from error

    def keep(self, row: Row | None, *, is_best: bool) -> None:
        """Log an update, if it is one to log, and save if it is time."""
        updates, every = self._learner.updates, self._run.save_every
        if is_best:
            self._keeper.attempt("best", lambda: self._save_model("best"))
        if row:
            self._metrics.write(_line(row))
            for sample in self._learner.samples:
                self._samples.write(_line({"update": updates, **sample}))
        if every and updates % every == 0:
            path = self._folder.checkpoint(updates)
            self._keeper.attempt("numbered", lambda: self._save(path))
        at_once, self._learner.save_soon = self._learner.save_soon, False
        self._keeper.now_and_then(lambda: self._keeper.last(updates, self._save), at_once=at_once)

    def close(self) -> None:
        """Raises `OSError` if lines are left that could not be written."""
        try:
            self._metrics.close()
        finally:
            self._samples.close()

    def finish(self, row: Row, *, finished: bool) -> None:
        """Save, and write down how it ended. Raises `TrainingError` if the disk fails."""
        learner = self._learner
        result = {
            "stopped_by": "updates" if finished else "callback",
            "updates": learner.updates,
            "tokens": learner.counters["tokens"],
            "seconds": (row or (self.rows[-1] if self.rows else {})).get("seconds", 0.0),
            **learner.final,
        }
        if self._doubts:
            result["warnings"] = self._doubts
        try:
            if finished and learner.stage != "reward":
                self._save_model("model")
            self._keeper.last(learner.updates, partial(self._save, finished=finished))
            self._folder.write_result(result)
            self.close()
        except OSError as error:
            raise TrainingError(
                f"training has ended, but {error.filename} could not be written "
                f"({error.strerror}); {self._keeper}"
            ) from error


def _line(row: Row) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def _cut_samples(file: Path, update: int) -> int:
    """Drop the samples of updates that will be made again, and lines that are none.

    Returns of how many updates there are some.
    """
    sampled = set[int]()
    with contextlib.suppress(FileNotFoundError), replacing(file) as kept:
        for line in lines(file, LONGEST_SAMPLE, MOST_ROWS):
            try:
                number = orjson.loads(line)["update"]
                if line.endswith(b"\n") and number <= update:
                    sampled.add(number)
                    kept.write(line)
            except (ValueError, TypeError, LookupError):
                continue
    return len(sampled)


def mean_of(values: Tensor) -> float:
    """For readings."""
    return float(values.double().mean())
