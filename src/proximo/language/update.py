"""The gradient steps of PPO on completions, in micro-batches that change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from proximo.engines.nonfinite import not_finite
from proximo.functional.kl import k2, k3
from proximo.functional.masked import explained_variance, masked_mean, standardize
from proximo.language.config import KLConfig, Sampling
from proximo.language.model import LanguagePolicy
from proximo.language.sequences import Sequences, by_length, per_token, rows_of
from proximo.language.token_ppo import TokenPPO
from proximo.nets.actor_critic import Evaluation
from proximo.nets.optimizer import FlatOptimizer, clip_gradient
from proximo.types import Batch, Metrics

Gradient = Callable[[], Tensor | None]
"""Adds to the gradient, and returns the loss it belongs to."""
Skip = Callable[[str, int, int, Tensor], None]
"""Told of a minibatch that is not stepped along: why, its epoch and number, its sequences."""


def add_gradient(
    algorithm: TokenPPO,
    policy: LanguagePolicy,
    sequences: Sequences,
    batch: Batch,
    chosen: Tensor,
    sampling: Sampling,
    coefficients: Mapping[str, float],
    micro_batch: int,
    reference: Tensor,
    kl: KLConfig,
    beta: float,
) -> dict[str, Tensor]:
    """Add the gradient of a minibatch to the parameters'; returns the terms of its loss.

    L = 1/B Σ over its B tokens, whatever the micro-batches: each of them weighs as many tokens as
    it has. A mean over its n sequences weighs each token by B/(n |y|). chosen: [n] the minibatch's
    sequences; reference: log-probabilities [batch].
    """
    lengths = sequences.lengths
    rows = rows_of(lengths, chosen)
    advantage, weight = batch.advantage.clone(), torch.ones_like(batch.advantage)
    if algorithm.normalize_advantage == "minibatch":
        advantage[rows] = standardize(advantage[rows])
    if algorithm.loss_mean == "sequences":
        weight = len(rows) / (len(chosen) * lengths[batch.episode])
    # The objective of w A is w times that of A, for every w > 0 and every clip.
    batch = dataclasses.replace(batch, advantage=weight * advantage)
    # The loss is control's own. Its advantages are those above, not each micro-batch's.
    plain = dataclasses.replace(algorithm, normalize_advantage="none")
    totals: dict[str, Tensor] = {}
    for part in by_length(sequences, chosen, micro_batch):
        own = rows_of(lengths, part)
        piece, share = batch[own], len(own) / len(rows)
        new = policy.evaluate(
            sequences.select(part),
            sampling,
            entropy=algorithm.values_entropy,
            value=algorithm.critic,
        )
        loss, terms = plain.loss_of(policy, new, piece, coefficients)  # type: ignore[arg-type]
        if kl.where == "loss" and beta:
            # k3's samples are of its second argument: here the policy's, so the reference is first.
            toward = reference[own]
            each = k2(new.log_prob, toward) if kl.estimator == "k2" else k3(toward, new.log_prob)
            terms["kl_loss"] = masked_mean(weight[own] * each)
            loss = loss + beta * terms["kl_loss"]
        (share * loss).backward()  # type: ignore[no-untyped-call]
        for name, term in {**terms, "loss": loss}.items():
            totals[name] = totals.get(name, 0.0) + share * term.detach()
    return totals


def descend(
    algorithm: TokenPPO,
    policy: LanguagePolicy,
    optimizer: FlatOptimizer,
    sequences: Sequences,
    batch: Batch,
    generator: torch.Generator,
    *,
    sampling: Sampling,
    coefficients: dict[str, float],
    micro_batch: int,
    reference: Tensor,
    kl: KLConfig,
    beta: float,
    also: Gradient,
    skip: Skip = lambda *_: None,
    policy_moves: bool = True,
) -> Metrics:
    """K epochs of minibatches of sequences; ends early by `target_kl`. Returns what to report.

    also: adds the gradient of further terms; skip: told of minibatches that are left out, because
    their loss or gradient is not finite; policy_moves: else only the critic learns.
    """
    count = len(sequences.tokens)
    size = {"shuffled": algorithm.minibatch_size, "episodes": 1, "whole": count}
    totals: dict[str, Tensor] = {}
    steps = epochs = 0
    for _ in range(algorithm.epochs):
        order = torch.arange(count)
        if algorithm.minibatches == "shuffled":
            order = torch.randperm(count, generator=generator)
        order = order.to(batch.log_prob.device)
        minibatches = torch.split(order, size[algorithm.minibatches])
        for number, chosen in enumerate(minibatches, 1):
            optimizer.zero_grad()
            terms = add_gradient(
                algorithm,
                policy,
                sequences,
                batch,
                chosen,
                sampling,
                coefficients,
                micro_batch,
                reference,
                kl,
                beta,
            )
            if (extra := also()) is not None:
                terms["ptx_loss"] = extra
            if not policy_moves:
                for parameter in policy.actor_parameters():
                    parameter.grad.zero_()  # type: ignore[union-attr]
            terms["grad_norm"] = clip_gradient(optimizer.gradients, algorithm.max_grad_norm)
            if what := not_finite(loss=terms["loss"], gradient_norm=terms["grad_norm"]):
                skip(what, epochs + 1, number, chosen)
                continue
            optimizer.step()
            steps += 1
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.detach()
        epochs += 1
        if algorithm.target_kl is not None:
            now = after(policy, sequences, sampling, micro_batch)
            if float(masked_mean(k3(now, batch.log_prob))) > algorithm.target_kl:
                break
    metrics = {name: float(total) / steps for name, total in totals.items()}
    return {**metrics, "epochs": epochs, "gradient_steps": steps}


@torch.no_grad()
def after(
    policy: LanguagePolicy, sequences: Sequences, sampling: Sampling, micro_batch: int
) -> Tensor:
    """Log-probabilities of all tokens by the policy as it stands. [B]."""
    (found,) = per_token(
        sequences,
        micro_batch,
        lambda part: [policy.evaluate(part, sampling, entropy=False, value=False).log_prob],
    )
    return found


def readings(
    algorithm: TokenPPO,
    policy: LanguagePolicy,
    batch: Batch,
    now: Tensor,
    coefficients: dict[str, float],
) -> Metrics:
    """KL(old, new), the share beyond the clip, and how much of the targets values explained."""
    new = Evaluation(now, None, batch.value, None)  # type: ignore[arg-type]
    found = algorithm.read(policy, new, batch, coefficients)  # type: ignore[arg-type]
    if algorithm.critic:
        found["explained_variance"] = explained_variance(batch.value, batch.target)
    return {name: float(value) for name, value in found.items()}
