"""The records everything passes around. Time comes first: T steps, N worlds, B = T*N samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, float]
"""One number per name, as written to `metrics.jsonl`."""
SkipSink = Callable[[str, "dict[str, Tensor]", dict[str, Any]], str]
"""Receives a skipped gradient step: the reason, its tensors and its record. Returns where the first
of a run is stored, or an empty text."""
Watch = Callable[[int, str], None]
"""Receives the number of environment steps now and then, and the activity outside a rollout."""


class Episode(NamedTuple):
    """A finished episode, in the world's own units (before any scaling of rewards)."""

    ret: float
    length: int


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """A loss with its gradient step, in numbers, for the native engine."""

    policy: str  # ratio (the surrogate), log (the policy gradient) or none (the critic alone)
    clip: float = math.inf
    clip_high: float = math.inf
    dual_clip: float = 0.0  # 0: none
    beta: float = 0.0  # weight of the exact KL
    target_kl: float | None = None
    entropy_coef: float
    value_coef: float
    value_loss: str  # mse, huber or clipped
    value_clip: float
    huber_delta: float
    standardize: bool  # advantages, per minibatch
    max_grad_norm: float | None


class Moments(NamedTuple):
    """Number, mean and population variance of what was seen; number 0: mean 0, variance 1."""

    number: Tensor  # []
    mean: Tensor  # [*shape]
    var: Tensor  # [*shape]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Room for T steps of N worlds: the policy fills it up to `taken`, the worlds the rest."""

    obs: np.ndarray  # [T + 1, N, *obs] row t + 1 is the answer to step t
    action: np.ndarray  # [T, N, *act] what the policy chose
    parameters: np.ndarray  # [2, N, P] of the distributions that acted first and latest
    taken: np.ndarray  # [T, N, *] the action as the worlds take it
    reward: np.ndarray  # [T, N] float64
    terminated: np.ndarray  # [T, N] bool
    ended: np.ndarray  # [T, N] bool: terminated or cut off by a time limit
    real: np.ndarray  # [T, N] bool: False where a next-step world only reset itself
    finals: list[tuple[int, int, np.ndarray]]  # (t, world, true successor) where an episode ended

    def __len__(self) -> int:
        return len(self.reward)

    @staticmethod
    def joined(parts: list[Steps], count: int) -> Steps:
        """The first `count` steps of these, which follow on one another."""
        if len(parts) == 1 and len(parts[0]) == count:
            return parts[0]
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])[:count]
            for name in ("action", "taken", "reward", "terminated", "ended", "real")
        }
        begins = itertools.accumulate((len(part) for part in parts), initial=0)
        return Steps(
            obs=np.concatenate([parts[0].obs[:1], *(part.obs[1:] for part in parts)])[: count + 1],
            parameters=np.stack([parts[0].parameters[0], parts[-1].parameters[1]]),
            finals=[
                (begin + t, i, obs)
                for begin, part in zip(begins, parts, strict=False)
                for t, i, obs in part.finals
            ],
            **arrays,
        )


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """T steps of the old policy in N worlds, as they happened."""

    obs: Tensor  # [T, N, *obs] what the policy saw
    action: Tensor  # [T, N, *act] what it chose, before clipping or squashing
    reward: Tensor  # [T, N]
    terminated: Tensor  # [T, N] bool: no future after this step, so no bootstrap
    boundary: Tensor  # [T, N] bool: the next row belongs to another episode, so no trace
    mask: Tensor  # [T, N] bool: False on reset steps of next-step worlds and on idle worlds
    last_obs: Tensor  # [N, *obs] what followed row T-1
    final_obs: Tensor  # [F, *obs] the true successors of the steps that ended an episode
    final_index: Tensor  # [F] int64: their rows, as t*N + i
    acted: Tensor  # [2, N, P] parameters of the distributions that acted first and last
    carry: Tensor  # [N, C] what was remembered before row 0
    episodes: tuple[Episode, ...]  # those that finished


class Recall(NamedTuple):
    """What a memory must know of a batch: which rows follow on one another, and on what."""

    stretch: Tensor  # [B] int64: the rows of a stretch stand together, in order, with one number
    carry: Tensor  # [B, C] what was remembered before the first row of a stretch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What an update learns from: the real steps of a rollout, along one axis of length B."""

    obs: Tensor  # [B, *obs]
    action: Tensor  # [B, *act]
    log_prob: Tensor  # [B] of the old policy
    parameters: Tensor  # [B, P] of its distributions
    value: Tensor  # [B] of the old critic
    advantage: Tensor  # [B]
    target: Tensor  # [B] what the critic should say
    episode: Tensor  # [B] int64: which episode of the batch a sample belongs to, in order
    stretch: Tensor  # [B] int64: the same, but that an episode is cut where a memory's training is
    carry: Tensor  # [B, C] what was remembered before the first sample of a stretch, or C is 0

    @property
    def recall(self) -> Recall | None:
        """For a policy with a memory."""
        return Recall(self.stretch, self.carry) if self.carry.shape[-1] else None

    def __len__(self) -> int:
        return self.obs.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Batch:
        return type(self)(**{name: tensor[index] for name, tensor in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Transitions(Batch):
    """A batch for a critic of actions, which must know what came next: S, A, R, S', A'."""

    reward: Tensor  # [B]
    terminated: Tensor  # [B] bool
    next_obs: Tensor  # [B, *obs] the true successors
    next_action: Tensor  # [B, *act] what was done there
    undecided: Tensor  # [B] bool: nothing was done there yet, or ever, so it is to be drawn
    noise: Tensor  # [B, ...] to draw it from


@dataclass(kw_only=True)
class WorldState:
    """Where each of N worlds stands: with the seeds, enough to bring every one of them back."""

    obs: Any  # [N, *obs] the observation to act on next: a tensor where worlds hold tensors
    episode: np.ndarray  # [N] int64: number of the running episode, from which its seed follows
    actions: list[list[np.ndarray]]  # per world: stretches of the actions since it began
    resetting: np.ndarray  # [N] bool: the next step of this world is a reset (next-step mode)
    ret: np.ndarray  # [N] float64: return of the running episode so far
    length: np.ndarray  # [N] int64: its length so far
