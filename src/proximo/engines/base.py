"""The contract of an engine: what acts, evaluates and takes the gradient steps of a policy.

Three ways to the same numbers: torch is the reference and always works; compile has PyTorch
generate code for the loss and its gradient; native does everything for a small network on a CPU in
C++.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from proximo.engines.nonfinite import Skip
from proximo.envs.tensors import TensorSteps
from proximo.nets.actor_critic import ActorCritic, Evaluation
from proximo.nets.optimizer import FlatOptimizer
from proximo.types import Batch, LossSpec, Recall, Steps


class Objective(Protocol):
    """What an engine asks of an algorithm."""

    @property
    def max_grad_norm(self) -> float | None:
        """The gradient is scaled down to this norm; None: it is not."""

    def loss(
        self, policy: ActorCritic, batch: Batch, coefficients: Mapping[str, float | Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a minibatch, and the terms to report, among them `loss`."""

    def native_spec(self, coefficients: dict[str, float]) -> LossSpec | None:
        """The same loss in numbers, for the native engine; None: it does not know it."""

    def stops(self, engine: Engine, batch: Batch) -> bool:
        """True leaves out the remaining epochs of this update."""


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
        """What is left from this minibatch on; both count from 0."""
        bounds = [self.bounds[epoch][number:], *self.bounds[epoch + 1 :]]
        return Layout(self.orders[epoch:], bounds, self.joined)


class Outcome(NamedTuple):
    """What an update did: terms added up over the gradient steps it took, and their number."""

    terms: dict[str, Tensor]  # none if no step was taken
    epochs: int
    steps: int
    skipped: int = 0  # minibatches that were left out


class Engine(ABC):
    """The numbers of one policy and its optimizer."""

    def __init__(self, name: str, policy: ActorCritic, optimizer: FlatOptimizer) -> None:
        self.name, self.policy, self.optimizer = name, policy, optimizer

    @cached_property
    def weights(self) -> list[np.ndarray | Tensor]:
        """To look at by NumPy where it can, which costs a quarter of what PyTorch's look does."""
        flats = [flat.detach() for flat in self.optimizer.flats]
        return [flat.numpy() if flat.is_cpu else flat for flat in flats]

    @abstractmethod
    def actor(
        self, steps: Steps | TensorSteps, noise: Tensor | None, carry: Tensor | None = None
    ) -> Callable[[int], None]:
        """`act(t)`: from steps.obs[t] and noise[t] to action[t] and taken[t].

        noise: [T, N, ...] as the head draws it; None: the most likely actions. carry: [N, C], what
        is remembered, which moves on in place.
        """

    @abstractmethod
    def evaluate(
        self, obs: Tensor, action: Tensor, *, entropy: bool, recall: Recall | None = None
    ) -> Evaluation:
        """Log π(a|s), V(s) and, where asked for, the entropy of π(·|s). obs: [..., *obs]."""

    @abstractmethod
    def value(self, obs: Tensor, recall: Recall | None = None) -> Tensor:
        """V(s) in units of the reward. obs: [..., *obs]; returns [...]."""

    @abstractmethod
    def descend(
        self,
        objective: Objective,
        batch: Batch,
        layout: Layout,
        coefficients: dict[str, float],
        skip: Skip = lambda *_: None,
    ) -> Outcome:
        """K epochs of minibatches, or fewer where the algorithm says that it is enough.

        No step is taken along a minibatch whose loss or gradient is not finite: weights and
        records stay to the bit what they were before it, and `skip` is told.
        """

    def finite(self, *numbers: np.ndarray | Tensor) -> bool:
        """Whether all of them are: what looking costs, a profile can tell from here."""
        return all(_finite(each) for each in numbers)


def _finite(numbers: np.ndarray | Tensor) -> bool:
    if isinstance(numbers, Tensor):
        return bool(numbers.isfinite().all())
    return bool(np.isfinite(numbers).all())
