"""Trust region policy optimization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from proximo import functional as F
from proximo.algorithms.base import OnPolicy
from proximo.bounds import above, at_least, between
from proximo.engines.nonfinite import not_finite
from proximo.errors import UsageError
from proximo.functional.schedules import Coefficient
from proximo.types import Batch, LossSpec, Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from proximo.nets.actor_critic import ActorCritic, Evaluation
    from proximo.state import TrainState


@dataclass(frozen=True, kw_only=True)
class TRPO(OnPolicy):
    """TRPO: the largest step along the natural gradient that a bound on the KL allows.

    maximise E[r A] over the batch, subject to E[KL(old, new)] <= delta

    Schulman et al. 2015 (arXiv 1502.05477), section 6 and appendix C: conjugate gradient on
    Fisher-vector products, then a line search that checks the exact KL and the gain. The critic has
    updates of its own, `epochs` of minibatches with `critic_learning_rate`; the policy has no
    learning rate. An entropy bonus, which is not in the paper, joins what is maximised.
    """

    name: ClassVar[str] = "trpo"
    rollout_steps: ClassVar[int] = 512
    separate_optimizers: ClassVar[bool] = True
    exact_kl: ClassVar[bool] = True
    unused_settings: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "desired_kl", "critic"),
        *("outer_learning_rate", "outer_momentum"),
    )

    max_kl: Annotated[float, above(0)] = 0.01
    """delta, the bound on the mean KL(old, new) of an update in nats."""
    cg_iterations: Annotated[int, at_least(1)] = 10
    """Steps of the conjugate gradient."""
    cg_damping: Annotated[float, at_least(0)] = 0.1
    """Added to the Fisher matrix's diagonal, so that it can be inverted."""
    line_search_decay: Annotated[float, above(0, at_most=0.99)] = 0.8
    """By how much a step that will not do is shortened."""
    line_search_tries: Annotated[int, at_least(1)] = 10
    """Lengths of the step to try before the policy is left as it was."""
    critic_learning_rate: Annotated[Coefficient | None, between(0, 10)] = 1e-3
    """Step size of the critic's optimizer; a number or a schedule such as linear:3e-4:0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_learning_rate is None:
            raise UsageError("algorithm.critic_learning_rate is none: in trpo the critic needs one")

    def rates(self, progress: float, scale: float) -> dict[str, float]:
        name = "critic_learning_rate"
        return {name: super().rates(progress, scale)[name]}

    def objective(
        self,
        policy: ActorCritic,
        new: Evaluation,
        batch: Batch,
        advantage: Tensor,
        coefficients: Mapping[str, float | Tensor],
    ) -> Tensor:
        objective = F.losses.surrogate(new.log_prob, batch.log_prob, advantage)
        if new.entropy is not None:
            objective = objective + coefficients["entropy_coef"] * new.entropy
        return objective

    def loss(
        self, policy: ActorCritic, batch: Batch, coefficients: Mapping[str, float | Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's part alone: the policy has been moved already."""
        value, logits = policy.judge(batch.obs, batch.segments)
        error = self.critic_error(policy, value, logits, batch, coefficients["value_clip"])
        value_loss = F.masked.masked_mean(error)
        loss = self.value_weight * value_loss
        return loss, {"loss": loss.detach(), "value_loss": value_loss.detach()}

    def loss_spec(self, coefficients: dict[str, float]) -> LossSpec:
        return self.spec(coefficients, "none")

    def update(self, state: TrainState, batch: Batch) -> Metrics:
        found = self.improve(state, batch)
        return {**found, **super().update(state, batch)}

    def improve(self, state: TrainState, batch: Batch) -> Metrics:
        """Move the policy, or leave it where no step along the line is both better and near.

        `policy_loss` is minus what the step has gained: before it the surrogate is E[A], 0 where
        advantages are standardised.
        """
        import torch

        policy = state.policy
        coefficients = self.coefficients(state.progress)
        parameters, theta = policy.actor_parameters(), state.optimizer.flats[0].data
        old = policy.head.restore(batch.parameters)
        advantage = self.standardized(batch.advantage)

        def surrogate_and_kl() -> tuple[Tensor, Tensor]:
            new = policy.evaluate(
                batch.obs, batch.action, entropy=self.values_entropy, segments=batch.segments
            )
            objective = self.objective(policy, new, batch, advantage, coefficients)
            kl = F.kl.kl_divergence(old, new.distribution)
            return F.masked.masked_mean(objective), F.masked.masked_mean(kl)

        before, kl = surrogate_and_kl()
        gradient = F.trust_region.flat_gradient(before, parameters, retain=True)
        product = F.trust_region.fisher_vector_product(kl, parameters, self.cg_damping)
        step = F.trust_region.natural_step(product, gradient, self.max_kl, self.cg_iterations)
        norms = {"gradient_norm": gradient.norm(), "natural_step": step.norm()}
        if what := not_finite(loss=before.detach(), **norms):
            state.skip_step(what, ", step of the policy", batch, coefficients, self.skip_budget)
            return {"line_search_fraction": 0.0}
        start, gains = theta.clone(), {0.0: 0.0}

        @torch.no_grad()
        def measure(share: float) -> tuple[float, float]:
            theta.copy_(start + share * step)
            after, moved = surrogate_and_kl()
            gains[share] = float(after - before)
            return gains[share], float(moved)

        share = F.trust_region.line_search(
            measure, self.max_kl, self.line_search_decay, self.line_search_tries
        )
        theta.copy_(start + share * step)
        return {
            "policy_loss": -gains[share],
            "line_search_fraction": share,
            "policy_grad_norm": float(norms["gradient_norm"]),
        }
