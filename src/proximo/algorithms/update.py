"""An update: the order of the minibatches, the engine that takes the steps, what it reports."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proximo.algorithms.engines import (
    Engine,
    Layout,
    NativeEngine,
    TorchEngine,
    clip_gradient,
)
from proximo.algorithms.skips import REMEDIES, leave_out, not_finite
from proximo.functional.kl import adapted_rate
from proximo.functional.masked import alone, explained_variance, masked_mean
from proximo.functional.moments import batch_moments, merge, no_moments
from proximo.functional.returns import td_error
from proximo.native.library import obstacle
from proximo.types import Batch, Metrics, Segments, TrainState, Transitions, UsageError

if TYPE_CHECKING:
    from proximo.algorithms.base import OnPolicy
    from proximo.nets.actor_critic import ActorCritic
    from proximo.nets.optimizer import FlatOptimizer


def lay_out(algorithm: OnPolicy, batch: Batch, generator: torch.Generator) -> Layout:
    """The minibatches of an update: in a new random order every epoch, or whole episodes in turn.

    The last of the shuffled ones may be smaller. Where advantages are standardised in each, none
    is of one sample.
    """
    count, epochs = len(batch), algorithm.epochs
    if algorithm.minibatches != "shuffled":
        bounds = [0, count]
        if algorithm.minibatches == "episodes":
            bounds = [0, *torch.bincount(batch.episode).cumsum(0).tolist()]
        orders, edges = torch.arange(count).expand(epochs, count), [bounds]
    elif batch.segments:
        lengths = torch.bincount(batch.segment_id).cpu()
        drawn = [_by_stretches(lengths, algorithm.minibatch_size, generator) for _ in range(epochs)]
        orders = torch.stack([order for order, _ in drawn])
        edges = [bounds for _, bounds in drawn]
    else:
        orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(epochs)])
        edges = [[*range(0, count, algorithm.minibatch_size), count]]
    joined = 0
    if algorithm.standardizes_minibatches:
        before = sum(map(len, edges))
        edges = [_without_single(bounds) for bounds in edges]
        joined = before - sum(map(len, edges))
    return Layout(orders, edges * (epochs // len(edges)), joined)


def _without_single(bounds: list[int]) -> list[int]:
    """Minibatches of one sample join the next, and the last one the one before it."""
    kept = bounds[:1]
    for end in bounds[1:]:
        if end - kept[-1] > 1:
            kept.append(end)
    if len(kept) == 1:
        return bounds[:1] + bounds[-1:]
    return [*kept[:-1], bounds[-1]]


def _lone(algorithm: OnPolicy, batch: Batch, joined: int) -> Metrics:
    """How many advantages stood alone where they are standardised, if any did."""
    count = joined
    if algorithm.normalize_advantage == "episode":
        count = int(alone(batch.episode).sum())
    elif algorithm.normalize_advantage != "none":
        count += len(batch) == 1
    return {"lone_advantages": count} if count else {}


def _by_stretches(
    lengths: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, list[int]]:
    """Whole stretches, in a random order, in minibatches of about this size."""
    drawn = torch.randperm(len(lengths), generator=generator)
    own = lengths[drawn]
    ends = own.cumsum(0)
    count = int(ends[-1])
    # Where each begins, less where it is put: what to add to 0, 1, 2, ...
    shift = (lengths.cumsum(0) - lengths)[drawn] - (ends - own)
    order = torch.arange(count) + shift.repeat_interleave(own)
    # A minibatch ends with the stretch that is nearest to a multiple of the size.
    goals = size * torch.arange(1, -(-count // size))
    after = torch.searchsorted(ends, goals)
    before = (after - 1).clamp(min=0)
    nearer = torch.where(goals - ends[before] < ends[after] - goals, before, after)
    return order, sorted({0, *ends[nearer].tolist(), count})


def choose_engine(wish: str, algorithm: OnPolicy, policy: ActorCritic) -> tuple[str, str]:
    """What acts and computes the updates, and why. A rule on what there is, never on a timing.

    auto: native where it can be, else torch. Raises `UsageError` for native where it cannot be.
    """
    if wish == "compile" and algorithm.action_values:
        raise UsageError(f"run.engine is compile, but {algorithm.name} has no one loss: use torch")
    if wish == "compile" and policy.state_size:
        raise UsageError("run.engine is compile, but the policy has a memory: use torch or auto")
    if wish == "compile" and policy.own:
        raise UsageError(
            "run.engine is compile, but net.module is code of your own: use torch or auto"
        )
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

    A minibatch whose loss or gradient is not finite is left out. Raises `TrainingError` after too
    many of those, and `TrainState.fault` if the new policy or a reading of it is not finite.
    """
    engine: Engine = state.engine
    coefficients = algorithm.coefficients(state.progress, state.beta)
    rates = set_learning_rates(algorithm, state)
    layout = lay_out(algorithm, batch, state.shuffling)

    def skip(what: str, epoch: int, number: int, samples: Batch) -> None:
        where = f", epoch {epoch}, minibatch {number}"
        leave_out(algorithm, state, what, where, samples, coefficients)

    done = engine.descend(algorithm, batch, layout, coefficients, skip)
    terms = {name: total / done.steps for name, total in done.terms.items()}
    return {
        **_read(algorithm, state, batch, coefficients, terms),
        **rates,
        **coefficients,
        "epochs": done.epochs,
        "gradient_steps": done.steps,
        "gradient_steps_saved": layout.steps - done.steps - done.skipped,
        **_lone(algorithm, batch, layout.joined),
    }


