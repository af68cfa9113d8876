"""The contract of an algorithm, and the settings that all of them share.

The command line lists these settings without loading PyTorch, so methods import what they need.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from proximo.functional.schedules import Coefficient, as_schedule
from proximo.types import Batch, LossSpec, Metrics, Rollout, TrainState, UsageError, check_values

if TYPE_CHECKING:
    from torch import Tensor

    from proximo.algorithms.engines import Engine
    from proximo.nets.actor_critic import ActorCritic
    from proximo.nets.optimizer import FlatOptimizer

Estimator = Literal["gae", "n-step", "td0", "monte-carlo"]


@dataclass(frozen=True, kw_only=True)
class OnPolicy(ABC):
    """Settings of every algorithm that learns from the policy's own fresh experience."""

    name: ClassVar[str]

    gamma: float = 0.99
    """Discount per step (gamma)."""
    lam: float = 0.95
    """Decay of the advantage estimate (lambda of GAE): 0 trusts the critic, 1 the returns."""
    advantage: Estimator = "gae"
    """How advantages are estimated; monte-carlo is the return minus the value."""
    n: int = 5
    """Steps before the bootstrap, for n-step."""
    value_target: Literal["same", "gae", "n-step", "td0", "monte-carlo"] = "same"
    """What the critic learns: value plus advantage by this estimator (same: the one above)."""
    normalize_advantage: Literal["minibatch", "batch", "episode", "none"] = "minibatch"
    """Over which samples advantages are brought to mean 0 and deviation 1."""
    normalize_reward: bool = False
    """Divide rewards by the running deviation of their discounted sum, then cut off at 10."""
    learning_rate: Coefficient = 3e-4
    """Step size of the optimizer; a number or a schedule such as linear:3e-4:0."""
    critic_learning_rate: Coefficient | None = None
    """A step size for the critic alone (separate trunks only)."""
    optimizer: Literal["adam", "rmsprop", "sgd"] = "adam"
    """Rule of the gradient step."""
    optimizer_eps: float = 1e-5
    """Added to the denominator of Adam and RMSprop."""
    epochs: int = 10
    """K, passes over each rollout."""
    minibatch_size: int = 64
    """M, samples per gradient step; at most worlds x steps."""
    minibatches: Literal["shuffled", "episodes"] = "shuffled"
    """Shuffled anew every epoch, or one whole episode each, in order."""
    max_grad_norm: float | None = 0.5
    """The gradient is scaled down to this norm; none turns it off."""
    entropy_coef: Coefficient = 0.0
    """Weight of the entropy bonus (c2 of eq. 9), per nat; a number or a schedule."""
    value_coef: float = 0.5
    """Weight of the value loss (c1 of eq. 9)."""
    value_loss: Literal["mse", "huber", "clipped"] = "mse"
    """Squared error, Huber's, or the larger of the error and its clipped version."""
    value_clip: Coefficient = 0.2
    """Range of the clipped value loss, in units of the critic's output."""
    huber_delta: float = 1.0
    """Where Huber's loss turns from square to straight, in units of the critic's output."""

    def __post_init__(self) -> None:
        check_values("algorithm", self)
        for field_name, low, high in (
            ("gamma", 0, 1),
            ("lam", 0, 1),
            ("learning_rate", 0, 10),
            ("critic_learning_rate", 0, 10),
            ("entropy_coef", 0, 1e6),
            ("value_coef", 0, 1e6),
        ):
            self._check(field_name, low, high)
        for field_name in ("optimizer_eps", "max_grad_norm", "value_clip", "huber_delta"):
            self._check(field_name, 0, float("inf"), above=True)
        for field_name in ("n", "epochs", "minibatch_size"):
            self._check(field_name, 1, float("inf"))

    def _check(self, name: str, low: float, high: float, *, above: bool = False) -> None:
        value = getattr(self, name)
        if value is None:
            return
        try:
            schedule = as_schedule(value)
        except (ValueError, TypeError) as error:
            raise UsageError(f"algorithm.{name}: {error}") from error
        if not all(map(math.isfinite, (schedule.start, schedule.end))):
            raise UsageError(f"algorithm.{name} is {value}: it must be finite")
        fine = low <= schedule.lowest and schedule.highest <= high
        if not (fine and (schedule.start > low or not above)):
            interval = f"above {low}" if above else f"at least {low}"
            if math.isfinite(high):
                interval = f"in [{low}, {high}]"
            raise UsageError(f"algorithm.{name} is {value}: it must be {interval}")

    def coefficients(self, progress: float) -> dict[str, float]:
        """Scheduled settings as they stand at this progress, in [0, 1]."""
        names = ("entropy_coef", "value_clip")
        return {name: as_schedule(getattr(self, name))(progress) for name in names}

    def make_optimizer(self, policy: ActorCritic) -> FlatOptimizer:
        """One vector of parameters, or actor and critic apart where the critic has its own rate."""
        from proximo.nets.optimizer import FlatOptimizer

        actor, critic = policy.actor_parameters(), policy.critic_parameters()
        if self.critic_learning_rate is None:
            return FlatOptimizer([actor + critic], self.optimizer, self.optimizer_eps)
        if policy.critic is None:
            raise UsageError(
                "algorithm.critic_learning_rate is set, but net.trunk is shared: "
                "a shared trunk has one rate; use --net.trunk separate or drop the critic's"
            )
        return FlatOptimizer([actor, critic], self.optimizer, self.optimizer_eps)

    def prepare(self, state: TrainState, rollout: Rollout) -> Batch:
        """Old log-probabilities, values, advantages and value targets, once per rollout."""
        from proximo.algorithms.experience import prepare

        return prepare(self, state, rollout)

    def update(self, state: TrainState, batch: Batch) -> Metrics:
        """K epochs of minibatches, then the running moments of the observations."""
        from proximo.algorithms.update import descend

        return descend(self, state, batch)

    @abstractmethod
    def loss(
        self, policy: ActorCritic, batch: Batch, coefficients: Mapping[str, float | Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What a gradient step minimises, and the terms to report, among them `loss`.

        coefficients: numbers, or tensors where the loss is compiled, so that it need not be
        compiled anew when they change: do not branch on their values.
        """

    def stops(self, engine: Engine, batch: Batch) -> bool:
        """Whether the remaining epochs of this update are left out."""
        return False

    def loss_spec(self, coefficients: dict[str, float]) -> LossSpec | None:
        """The loss in numbers, if the native engine knows it; None: only PyTorch can compute it."""
        return None

    @abstractmethod
    def read(
        self, engine: Engine, batch: Batch, coefficients: dict[str, float]
    ) -> dict[str, Tensor]:
        """What to report of the policy after the update, over the whole batch."""

    @property
    def values_entropy(self) -> bool:
        """Whether the entropy counts at any time, and so must be computed."""
        return as_schedule(self.entropy_coef).highest > 0

    def value_error(
        self, policy: ActorCritic, value: Tensor, batch: Batch, clip: float | Tensor
    ) -> Tensor:
        """The chosen value loss, elementwise, in units of the critic's output. All [B]."""
        from proximo.functional.losses import clipped_squared_error, huber_error, squared_error

        target, old = batch.target, batch.value
        if policy.normalize_returns:
            value, target, old = (x / policy.return_scale for x in (value, target, old))
        if self.value_loss == "clipped":
            return clipped_squared_error(value, target, old, clip)
        if self.value_loss == "huber":
            return huber_error(value, target, self.huber_delta)
        return squared_error(value, target)
