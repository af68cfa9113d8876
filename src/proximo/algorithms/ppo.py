"""Proximal policy optimization with a clipped surrogate (PPO2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from proximo.algorithms.base import OnPolicy
from proximo.functional.schedules import Coefficient, as_schedule
from proximo.types import Batch, LossSpec

if TYPE_CHECKING:
    from torch import Tensor

    from proximo.algorithms.engines import Engine
    from proximo.nets.actor_critic import ActorCritic


@dataclass(frozen=True, kw_only=True)
class PPO(OnPolicy):
    """PPO-clip: many small steps on the same data, none rewarded for going far.

    L = E[min(r A, clip(r, 1 - eps, 1 + eps) A)] - c1 E[(V - V_targ)^2] + c2 E[entropy]

    Schulman et al. 2017 (arXiv 1707.06347), eq. 7 and 9, Algorithm 1. Beyond the paper: advantages
    are standardised, the gradient's norm is limited, and an update can end early by the KL.
    """

    name: ClassVar[str] = "ppo"

    clip: Coefficient = 0.2
    """epsilon of eq. 7: a ratio earns nothing beyond [1 - eps, 1 + eps]; a number or schedule."""
    target_kl: float | None = None
    """End the update after the epoch in which KL(old, new) passed this many nats; none: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("clip", 0, float("inf"), above=True)
        self._check("target_kl", 0, float("inf"), above=True)

    def coefficients(self, progress: float) -> dict[str, float]:
        return {"clip": as_schedule(self.clip)(progress), **super().coefficients(progress)}

    def loss(
        self, policy: ActorCritic, batch: Batch, coefficients: Mapping[str, float | Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from proximo.functional.losses import clipped_surrogate
        from proximo.functional.masked import masked_mean, standardize

        new = policy.evaluate(batch.obs, batch.action, entropy=self.values_entropy)
        per_minibatch = self.normalize_advantage == "minibatch"
        advantage = standardize(batch.advantage) if per_minibatch else batch.advantage
        objective = clipped_surrogate(new.log_prob, batch.log_prob, advantage, coefficients["clip"])
        policy_loss = -masked_mean(objective)
        value_loss = masked_mean(
            self.value_error(policy, new.value, batch, coefficients["value_clip"])
        )
        loss = policy_loss + self.value_coef * value_loss
        if new.entropy is not None:
            loss = loss - coefficients["entropy_coef"] * masked_mean(new.entropy)
        terms = {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss}
        return loss, {name: term.detach() for name, term in terms.items()}

    def loss_spec(self, coefficients: dict[str, float]) -> LossSpec | None:
        if type(self) is not PPO:  # a subclass may have a loss of its own
            return None
        return LossSpec(
            clip=coefficients["clip"],
            entropy_coef=coefficients["entropy_coef"],
            value_coef=self.value_coef,
            value_loss=self.value_loss,
            value_clip=coefficients["value_clip"],
            huber_delta=self.huber_delta,
            standardize=self.normalize_advantage == "minibatch",
            max_grad_norm=self.max_grad_norm,
            target_kl=self.target_kl,
        )

    def stops(self, engine: Engine, batch: Batch) -> bool:
        if self.target_kl is None:
            return False
        import torch

        from proximo.functional.kl import k3
        from proximo.functional.masked import masked_mean

        with torch.no_grad():
            new = engine.evaluate(batch.obs, batch.action, entropy=False)
            return bool(masked_mean(k3(new.log_prob, batch.log_prob)) > self.target_kl)

    def read(
        self, engine: Engine, batch: Batch, coefficients: dict[str, float]
    ) -> dict[str, Tensor]:
        """KL(old, new), the share of samples outside the clip, the entropy: after the update."""
        from proximo.functional.kl import k3
        from proximo.functional.masked import masked_mean

        new = engine.evaluate(batch.obs, batch.action, entropy=True)
        assert new.entropy is not None
        ratio = (new.log_prob - batch.log_prob).exp()
        return {
            "approx_kl": masked_mean(k3(new.log_prob, batch.log_prob)),
            "clip_fraction": masked_mean(
                ((ratio - 1).abs() > coefficients["clip"]).to(ratio.dtype)
            ),
            "entropy": masked_mean(new.entropy),
        }
