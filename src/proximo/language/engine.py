"""The engine of language models: PPO's losses over sequences, in micro-batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from proximo import functional as F
from proximo.engines.base import Outcome, UpdateEngine
from proximo.engines.nonfinite import Skip, not_finite
from proximo.language.config import KLConfig, Sampling
from proximo.language.model import LanguagePolicy
from proximo.language.records import TokenBatch
from proximo.language.sequences import by_length, per_token
from proximo.language.token_ppo import TokenPPO
from proximo.nets.actor_critic import Evaluation
from proximo.nets.optimizer import FlatOptimizer, clip_gradient
from proximo.types import Layout

ExtraGradient = Callable[[], Tensor | None]
"""Adds to the gradient of a minibatch, and returns the loss it belongs to, if any."""


class LanguageEngine(UpdateEngine):
    """Evaluates and updates a language policy. Its `Layout` gives indices of whole sequences."""

    def __init__(
        self,
        policy: LanguagePolicy,
        optimizer: FlatOptimizer,
        sampling: Sampling,
        micro_batch: int,
        kl: KLConfig | None = None,
        extra: ExtraGradient = lambda: None,
    ) -> None:
        super().__init__("torch", policy, optimizer)
        self.sampling, self.micro_batch = sampling, micro_batch
        self._kl, self._extra = kl or KLConfig(), extra
        self.beta = 0.0  # weight of the KL in the loss
        self.actor_frozen = False  # only the critic learns: gradients of the model are 0

    @torch.no_grad()
    def evaluate_batch(self, batch: Any, *, entropy: bool) -> Evaluation:
        """New log-probabilities of all tokens; values are the old ones, no entropy. All [B]."""
        log_prob_of, how = self.policy.lm.log_prob, (self.sampling, self.policy.stops)
        (log_prob,) = per_token(
            batch.sequences, self.micro_batch, lambda part: [log_prob_of(part, *how)]
        )
        distribution: Any = None  # not kept: it is as large as the vocabulary
        return Evaluation(log_prob, None, batch.value, distribution)

    def descend(
        self,
        objective: Any,
        batch: Any,
        layout: Layout,
        coefficients: dict[str, float],
        skip: Skip = lambda *_: None,
    ) -> Outcome:
        """Epochs of gradient steps over minibatches of sequences: see `UpdateEngine.descend`."""
        totals: dict[str, Tensor] = {}
        epoch = steps = skipped = self.clipped_steps = 0
        most = math.inf if objective.max_grad_norm is None else objective.max_grad_norm
        orders = layout.orders.to(batch.log_prob.device)
        for epoch, (order, bounds) in enumerate(zip(orders, layout.bounds, strict=True), 1):
            for number, (begin, end) in enumerate(pairwise(bounds), 1):
                minibatch = batch.select(order[begin:end])
                terms = self._gradient(objective, minibatch, coefficients)
                if what := not_finite(loss=terms["loss"], gradient_norm=terms["grad_norm"]):
                    skipped += 1
                    skip(what, epoch, number, minibatch)
                    continue
                self.optimizer.step()
                steps += 1
                self.clipped_steps += terms["grad_norm"] > most
                for name, term in terms.items():
                    totals[name] = totals.get(name, 0.0) + term.detach()
            if epoch < len(orders) and objective.stops(self, batch):
                break
        return Outcome(totals, epoch, steps, skipped)

    def _gradient(
        self, algorithm: TokenPPO, minibatch: TokenBatch, coefficients: dict[str, float]
    ) -> dict[str, Tensor]:
        """Set the clipped gradient of a minibatch; returns the terms of its loss."""
        self.optimizer.zero_grad()
        terms = self.add_gradient(algorithm, minibatch, coefficients)
        if (extra := self._extra()) is not None:
            terms["ptx_loss"] = extra
        if self.actor_frozen:
            for parameter in self.policy.actor_parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
        terms["grad_norm"] = clip_gradient(self.optimizer.gradients, algorithm.max_grad_norm)
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
                piece.sequences,
                self.sampling,
                entropy=algorithm.values_entropy,
                value=algorithm.critic,
            )
            loss, terms = plain.loss_of(self.policy, new, piece, coefficients)
            if self._kl.where == "loss" and self.beta:  # the KL penalty against the reference model
                terms["kl_loss"] = F.masked.masked_mean(weights * self._kl_terms(new, piece))
                loss = loss + self.beta * terms["kl_loss"]
            for extra in self.loss_terms:  # of callbacks
                loss = loss + extra(self.policy, piece)
            torch.autograd.backward(share * loss)
            for name, term in {**terms, "loss": loss}.items():
                totals[name] = totals.get(name, 0.0) + share * term.detach()
        return totals

    def _kl_terms(self, new: Evaluation, piece: TokenBatch) -> Tensor:
        """Estimates of the KL to the reference, per token. [b]."""
        if self._kl.estimator == "k2":
            return F.kl.k2(new.log_prob, piece.reference)
        # k3's samples are of its second argument, here the policy's: the reference comes first.
        return F.kl.k3(piece.reference, new.log_prob)