def act_then_judge(algorithm: OnPolicy, state: TrainState, batch: Transitions) -> Metrics:
    """A step of the actor along Q(S,A); A' from the moved actor; a step of the critic of actions.

    What is not finite is treated as in `descend`.
    """
    policy: ActorCritic = state.policy  # type: ignore[assignment]
    coefficients = algorithm.coefficients(state.progress)
    rates = set_learning_rates(algorithm, state)

    def step(which: int, samples: Batch, loss: Tensor) -> Tensor | None:
        """Returns the norm of the gradient; None: it was left out."""
        flat = state.optimizer.flats[which]
        flat.grad.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradient([flat], algorithm.max_grad_norm)
        if what := not_finite(loss=loss.detach(), gradient_norm=norm):
            where = f", step of the {('actor', 'critic')[which]}"
            leave_out(algorithm, state, what, where, samples, coefficients)
            return None
        state.optimizer.step(which)
        return norm

    new = policy.evaluate(
        batch.obs, batch.action, entropy=algorithm.values_entropy, segments=batch.segments
    )
    advantage = algorithm.standardized(batch.advantage)
    policy_loss = -masked_mean(algorithm.objective(policy, new, batch, advantage, coefficients))
    loss = policy_loss
    if new.entropy is not None:
        loss = loss - coefficients["entropy_coef"] * masked_mean(new.entropy)
    norm = step(0, batch, loss)
    with torch.no_grad():
        next_value = _next_value(policy, batch)
        zero = torch.zeros_like(next_value)
        target = td_error(batch.reward, zero, next_value, batch.terminated, algorithm.gamma)
        if policy.normalize_returns:
            before = state.return_moments or no_moments()
            state.return_moments = merge(before, batch_moments(target.cpu()))
            policy.set_return_moments(state.return_moments)
    batch = dataclasses.replace(batch, target=target)
    value = policy.action_value(batch.obs, batch.action, batch.segments)
    error = algorithm.value_error(policy, value, batch, coefficients["value_clip"])
    value_loss = masked_mean(error)
    critic_norm = step(1, batch, value_loss)
    terms: dict[str, Tensor] = {}
    if norm is not None:
        terms |= {"policy_loss": policy_loss.detach(), "grad_norm": norm}
    if critic_norm is not None:
        terms |= {"value_loss": value_loss.detach(), "critic_grad_norm": critic_norm}
    return {
        **_read(algorithm, state, batch, coefficients, terms),
        **rates,
        **coefficients,
        **_lone(algorithm, batch, joined=0),
    }


