"""Everything that changes while training."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proximo.engines.base import Engine
from proximo.engines.nonfinite import record_skip
from proximo.errors import TrainingError, UsageError
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.optimizer import FlatOptimizer
from proximo.types import Batch, Episode, Moments, Rollout, SkipSink, Watch, WorldState


@dataclass(kw_only=True)
class TrainState:
    """All that changes while training. What is not here is not saved, and must not matter."""

    policy: ActorCritic
    optimizer: FlatOptimizer
    worlds: WorldState
    collecting: torch.Generator  # noise of the actions
    shuffling: torch.Generator  # order of the minibatches
    engine: Engine  # acts, evaluates and takes the gradient steps
    horizon: int  # environment steps over which schedules run from 0 to 1
    steps: int = 0  # environment steps taken
    updates: int = 0
    episodes: int = 0
    recent: deque[Episode] = field(default_factory=lambda: deque(maxlen=100))
    smoothed: float | None = None  # moving average of the episodes' returns
    best: float | None = None  # the best score so far, by whichever measure the run keeps
    last_trial_steps: int | None = None  # when `stop_at` last asked for an evaluation
    last_trial_return: float | None = None  # and what it came to
    obs_moments: Moments | None = None  # of all observations, for the policy to standardise by
    return_moments: Moments | None = None  # of all value targets, for the critic
    reward_moments: Moments | None = None  # of the running discounted return, for scaling rewards
    reward_return: Tensor | None = None  # [N] the running discounted return itself
    beta: float | None = None  # weight of the KL penalty, once it has moved
    rate_scale: float = 1.0  # factor on the learning rate, where it follows the KL
    carry: Tensor | None = None  # [N, C] what the policy remembers in each world
    ahead: Tensor | None = None  # [1, N, ...] noise of the next action, where it is drawn already
    skipped: int = 0  # gradient steps that were left out, for what was not finite
    skip_sink: SkipSink | None = None  # of the run, not of its state: stores the first of those
    watch: Watch | None = None  # of the run as well: shows its progress

    @property
    def fault(self) -> type[Exception]:
        """What to raise when something fails: before the first update there is no run to keep."""
        return TrainingError if self.updates else UsageError

    @property
    def progress(self) -> float:
        """Share of the horizon that is done, in [0, 1]: the argument of every schedule.

        It moves when an update has ended, so the first one runs at 0 and none at 1.
        """
        return min(1.0, self.steps / self.horizon)

    def skip_step(
        self, what: str, where: str, samples: Batch, coefficients: dict[str, float], budget: int
    ) -> None:
        """Count a gradient step that is skipped. Raises `TrainingError` past the budget.

        The weights must be those before the step: they are stored with its samples. where: in the
        update, as ", epoch 1, minibatch 2".
        """
        self.skipped += 1
        update = self.updates + 1
        tensors = {f"policy.{name}": x for name, x in self.policy.state_dict().items()}
        tensors |= {f"batch.{name}": x for name, x in vars(samples).items()}
        record = {"update": update, "coefficients": coefficients}
        where = f"update {update}{where}"
        record_skip(self.skip_sink, what, where, tensors, record, self.skipped, budget)

    def advance(self, rollout: Rollout, smoothing: float) -> None:
        """Count an update that is done. The smoothed return moves by `smoothing` per episode."""
        self.updates += 1
        self.steps += int(rollout.mask.sum())
        self.episodes += len(rollout.episodes)
        self.recent.extend(rollout.episodes)
        for episode in rollout.episodes:
            before = episode.ret if self.smoothed is None else self.smoothed
            self.smoothed = before + smoothing * (episode.ret - before)
