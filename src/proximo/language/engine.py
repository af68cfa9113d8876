"""The engine of language models: PPO's losses over sequences, in micro-batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from proximo import functional as F
from proximo.engines.base import UpdateEngine
from proximo.language.config import KLConfig
from proximo.language.model import LanguagePolicy
from proximo.language.records import OldPolicy, TokenBatch
from proximo.language.reference import FrozenReference
from proximo.language.sequences import Sequences, by_length, per_token
from proximo.language.token_ppo import TokenPPO
from proximo.nets.actor_critic import Evaluation
from proximo.nets.optimizer import FlatOptimizer

ExtraGradient = Callable[[], Tensor | None]
"""Adds to the gradient of a minibatch, and returns the loss it belongs to, if any."""


class LanguageEngine(UpdateEngine):
    """Evaluates and updates a language policy. Its `Layout` gives indices of whole sequences."""

    def __init__(
        self,
        policy: LanguagePolicy,
        optimizer: FlatOptimizer,
        micro_batch: int,
        kl: KLConfig | None = None,
        extra: ExtraGradient = lambda: None,
    ) -> None:
        super().__init__("torch", policy, optimizer)
        self.micro_batch = micro_batch
        self._kl, self._extra = kl or KLConfig(), extra
        self.beta = 0.0  # weight of the KL in the loss
        self.actor_frozen = False  # only the critic learns: gradients of the model are 0

    @torch.no_grad()
    def evaluate_batch(self, batch: Any, *, entropy: bool) -> Evaluation:
        """New log-probabilities of all tokens; values are the old ones, no entropy. All [B]."""
        lm, decoding = self.policy.lm, self.policy.decoding
        (log_prob,) = per_token(
            batch.sequences, self.micro_batch, lambda part: [lm.log_prob(part, decoding)]
        )
        distribution: Any = None  # not kept: it is as large as the vocabulary
        return Evaluation(log_prob, None, batch.value, distribution)

    def gradient(
        self, objective: TokenPPO, minibatch: TokenBatch, coefficients: dict[str, float]
    ) -> dict[str, Tensor]:
        self.optimizer.zero_grad()
        terms = self.add_gradient(objective, minibatch, coefficients)
        if (extra := self._extra()) is not None:
            terms["ptx_loss"] = extra
        for parameter in self.policy.actor_parameters() if self.actor_frozen else ():
            if parameter.grad is not None:
                parameter.grad.zero_()
        return terms

    def add_gradient(
        self, algorithm: TokenPPO, minibatch: TokenBatch, coefficients: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Add the gradient of a minibatch to the parameters'; returns the terms of its loss.

        L = 1/B Σ over its B tokens, whatever the micro-batches: each counts by its share of the
        tokens. A mean over the n sequences weighs each token by B/(n |y|).
        """
        sequences, count = minibatch.sequences, len(minibatch)
        advantage = algorithm.standardized(minibatch.advantage)
        weight = torch.ones_like(advantage)
        if algorithm.loss_mean == "sequences":
            lengths = sequences.lengths
            weight = count / (len(lengths) * lengths[sequences.owner])
        # The objective of w A is w times that of A, for every w > 0 and every clip.
        minibatch = dataclasses.replace(minibatch, advantage=weight * advantage)
        # The advantages are standardised above, not in each micro-batch.
        plain = dataclasses.replace(algorithm, normalize_advantage="none")
        totals: dict[str, Tensor] = {}
        for part in by_length(sequences, sequences.numbers, self.micro_batch):
            piece, weights = minibatch.select(part), weight[sequences.rows_of(part)]
            share = len(piece) / count
            new = self.policy.evaluate(
                piece.sequences, entropy=algorithm.values_entropy, value=algorithm.critic
            )
            loss, terms = plain.loss_of(self.policy, new, piece, coefficients)
            if self._kl.where == "loss" and self.beta:  # the KL penalty against the reference model
                # k3's samples are of its second argument, here the policy's.
                k3 = self._kl.estimator == "k3"
                pair = new.log_prob, piece.reference
                kl = F.kl.k3(*reversed(pair)) if k3 else F.kl.k2(*pair)
                terms["kl_loss"] = F.masked.masked_mean(weights * kl)
                loss = loss + self.beta * terms["kl_loss"]
            for extra in self.loss_terms:  # of callbacks
                loss = loss + extra(self.policy, piece)
            torch.autograd.backward(share * loss)
            for name, term in {**terms, "loss": loss}.items():
                totals[name] = totals.get(name, 0.0) + share * term.detach()
        return totals


@torch.no_grad()
def evaluate_old(
    policy: LanguagePolicy,
    reference: FrozenReference | None,
    sequences: Sequences,
    micro_batch: int,
    *,
    critic: bool,
) -> OldPolicy:
    """Evaluate all tokens as the update does, at most `micro_batch` sequences at a time."""

    def evaluate(part: Sequences) -> tuple[Tensor, Tensor, Tensor]:
        new = policy.evaluate(part, entropy=False, value=critic)
        if reference is None:
            return new.log_prob, new.value, new.log_prob
        return new.log_prob, new.value, reference.log_prob(part, policy.decoding)

    return OldPolicy(*per_token(sequences, micro_batch, evaluate))
