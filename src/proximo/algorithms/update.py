"""The gradient step, minibatches and epochs: where the time goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from proximo.functional.masked import explained_variance
from proximo.functional.moments import batch_moments, merge, no_moments
from proximo.functional.schedules import as_schedule
from proximo.native.library import NativeUpdate, obstacle
from proximo.types import Batch, Metrics, TrainState, UsageError

if TYPE_CHECKING:
    from proximo.algorithms.base import OnPolicy
    from proximo.nets.actor_critic import ActorCritic

Loss = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
"""Minibatch -> what to minimise, and terms to report."""
Layout = tuple[Tensor, list[int]]
"""Order of the samples [B], and the bounds of the minibatches in it: 0, ..., B."""


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


def lay_out(algorithm: OnPolicy, batch: Batch, generator: torch.Generator) -> Layout:
    """The minibatches of an epoch: samples in a new random order, or one whole episode each.

    The last of the shuffled ones may be smaller. Returns the order and where each one ends.
    """
    count = len(batch)
    if algorithm.minibatches == "episodes":
        lengths = torch.bincount(batch.episode)
        return torch.arange(count), [0, *lengths.cumsum(0).tolist()]
    order = torch.randperm(count, generator=generator)
    return order, [*range(0, count, algorithm.minibatch_size), count]


def torch_epoch(
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    layout: Layout,
    loss: Loss,
    max_norm: float | None,
) -> dict[str, Tensor]:
    """One pass over the data; returns the minibatches' terms, added up. No read on the host."""
    order, bounds = layout
    mixed = batch[order.to(batch.obs.device)]
    terms = []
    for begin, end in pairwise(bounds):
        value, found = loss(mixed[begin:end])
        terms.append({**found, "grad_norm": gradient_step(optimizer, value, max_norm)})
    return {name: torch.stack([t[name] for t in terms]).sum() for name in terms[0]}


def choose_engine(
    wish: str, algorithm: OnPolicy, policy: ActorCritic, optimizer: torch.optim.Optimizer
) -> tuple[str, str]:
    """Which engine computes the updates, and why. A rule on what there is, never on a timing.

    auto: native where it can be, else torch. Raises `UsageError` for native where it cannot be.
    """
    if wish == "torch":
        return "torch", "as asked for"
    coefficients = algorithm.coefficients(0.0)
    hindrance = obstacle(policy, algorithm.loss_spec(coefficients), optimizer)
    if not hindrance:
        return "native", "a small network on a CPU"
    if wish == "native":
        raise UsageError(f"run.engine is native, but {hindrance}: use torch or auto")
    return "torch", f"not native: {hindrance}"


def descend(algorithm: OnPolicy, state: TrainState, batch: Batch) -> Metrics:
    """K epochs of minibatches, then the running moments of the observations.

    Nothing is read on the host before the end, except once per epoch where the algorithm may stop.
    Raises `TrainState.fault` if a loss, gradient or reading of the new policy was not finite.
    """
    policy: ActorCritic = state.policy  # type: ignore[assignment]
    coefficients = algorithm.coefficients(state.progress)
    rates = set_learning_rates(algorithm, state)
    spec = algorithm.loss_spec(coefficients) if state.engine == "native" else None
    native = NativeUpdate(policy, state.optimizer, batch, spec) if spec else None

    def loss(minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return algorithm.loss(policy, minibatch, coefficients)

    epochs, steps = [], 0
    for done in range(1, algorithm.epochs + 1):
        layout = lay_out(algorithm, batch, state.shuffling)
        epochs.append(
            native.epoch(*layout)
            if native
            else torch_epoch(state.optimizer, batch, layout, loss, algorithm.max_grad_norm)
        )
        steps += len(layout[1]) - 1
        if done < algorithm.epochs and algorithm.stops(policy, batch):
            break
    with torch.no_grad():
        readings = {
            **{name: torch.stack([e[name] for e in epochs]).sum() / steps for name in epochs[0]},
            **algorithm.read(policy, batch, coefficients),
            "explained_variance": explained_variance(batch.value, batch.target),
        }
    if policy.normalize_obs:
        before = state.obs_moments or no_moments(policy.obs_shape)
        state.obs_moments = merge(before, batch_moments(batch.obs.cpu()))
        policy.set_obs_moments(state.obs_moments)
    # One transfer for all of them; in double precision only here, as not every device has it.
    values = torch.stack([reading.to(policy.dtype) for reading in readings.values()])
    metrics = dict(zip(readings, values.cpu().double().tolist(), strict=True))
    # The readings after the update are computed with its weights: they show what the losses,
    # computed before each step, cannot.
    for name in ("loss", "grad_norm", "approx_kl", "entropy"):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise state.fault(
                f"{name} became {metrics[name]} in update {state.updates + 1}: a smaller learning "
                "rate, reward scaling or observation normalisation are the usual remedies"
            )
    del metrics["loss"]
    return {
        **metrics,
        **rates,
        **coefficients,
        "epochs": done,
        "gradient_steps": steps,
        "gradient_steps_saved": steps // done * (algorithm.epochs - done),
    }


def set_learning_rates(algorithm: OnPolicy, state: TrainState) -> dict[str, float]:
    """Bring the optimizer's step sizes to where their schedules stand; returns them."""
    rates = {"learning_rate": as_schedule(algorithm.learning_rate)(state.progress)}
    if algorithm.critic_learning_rate is not None:
        rates["critic_learning_rate"] = as_schedule(algorithm.critic_learning_rate)(state.progress)
    for group, rate in zip(state.optimizer.param_groups, rates.values(), strict=True):
        group["lr"] = rate
    return rates