def _next_value(policy: ActorCritic, batch: Transitions) -> Tensor:
    """Q(S',A'), A' being what was done there or, where nothing was yet, drawn now. [B]."""
    obs, noise, action, segments = batch.next_obs, batch.noise, batch.next_action, batch.segments
    undecided = batch.undecided
    following: Tensor | slice = slice(None)
    if segments:  # what is remembered in S' comes of S: every stretch with the state behind it
        places = torch.arange(len(batch), device=obs.device) + batch.segment_id
        following = places + 1

        def extended(behind: Tensor, own: Tensor) -> Tensor:
            rows = behind.new_zeros(int(following[-1]) + 1, *behind.shape[1:])
            rows[following] = behind
            rows[places] = own
            return rows

        segments = Segments(
            extended(batch.segment_id, batch.segment_id),
            extended(0 * batch.initial_state, batch.initial_state),
        )
        obs, action = extended(obs, batch.obs), extended(action, batch.action)
        noise, undecided = extended(noise, 0 * noise), extended(undecided, undecided & False)
    drawn = policy.draw(obs, noise, segments)
    action = torch.where(undecided.view(-1, *[1] * (drawn.dim() - 1)), drawn, action)
    return policy.action_value(obs, action, segments)[following]


def _read(
    algorithm: OnPolicy,
    state: TrainState,
    batch: Batch,
    coefficients: dict[str, float],
    terms: dict[str, Tensor],
) -> Metrics:
    """The terms of the loss and what the policy has become; moves what follows from them.

    That is, the running moments of the observations and the scale of the learning rate.
    """
    policy: ActorCritic = state.policy  # type: ignore[assignment]
    with torch.no_grad():
        new = state.engine.evaluate(batch.obs, batch.action, entropy=True, segments=batch.segments)
        readings = {**terms, **algorithm.read(policy, new, batch, coefficients)}
        if algorithm.critic:
            readings["explained_variance"] = explained_variance(batch.value, batch.target)
        else:
            readings.pop("value_loss", None)
    if policy.normalize_obs:
        before = state.obs_moments or no_moments(policy.obs_shape)
        state.obs_moments = merge(before, batch_moments(batch.obs.cpu()))
        policy.set_obs_moments(state.obs_moments)
    moments = (state.obs_moments, state.return_moments, state.reward_moments)
    variances = [each.var for each in moments if each]
    if not state.engine.finite(*state.engine.weights, *variances):
        what = "weights or running moments became infinite"
        raise state.fault(f"{what} in update {state.updates + 1}: {REMEDIES}")
    # One transfer for all of them; in double precision only here, as not every device has it.
    values = torch.stack([reading.to(policy.dtype) for reading in readings.values()])
    metrics = dict(zip(readings, values.cpu().double().tolist(), strict=True))
    # The readings after the update are computed with its weights: they show what the losses,
    # computed before each step, cannot.
    for name in ("approx_kl", "kl", "entropy"):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise state.fault(
                f"{name} became {metrics[name]} in update {state.updates + 1}: {REMEDIES}"
            )
    metrics.pop("loss", None)
    if algorithm.desired_kl is not None:
        state.rate_scale = adapted_rate(state.rate_scale, metrics["kl"], algorithm.desired_kl)
    return metrics


def set_learning_rates(algorithm: OnPolicy, state: TrainState) -> dict[str, float]:
    """Bring the optimizer's step sizes to where their schedules stand; returns them."""
    rates = algorithm.rates(state.progress, state.rate_scale)
    names = ("learning_rate", "critic_learning_rate")[: len(state.optimizer.flats)]
    state.optimizer.rates = [rates.get(name, 0.0) for name in names]
    return rates
