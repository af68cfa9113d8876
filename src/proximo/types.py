"""The records everything passes around. Time comes first: T steps, N envs, B = T*N samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, float]
"""One number per name, as written to `metrics.jsonl`."""
Row = dict[str, Any]
"""Everything that is logged of an update, by name."""
Extra = tuple[dict[str, "Tensor"], dict[str, Any]]
"""Tensors and entries of the record that a checkpoint holds besides those of the state."""
SkipSink = Callable[[str, "dict[str, Tensor]", dict[str, Any]], str]
"""Receives a skipped gradient step: the reason, its tensors and its record. Returns where the first
of a run is stored, or an empty text."""
Watch = Callable[[int, str], None]
"""Receives the number of environment steps now and then, and the activity outside a rollout."""


class Episode(NamedTuple):
    """A finished episode, in the env's own units (before any scaling of rewards)."""

    ret: float
    length: int
    terminated: bool = False
    """Ended by the task; else by a time limit, or it is not known."""


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """A loss with its gradient step, in numbers, for the native engine."""

    # ratio (the surrogate), spo (with a quadratic penalty), log (the policy gradient) or none (the
    # critic alone)
    policy: str
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


FLAGS = ("terminated", "done", "valid")
"""Flags of every step in a buffer."""
_nothing = partial(np.empty, 0)


@dataclass(frozen=True, kw_only=True)
class RolloutBuffer:
    """Room for T steps of N envs: the policy fills it up to `env_action`, the envs the rest."""

    obs: np.ndarray  # [T + 1, N, *obs] row t + 1 is the answer to step t
    action: np.ndarray = field(default_factory=_nothing)  # [T, N, *act] what the policy chose
    # [2, N, P] of the distributions that acted first and latest
    parameters: np.ndarray = field(default_factory=_nothing)
    env_action: np.ndarray  # [T, N, *] the action as the envs take it
    reward: np.ndarray  # [T, N] float64
    terminated: np.ndarray  # [T, N] bool
    done: np.ndarray  # [T, N] bool: terminated or cut off by a time limit
    valid: np.ndarray  # [T, N] bool: False where a next-step env only reset itself
    # (t, env, true successor) where an episode ended
    final_obs: list[tuple[int, int, np.ndarray]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.reward)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """T steps of the old policy in N envs, as they happened."""

    obs: Tensor  # [T, N, *obs] what the policy saw
    action: Tensor  # [T, N, *act] what it chose, before clipping or squashing
    reward: Tensor  # [T, N]
    terminated: Tensor  # [T, N] bool: no future, so no bootstrap; False where truncated
    boundary: Tensor  # [T, N] bool: the next row belongs to another episode, so no trace
    mask: Tensor  # [T, N] bool: False on reset steps of next-step envs and on idle envs
    last_obs: Tensor  # [N, *obs] what followed row T-1
    final_obs: Tensor  # [F, *obs] the true successors of the steps that ended an episode
    final_index: Tensor  # [F] int64: their rows, as t*N + i
    acted: Tensor  # [2, N, P] parameters of the distributions that acted first and last
    initial_state: Tensor  # [N, C] recurrent state before row 0
    episodes: tuple[Episode, ...]  # those that finished
    counted: tuple[Tensor, int] | None = None  # a mask, and how many of its entries are True

    @cached_property
    def steps(self) -> int:
        """Steps that count, over all envs."""
        if self.counted and self.counted[0] is self.mask:  # a callback may have put in another
            return self.counted[1]
        return int(self.mask.sum())

    @cached_property
    def rows(self) -> Tensor | None:
        """[B] int64: where the valid steps lie, env after env in order of time, as n*T + t.

        None: all of them are valid.
        """
        mask = self.mask.t().reshape(-1)
        whole = self.steps == mask.numel()
        return None if whole else mask.nonzero_static(size=self.steps).squeeze(-1)

    def flat(self, x: Tensor) -> Tensor:
        """The valid steps side by side. x: [T, N, ...]; returns [B, ...]."""
        x = x.transpose(0, 1).flatten(0, 1)
        return x if self.rows is None else x[self.rows]


