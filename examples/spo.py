"""SPO, Simple Policy Optimization: a quadratic penalty on the ratio in place of PPO's clip.

proximo train examples.spo:SPO CartPole-v1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from proximo import PPO, Batch
from proximo.nets.actor_critic import ActorCritic, Evaluation


@dataclass(frozen=True, kw_only=True)
class SPO(PPO):
    """J = E[r A - |A| / (2 ε) (r - 1)²]: each sample is best at r = 1 ± ε, and ε is `clip`.

    Xie et al. 2024 (arXiv 2401.16025). Beyond [1 - ε, 1 + ε] the gradient leads back, where PPO's
    is 0.
    """

    def objective(
        self,
        policy: ActorCritic,
        new: Evaluation,
        batch: Batch,
        advantage: Tensor,
        coefficients: Mapping[str, float | Tensor],
    ) -> Tensor:
        ratio = (new.log_prob - batch.log_prob).exp()
        penalty: Tensor = advantage.abs() / (2 * coefficients["clip"]) * (ratio - 1).square()
        return ratio * advantage - penalty
