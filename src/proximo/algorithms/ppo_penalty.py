"""Proximal policy optimization with a penalty on the KL (PPO1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from proximo import functional as F
from proximo.algorithms.base import OnPolicy
from proximo.bounds import above, between
from proximo.errors import UsageError
from proximo.types import Batch, LossSpec, Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from proximo.nets.actor_critic import ActorCritic, Evaluation
    from proximo.state import TrainState


@dataclass(frozen=True, kw_only=True)
class PPOPenalty(OnPolicy):
    """PPO-penalty: what a step gains is weighed against how far it moves the policy.

    L = E[r A - beta KL(old, new)] - c1 E[(V - V_targ)^2] + c2 E[entropy]

    Schulman et al. 2017 (arXiv 1707.06347), eq. 8 and section 4. The KL is the exact one between
    the action distributions in each state. Beta is fixed or, by default, the paper's: halved after
    an update with d < d_targ/1.5 and doubled after one with d > 1.5 d_targ, where d is the mean KL
    over the whole batch after the last gradient step.
    """

    name: ClassVar[str] = "ppo-penalty"
    exact_kl: ClassVar[bool] = True

    beta: Annotated[float, between(0, 1e6)] = 1.0
    """Weight of the KL, at first or for ever."""
    kl_target: Annotated[float | None, above(0)] = 0.01
    """d_targ in nats, towards which beta moves; none: beta stays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_target is not None and not self.beta:
            raise UsageError(
                "algorithm.beta is 0, which neither halving nor doubling moves: give more, or "
                "--algorithm.kl-target none"
            )

    def coefficients(self, progress: float, beta: float | None = None) -> dict[str, float]:
        beta = self.beta if beta is None else beta
        return {"beta": beta, **super().coefficients(progress)}

    def objective(
        self,
        policy: ActorCritic,
        new: Evaluation,
        batch: Batch,
        advantage: Tensor,
        coefficients: Mapping[str, float | Tensor],
    ) -> Tensor:
        kl = F.kl.kl_divergence(policy.head.restore(batch.parameters), new.distribution)
        return F.losses.penalized_surrogate(
            new.log_prob, batch.log_prob, advantage, kl, coefficients["beta"]
        )

    def loss_spec(self, coefficients: dict[str, float]) -> LossSpec:
        return self.spec(coefficients, "ratio", beta=coefficients["beta"])

    def update(self, state: TrainState, batch: Batch) -> Metrics:
        metrics = super().update(state, batch)
        if self.kl_target is not None:
            state.beta = F.kl.adapted_beta(metrics["beta"], metrics["kl"], self.kl_target)
        return metrics
