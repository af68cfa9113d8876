"""Everything that changes while training."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proximo import functional as F
from proximo.engines.base import Engine, OldEvaluation
from proximo.engines.nonfinite import REMEDIES, record_skip
from proximo.errors import TrainingError, UsageError
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.optimizer import FlatOptimizer
from proximo.types import Batch, EnvState, Episode, Metrics, Moments, Rollout, SkipSink, Watch

REWARD_CLIP = 10.0
"""Scaled rewards are cut off at this many standard deviations of the return."""


@dataclass(kw_only=True)
class TrainState:
    """All that changes while training. What is not here is not saved, and must not matter."""

    policy: ActorCritic
    optimizer: FlatOptimizer
    envs: EnvState
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
    recurrent_state: Tensor | None = None  # [N, C] what the policy remembers in each env
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

    def evaluate_old(self, rollout: Rollout) -> OldEvaluation:
        """The old policy on its rollout; the recurrent state becomes that of the next one."""
        old = self.engine.evaluate_old(rollout)
        if rollout.initial_state.shape[-1]:
            ended = rollout.boundary[-1].unsqueeze(-1)
            self.recurrent_state = torch.where(ended, 0.0, old.final_state[-1])
        return old

    def scaled_reward(self, rollout: Rollout, gamma: float) -> Tensor:
        """Rewards over the standard deviation of R_t = r_t + γ R_{t-1} in all steps so far. [T, N].

        From OpenAI's baselines (VecNormalize); not in the paper. It keeps returns near unit size
        without moving their zero.
        """
        reward = rollout.reward.cpu().double().flip(0)
        if self.reward_return is None:
            self.reward_return = torch.zeros(reward.shape[1], dtype=torch.float64)
        # Backwards in time it is the recursion of the advantages; a boundary cuts it from behind.
        starts = torch.cat([torch.zeros_like(rollout.boundary[:1]), rollout.boundary[:-1]]).cpu()
        decay = gamma * (~starts).double().flip(0)
        carried = torch.cat([reward, self.reward_return[None]])
        decay = torch.cat([decay, torch.zeros_like(decay[:1])])
        running = F.returns.discounted_sum(carried, decay)[:-1].flip(0)
        self.reward_return = torch.where(rollout.boundary[-1].cpu(), 0, running[-1])
        seen = running[rollout.mask.cpu()]
        self.reward_moments = F.moments.merged(self.reward_moments, seen)
        scale = torch.rsqrt(self.reward_moments.var + 1e-8).to(rollout.reward)
        return (rollout.reward * scale).clamp(-REWARD_CLIP, REWARD_CLIP)

    def observe(self, obs: Tensor) -> None:
        """Merge observations [B, *obs] into the moments by which the policy standardises them."""
        if self.policy.normalize_obs:
            self.obs_moments = F.moments.merged(self.obs_moments, obs.cpu())
            self.policy.set_obs_moments(self.obs_moments)

    def observe_returns(self, target: Tensor) -> None:
        """Merge value targets [B] into the moments by which the critic standardises them."""
        if self.policy.normalize_returns:
            self.return_moments = F.moments.merged(self.return_moments, target.cpu())
            self.policy.set_return_moments(self.return_moments)

    def numbers(self, readings: dict[str, Tensor]) -> Metrics:
        """Readings of the new policy as numbers, in one transfer.

        Raises `fault` if its weights, the running moments or a reading of it are not finite.
        """
        moments = (self.obs_moments, self.return_moments, self.reward_moments)
        variances = [known.var for known in moments if known]
        if not self.engine.finite(*self.engine.weights, *variances):
            what = "weights or running moments became infinite"
            raise self.fault(f"{what} in update {self.updates + 1}: {REMEDIES}")
        # In double precision only here, as not every device has it.
        values = torch.stack([reading.to(self.policy.dtype) for reading in readings.values()])
        metrics = dict(zip(readings, values.cpu().double().tolist(), strict=True))
        # The readings after the update are computed with its weights: they show what the losses,
        # computed before each step, cannot.
        for name in ("approx_kl", "kl", "entropy"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise self.fault(
                    f"{name} became {metrics[name]} in update {self.updates + 1}: {REMEDIES}"
                )
        return metrics

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
