"""From completions to a batch: the reward of every token, advantages, value targets.

The batch is the very one of control, a row per token, so that losses and readings are too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from proximo.errors import TrainingError
from proximo.functional.returns import group_relative, leave_one_out, td_error
from proximo.language.config import Sampling
from proximo.language.model import LanguagePolicy
from proximo.language.reference import FrozenReference
from proximo.language.sequences import Sequences, per_token, reply_ends
from proximo.language.token_ppo import TokenPPO
from proximo.types import Batch

TOLERANCE = 1e-4
"""How far a token's log-probability may lie from the sampler's, relative to the largest."""

ROUNDING = 0.05
"""The same in bfloat16, in nats and on average, as single tokens lie further off. At the usual clip
range of 0.2, more than that would decide what is clipped."""


class OldPolicy(NamedTuple):
    """The old policy and the reference on what was drawn. All [B]."""

    log_prob: Tensor
    value: Tensor
    reference: Tensor  # log-probabilities of the reference, or of the policy where there is none

    @property
    def log_ratio(self) -> Tensor:
        """Log π - log π_ref: k1, whose mean over the policy's own tokens is the KL."""
        return self.log_prob - self.reference


@torch.no_grad()
def evaluate_old(
    policy: LanguagePolicy,
    reference: FrozenReference | None,
    sequences: Sequences,
    sampling: Sampling,
    micro_batch: int,
    *,
    critic: bool,
) -> OldPolicy:
    """Evaluate every token as the update will, at most `micro_batch` sequences at a time."""

    def evaluate(part: Sequences) -> tuple[Tensor, Tensor, Tensor]:
        now = policy.evaluate(part, sampling, entropy=False, value=critic)
        ref = now.log_prob
        if reference is not None:
            ref = reference.log_prob(part, sampling, policy.stops)
        return now.log_prob, now.value, ref

    return OldPolicy(*per_token(sequences, micro_batch, evaluate))


def check_drawn(by_sampler: Tensor, old: OldPolicy, dtype: str = "float32") -> float:
    """The largest gap between the sampler's log-probabilities and the update's, in nats.

    Raises `TrainingError` where they are not the same policy's: then no ratio means anything.
    """
    gaps = (by_sampler - old.log_prob).abs()
    gap, mean = float(gaps.max()), float(gaps.mean())
    if dtype == "bfloat16" and not mean <= ROUNDING:
        raise TrainingError(
            f"log-probabilities in sampling and in the update differ by {mean:.2g} nats on "
            "average: if float32 (run.dtype) does not mend it, this model's cache, positions or "
            "padding do not work as they should"
        )
    if dtype == "float32" and not gap <= TOLERANCE * max(1.0, float(by_sampler.abs().max())):
        raise TrainingError(
            f"log-probabilities in sampling and in the update differ by {gap:.2g} nats: this "
            "model's cache, positions or padding do not work as they should"
        )
    return gap


def shaped(
    score: Tensor, dense: Tensor, log_ratio: Tensor, beta: float, response: Tensor
) -> Tensor:
    """r_t = dense_t - β (log π - log π_ref)_t, and the score in the last token; 0 in padding.

    Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, token by token. score: [M], one for each reply,
    of which a conversation with an env has several; the others [N, R].
    """
    reward = torch.where(response, dense - beta * log_ratio, 0)
    reward[reply_ends(response)] += score
    return reward


COMPARED: dict[str, Callable[[Tensor], Tensor]] = {
    "rloo": leave_one_out,
    "grpo": group_relative,
    "dr-grpo": partial(group_relative, scale=False),
}
"""Advantages [P, k] from the returns of k completions of each prompt."""


def prepare(
    algorithm: TokenPPO, sequences: Sequences, old: OldPolicy, reward: Tensor, k: int = 1
) -> Batch:
    """A row per token of the completions, in order of sequence, then of time. reward: [N, R].

    Advantages run backwards in each completion from its last token, which ends an episode: being
    cut off at the longest length is part of the task, so nothing is expected after it. What an
    env said is skipped: behind a reply's last token comes the first one of the next reply. Or all
    tokens of a completion have that of its return, Σ_t r_t, among the k completions of its prompt.
    """
    response, lengths = sequences.response, sequences.lengths.unsqueeze(-1)
    time = torch.arange(int(lengths.max()), device=lengths.device)
    real = time < lengths  # [N, T] the model's own tokens side by side
    terminated = (time == lengths - 1).t()

    def laid_out(x: Tensor) -> Tensor:
        """[B] -> [T, N], 0 in padding."""
        return torch.zeros(real.shape, dtype=x.dtype, device=x.device).masked_scatter(real, x).t()

    def flat(x: Tensor) -> Tensor:
        return x.t()[real]

    value = laid_out(old.value if algorithm.critic else torch.zeros_like(old.value))
    following = torch.cat([value[1:], torch.zeros_like(value[:1])])
    received = laid_out(reward.to(value)[response])
    delta = td_error(received, value, following, terminated, algorithm.gamma)
    if algorithm.grouped:
        own = COMPARED[algorithm.advantage](reward.sum(-1).view(-1, k))
        advantage = own.view(-1).to(value).expand_as(value)
    else:
        advantage = algorithm.advantages(algorithm.advantage, delta, terminated)
    other = algorithm.value_target
    same = other in ("same", algorithm.advantage)
    target = value + (advantage if same else algorithm.advantages(other, delta, terminated))
    episode = torch.arange(len(response), device=value.device).repeat_interleave(sequences.lengths)
    nothing = old.log_prob.new_empty(len(episode), 0)
    tokens = sequences.actions
    return Batch(
        obs=sequences.positions[:, -response.shape[-1] :][
            response
        ],  # what stands before is in `sequences`
        action=tokens,
        log_prob=old.log_prob,
        parameters=nothing,
        value=flat(value),
        advantage=algorithm.normalized(flat(advantage), episode),
        target=flat(target),
        episode=episode,
        segment_id=episode,
        initial_state=nothing,
    )