class Segments(NamedTuple):
    """The rows of a batch that follow on one another, for a recurrent policy (truncated BPTT)."""

    segment_id: Tensor  # [B] int64: the rows of a segment stand together, in order, with one number
    initial_state: Tensor  # [B, C] recurrent state before the first row of a segment


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Data of an update: the valid steps of a rollout, along one axis of length B."""

    obs: Tensor  # [B, *obs]
    action: Tensor  # [B, *act]
    log_prob: Tensor  # [B] of the old policy
    parameters: Tensor  # [B, P] of its distributions
    value: Tensor  # [B] of the old critic
    advantage: Tensor  # [B]
    target: Tensor  # [B] what the critic should say
    episode: Tensor  # [B] int64: which episode of the batch a sample belongs to, in order
    segment_id: Tensor  # [B] int64: as `episode`, but an episode is cut after bptt_steps
    initial_state: Tensor  # [B, C] recurrent state before the first row of a segment, or C is 0

    @property
    def segments(self) -> Segments | None:
        """For a recurrent policy."""
        has_state = self.initial_state.shape[-1]
        return Segments(self.segment_id, self.initial_state) if has_state else None

    def __len__(self) -> int:
        return self.obs.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Batch:
        return type(self)(**{name: tensor[index] for name, tensor in vars(self).items()})

    def room(self, count: int) -> Batch:
        """A batch of this many samples, all 0, on the same device."""
        parts = vars(self).items()
        return type(self)(**{name: x.new_zeros(count, *x.shape[1:]) for name, x in parts})

    def minibatches(self, order: Tensor, bounds: list[int]) -> Iterator[Batch]:
        """Those of an epoch: see `Layout`. order: [B] int64."""
        mixed = self[order]
        return (mixed[begin:end] for begin, end in pairwise(bounds))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for the record of a skipped step."""
        return {f"batch.{name}": tensor for name, tensor in vars(self).items()}


class Layout(NamedTuple):
    """Minibatch n of epoch k of an update is orders[k][bounds[k][n] : bounds[k][n + 1]]."""

    orders: Tensor  # [K, B] int64
    bounds: list[list[int]]  # [K][0, ..., B]
    joined: int = 0  # minibatches of one sample that were put to another

    @property
    def steps(self) -> int:
        """Minibatches in all."""
        return sum(len(bounds) - 1 for bounds in self.bounds)

    def behind(self, epoch: int, number: int) -> Layout:
        """The rest from this minibatch on; both count from 0."""
        bounds = [self.bounds[epoch][number:], *self.bounds[epoch + 1 :]]
        return Layout(self.orders[epoch:], bounds, self.joined)


@dataclass(frozen=True, kw_only=True)
class Transitions(Batch):
    """A batch for a critic of actions, which must know what came next: S, A, R, S', A'."""

    reward: Tensor  # [B]
    terminated: Tensor  # [B] bool
    next_obs: Tensor  # [B, *obs] the true successors
    next_action: Tensor  # [B, *act] what was done there
    undecided: Tensor  # [B] bool: nothing was done there yet, or ever, so it is to be drawn
    noise: Tensor  # [B, ...] to draw it from


class NativeCall(NamedTuple):
    """A function of C++ that other C++ can call for step t of a rollout: function(handle, t)."""

    function: int | None
    handle: int | None


@dataclass(kw_only=True)
class EnvState:
    """State of N envs: together with the seeds, enough to restore every one by a replay."""

    obs: Any  # [N, *obs] the observation to act on next: a tensor where envs hold tensors
    episode: np.ndarray  # [N] int64: number of the running episode, from which its seed follows
    actions: list[list[np.ndarray]]  # per env: stretches of the actions since it began
    resetting: np.ndarray  # [N] bool: the next step of this env is a reset (next-step mode)
    ret: np.ndarray  # [N] float64: return of the running episode so far
    length: np.ndarray  # [N] int64: its length so far
    simulation: tuple[np.ndarray, ...] = ()  # of simulators: all that their state consists of

    def begin(self, rows: np.ndarray) -> None:
        """Count the next episode in these rows, [N] bool: nothing has happened in it yet."""
        self.episode += rows
        self.ret[rows] = self.length[rows] = 0
        for i in np.flatnonzero(rows):
            self.actions[i] = []
