"""Everything that changes while a language stage trains, and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proximo import functional as F
from proximo.engines.base import UpdateEngine
from proximo.engines.nonfinite import REMEDIES
from proximo.errors import UsageError
from proximo.functional.moments import no_moments
from proximo.language.model import LanguageModel
from proximo.language.reference import FrozenReference
from proximo.run.checkpoint import Checkpoint, own_copy, write
from proximo.run.folder import RunFolder
from proximo.state import State, named
from proximo.types import Extra, Metrics, Moments, Row

COUNTERS = ("updates", "tokens", "horizon")
PPO_COUNTERS = (*COUNTERS, "beta", "episodes", "ptx")
SCORES = ("best", "last_trial_steps", "last_trial_return")
"""Counters that a checkpoint holds once they have a value."""
DERIVED = {"lm", "engine", "rate_scale", "skip_sink"}
"""Fields that no checkpoint holds: parts of others, constants, and what belongs to the process."""


@dataclass(kw_only=True)
class LanguageState(State):
    """All that changes while a stage trains. Checkpoints hold all fields but those of `DERIVED`."""

    stage: str
    data: str  # SHA-256 of the data, which a resumed run must see again
    lm: LanguageModel  # the language model in the policy, or the policy itself
    generators: dict[str, torch.Generator] = field(default_factory=dict)  # by their saved names
    engine: UpdateEngine | None = None
    reference: FrozenReference | None = None
    tokens: int = 0  # the model's own tokens that were learned from
    episodes: int = 0  # completions
    beta: float = 0.0  # weight of the KL
    ptx: int = 0  # texts of the pretraining loss that were drawn
    moments: Moments = field(default_factory=no_moments)  # of all scores
    frozen_in: str | None = None  # SHA-256 of the checkpoint of update 0, with the frozen weights

    @property
    def progress(self) -> float:
        """Share of the updates that are done, in [0, 1]: the argument of every schedule."""
        return min(1.0, self.updates / self.horizon)

    @property
    def steps(self) -> int:
        """Actions, which are tokens: what a profile counts by."""
        return self.tokens

    @property
    def shuffling(self) -> torch.Generator:
        """Order of the minibatches."""
        return self.generators["shuffling"]

    def advance(self, rollout: Any, metrics: Metrics) -> Row:
        """Count an update that is done; returns its row."""
        self.updates += 1
        self.tokens += rollout.num_tokens
        skipped = {"skipped_steps": self.skipped} if self.skipped else {}
        return {"update": self.updates, "tokens": self.tokens, **metrics, **skipped}

    def normalized(self, score: Tensor) -> Tensor:
        """Scores by the mean and standard deviation of all so far, which they join. [M]."""
        self.moments = F.moments.merge(self.moments, F.moments.batch_moments(score))
        return (score - self.moments.mean) * torch.rsqrt(self.moments.var + 1e-8)

    def observe(self, obs: Tensor) -> None:
        """Observations are text: they have no moments."""

    def numbers(self, readings: dict[str, Tensor]) -> Metrics:
        """Readings as numbers. Raises `fault` if they or the weights are not finite."""
        if not all(flat.isfinite().all() for flat in self.optimizer.flats):
            raise self.fault(f"weights became infinite in update {self.updates + 1}: {REMEDIES}")
        return {name: float(reading) for name, reading in readings.items()}

    @property
    def _counters(self) -> tuple[str, ...]:
        return PPO_COUNTERS if self.stage == "ppo" else COUNTERS

    def record(self) -> dict[str, Any]:
        """The part of a checkpoint that is not tensors."""
        names = (*self._counters, *SCORES, *(["skipped"] if self.skipped else []))
        counters = {name: getattr(self, name) for name in names}
        given = {name: x for name, x in counters.items() if x is not None}
        return {"stage": self.stage, "counters": given, "data": self.data}

    def tensors(self, *, frozen: bool) -> dict[str, Tensor]:
        """Copies of all tensors of a checkpoint. frozen: with the weights that never change."""
        fixed = () if frozen else self._frozen
        weights = named("policy", self.policy.state_dict())
        tensors = {name: x for name, x in weights.items() if name not in fixed}
        tensors |= self._moving | self.optimizer.tensors()
        tensors |= named("generator", {x: g.get_state() for x, g in self.generators.items()})
        tensors |= named("moments", self.moments._asdict())
        return {name: own_copy(x) for name, x in tensors.items()}

    @property
    def _frozen(self) -> set[str]:
        """Names of the weights that never change: adapters stand beside them."""
        named = self.policy.named_parameters(remove_duplicate=False)
        return {f"policy.{name}" for name, x in named if not x.requires_grad}

    @property
    def _moving(self) -> dict[str, Tensor]:
        return named("reference", self.reference.moving) if self.reference else {}

    def snapshot(
        self, extra: Extra, *, finished: bool = False, first: bool = False
    ) -> Callable[[Path], None]:
        """Copy everything that the next update depends on; returns what writes it to a file.

        extra: what callbacks add. first: of update 0, whose frozen weights others name by SHA-256.
        """
        tensors = {**self.tensors(frozen=first), **extra[0]}
        about = {**self.record(), **extra[1], "finished": finished}
        if self._frozen and not first:
            about["frozen_in"] = self.frozen_in

        def write_to(path: Path) -> None:
            sha256 = write(path, tensors, about)
            if first:
                self.frozen_in = sha256

        return write_to

    def restore(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint. Raises `UsageError` if it is of another stage or data."""
        if saved.record.get("stage") != self.stage:
            raise UsageError(f"the checkpoint {saved.path} is of no run of {self.stage}")
        if saved.record["data"] != self.data:
            raise UsageError(
                "the data are not those that this run began with: give the same, or begin a new run"
            )
        saved.load_policy(self.policy)
        self.frozen_in = saved.record.get("frozen_in")
        if self._moving.keys() - saved.tensors.keys():
            raise UsageError(
                "kl.reference is ema, but this run was not begun with it: its checkpoints hold "
                "no average"
            )
        for name, tensor in saved.take(self._moving).items():
            self._moving[name].copy_(tensor)
        saved.load_optimizer(self.optimizer)
        for name, generator in self.generators.items():
            saved.load_generator(f"generator.{name}", generator)
        self.moments = saved.moments("moments")
        counters = saved.record["counters"]
        if None in counters.values() or set(self._counters) - counters.keys():
            raise UsageError(f"the counters of the checkpoint {saved.path} are {counters!r:.200}")
        for name in (*self._counters, "skipped", *SCORES):
            if name in counters:
                setattr(self, name, counters[name])


def read_checkpoint(folder: RunFolder, path: Path) -> Checkpoint:
    """A checkpoint with the frozen weights of update 0. Raises `UsageError` for other weights."""
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
