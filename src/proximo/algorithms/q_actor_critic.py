"""Actor-critic with a critic of actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from proximo.algorithms.base import OnPolicy
from proximo.types import Batch, Metrics, Rollout, TrainState, Transitions


@dataclass(frozen=True, kw_only=True)
class QActorCritic(OnPolicy):
    """Actor-critic: Q(s,a) says how good an action was, in place of what came of it.

    L_actor = -log pi(A|S) Q(S,A);  L_critic = (R + gamma Q(S',A') - Q(S,A))^2

    Sutton et al. 2000; Konda & Tsitsiklis 2000. First the actor moves, then the moved actor draws
    A', which is what is done next, then the critic moves. No bootstrap where S' is terminal; where
    a time limit cut the episode, A' is drawn in its true last state. An update learns from all of
    its rollout in one step each: with one env and one step it is the textbook's. The critic has
    an output per discrete action, or takes a continuous one beside the observation.
    """

    name: ClassVar[str] = "qac"
    action_values: ClassVar[bool] = True
    apart: ClassVar[bool] = True
    rollout_steps: ClassVar[int] = 1
    without: ClassVar[tuple[str, ...]] = (
        *("lam", "advantage", "n", "value_target", "critic", "epochs", "minibatch_size"),
        *("minibatches", "value_coef"),
    )

    normalize_advantage: Literal["minibatch", "batch", "episode", "none"] = "none"
    """Over which samples Q(S,A) is brought to mean 0 and deviation 1 for the actor."""
    epochs: int = 1
    """K, passes over each rollout."""
    minibatches: Literal["shuffled", "episodes", "whole"] = "whole"
    """Shuffled anew every epoch, one whole episode each, in order, or all samples in one."""

    def rates(self, progress: float, scale: float) -> dict[str, float]:
        rates = super().rates(progress, scale)
        return {
            **rates,
            "critic_learning_rate": rates.get("critic_learning_rate", rates["learning_rate"]),
        }

    def prepare(self, state: TrainState, rollout: Rollout) -> Transitions:
        """S, A, R, S' and, where it is known, A'; `advantage` and `value` are Q(S,A)."""
        from proximo.algorithms.experience import prepare_transitions

        return prepare_transitions(self, state, rollout)

    def update(self, state: TrainState, batch: Batch) -> Metrics:
        from proximo.algorithms.update import act_then_judge

        assert isinstance(batch, Transitions)
        return act_then_judge(self, state, batch)
