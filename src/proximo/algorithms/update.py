"""The gradient step, minibatches and epochs: where the time goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from proximo.functional.masked import explained_variance
from proximo.functional.moments import batch_moments, merge, no_moments
from proximo.functional.schedules import as_schedule
from proximo.types import Batch, Metrics, TrainState

if TYPE_CHECKING:
    from proximo.algorithms.base import OnPolicy
    from proximo.nets.actor_critic import ActorCritic

Loss = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
"""Minibatch -> what to minimise, and terms to report."""


def make_optimizer(
    groups: list[list[nn.Parameter]], kind: str, eps: float
) -> torch.optim.Optimizer:
    """An optimizer over one flat vector per group, in which the parameters become views.

    A step on one vector of P numbers costs a few kernels; on the dozen tensors of a small network
    it costs a few dozen, more than the arithmetic. Values, gradients and what the modules see of
    them are unchanged. kind: adam, rmsprop or sgd; eps: added to the denominator.
    """
    flats = [_flatten(group) for group in groups]
    if kind == "adam":
        return torch.optim.Adam([{"params": [flat]} for flat in flats], eps=eps, fused=True)
    if kind == "rmsprop":
        return torch.optim.RMSprop([{"params": [flat]} for flat in flats], eps=eps)
    return torch.optim.SGD([{"params": [flat]} for flat in flats])


def _flatten(parameters: list[nn.Parameter]) -> nn.Parameter:
    flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
    flat.grad = torch.zeros_like(flat)
    sizes = [p.numel() for p in parameters]
    pieces = zip(
        parameters, torch.split(flat.data, sizes), torch.split(flat.grad, sizes), strict=True
    )
    for parameter, values, gradient in pieces:
        parameter.data = values.view_as(parameter)
        parameter.grad = gradient.view_as(parameter)
    return flat


def gradient_step(optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float | None) -> Tensor:
    """Descend along g min(1, max_norm/|g|). Returns |g| before the cut, on the device."""
    gradients: list[Tensor] = [group["params"][0].grad for group in optimizer.param_groups]
    for gradient in gradients:
        gradient.zero_()
    loss.backward()  # type: ignore[no-untyped-call]
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    norm: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if max_norm is not None:
        scale = max_norm / norm.clamp(min=max_norm)
        for gradient in gradients:
            gradient.mul_(scale)
    optimizer.step()
    return norm


def shuffled(batch: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """The batch in a new random order, in minibatches of `size`; the last one may be smaller."""
    order = torch.randperm(len(batch), generator=generator).to(batch.obs.device)
    mixed = batch[order]
    return (mixed[begin : begin + size] for begin in range(0, len(batch), size))


def by_episode(batch: Batch) -> Iterator[Batch]:
    """One whole episode each, in order."""
    begin = 0
    for length in torch.bincount(batch.episode).tolist():
        yield batch[begin : begin + length]
        begin += length


def epoch(
    optimizer: torch.optim.Optimizer,
    minibatches: Iterator[Batch],
    loss: Loss,
    max_norm: float | None,
) -> list[dict[str, Tensor]]:
    """One pass over the data; returns the terms of each minibatch. Nothing is read on the host."""
    terms = []
    for minibatch in minibatches:
        value, found = loss(minibatch)
        terms.append({**found, "grad_norm": gradient_step(optimizer, value, max_norm)})
    return terms


def descend(algorithm: OnPolicy, state: TrainState, batch: Batch) -> Metrics:
    """K epochs of minibatches, then the running moments of the observations.

    Nothing is read on the host before the end, except once per epoch where the algorithm may stop.
    Raises `TrainState.fault` if the loss was not finite.
    """
    policy: ActorCritic = state.policy  # type: ignore[assignment]
    coefficients = algorithm.coefficients(state)
    rates = set_learning_rates(algorithm, state)
    terms: list[dict[str, Tensor]] = []
    for done in range(1, algorithm.epochs + 1):
        minibatches = (
            by_episode(batch)
            if algorithm.minibatches == "episodes"
            else shuffled(batch, algorithm.minibatch_size, state.shuffling)
        )
        terms += epoch(
            state.optimizer,
            minibatches,
            lambda minibatch: algorithm.loss(policy, minibatch, coefficients),
            algorithm.max_grad_norm,
        )
        if done < algorithm.epochs and algorithm.stops(policy, batch):
            break
    with torch.no_grad():
        readings = {
            **{name: torch.stack([t[name] for t in terms]).mean() for name in terms[0]},
            **algorithm.read(policy, batch, coefficients),
            "explained_variance": explained_variance(batch.value, batch.target),
        }
    if policy.normalize_obs:
        before = state.obs_moments or no_moments(policy.obs_shape)
        state.obs_moments = merge(before, batch_moments(batch.obs.cpu()))
        policy.set_obs_moments(state.obs_moments)
    values = torch.stack([reading.double() for reading in readings.values()])
    metrics = dict(zip(readings, values.tolist(), strict=True))  # one transfer for all of them
    if not math.isfinite(loss := metrics.pop("loss")):
        raise state.fault(
            f"the loss became {loss} in update {state.updates + 1}: a smaller learning rate, "
            "reward scaling or gradient clipping are the usual remedies"
        )
    return {
        **metrics,
        **rates,
        **coefficients,
        "epochs": done,
        "gradient_steps": len(terms),
        "gradient_steps_saved": len(terms) // done * (algorithm.epochs - done),
    }


def set_learning_rates(algorithm: OnPolicy, state: TrainState) -> dict[str, float]:
    """Bring the optimizer's step sizes to where their schedules stand; returns them."""
    rates = {"learning_rate": as_schedule(algorithm.learning_rate)(state.progress)}
    if algorithm.critic_learning_rate is not None:
        rates["critic_learning_rate"] = as_schedule(algorithm.critic_learning_rate)(state.progress)
    for group, rate in zip(state.optimizer.param_groups, rates.values(), strict=True):
        group["lr"] = rate
    return rates
