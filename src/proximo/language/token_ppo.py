"""PPO's settings for tokens: control's, and those of completions alone.

The command line lists these without loading PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from proximo import functional as F
from proximo.algorithms.ppo import PPO
from proximo.bounds import above, at_least, between
from proximo.errors import UsageError
from proximo.functional.schedules import Coefficient
from proximo.language.records import OldPolicy, TokenBatch
from proximo.types import Batch, Layout, Metrics

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from proximo.language.sequences import Sequences
    from proximo.nets.actor_critic import Evaluation
    from proximo.state import TrainState

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
    (dr-grpo), and over their standard deviation (grpo)."""
    normalize_advantage: Literal["minibatch", "batch", "episode", "none"] = "batch"
    """Tokens over which advantages are brought to mean 0 and standard deviation 1; an episode is a
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
        over = self.normalize_advantage
        single = self.minibatches == "episodes" or self.minibatch_size == 1
        if over == "episode" or (over == "minibatch" and single):
            held = "" if over == "episode" else ", and minibatches hold one completion each"
            raise UsageError(
                f"algorithm.normalize_advantage is {over}, but {why}, one number for all tokens of "
                f"a completion{held}, which would become 0: use batch or none"
            )
        if self.advantage == "grpo" and over != "none":
            raise UsageError(
                f"algorithm.normalize_advantage is {over}, but {why}, which is normalised by its "
                "group: use none"
            )

    @property
    def grouped(self) -> bool:
        """Completions are compared with others of the same prompt."""
        return self.advantage in GROUPED

    def token_batch(
        self, sequences: Sequences, old: OldPolicy, reward: Tensor, group: int = 1
    ) -> TokenBatch:
        """Advantages and value targets of the completions' tokens. reward: [N, R].

        Advantages run backwards in each completion from its last token, which ends an episode: a
        cut at the maximum length is part of the task, so it has no bootstrap. An env's texts are
        skipped: after a reply's last token comes the first token of the next reply. Or all tokens
        of a completion have the advantage of its return, Σ_t r_t, in its group of completions.
        """
        zero = old.value.new_zeros(old.value.shape)
        value = sequences.by_time(old.value if self.critic else zero)
        terminated = sequences.by_time(zero + 1).cumsum(0) == sequences.lengths
        received = sequences.by_time(reward.to(value)[sequences.response])
        if self.grouped:
            compared = self._compare(reward.sum(-1).view(-1, group))
            advantage = compared.view(-1).to(value).expand_as(value)
            target = value + advantage
        else:
            advantage, target = self.estimate(
                received, value, value.roll(-1, 0), terminated, terminated
            )
        flat, episode = sequences.by_token, sequences.owner
        nothing = zero.new_empty(len(zero), 0)
        return TokenBatch(
            obs=sequences.positions[:, -sequences.response.shape[-1] :][sequences.response],
            action=sequences.actions,
            log_prob=old.log_prob,
            parameters=nothing,
            value=flat(value),
            advantage=self.normalized(flat(advantage), episode),
            target=flat(target),
            episode=episode,
            segment_id=episode,
            initial_state=nothing,
            reference=old.reference,
            sequences=sequences,
        )

    def _compare(self, score: Tensor) -> Tensor:
        """Advantages of k completions of each prompt, from their returns. [P, k]."""
        if self.advantage == "rloo":
            return F.returns.leave_one_out(score)
        return F.returns.group_relative(score, scale=self.advantage == "grpo")

    def layout(self, batch: Batch, generator: Generator) -> Layout:
        """Minibatches of whole sequences, in a new random order every epoch."""
        assert isinstance(batch, TokenBatch)
        return F.batches.minibatches(
            self.minibatches,
            self.minibatch_size,
            self.epochs,
            generator,
            episode=batch.sequences.numbers,
            segment=None,
            join_single=False,
        )

    def conclude(
        self,
        state: TrainState,
        batch: Batch,
        coefficients: dict[str, float],
        terms: dict[str, Tensor],
    ) -> Metrics:
        """Control's, and the loss."""
        loss = {"loss": float(terms["loss"])} if terms else {}
        return {**loss, **super().conclude(state, batch, coefficients, terms)}

    def acted(self, new: Evaluation, batch: Batch) -> Tensor:
        """Log-probabilities whose ratio to the old ones the objective clips. [B]."""
        if self.ratio == "token":
            return new.log_prob
        return F.losses.sequence_log_prob(new.log_prob, batch.log_prob, batch.episode)


TOKEN_PPO = TokenPPO()
"""Change it by `dataclasses.replace(TOKEN_PPO, clip_high=0.28)`."""
