"""An update: the order of the minibatches, the engine that takes the steps, what it reports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from proximo.algorithms.engines import Engine, Layout, NativeEngine, TorchEngine
from proximo.functional.masked import explained_variance
from proximo.functional.moments import batch_moments, merge, no_moments
from proximo.functional.schedules import as_schedule
from proximo.native.library import obstacle
from proximo.types import Batch, Metrics, TrainState, UsageError

if TYPE_CHECKING:
    from proximo.algorithms.base import OnPolicy
    from proximo.nets.actor_critic import ActorCritic
    from proximo.nets.optimizer import FlatOptimizer


def lay_out(algorithm: OnPolicy, batch: Batch, generator: torch.Generator) -> Layout:
    """The minibatches of an update: in a new random order every epoch, or whole episodes in turn.

    The last of the shuffled ones may be smaller.
    """
    count, epochs = len(batch), algorithm.epochs
    if algorithm.minibatches == "episodes":
        lengths = torch.bincount(batch.episode)
        return Layout(torch.arange(count).expand(epochs, count), [0, *lengths.cumsum(0).tolist()])
    orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(epochs)])
    return Layout(orders, [*range(0, count, algorithm.minibatch_size), count])


def choose_engine(wish: str, algorithm: OnPolicy, policy: ActorCritic) -> tuple[str, str]:
    """What acts and computes the updates, and why. A rule on what there is, never on a timing.

    auto: native where it can be, else torch. Raises `UsageError` for native where it cannot be.
    """
    if wish == "compile" and algorithm.minibatches == "episodes":
        raise UsageError(
            "run.engine is compile, but algorithm.minibatches is episodes, each of a length of its "
            "own, which would all have to be compiled: use torch or auto"
        )
    if wish in ("torch", "compile"):
        return wish, "as set"
    hindrance = obstacle(policy, algorithm.loss_spec(algorithm.coefficients(0.0)))
    if not hindrance:
        return "native", "a small network on a CPU"
    if wish == "native":
        raise UsageError(f"run.engine is native, but {hindrance}: use torch or auto")
    return "torch", f"not native: {hindrance}"


def make_engine(name: str, policy: ActorCritic, optimizer: FlatOptimizer, threads: int) -> Engine:
    """torch, compile or native."""
    if name == "native":
        return NativeEngine(policy, optimizer, threads)
    return TorchEngine(policy, optimizer, compiled=name == "compile")


def descend(algorithm: OnPolicy, state: TrainState, batch: Batch) -> Metrics:
    """K epochs of minibatches, then the running moments of the observations.

    Raises `TrainState.fault` if a loss, gradient or reading of the new policy was not finite.
    """
    policy: ActorCritic = state.policy  # type: ignore[assignment]
    engine: Engine = state.engine
    coefficients = algorithm.coefficients(state.progress)
    rates = set_learning_rates(algorithm, state)
    layout = lay_out(algorithm, batch, state.shuffling)
    done = engine.descend(algorithm, batch, layout, coefficients)
    with torch.no_grad():
        readings = {
            **{name: total / done.steps for name, total in done.terms.items()},
            **algorithm.read(engine, batch, coefficients),
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
        "epochs": done.epochs,
        "gradient_steps": done.steps,
        "gradient_steps_saved": (algorithm.epochs - done.epochs) * (len(layout.bounds) - 1),
    }


def set_learning_rates(algorithm: OnPolicy, state: TrainState) -> dict[str, float]:
    """Bring the optimizer's step sizes to where their schedules stand; returns them."""
    rates = {"learning_rate": as_schedule(algorithm.learning_rate)(state.progress)}
    if algorithm.critic_learning_rate is not None:
        rates["critic_learning_rate"] = as_schedule(algorithm.critic_learning_rate)(state.progress)
    state.optimizer.rates = list(rates.values())
    return rates
