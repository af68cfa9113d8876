"""Run the old policy in N envs for T steps, or for K episodes.

While collecting, the policy only acts: log-probabilities and values come from one batched forward
afterwards, through the same `evaluate` that the update uses, or to the bit from what acting kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proximo.engines.graphs import RolloutGraph
from proximo.envs.base import Envs
from proximo.envs.config import EnvConfig
from proximo.envs.tensors import TensorRolloutBuffer, account
from proximo.errors import UsageError, explain, faults
from proximo.functional.random import on_device
from proximo.nets.actor_critic import ActorCritic
from proximo.spaces import MASK, torch_dtype
from proximo.state import TrainState
from proximo.types import FLAGS, EnvState, Episode, Rollout, RolloutBuffer, Watch

BLOCK = 256
"""Steps of a buffer when whole episodes are collected."""
REPORT_INTERVAL = 0.1
"""Seconds between two reports of progress."""


class EpisodeQuota:
    """Counts the first K episodes that *start*: the first K that *end* would favour short ones.

    An env beyond the quota idles, masked.
    """

    def __init__(self, episodes: int, num_envs: int) -> None:
        self.left = self._unstarted = episodes
        self._active = np.arange(num_envs) < episodes
        self._unstarted -= int(self._active.sum())
        self.rows: list[np.ndarray] = []  # per step: the envs whose episode counts

    def count(self, done: np.ndarray) -> None:
        """Count the episodes that ended in a step; others start while some are left."""
        self.rows.append(self._active.copy())
        for i in np.flatnonzero(done & self._active):
            self.left -= 1
            self._active[i] = self._unstarted > 0
            self._unstarted -= int(self._active[i])


@torch.no_grad()
def collect(
    envs: Envs, state: TrainState, env: EnvConfig, *, steps: int, episodes: int = 0
) -> Rollout:
    """T = `steps` rows of experience or, if `episodes` is above 0, that many whole episodes.

    Rewards are shifted, scaled and clipped as `env` says; the returns in `Rollout.episodes` are
    the env's own. Raises `UsageError` before the first update, `TrainingError` after it, for an
    observation or reward that is not finite: env, step and value are named.
    """
    policy = state.policy
    quota = EpisodeQuota(episodes, envs.count) if episodes else None
    if quota:
        envs.fresh(state.envs)
    parts: list[Any] = []
    taken = 0
    recurrent_state = torch.zeros(envs.count, policy.state_size, device=policy.device)
    if policy.state_size:
        if state.recurrent_state is None or quota:  # whole episodes begin anew
            state.recurrent_state = recurrent_state.clone()
        recurrent_state = state.recurrent_state.clone()
    # Where envs reset in a step of their own, a rollout might hold nothing else: then it goes on.
    while not parts or (quota.left if quota else _only_resets(parts[-1])):
        here = parts[-1].obs[-1] if parts else state.envs.obs
        part = allocate(policy, here, BLOCK if quota else steps)
        taken += _step_envs(part, envs, state, quota, taken)
        parts.append(part)
    buffer: RolloutBuffer | TensorRolloutBuffer = _joined(parts, taken)
    if isinstance(buffer, TensorRolloutBuffer):
        final_parts = _finalize_tensors(buffer, quota, state, envs)
    else:
        final_parts = _finalize(buffer, quota, state, envs)
    envs.remember(state.envs, buffer)
    mask, final, final_index, finished, num_valid = final_parts

    device, dtype = policy.device, policy.dtype

    def tensor(array: Any) -> Tensor:
        held = torch.as_tensor(array)
        return held if held.device == device else held.to(device)

    boundary, mask = tensor(buffer.done | ~mask), tensor(mask)
    return Rollout(
        obs=tensor(buffer.obs[:-1]),
        action=tensor(buffer.action),
        reward=tensor(env.shape_reward(buffer.reward)).to(dtype),
        terminated=tensor(buffer.terminated),
        boundary=boundary,  # after a masked row comes another episode too
        mask=mask,
        last_obs=tensor(buffer.obs[-1]),
        final_obs=tensor(final),
        final_index=tensor(final_index),
        acted=tensor(buffer.parameters),
        initial_state=recurrent_state,
        episodes=finished,
        counted=(mask, num_valid),
    )


def _only_resets(buffer: RolloutBuffer | TensorRolloutBuffer) -> bool:
    """No step of this buffer counts. Tensors are not looked at: a reset is followed by a step."""
    if isinstance(buffer, TensorRolloutBuffer) and len(buffer) > 1:
        return False
    return not buffer.valid.any()


Final = tuple[Any, Any, Any, tuple[Episode, ...], int]
"""The mask [T, N]; true successors [F, *obs], and their rows as t*N + i; the finished episodes; the
number of steps that count."""


def _finalize(
    buffer: RolloutBuffer, quota: EpisodeQuota | None, state: TrainState, envs: Envs
) -> Final:
    """Check the numbers of a full buffer, and bring the running episodes up to date."""
    state.envs.obs = buffer.obs[-1].copy()
    mask = buffer.valid & np.stack(quota.rows) if quota else buffer.valid
    final = np.array([obs for *_, obs in buffer.final_obs], buffer.obs.dtype)
    _check_finite(buffer, final, state, envs)
    finished = _account(buffer, mask, state, stagger=envs.stagger)
    count = buffer.reward.shape[1]
    index = np.array([t * count + i for t, i, _ in buffer.final_obs], np.int64)
    final = final.reshape(-1, *buffer.obs.shape[2:])
    return mask, final, index, finished, int(np.count_nonzero(mask))


def _finalize_tensors(
    buffer: TensorRolloutBuffer, quota: EpisodeQuota | None, state: TrainState, envs: Envs
) -> Final:
    """`_finalize` of envs that hold tensors, on their device."""
    policy = state.policy
    state.envs.obs = buffer.obs[-1].clone()
    mask = buffer.valid
    if quota:
        mask = mask & torch.from_numpy(np.stack(quota.rows)).to(mask.device)
    seen, choices = policy.observations, policy.head.num_logits
    found = account(buffer, mask, state.envs, seen, choices, stagger=envs.stagger)
    if not found.finite:
        on_host, final, count = buffer.on_host(), found.final.cpu().numpy(), envs.count
        rows = zip(found.rows.tolist(), final, strict=True)
        on_host.final_obs.extend((*divmod(k, count), row) for k, row in rows)
        _check_finite(on_host, final, state, envs)
    if found.fault:
        raise state.fault(f"{found.fault} of update {state.updates + 1}")
    return mask, found.final, found.rows, found.episodes, found.num_valid


def allocate(policy: ActorCritic, obs: Any, steps: int) -> Any:
    """A `RolloutBuffer` (tensors: a `TensorRolloutBuffer`) that begins with `obs`, [N, *obs]."""
    head, acts, count = policy.head, policy.actions, len(obs)
    device = obs.device if isinstance(obs, Tensor) else None
    number = np.dtype(str(policy.dtype).removeprefix("torch."))
    exact = np.dtype(np.float32 if device and device.type == "mps" else np.float64)
    # Images stay bytes until the network scales them.
    image = obs.dtype in (np.uint8, torch.uint8)
    action_type = np.dtype(np.int64) if head.action_dtype is torch.int64 else number

    def empty(*shape: int, kind: Any) -> Any:
        if device is None:
            return np.empty(shape, kind)
        return torch.empty(shape, dtype=torch_dtype(kind), device=device)

    buffer: Any = (RolloutBuffer if device is None else TensorRolloutBuffer)(
        obs=empty(steps + 1, *obs.shape, kind=np.dtype(np.uint8) if image else number),
        action=empty(steps, count, *head.action_shape, kind=action_type),
        parameters=empty(2, count, head.parameter_count, kind=number),
        env_action=empty(steps, count, *(acts.shape or ()), kind=acts.dtype),
        reward=empty(steps, count, kind=exact),
        final_obs=[],
        **{name: empty(steps, count, kind=np.dtype(bool)) for name in FLAGS},
    )
    buffer.obs[0] = obs
    buffer.terminated[:], buffer.done[:], buffer.valid[:] = False, False, True
    return buffer


def _joined(parts: list[Any], count: int) -> Any:
    """The first `count` steps of these buffers, which follow on one another."""
    first, length = parts[0], len(parts[0])
    if len(parts) == 1 and length == count:
        return first
    cat: Any = np.concatenate
    if isinstance(first, TensorRolloutBuffer):
        cat, final = torch.cat, [rows for part in parts for rows in part.final_obs][:count]
    else:
        ends = [(k * length, *end) for k, part in enumerate(parts) for end in part.final_obs]
        final = [(begin + t, i, obs) for begin, t, i, obs in ends]
    names = ("action", "env_action", "reward", *FLAGS)
    return type(first)(
        obs=cat([first.obs, *(part.obs[1:] for part in parts[1:])])[: count + 1],
        parameters=cat([first.parameters[:1], parts[-1].parameters[1:]]),
        final_obs=final,
        **{name: cat([getattr(part, name) for part in parts])[:count] for name in names},
    )


def _step_envs(
    steps: Any, envs: Envs, state: TrainState, quota: EpisodeQuota | None, taken: int
) -> int:
    """Act and step until buffer or quota is full; returns the steps. taken: those before."""
    policy = state.policy
    noise = policy.head.noise(on_device(state.collecting, policy.device), steps.reward.shape)
    if state.ahead is not None:
        policy.head.continue_noise(noise, state.ahead)
        state.ahead = None
    recurrent_state = state.recurrent_state
    if not quota and state.engine.graphs_of_rollouts and _replayed(steps, envs, state, noise):
        _begin_episodes(recurrent_state, steps, -1)
        return len(steps)
    act, step, env = state.engine.actor(steps, noise, recurrent_state), envs.step, state.envs
    report = _ProgressClock(state.watch, state.steps, steps, quota) if state.watch else None
    run = None if quota else envs.with_actor(state.engine.native_call(act), env, steps)
    t = 0
    looks = policy.masked and isinstance(steps, RolloutBuffer)  # tensors are checked afterwards
    whole = quota or looks or len(envs.groups) < 2
    act_some = None if whole else state.engine.act_some(act)
    try:
        with np.errstate(over="ignore"):  # a number too large for the policy is named afterwards
            for begin, end in _stretches(len(steps), report):
                if run:
                    run(begin, end)
                    t = end - 1
                    continue
                if act_some:
                    for t in _alternate(act_some, envs, env, steps, range(begin, end)):  # noqa: B007 where it failed
                        pass
                    continue
                for t in range(begin, end):
                    if looks and (stuck := policy.stuck(steps.obs[t]) & ~env.resetting).any():
                        raise UsageError(
                            f"the {MASK} of {_whose(envs, int(stuck.argmax()))} allows no action: "
                            "one must be legal until the episode has ended"
                        )
                    act(t)
                    step(env, steps, t)
                    if quota:
                        ended = steps.done[t]
                        quota.count(ended.cpu().numpy() if isinstance(ended, Tensor) else ended)
                        if not quota.left:
                            break
                if quota and not quota.left:
                    break
    except faults() as error:
        where = f"step {taken + t} of update {state.updates + 1}"
        what = str(error) if isinstance(error, UsageError) else explain(error)
        raise state.fault(f"an env failed at {where}: {what}") from error
    _begin_episodes(recurrent_state, steps, t)
    return t + 1


def _begin_episodes(recurrent_state: Tensor | None, steps: Any, t: int) -> None:
    """The hidden state (LSTM, GRU) is reset at episode starts: here, and in `Engine.actor`."""
    if recurrent_state is not None:
        begins = torch.as_tensor(steps.done[t] | ~steps.valid[t], device=recurrent_state.device)
        recurrent_state.masked_fill_(begins.unsqueeze(-1), 0)


def _replayed(steps: Any, envs: Any, state: TrainState, noise: Tensor) -> bool:
    """Take all steps by a CUDA graph; False: they are to be taken one by one.

    The first rollout warms up, the second one is recorded.
    """
    engine, env, recurrent_state = state.engine, state.envs, state.recurrent_state
    noise = noise.to(state.policy.device, state.policy.dtype)
    if not isinstance(steps, TensorRolloutBuffer):
        return False
    if not envs.rollouts:
        envs.rollouts += 1
        return False
    if state.watch:
        state.watch(state.steps, "")
    if envs.graph is not None:
        envs.graph(steps, noise, recurrent_state)
        return True
    own = None if recurrent_state is None else recurrent_state.clone()
    graph = RolloutGraph(allocate(state.policy, steps.obs[0], len(steps)), noise.clone(), own)
    act = engine.actor(graph.buffer, graph.noise, own)

    def run() -> None:
        for t in range(len(steps)):
            act(t)
            envs.step(env, graph.buffer, t)

    words = "rollouts run without a CUDA graph"
    try:
        elsewhere = graph.record(run, envs.envs)
    except RuntimeError as error:  # nothing has run, and yet the envs may hold other tensors
        engine.graphs_of_rollouts = False
        engine.report(f"{words}, and new episodes begin: {explain(error)}")
        envs.fresh(env)
        steps.obs[0] = env.obs
        if recurrent_state is not None:
            recurrent_state.zero_()
        return False
    graph(steps, noise, recurrent_state)
    if elsewhere:
        engine.graphs_of_rollouts = False
        engine.report(
            f"{words}: the env's {elsewhere} is another tensor or number after a step; keep what "
            "changes in tensors, and write into them in place, as with copy_"
        )
    else:
        envs.graph = graph
    return True


def _alternate(
    act: Callable[[int, int, int], None], envs: Envs, env: EnvState, buffer: Any, steps: range
) -> Iterator[int]:
    """Act in one group of envs while the others step; yields the step of what follows.

    Neither an action nor an env depends on the other groups: the same bits as all in step.
    """
    for t in steps:
        for group, rows in enumerate(envs.groups):
            if t > steps.start:
                yield t - 1
                envs.receive(env, buffer, t - 1, group)
            yield t
            act(t, rows.start, rows.stop)
            envs.send(buffer, t, group)
    for group in range(len(envs.groups)):
        envs.receive(env, buffer, steps.stop - 1, group)
    buffer.final_obs.sort(key=lambda end: end[:2])  # as episodes are counted


def _stretches(length: int, report: _ProgressClock | None) -> Iterator[tuple[int, int]]:
    """The steps begin, ..., end - 1 between two reports of progress."""
    begin = 0
    while begin < length:
        end = min(report(begin), length) if report else length
        yield begin, end
        begin = end


class _ProgressClock:
    """Reports the progress of a rollout, and reads the clock as seldom as its envs allow."""

    def __init__(self, watch: Watch, before: int, steps: Any, quota: EpisodeQuota | None) -> None:
        """before: environment steps of earlier rollouts."""
        self._watch, self._before, self._steps, self._quota = watch, before, steps, quota
        self._gap, self._then = 1, time.perf_counter()

    def __call__(self, t: int) -> int:
        """Step t is about to be taken; returns the one before which to come back."""
        now = time.perf_counter()
        wanted = self._gap * REPORT_INTERVAL / max(now - self._then, 1e-9)
        self._gap, self._then = max(1, int(min(wanted, 2 * self._gap))), now
        valid = self._steps.valid
        taken = t * valid.shape[1]  # of tensors, to ask would cost a wait
        if self._quota:
            taken = int(np.sum(self._quota.rows))
        elif isinstance(valid, np.ndarray):
            taken = int(valid[:t].sum())
        self._watch(self._before + taken, "")
        return t + self._gap


def _account(
    buffer: RolloutBuffer, mask: np.ndarray, state: TrainState, *, stagger: bool = False
) -> tuple[Episode, ...]:
    """Bring returns and lengths of the running episodes up to date; returns those that finished.

    Every return is added up from zero, step by step, whatever other episodes paid: equal episodes
    have equal returns, wherever a rollout ends. stagger: the first episode of an env is not scored,
    however it ended: those that ended before its short time limit would be the short ones of all.
    """
    env, (length, count) = state.envs, buffer.reward.shape
    t, i = np.array([(t, i) for t, i, _ in buffer.final_obs], np.int64).reshape(-1, 2).T
    number = np.zeros((length + 1, count), np.int64)
    number[t + 1, i] = 1
    number = number.cumsum(0) * count + np.arange(count)  # [T + 1, N] a number for each episode
    of, most = np.concatenate([number[:1], number[:-1]]).reshape(-1), int(number[-1].max()) + 1

    def added(before: np.ndarray, values: np.ndarray) -> np.ndarray:
        weights = np.concatenate([before[None], values]).reshape(-1)
        return np.bincount(of, weights, most)  # one after the other, in order

    returns = added(env.ret, np.where(buffer.valid, buffer.reward, 0))
    lengths = added(env.length, buffer.valid).astype(np.int64)
    env.ret, env.length = returns[number[-1]], lengths[number[-1]]
    counts = mask[t, i]
    if stagger:
        counts &= (number[t, i] >= count) | (env.episode[i] > number[-1, i] // count)
    ended = number[t, i][counts]
    columns = returns[ended], lengths[ended], buffer.terminated[t, i][counts]
    return tuple(map(Episode._make, zip(*(x.tolist() for x in columns), strict=True)))


def _whose(envs: Envs, row: int) -> str:
    """The owner of a row in words: an env, or an agent in one."""
    env, agent = divmod(row, envs.agents)
    return f"agent {envs.names[agent]} of env {env}" if envs.names else f"env {env}"


def _check_finite(buffer: RolloutBuffer, final: np.ndarray, state: TrainState, envs: Envs) -> None:
    """One check of the whole buffer; only if it fails, a search for the env."""
    obs, reward, finals = buffer.obs, buffer.reward, buffer.final_obs
    with np.errstate(over="ignore"):
        single = reward.astype(buffer.parameters.dtype)  # as the policy learns from it
    seen = (obs, final) if obs.dtype.kind == "f" else ()  # bytes always are
    if state.engine.finite(single, *seen):
        return
    policy = state.policy
    told = policy.observations.not_finite
    found = [(t, i, f"the reward {reward[t, i]}") for t, i in np.argwhere(~np.isfinite(single))]
    bad_rows = ~np.isfinite(obs.reshape(*obs.shape[:2], -1)).all(-1)
    # Row t+1 of the observations is the answer to step t.
    found += [(t - 1, i, told(obs[t, i])) for t, i in np.argwhere(bad_rows)]
    found += [(t, i, told(o)) for t, i, o in finals if not np.isfinite(o).all()]
    t, i, what = min(found, key=lambda item: item[0])
    where = f"step {t} of update {state.updates + 1}" if t >= 0 else "its reset"
    raise state.fault(
        f"{_whose(envs, i)} gave {what} at {where}: it must be finite. Look for a division by "
        "zero or an overflow in the env"
    )
