"""Run the old policy in N worlds for T steps, or for K episodes.

While collecting, the policy only acts: log-probabilities and values come from one batched forward
afterwards, through the same `evaluate` that the update uses.
"""

from __future__ import annotations

import numpy as np
import torch

from proximo.envs.config import EnvConfig
from proximo.envs.make import Step, Worlds
from proximo.functional.distributions import Distribution
from proximo.nets.actor_critic import ActorCritic
from proximo.types import Episode, Rollout, TrainState, UsageError, explain

BLOCK = 256
"""Steps for which noise is drawn at once when episodes are counted; else it is the horizon."""


class Tickets:
    """Which episodes count when K are asked for: the first K that *start*.

    The first K that *end* would favour short ones. A world without a ticket idles, masked.
    """

    def __init__(self, episodes: int, worlds: int) -> None:
        self.left = episodes
        self._episodes = episodes
        self._handed = min(episodes, worlds)
        self._holds = np.arange(worlds) < episodes
        self.rows: list[np.ndarray] = []  # per step: who held a ticket

    def pass_step(self, step: Step) -> None:
        """Take the tickets of the episodes that ended, and hand out those that remain."""
        self.rows.append(self._holds.copy())
        for i in step.final_obs:
            if self._holds[i]:
                self.left -= 1
                self._holds[i] = self._handed < self._episodes
                self._handed += int(self._holds[i])


@torch.no_grad()
def collect(
    worlds: Worlds, state: TrainState, env: EnvConfig, *, steps: int, episodes: int = 0
) -> Rollout:
    """T = `steps` rows of experience or, if `episodes` is above 0, that many whole episodes.

    Rewards are shifted, scaled and clipped as `env` says; the returns in `Rollout.episodes` are
    the world's own. Raises `UsageError` before the first update, `TrainingError` after it, for an
    observation or reward that is not finite: world, step and value are named.
    """
    policy: ActorCritic = state.policy  # type: ignore[assignment]
    world, head = state.worlds, policy.head
    dtype, device = policy.dtype, policy.device
    tickets = Tickets(episodes, worlds.count) if episodes else None
    if tickets:
        worlds.fresh(world)
    seen: list[np.ndarray] = []
    chosen: list[torch.Tensor] = []
    taken: list[np.ndarray] = []
    answers: list[Step] = []
    first: Distribution | None = None
    while not any(_real(step) for step in answers) or (tickets and tickets.left):
        noise = head.noise(state.collecting, (BLOCK if tickets else steps, worlds.count))
        for row in noise.to(policy.device, policy.dtype).unbind(0):
            obs = torch.from_numpy(world.obs).to(device, dtype)
            action, distribution = policy.act(obs, row)
            first = first or distribution
            seen.append(world.obs)
            chosen.append(action)
            taken.append(head.to_env(action))
            try:
                answers.append(worlds.step(world, taken[-1]))
            except Exception as error:
                where = f"step {len(answers)} of update {state.updates + 1}"
                what = str(error) if isinstance(error, UsageError) else explain(error)
                raise state.fault(f"a world failed at {where}: {what}") from error
            if tickets:
                tickets.pass_step(answers[-1])
                if not tickets.left:
                    break

    reward = np.stack([step.reward for step in answers]).astype(np.float64)
    real = np.stack([np.ones(worlds.count, bool) if s.real is None else s.real for s in answers])
    mask = real & np.stack(tickets.rows) if tickets else real
    ends = [(t, i, obs) for t, step in enumerate(answers) for i, obs in step.final_obs.items()]
    ended = np.zeros_like(mask)
    for t, i, _ in ends:
        ended[t, i] = True
    terminated = ended & np.stack([step.terminated for step in answers])
    _check_finite(seen, world.obs, ends, reward, state)
    finished = _account(
        reward, real, mask, ends, np.stack(taken) if worlds.replayable else None, state
    )

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, dtype=policy.dtype, device=policy.device)

    def flags(array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, device=policy.device)

    assert first is not None
    final = np.array([obs for _, _, obs in ends]).reshape(-1, *policy.obs_shape)
    final_index = torch.tensor([t * worlds.count + i for t, i, _ in ends], dtype=torch.int64)
    return Rollout(
        obs=tensor(np.stack(seen)),
        action=torch.stack(chosen),
        reward=tensor(env.shape_reward(reward)),
        terminated=flags(terminated),
        boundary=flags(ended | ~mask),  # what follows a masked row is another episode as well
        mask=flags(mask),
        last_obs=tensor(world.obs),
        final_obs=tensor(final),
        final_index=final_index.to(policy.device),
        acted=torch.stack([first.parameters, distribution.parameters]),
        episodes=finished,
    )


def _real(step: Step) -> bool:
    """Whether any world did more than reset itself."""
    return step.real is None or bool(step.real.any())


def _account(
    reward: np.ndarray,
    real: np.ndarray,
    mask: np.ndarray,
    ends: list[tuple[int, int, np.ndarray]],
    taken: np.ndarray | None,
    state: TrainState,
) -> tuple[Episode, ...]:
    """Bring returns, lengths and replay logs of the running episodes up to date."""
    world = state.worlds
    total = np.cumsum(np.where(real, reward, 0), 0)
    steps = np.cumsum(real, 0)
    begin = np.zeros(len(world.ret), np.int64)
    finished = []
    for t, i, _ in ends:
        if mask[t, i]:
            finished.append(
                Episode(float(world.ret[i] + total[t, i]), int(world.length[i] + steps[t, i]))
            )
        world.ret[i] = -total[t, i]
        world.length[i] = -steps[t, i]
        world.actions[i] = []
        begin[i] = t + 1
    world.ret += total[-1]
    world.length += steps[-1]
    if taken is not None:
        for i, log in enumerate(world.actions):
            if begin[i] < len(taken):
                log.append(taken[begin[i] :, i].copy())
                if len(log) > 64:  # an episode over many rollouts
                    log[:] = [np.concatenate(log)]
    return tuple(finished)


def _check_finite(
    seen: list[np.ndarray],
    last: np.ndarray,
    ends: list[tuple[int, int, np.ndarray]],
    reward: np.ndarray,
    state: TrainState,
) -> None:
    """One look at the whole record; only if it fails, a search for the culprit."""
    obs = np.stack([*seen, last])
    if (
        np.isfinite(obs).all()
        and np.isfinite(reward).all()
        and all(np.isfinite(o).all() for *_, o in ends)
    ):
        return
    found = [(t, i, "reward", reward[t, i]) for t, i in np.argwhere(~np.isfinite(reward))]
    bad_rows = ~np.isfinite(obs.reshape(*obs.shape[:2], -1)).all(-1)
    # Row t+1 of the observations is the answer to step t.
    found += [(t - 1, i, "observation", obs[t, i]) for t, i in np.argwhere(bad_rows)]
    found += [(t, i, "observation", o) for t, i, o in ends if not np.isfinite(o).all()]
    t, i, what, value = min(found, key=lambda item: item[0])
    where = f"step {t} of update {state.updates + 1}" if t >= 0 else "its reset"
    raise state.fault(
        f"world {i} gave the {what} {value} at {where}: it must be finite. Look for a division by "
        "zero or an overflow in the world"
    )
