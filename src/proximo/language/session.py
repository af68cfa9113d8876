"""A stage of training from its settings to its result: the loop, its folder, exact resume."""

from __future__ import annotations

import shutil
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import orjson
import torch
from torch import Tensor, nn

from proximo.algorithms.skips import settle
from proximo.functional.moments import no_moments
from proximo.language.config import TrainingConfig
from proximo.language.model import LanguageModel
from proximo.nets.optimizer import FlatOptimizer
from proximo.run.callbacks import SAVE_INTERVAL
from proximo.run.checkpoint import Checkpoint, keep_first, own_copy, write
from proximo.run.folder import RunFolder
from proximo.types import Keep, Metrics, Moments, TrainingError, UsageError

Row = dict[str, Any]


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
        self.keep: Keep | None = None
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
        """Count a gradient step that is not taken: see `proximo.algorithms.skips`."""
        skipped = self.counters["skipped"] = self.counters.get("skipped", 0) + 1
        tensors = tensors | {f"policy.{name}": x for name, x in self.module.state_dict().items()}
        update = self.updates + 1
        record = record | {"update": update}
        settle(self.keep, what, f"update {update}{where}", tensors, record, skipped, budget)

    def finish(self) -> None:  # noqa: B027 most stages have nothing to do
        """What is done once, after the last update."""

    def save(self, folder: RunFolder, name: str | int, digest: str, *, finished: bool) -> None:
        """Write a checkpoint: everything that the next update depends on.

        Frozen weights are in that of update 0 alone; the others say which one that is.
        """
        tensors = {f"policy.{name}": x for name, x in self.module.state_dict().items()}
        named = self.module.named_parameters(remove_duplicate=False)
        frozen = {f"policy.{name}" for name, x in named if not x.requires_grad}
        if name != 0:
            tensors = {key: x for key, x in tensors.items() if key not in frozen}
        tensors |= self.carried
        for index, record in enumerate(self.optimizer.records):
            tensors |= {f"optimizer.{index}.{name}": x for name, x in record.items()}
        tensors |= {f"generator.{name}": g.get_state() for name, g in self.generators.items()}
        tensors |= {f"moments.{name}": x for name, x in self.moments._asdict().items()}
        about = {
            "stage": self.stage,
            "counters": self.counters,
            "data": digest,
            "finished": finished,
            **({"frozen_in": self._first} if frozen and name != 0 else {}),
        }
        sha256 = write(folder.checkpoint(name), {n: own_copy(x) for n, x in tensors.items()}, about)
        if name == 0:
            self._first = sha256

    def load(self, saved: Checkpoint, digest: str) -> None:
        """Go on from a checkpoint. Raises `UsageError` if it is of other data."""
        if saved.record["data"] != digest:
            raise UsageError(
                "the data are not those that this run began with: give the same, or begin a new run"
            )
        saved.load_policy(self.module)
        self._first = saved.record.get("frozen_in")
        for name, tensor in self.carried.items():
            if name not in saved.tensors:
                raise UsageError(
                    "kl.reference is ema, but this run was not begun with it: its checkpoints hold "
                    "no average"
                )
            tensor.copy_(saved.tensors[name])
        for index, record in enumerate(self.optimizer.records):
            for name, tensor in record.items():
                tensor.copy_(saved.tensors[f"optimizer.{index}.{name}"])
        for name, generator in self.generators.items():
            generator.set_state(saved.tensors[f"generator.{name}"])
        self.moments = Moments(*(saved.tensors[f"moments.{name}"] for name in Moments._fields))
        self.counters = dict(saved.record["counters"])


