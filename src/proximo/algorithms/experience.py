"""From a rollout to a batch: values, advantages and value targets, once per rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proximo.functional.masked import standardize, standardize_groups
from proximo.functional.moments import batch_moments, merge, no_moments
from proximo.functional.returns import discounted_sum, gae, n_step, td_error
from proximo.types import Batch, Rollout, Segments, TrainingError, TrainState, Transitions

if TYPE_CHECKING:
    from proximo.algorithms.base import OnPolicy
    from proximo.algorithms.engines import Engine
    from proximo.nets.actor_critic import ActorCritic

REWARD_CLIP = 10.0
"""Scaled rewards are cut off at this many deviations of the return."""


@torch.no_grad()
def prepare(algorithm: OnPolicy, state: TrainState, rollout: Rollout) -> Batch:
    """Evaluate what happened with the policy that did it, and lay it out for the update.

    Values of true successors: the next row's, except where an episode ended (the value of its
    final observation; none if it terminated) and in the last row (of what followed it).
    """
    policy: ActorCritic = state.policy  # type: ignore[assignment]
    reward = _scaled(algorithm, state, rollout) if algorithm.normalize_reward else rollout.reward
    log_prob, parameters, value, next_value, recurrent_state = _judge(state, rollout)
    if not algorithm.critic:
        value = next_value = torch.zeros_like(value)
    delta = td_error(reward, value, next_value, rollout.terminated, algorithm.gamma)
    advantage = estimate(algorithm, algorithm.advantage, delta, rollout.boundary)
    other = algorithm.value_target
    same = other in ("same", algorithm.advantage)
    target = value + (advantage if same else estimate(algorithm, other, delta, rollout.boundary))

    keep, episode, segment_id = _layout(rollout, policy)

    def flat(x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(0, 1)[keep]

    advantage, target = normalized(algorithm, flat(advantage), episode), flat(target)
    if policy.normalize_returns:
        before = state.return_moments or no_moments()
        state.return_moments = merge(before, batch_moments(target.cpu()))
        policy.set_return_moments(state.return_moments)
    return Batch(
        obs=flat(rollout.obs),
        action=flat(rollout.action),
        log_prob=flat(log_prob),
        parameters=flat(parameters),
        value=flat(value),
        advantage=advantage,
        target=target,
        episode=episode,
        segment_id=segment_id,
        initial_state=flat(recurrent_state),
    )


def _judge(state: TrainState, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of the old policy: log π(a|s), what defines π(·|s), V(s), V(s') of the true successors.

    And the carry before each stretch, at its first row. The last state of an episode is judged with
    what was remembered there. All [T, N, ...].
    """
    engine: Engine = state.engine
    log_prob, parameters, value, before, after = _evaluate(state, rollout)

    def closing(obs: Tensor, recurrent_state: Tensor) -> Tensor:
        alone = torch.arange(len(obs), device=obs.device)
        return engine.value(
            obs, Segments(alone, recurrent_state) if recurrent_state.shape[-1] else None
        )

    following = torch.cat([value[1:], closing(rollout.last_obs, after[-1])[None]])
    if len(rollout.final_obs):
        ends = after.flatten(0, 1)[rollout.final_index]
        following.view(-1)[rollout.final_index] = closing(rollout.final_obs, ends)
    return log_prob, parameters, value, following, before


