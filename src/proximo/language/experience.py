"""From completions to what PPO learns from: the old policy's evaluation and the tokens' rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.errors import TrainingError
from proximo.language.config import Sampling
from proximo.language.model import LanguagePolicy
from proximo.language.records import OldPolicy
from proximo.language.reference import FrozenReference
from proximo.language.sequences import Sequences, per_token

TOLERANCE = 1e-4
"""Difference allowed between the log-probabilities of sampler and update, relative to the largest
of them."""

ROUNDING = 0.05
"""The same in bfloat16, in nats and on average, as single tokens differ more. At the usual clip
range of 0.2, a larger one would decide what is clipped."""


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
    """Evaluate all tokens as the update does, at most `micro_batch` sequences at a time."""

    def evaluate(part: Sequences) -> tuple[Tensor, Tensor, Tensor]:
        new = policy.evaluate(part, sampling, entropy=False, value=critic)
        if reference is None:
            return new.log_prob, new.value, new.log_prob
        return new.log_prob, new.value, reference.log_prob(part, sampling, policy.stops)

    return OldPolicy(*per_token(sequences, micro_batch, evaluate))


def check_drawn(by_sampler: Tensor, old: OldPolicy, dtype: str = "float32") -> float:
    """Largest difference between the log-probabilities of sampler and update, in nats.

    Raises `TrainingError` where they are those of different policies: no ratio would mean anything.
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
    score: Tensor, dense: Tensor, log_ratio: Tensor, beta: float, sequences: Sequences
) -> Tensor:
    """Rewards with the KL penalty against the reference model: r_t = dense_t - β log(π / π_ref)_t.

    The score is added in the last token; padding has 0.
    Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, token by token. score: [M], one for each reply,
    of which a conversation with an env has several; the others and the result [N, R], on the CPU.
    """
    reward = torch.where(sequences.response.cpu(), dense - beta * log_ratio, 0)
    reward[sequences.reply_ends.cpu()] += score
    return reward
