"""Measurements for the rules of health: of a rollout and its batch, every few thousand steps."""

from __future__ import annotations

import math
import time
from typing import Any, cast

import numpy as np

from proximo.envs.base import Envs
from proximo.run.config import Config
from proximo.state import TrainState
from proximo.types import Batch, Metrics, Rollout

EVERY = 16_384
"""Environment steps between two measured updates, in whole updates."""
EPISODIC = 16
"""Updates between them where an update is counted in episodes."""
FAR = 16
"""Updates between them, at least, where the rollout is on a device."""
EARLY = (0, 1, 4)
"""Updates before those that are measured in any case, for the sake of slow envs."""
ENDS = 4
"""Updates between two that say how their episodes ended, which costs little."""


class Measurements:
    """Measures an update now and then. It reads only, and at updates that the state alone tells."""

    def __init__(self, config: Config, agents: int) -> None:
        """agents: in each env."""
        samples = config.env.num_envs * agents * config.rollout.steps
        self._every = EPISODIC if config.rollout.episodes else max(1, EVERY // samples)
        self._algorithm, self._max_norm = config.algorithm, config.algorithm.max_grad_norm
        self._due = False
        self._found: Metrics = {}
        self._env_seconds, self._env_steps, self._begin = 0.0, 0, 0.0

    def due(self, state: TrainState) -> bool:
        """The next update is measured."""
        if state.updates in EARLY:
            return True
        if state.updates % self._every:
            return False
        # On a device each of them takes the whole rollout over to the host.
        far = self._every * math.ceil(FAR / self._every)
        return state.updates % far == 0 or state.policy.device.type == "cpu"

    def begin(self, state: TrainState, envs: Envs) -> Envs:
        """The envs for the next rollout. Where it is measured, their steps are timed."""
        self._due = self.due(state)
        if not self._due:
            return envs
        self._env_seconds, self._env_steps, self._begin = 0.0, 0, time.perf_counter()
        return cast(Envs, _TimedEnvs(envs, self))

    def spent(self, seconds: float) -> None:
        """Count a step of all envs."""
        self._env_seconds += seconds
        self._env_steps += 1

    def take(self, state: TrainState, rollout: Rollout, batch: Batch) -> None:
        """Measure a rollout and its batch; `end` hands the readings out."""
        if not self._due:
            if state.updates % ENDS == 0 and rollout.terminated.is_cpu:
                self._found = of_ends(rollout)
            return
        # Whatever is infinite here is told elsewhere, with the env's number.
        with np.errstate(all="ignore"):
            self._found = {
                **of_rewards(rollout),
                **of_targets(self._algorithm, batch),
                **of_observations(state, rollout),
                "acting_entropy": -float(batch.log_prob.mean()),
                **of_ends(rollout),
                **of_lengths(state),
            }
        share = state.policy.head.saturated(rollout.action[rollout.mask])
        if share is not None:
            self._found["action_saturation"] = float(share)

    def end(self, state: TrainState, metrics: Metrics) -> Metrics:
        """The readings, and those that are known when the update has ended."""
        found, self._found = self._found, {}
        if not self._due:
            return found
        steps = metrics.get("gradient_steps", 0)
        if self._max_norm is not None and steps and not self._algorithm.separate_optimizers:
            found["grad_clip_fraction"] = float(state.engine.clipped_steps) / steps
        if self._env_steps:
            found["env_time_fraction"] = self._env_seconds / (time.perf_counter() - self._begin)
            found["env_step_seconds"] = self._env_seconds / self._env_steps
        return found


class _TimedEnvs:
    """Envs whose `step` is timed."""

    def __init__(self, envs: Envs, readings: Measurements) -> None:
        self._envs, self._readings = envs, readings

    def step(self, *args: Any) -> None:
        begin = time.perf_counter()
        self._envs.step(*args)
        self._readings.spent(time.perf_counter() - begin)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._envs, name)


def of_rewards(rollout: Rollout) -> Metrics:
    """Size and spread of the rewards that the policy learns from, before `normalize_reward`."""
    reward = rollout.reward.cpu().numpy()[rollout.mask.cpu().numpy()]
    size = np.abs(reward)
    return {
        "reward_max": float(size.max()),
        "reward_std": float(reward.std()),
        "reward_nonzero": float((size > 0).mean()),
    }


def of_targets(algorithm: Any, batch: Batch) -> Metrics:
    """Spread of value targets, and of advantages before they are standardised."""
    target = batch.target.cpu().numpy()
    found = {
        "value_target_rms": float(np.sqrt(np.square(target).mean())),
        "value_target_std": float(target.std()),
    }
    if algorithm.q_critic:  # which weighs actions by Q itself
        return found
    if algorithm.normalize_advantage in ("minibatch", "none"):
        found["advantage_std"] = float(batch.advantage.cpu().numpy().std())
    elif algorithm.value_target in ("same", algorithm.advantage):
        found["advantage_std"] = float((target - batch.value.cpu().numpy()).std())
    return found


def of_observations(state: TrainState, rollout: Rollout) -> Metrics:
    """The smallest and the largest size of a column, where the policy does not standardise them."""
    if state.policy.normalize_obs or not rollout.obs.is_floating_point():
        return {}
    rows = rollout.obs.cpu().numpy()[rollout.mask.cpu().numpy()]
    seen = state.policy.observations.measured.reshape(-1)  # not bytes of an image, nor choices
    sizes = np.abs(rows.reshape(len(rows), -1)[:, seen]).max(0, initial=0)
    moving = sizes[sizes > 0]
    if not len(moving):
        return {}
    return {"obs_scale_min": float(moving.min()), "obs_scale_max": float(moving.max())}


def of_ends(rollout: Rollout) -> Metrics:
    """Share of the episodes that a time limit ended, where any has ended."""
    ended = rollout.final_index.shape[0]
    if not ended:
        return {}
    terminated = np.count_nonzero(rollout.terminated.cpu().numpy())
    return {"truncated_fraction": 1 - terminated / ended}


def of_lengths(state: TrainState) -> Metrics:
    """The longest of the last 100 episodes, and what share is as long or shorter by a tenth."""
    if not state.recent:
        return {}
    lengths = [episode.length for episode in state.recent]
    count, longest = len(lengths), max(lengths)
    terminated = sum(episode.terminated and episode.length == longest for episode in state.recent)
    return {
        "length_max": float(longest),
        "longest_fraction": lengths.count(longest) / count,
        "longest_terminated_fraction": terminated / count,
        "almost_longest_fraction": sum(0.9 * longest <= x < longest for x in lengths) / count,
    }
