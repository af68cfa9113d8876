"""What acts, evaluates and takes the gradient steps: three ways to the same numbers.

torch is the reference and always works; compile has PyTorch generate code for the loss and its
gradient; native does everything for a small network on a CPU in C++.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from proximo.native.library import NativePolicy
from proximo.nets.actor_critic import ActorCritic, Evaluation
from proximo.nets.optimizer import FlatOptimizer
from proximo.types import Batch, Steps

if TYPE_CHECKING:
    from proximo.algorithms.base import OnPolicy

Loss = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
"""Minibatch -> what to minimise, and terms to report."""


class Layout(NamedTuple):
    """The minibatches of an update: orders[k][bounds[n] : bounds[n + 1]] is number n of epoch k."""

    orders: Tensor  # [K, B] int64
    bounds: list[int]  # 0, ..., B


class Outcome(NamedTuple):
    """What an update did: terms added up over its gradient steps, and how many there were."""

    terms: dict[str, Tensor]
    epochs: int
    steps: int


class Engine(ABC):
    """The numbers of one policy and its optimizer."""

    def __init__(self, name: str, policy: ActorCritic, optimizer: FlatOptimizer) -> None:
        self.name, self.policy, self.optimizer = name, policy, optimizer

    @abstractmethod
    def actor(self, steps: Steps, noise: Tensor) -> Callable[[int], None]:
        """`act(t)`: from steps.obs[t] and noise[t] to action[t] and taken[t].

        noise: [T, N, ...] as the head draws it.
        """

    @abstractmethod
    def evaluate(self, obs: Tensor, action: Tensor, *, entropy: bool) -> Evaluation:
        """Log π(a|s), V(s) and, where asked for, the entropy of π(·|s). obs: [..., *obs]."""

    @abstractmethod
    def value(self, obs: Tensor) -> Tensor:
        """V(s) in units of the reward. obs: [..., *obs]; returns [...]."""

    @abstractmethod
    def descend(
        self, algorithm: OnPolicy, batch: Batch, layout: Layout, coefficients: dict[str, float]
    ) -> Outcome:
        """K epochs of minibatches, or fewer where the algorithm says that it is enough."""


class TorchEngine(Engine):
    """PyTorch, step by step or with the loss compiled."""

    def __init__(
        self, policy: ActorCritic, optimizer: FlatOptimizer, *, compiled: bool = False
    ) -> None:
        super().__init__("compile" if compiled else "torch", policy, optimizer)
        self._compiled = torch.compile(_loss, dynamic=False) if compiled else None

    def actor(self, steps: Steps, noise: Tensor) -> Callable[[int], None]:
        policy = self.policy
        noise = noise.to(policy.device, policy.dtype)
        obs, action, parameters = map(torch.from_numpy, (steps.obs, steps.action, steps.parameters))

        def act(t: int) -> None:
            chosen, distribution = policy.act(obs[t].to(policy.device), noise[t])
            action[t] = chosen
            parameters[1] = distribution.parameters
            if t == 0:
                parameters[0] = parameters[1]
            steps.taken[t] = policy.head.to_env(chosen)

        return act

    def evaluate(self, obs: Tensor, action: Tensor, *, entropy: bool) -> Evaluation:
        return self.policy.evaluate(obs, action, entropy=entropy)

    def value(self, obs: Tensor) -> Tensor:
        return self.policy.value(obs)

    def descend(
        self, algorithm: OnPolicy, batch: Batch, layout: Layout, coefficients: dict[str, float]
    ) -> Outcome:
        """No read on the host before the end, except one per epoch where the algorithm may stop."""
        found, steps, usual = [], 0, layout.bounds[1]
        if self._compiled:  # numbers would be compiled in, and compiled anew when they change
            tensors = {k: torch.tensor(v, device=batch.obs.device) for k, v in coefficients.items()}
        for done, order in enumerate(layout.orders.to(batch.obs.device), 1):
            mixed = batch[order]
            for begin, end in pairwise(layout.bounds):
                minibatch = mixed[begin:end]
                # One shape is compiled; for a smaller last minibatch that would take too long.
                if self._compiled and end - begin == usual:
                    loss, terms = self._compiled(algorithm, self.policy, minibatch, tensors)
                else:
                    loss, terms = algorithm.loss(self.policy, minibatch, coefficients)
                norm = gradient_step(self.optimizer, loss, algorithm.max_grad_norm)
                found.append({**terms, "grad_norm": norm})
            steps += len(layout.bounds) - 1
            if done < len(layout.orders) and algorithm.stops(self, batch):
                break
        totals = {name: torch.stack([f[name] for f in found]).sum() for name in found[0]}
        return Outcome(totals, done, steps)


def _loss(
    algorithm: OnPolicy, policy: ActorCritic, batch: Batch, coefficients: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    return algorithm.loss(policy, batch, coefficients)


class NativeEngine(Engine):
    """The C++ library, which uses the policy's weights and the optimizer's records in place."""

    def __init__(self, policy: ActorCritic, optimizer: FlatOptimizer, threads: int) -> None:
        super().__init__("native", policy, optimizer)
        self._native = NativePolicy(policy, optimizer, threads)

    def actor(self, steps: Steps, noise: Tensor) -> Callable[[int], None]:
        return self._native.actor(steps, noise)

    def evaluate(self, obs: Tensor, action: Tensor, *, entropy: bool) -> Evaluation:
        return self._native.evaluate(obs, action, entropy=entropy)

    def value(self, obs: Tensor) -> Tensor:
        return self._native.value(obs)

    def descend(
        self, algorithm: OnPolicy, batch: Batch, layout: Layout, coefficients: dict[str, float]
    ) -> Outcome:
        spec = algorithm.loss_spec(coefficients)
        assert spec is not None
        return Outcome(*self._native.update(batch, spec, *layout))


def gradient_step(optimizer: FlatOptimizer, loss: Tensor, max_norm: float | None) -> Tensor:
    """Descend along g min(1, max_norm/|g|). Returns |g| before the cut, on the device."""
    gradients = [flat.grad for flat in optimizer.flats if flat.grad is not None]
    for gradient in gradients:
        gradient.zero_()
    loss.backward()  # type: ignore[no-untyped-call]
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    norm: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if max_norm is not None:
        scale = max_norm / norm.clamp(min=max_norm)
        for gradient in gradients:
            gradient.mul_(scale)
    optimizer.step()
    return norm