def _evaluate(state: TrainState, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log π(a|s), what defines π(·|s), V(s) or Q(s,a), and the recurrent states. All [T, N, ...].

    The state before a segment stands at its first row, with 0 at the others; the one after it at
    all of its rows. `state.recurrent_state` becomes the one that the next rollout begins with.
    """
    if rollout.initial_state.shape[-1]:
        found = _evaluate_by_stretches(state, rollout)
    else:
        old = state.engine.evaluate(rollout.obs, rollout.action, entropy=False)
        nothing = rollout.initial_state.new_empty(*rollout.mask.shape, 0)
        found = (old.log_prob, old.distribution.parameters, old.value, nothing, nothing)
    _check_acted(rollout, found[1][[0, -1]])
    return found


def _evaluate_by_stretches(
    state: TrainState, rollout: Rollout
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The first stretch of every episode, then the second ones, which need what the first left."""
    policy: ActorCritic = state.policy  # type: ignore[assignment]
    steps, num_envs = rollout.mask.shape

    def flat(x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(0, 1)

    age = flat(_ages(rollout))
    obs, action, segment_id = map(
        flat, (rollout.obs, rollout.action, _segment_ids(rollout, policy))
    )
    before = rollout.initial_state.new_zeros(num_envs * steps, policy.state_size)
    before[::steps] = rollout.initial_state
    found, rows, number = [], [], age // policy.bptt_steps
    after = torch.empty_like(before)
    for which in range(int(number.max()) + 1):
        here = (number == which).nonzero().squeeze(-1)
        goes_on = here[(age[here] == which * policy.bptt_steps) & (which > 0)]
        before[goes_on] = after[goes_on - 1]
        own = torch.unique_consecutive(segment_id[here], return_inverse=True)[1]
        segments = Segments(own, before[here])
        old = state.engine.evaluate(obs[here], action[here], entropy=False, segments=segments)
        assert old.recurrent_state is not None
        after[here] = old.recurrent_state[own]
        found.append((old.log_prob, old.distribution.parameters, old.value))
        rows.append(here)
    order = torch.cat(rows).argsort()

    def back(x: Tensor) -> Tensor:
        return x.view(num_envs, steps, *x.shape[1:]).transpose(0, 1)

    log_prob, parameters, value = (
        back(torch.cat(parts)[order]) for parts in zip(*found, strict=True)
    )
    before, after = back(before), back(after)
    state.recurrent_state = torch.where(rollout.boundary[-1].unsqueeze(-1), 0.0, after[-1])
    return log_prob, parameters, value, before, after


def _ages(rollout: Rollout) -> Tensor:
    """[T, N] int64: how long a row's episode has been going on in this rollout."""
    begins = torch.ones_like(rollout.boundary)
    begins[1:] = rollout.boundary[:-1]
    time = torch.arange(len(begins), device=begins.device).unsqueeze(-1).expand(begins.shape)
    return time - torch.where(begins, time, 0).cummax(0).values


def _segment_ids(rollout: Rollout, policy: ActorCritic | None = None) -> Tensor:
    """[T, N] int64: the number of a row's episode, counted env after env.

    Or, given a policy, of the stretch that its memory is trained through.
    """
    age = _ages(rollout)
    begins = age % policy.bptt_steps == 0 if policy else age == 0
    steps, num_envs = age.shape
    return begins.t().reshape(-1).cumsum(0).view(num_envs, steps).t() - 1


@torch.no_grad()
def prepare_transitions(algorithm: OnPolicy, state: TrainState, rollout: Rollout) -> Transitions:
    """S, A, R, S' and A', for a critic of actions; `value` and `advantage` are Q(S,A).

    A' is what was done in the next row. After the last row and where an episode ended it is still
    to be drawn: after the last row from the noise with which the next rollout begins, so that it
    is what will be done there (but for the running moments of the observations, which move in
    between), and in the last state of an episode from noise of its own.
    """
    policy: ActorCritic = state.policy  # type: ignore[assignment]
    reward = _scaled(algorithm, state, rollout) if algorithm.normalize_reward else rollout.reward
    log_prob, parameters, value, recurrent_state, _ = _evaluate(state, rollout)
    next_obs = torch.cat([rollout.obs[1:], rollout.last_obs[None]])
    undecided = rollout.boundary.clone()
    undecided[-1] = True
    noise = policy.head.noise(state.shuffling, tuple(undecided.shape)).to(policy.device)
    state.ahead = policy.head.noise(state.collecting, (1, undecided.shape[1]))
    ended = torch.zeros_like(undecided).view(-1)
    if len(rollout.final_obs):
        next_obs.flatten(0, 1)[rollout.final_index] = rollout.final_obs
        ended[rollout.final_index] = True
    goes_on = ~ended.view_as(undecided)[-1]
    noise[-1, goes_on] = state.ahead.to(noise)[0, goes_on]
    keep, episode, segment_id = _layout(rollout, policy)

    def flat(x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(0, 1)[keep]

    value = flat(value)
    return Transitions(
        obs=flat(rollout.obs),
        action=flat(rollout.action),
        log_prob=flat(log_prob),
        parameters=flat(parameters),
        value=value,
        advantage=normalized(algorithm, value, episode),
        target=value,  # until the actor has moved
        episode=episode,
        segment_id=segment_id,
        initial_state=flat(recurrent_state),
        reward=flat(reward),
        terminated=flat(rollout.terminated),
        next_obs=flat(next_obs),
        next_action=flat(torch.cat([rollout.action[1:], rollout.action[-1:]])),
        undecided=flat(undecided),
        noise=flat(noise),
    )


def normalized(algorithm: OnPolicy, advantage: Tensor, episode: Tensor) -> Tensor:
    """Brought to mean 0 and deviation 1 here, unless that is left to each minibatch."""
    if algorithm.normalize_advantage == "batch":
        return standardize(advantage)
    if algorithm.normalize_advantage == "episode":
        return standardize_groups(advantage, episode)
    return advantage


def estimate(algorithm: OnPolicy, kind: str, delta: Tensor, boundary: Tensor) -> Tensor:
    """Advantages of this kind from the TD errors δ. All [T, N]."""
    if kind == "n-step":
        return n_step(delta, boundary, algorithm.gamma, algorithm.n)
    lam = {"gae": algorithm.lam, "td0": 0.0, "monte-carlo": 1.0}[kind]
    return gae(delta, boundary, algorithm.gamma, lam)


def _layout(rollout: Rollout, policy: ActorCritic) -> tuple[Tensor, Tensor, Tensor]:
    """Where the real steps lie, env after env in order of time; each one's episode, stretch."""
    keep = rollout.mask.t().reshape(-1).nonzero().squeeze(-1)

    def number(stretches: Tensor) -> Tensor:
        own = stretches.t().reshape(-1)[keep]
        numbers: Tensor = torch.unique_consecutive(own, return_inverse=True)[1]
        return numbers

    return keep, number(_segment_ids(rollout)), number(_segment_ids(rollout, policy))


def _scaled(algorithm: OnPolicy, state: TrainState, rollout: Rollout) -> Tensor:
    """Rewards over the deviation of R_t = r_t + γ R_{t-1}, taken over all steps so far.

    From OpenAI's baselines (VecNormalize); not in the paper. It keeps returns near unit size
    without moving their zero.
    """
    reward = rollout.reward.cpu().double().flip(0)
    if state.reward_return is None:
        state.reward_return = torch.zeros(reward.shape[1], dtype=torch.float64)
    # Backwards in time it is the recursion of the advantages; a boundary cuts it from behind.
    starts = torch.cat([torch.zeros_like(rollout.boundary[:1]), rollout.boundary[:-1]]).cpu()
    decay = algorithm.gamma * (~starts).double().flip(0)
    carried = torch.cat([reward, state.reward_return[None]])
    decay = torch.cat([decay, torch.zeros_like(decay[:1])])
    running = discounted_sum(carried, decay)[:-1].flip(0)
    state.reward_return = torch.where(rollout.boundary[-1].cpu(), 0, running[-1])
    before = state.reward_moments or no_moments()
    state.reward_moments = merge(before, batch_moments(running[rollout.mask.cpu()]))
    scale = torch.rsqrt(state.reward_moments.var + 1e-8).to(rollout.reward)
    return (rollout.reward * scale).clamp(-REWARD_CLIP, REWARD_CLIP)


def _check_acted(rollout: Rollout, evaluated: Tensor) -> None:
    """The distribution that acted must be the one that is evaluated, or no ratio means much.

    The first row catches what moved during the rollout, the last one what came in its course.
    """
    # Batches of other sizes are summed in another order: relative to the largest number in play.
    tolerance = 1e-5 * max(1.0, float(evaluated.abs().max()))
    real = torch.stack([torch.ones_like(rollout.mask[0]), rollout.mask[-1]])
    acted, evaluated = rollout.acted[real], evaluated[real]
    if not torch.allclose(acted, evaluated, rtol=1e-5, atol=tolerance):
        gap = (acted - evaluated).abs().max().item()
        raise TrainingError(
            f"the policy that acted is not the one that is evaluated (parameters differ by "
            f"{gap:.2g}): act() and evaluate() of the network disagree, or something that "
            "acting depends on moved during the rollout"
        )