def read_checkpoint(folder: RunFolder, name: str | int) -> Checkpoint:
    """A checkpoint of a stage, with the frozen weights that stand in that of update 0.

    Raises `UsageError` if that is another one than the run began with.
    """
    saved = Checkpoint(folder.checkpoint(name))
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
    is_new: bool,
) -> list[Row]:
    """Update until the run is over or a callback ends it; returns the rows that were logged.

    An error before the first update removes the folder of a new run: there is nothing to keep,
    unless it is a `TrainingError`, after which the first minibatch that went wrong stands there.
    """
    rows = folder.cut_metrics(learner.updates, run.log_every) if folder else []
    _cut_samples(folder, learner.updates)
    begin = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    due, stopped, row = 0.0, False, {}
    learner.keep = partial(_keep, folder) if folder else None
    if folder and not learner.updates:
        for name in (0, "last"):
            learner.save(folder, name, digest, finished=False)
    try:
        while learner.updates < run.updates and not stopped:
            metrics = learner.update()
            learner.counters["updates"] += 1
            _keep_best(folder, learner, metrics)
            stopped = any([call(learner, learner.samples, metrics) for call in callbacks])  # noqa: C419 each is called
            row = {
                "update": learner.updates,
                "tokens": learner.counters["tokens"],
                **metrics,
                **({"skipped_steps": n} if (n := learner.counters.get("skipped")) else {}),
                "seconds": round(time.perf_counter() - begin, 3),
            }
            if learner.updates % run.log_every == 0:
                rows.append(row)
                _write(folder, row, learner.samples)
            if display:
                display.show(row)
            if folder and run.save_every and learner.updates % run.save_every == 0:
                learner.save(folder, learner.updates, digest, finished=False)
            if folder and (learner.save_soon or time.monotonic() >= due):
                start = time.monotonic()
                learner.save(folder, "last", digest, finished=False)
                learner.save_soon = False
                now = time.monotonic()
                due = now + max(SAVE_INTERVAL, 100 * (now - start))
        if finished := learner.updates >= run.updates:
            learner.finish()
        if folder:
            learner.save(folder, "last", digest, finished=finished)
            _write_result(folder, learner, row, finished=finished)
    except BaseException as error:
        if folder and is_new and not learner.updates and not isinstance(error, TrainingError):
            folder.remove()
        elif folder:
            folder.note(traceback.format_exc())
        raise
    return rows


def _keep_best(folder: RunFolder | None, learner: Learner, metrics: Metrics) -> None:
    """Write a model that scored best on what is held out, as a folder that transformers reads."""
    score, best = metrics.get("held_out_score"), learner.counters.get("best")
    if score is None or (best is not None and score <= best):
        return
    learner.counters["best"] = score
    if folder:
        fresh, place = folder.path / "best.new", folder.path / "best"
        learner.lm.save(fresh)
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)


def _keep(folder: RunFolder, text: str, tensors: dict[str, Tensor], record: dict[str, Any]) -> str:
    place = str(keep_first(folder.nonfinite, record["update"], tensors, record))
    folder.note(f"a gradient step was left out: {text} (the first: {place})")
    return place


def _write(folder: RunFolder | None, row: Row, samples: list[Row]) -> None:
    if folder is None:
        return
    with folder.metrics_file.open("ab") as file:
        file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    with (folder.path / "samples.jsonl").open("ab") as file:
        for sample in samples:
            line = {"update": row["update"], **sample}
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def _cut_samples(folder: RunFolder | None, update: int) -> None:
    """Drop the samples of updates that will be made again."""
    if folder is None or not (file := folder.path / "samples.jsonl").is_file():
        return
    lines = file.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n")]
    file.write_bytes(b"".join(x for x in kept if orjson.loads(x)["update"] <= update))


def _write_result(folder: RunFolder, learner: Learner, row: Row, *, finished: bool) -> None:
    folder.write_result(
        {
            "stopped_by": "updates" if finished else "callback",
            "updates": learner.updates,
            "tokens": learner.counters["tokens"],
            "seconds": row.get("seconds", 0.0),
            **learner.final,
        }
    )
    if finished and learner.stage != "reward":
        learner.lm.save(folder.path / "model")


def mean_of(values: Tensor) -> float:
    """For readings."""
    return float(values.double().mean())
