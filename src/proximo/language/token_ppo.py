"""PPO's settings for tokens: control's, and what only completions have.

The command line lists these without loading PyTorch, so methods import what they need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from proximo import functional as F
from proximo.algorithms.ppo import PPO
from proximo.bounds import above, at_least, between
from proximo.errors import UsageError
from proximo.functional.schedules import Coefficient
from proximo.types import Batch

if TYPE_CHECKING:
    from torch import Tensor

    from proximo.nets.actor_critic import Evaluation

GROUPED = ("rloo", "grpo", "dr-grpo")
"""Advantages that compare the completions of one prompt with each other."""


@dataclass(frozen=True, kw_only=True)
class TokenPPO(PPO):
    """PPO as it is usual for language models: no discount, small steps, the value loss clipped.

    L = E[min(r A, clip(r, 1 - eps, 1 + eps) A)] - c1 E[(V - V_targ)^2] + c2 E[entropy]

    The loss is control's own. Besides, completions can be compared with others of the same prompt
    in place of a critic, and the ratio r can be that of a whole completion.
    """

    gamma: Annotated[float, between(0, 1)] = 1.0
    """Discount per token (gamma)."""
    advantage: Literal["gae", "n-step", "td0", "monte-carlo", "rloo", "grpo", "dr-grpo"] = "gae"  # type: ignore[assignment]  # more than in control
    """How advantages are estimated; monte-carlo is the return minus the value. Without a critic:
    the completion's return less the mean of the others of its prompt (rloo), or of all of them
    (dr-grpo), and over their deviation (grpo)."""
    normalize_advantage: Literal["minibatch", "batch", "episode", "none"] = "batch"
    """Over which tokens advantages are brought to mean 0 and deviation 1; an episode is a
    completion."""
    learning_rate: Annotated[Coefficient, between(0, 10)] = 1e-5
    """Step size of the optimizer; a number or a schedule such as linear:1e-5:0."""
    epochs: Annotated[int, at_least(1)] = 4
    """K, passes over the completions of an update."""
    minibatch_size: Annotated[int, at_least(1)] = 16
    """M, completions per gradient step."""
    max_grad_norm: Annotated[float | None, above(0)] = 1.0
    """The gradient is scaled down to this norm; none turns it off."""
    value_coef: Annotated[float, between(0, 1e6)] = 0.1
    """Weight of the value loss (c1 of eq. 9)."""
    value_loss: Literal["mse", "huber", "clipped"] = "clipped"
    """Squared error, Huber's, or the larger of the error and its clipped version."""
    ratio: Literal["token", "sequence"] = "token"
    """r is each token's, or for all tokens of a completion their geometric mean (GSPO), which
    moves far less: give it a clip of about 3e-4."""
    loss_mean: Literal["tokens", "sequences"] = "tokens"
    """The objective and the KL in the loss are means over all tokens of a minibatch, or over
    those of each completion and then over completions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.grouped:
            return
        why = f"algorithm.advantage is {self.advantage}"
        if self.critic:
            raise UsageError(f"{why}, which has no critic: turn off algorithm.critic")
        self._refuse(("gamma", "lam", "n"), why)
        if self.normalize_advantage == "episode":
            raise UsageError(
                f"algorithm.normalize_advantage is episode, but {why}, one number for all tokens "
                "of a completion, which would become 0: use batch or none"
            )
        single = self.minibatches == "episodes" or self.minibatch_size == 1
        if self.normalize_advantage == "minibatch" and single:
            raise UsageError(
                f"algorithm.normalize_advantage is minibatch, but {why}, one number for all tokens "
                "of a completion, and minibatches hold one completion each, whose advantage would "
                "become 0: use batch or none"
            )
        if self.advantage == "grpo" and self.normalize_advantage != "none":
            raise UsageError(
                f"algorithm.normalize_advantage is {self.normalize_advantage}, but {why}, which "
                "is normalised by its group: use none"
            )

    @property
    def grouped(self) -> bool:
        """Whether completions are compared with others of the same prompt."""
        return self.advantage in GROUPED

    def acted(self, new: Evaluation, batch: Batch) -> Tensor:
        if self.ratio == "token":
            return new.log_prob
        return F.losses.sequence_log_prob(new.log_prob, batch.log_prob, batch.episode)


TOKENS = TokenPPO()
"""Change it by `dataclasses.replace(TOKENS, clip_high=0.28)`."""
