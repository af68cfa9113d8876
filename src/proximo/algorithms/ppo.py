"""Proximal policy optimization with a clipped surrogate (PPO2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from proximo import functional as F
from proximo.algorithms.base import OnPolicy
from proximo.bounds import above
from proximo.errors import UsageError
from proximo.functional.schedules import Coefficient, as_schedule
from proximo.types import Batch, LossSpec

if TYPE_CHECKING:
    from torch import Tensor

    from proximo.engines.base import UpdateEngine
    from proximo.nets.actor_critic import ActorCritic, Evaluation


@dataclass(frozen=True, kw_only=True)
class PPO(OnPolicy):
    """PPO-clip: many small steps on the same data, none rewarded for going far.

    L = E[min(r A, clip(r, 1 - eps, 1 + eps) A)] - c1 E[(V - V_targ)^2] + c2 E[entropy]

    Schulman et al. 2017 (arXiv 1707.06347), eq. 7 and 9, Algorithm 1. Beyond the paper: advantages
    are standardised, the gradient's norm is limited, and an update can end early by the KL.
    """

    name: ClassVar[str] = "ppo"

    clip: Annotated[Coefficient | None, above(0)] = 0.2
    """epsilon of eq. 7: a ratio earns nothing beyond [1 - eps, 1 + eps]; a number or schedule;
    none: no clipping, eq. 6."""
    clip_high: Annotated[Coefficient | None, above(0)] = None
    """An epsilon of its own for the upper end of the interval; none: the same."""
    dual_clip: Annotated[float | None, above(1)] = None
    """Bound of a sample where A < 0: this many times A; none: without a bound."""
    surrogate: Literal["clip", "spo"] = "clip"
    """Brake on the ratio: the clip of eq. 7, or the quadratic penalty of Simple Policy Optimization
    (Xie et al. 2024), under which each sample is best at a ratio of 1 + clip or 1 - clip."""
    target_kl: Annotated[float | None, above(0)] = None
    """End the update after the epoch in which KL(old, new) passed this many nats; none: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip is None and (self.clip_high, self.dual_clip) != (None, None):
            raise UsageError(
                "algorithm.clip is none, but clip_high or dual_clip is set: they belong to a clip"
            )
        if self.surrogate == "spo":
            self._refuse(("clip_high", "dual_clip"), "algorithm.surrogate is spo")
            if self.clip is None:
                raise UsageError(
                    "algorithm.surrogate is spo, whose penalty is wide as algorithm.clip says, but "
                    "that is none: use --algorithm.clip 0.2"
                )

    @property
    def notes(self) -> list[str]:
        if self.clip is None or self.surrogate == "spo" or as_schedule(self.clip).highest < 1:
            return []
        return [
            f"algorithm.clip is {self.clip}: a ratio is never below 0, so from 1 on the lower end "
            "of [1 - clip, 1 + clip] holds nothing back; 0.1 to 0.3 is usual"
        ]

    def coefficients(self, progress: float, beta: float | None = None) -> dict[str, float]:
        names = [name for name in ("clip", "clip_high") if getattr(self, name) is not None]
        clips = {name: as_schedule(getattr(self, name))(progress) for name in names}
        return {**clips, **super().coefficients(progress)}

    def objective(
        self,
        policy: ActorCritic,
        new: Evaluation,
        batch: Batch,
        advantage: Tensor,
        coefficients: Mapping[str, float | Tensor],
    ) -> Tensor:
        log_prob = self.acted(new, batch)
        if self.clip is None:
            return F.losses.surrogate(log_prob, batch.log_prob, advantage)
        clip, high = coefficients["clip"], coefficients.get("clip_high")
        if self.surrogate == "spo":
            return F.losses.quadratic_surrogate(log_prob, batch.log_prob, advantage, clip)
        return F.losses.clipped_surrogate(
            log_prob, batch.log_prob, advantage, clip, high, self.dual_clip
        )

    def acted(self, new: Evaluation, batch: Batch) -> Tensor:
        """Log-probabilities whose ratio to the old ones the objective clips. [B]."""
        return new.log_prob

    def loss_spec(self, coefficients: dict[str, float]) -> LossSpec:
        clip = coefficients.get("clip", math.inf)
        return self.spec(
            coefficients,
            "ratio" if self.surrogate == "clip" else "spo",
            clip=clip,
            clip_high=coefficients.get("clip_high", clip),
            dual_clip=self.dual_clip or 0.0,
            target_kl=self.target_kl,
        )

    def stops(self, engine: UpdateEngine, batch: Batch) -> bool:
        """Early stopping: the estimated KL of the whole batch has passed `target_kl`."""
        if self.target_kl is None:
            return False
        new = engine.evaluate_batch(batch, entropy=False)
        kl = F.masked.masked_mean(F.kl.k3(new.log_prob, batch.log_prob))
        return bool(kl > self.target_kl)

    def read(
        self, policy: ActorCritic, new: Evaluation, batch: Batch, coefficients: dict[str, float]
    ) -> dict[str, Tensor]:
        """Besides, the share of samples whose ratio has left the clip's interval."""
        readings = super().read(policy, new, batch, coefficients)
        if self.clip is not None:
            moved = (self.acted(new, batch) - batch.log_prob).exp() - 1
            high = coefficients.get("clip_high", coefficients["clip"])
            outside = (moved > high) | (moved < -coefficients["clip"])
            readings["clip_fraction"] = F.masked.masked_mean(outside.to(moved.dtype))
        return readings
