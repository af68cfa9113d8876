"""The contract of an engine: what acts, evaluates and takes the gradient steps of a policy.

Three ways to the same numbers: torch is the reference and always works; compile has PyTorch
generate code for the loss and its gradient; native does everything for a small network on a CPU in
C++.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from proximo import functional as F
from proximo.engines.nonfinite import Skip, not_finite
from proximo.envs.tensors import TensorRolloutBuffer
from proximo.errors import TrainingError
from proximo.nets.actor_critic import ActorCritic, Evaluation
from proximo.nets.optimizer import FlatOptimizer, clip_gradient
from proximo.types import Batch, Layout, LossSpec, NativeCall, Rollout, RolloutBuffer, Segments


class Objective(Protocol):
    """The part of an algorithm that an engine uses."""

    @property
    def max_grad_norm(self) -> float | None:
        """The gradient is scaled down to this norm; None: it is not."""

    def loss(
        self, policy: ActorCritic, batch: Batch, coefficients: Mapping[str, float | Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a minibatch, and the terms to report, among them `loss`."""

    def native_spec(self, coefficients: dict[str, float]) -> LossSpec | None:
        """The loss in numbers, for the native engine; None: only PyTorch can compute it."""

    def stops(self, engine: UpdateEngine, batch: Batch) -> bool:
        """True leaves out the remaining epochs of this update."""


class Outcome(NamedTuple):
    """Result of an update: terms added up over its gradient steps, and their number."""

    terms: dict[str, Tensor]  # none if no step was taken
    epochs: int
    steps: int
    skipped: int = 0  # minibatches that were left out


LossTerm = Callable[[Any, Any], Tensor]
"""(policy, batch) to a scalar that is added to the loss of a minibatch."""


class OldEvaluation(NamedTuple):
    """The old policy on its own rollout. All [T, N, ...]."""

    log_prob: Tensor
    parameters: Tensor  # of its distributions
    value: Tensor  # V(s), or Q(s,a) with a critic of actions
    initial_state: Tensor  # recurrent state before a segment, at its first row; 0 at the others
    final_state: Tensor  # recurrent state after a segment, at all of its rows


class UpdateEngine(ABC):
    """What an update asks of an engine: it evaluates a batch, and takes the gradient steps."""

    policy: Any

    def __init__(self, name: str, policy: nn.Module, optimizer: FlatOptimizer) -> None:
        self.name, self.policy, self.optimizer = name, policy, optimizer
        self.loss_terms: list[LossTerm] = []
        """Terms of callbacks, for the engines of PyTorch."""
        self.clipped_steps: Any = 0
        """Gradient steps of the last `descend` whose gradient was scaled down: a number of any
        kind."""

    @cached_property
    def weights(self) -> list[np.ndarray | Tensor]:
        """To look at by NumPy where it can, which costs a quarter of what PyTorch's look does."""
        flats = [flat.detach() for flat in self.optimizer.flats]
        return [flat.numpy() if flat.is_cpu else flat for flat in flats]

    def descend(
        self,
        objective: Objective,
        batch: Batch,
        layout: Layout,
        coefficients: dict[str, float],
        skip: Skip | None = lambda *_: None,
    ) -> Outcome:
        """K epochs of minibatches, or fewer where the algorithm says that it is enough.

        No step is taken along a minibatch whose loss or gradient is not finite: weights and
        records stay to the bit what they were before it, and `skip` is told. None: every step is
        taken, and nothing is read but where the algorithm may stop.
        """
        found, skipped, self.clipped_steps = [], 0, 0
        epochs = zip(layout.orders.to(batch.obs.device), layout.bounds, strict=True)
        for done, (order, bounds) in enumerate(epochs, 1):
            for number, minibatch in enumerate(batch.minibatches(order, bounds), 1):
                terms = self.gradient(objective, minibatch, coefficients)
                norm = clip_gradient(self.optimizer.gradients, objective.max_grad_norm)
                if skip and (what := not_finite(loss=terms["loss"], gradient_norm=norm)):
                    skipped += 1
                    skip(what, done, number, minibatch)
                    continue
                self.optimizer.step()
                found.append({**terms, "grad_norm": norm})
            if done < len(layout.orders) and objective.stops(self, batch):
                break
        names = found[0] if found else ()
        totals = {name: torch.stack([f[name] for f in found]).sum() for name in names}
        if found and objective.max_grad_norm is not None:
            norms = torch.stack([f["grad_norm"] for f in found])
            self.clipped_steps = (norms > objective.max_grad_norm).sum()
        return Outcome(totals, done, len(found), skipped)

    def gradient(
        self, objective: Any, minibatch: Any, coefficients: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Set the optimizer's gradients to those of the loss; returns its terms. For `descend`."""
        raise NotImplementedError

    @abstractmethod
    def evaluate_batch(self, batch: Batch, *, entropy: bool) -> Evaluation:
        """Log π(a|s) and, where asked for, the entropy of the samples of a batch. All [B].

        Of the policy alone: an engine may leave the value out, [0].
        """

    def finite(self, *numbers: np.ndarray | Tensor) -> bool:
        """True if all of them are. Here, so that a profile can tell what the checks cost."""
        looks = (x.isfinite() if isinstance(x, Tensor) else np.isfinite(x) for x in numbers)
        return all(bool(finite.all()) for finite in looks)


class Engine(UpdateEngine):
    """The numbers of one policy and its optimizer: it acts, too."""

    policy: ActorCritic
    waits: bool = False
    """A read on the host waits for a device: an update is checked once, with its readings."""
    graphs = False
    """Gradient steps are replayed as CUDA graphs, if they can be."""
    graphs_of_rollouts = False
    """Rollouts of envs that hold tensors are replayed as CUDA graphs, if they can be."""
    report: Callable[[str], None] = staticmethod(lambda _: None)
    """Told what the run should know."""
    _gap: Tensor | None = None

    def checks(self, *variances: Tensor) -> dict[str, Tensor]:
        """Where the engine waits: what `passed` wants to know, to be read with the readings."""
        numbers = [flat.detach() for flat in self.optimizer.flats] + list(variances)
        checks = {"finite": torch.stack([x.isfinite().all() for x in numbers]).all()}
        return checks if self._gap is None else {**checks, "gap": self._gap}

    def passed(self, checks: dict[str, float]) -> bool:
        """True if weights and variances are finite. Raises `TrainingError` for another policy."""
        _check_gap(checks.get("gap", 0.0))
        return bool(checks["finite"])

    @abstractmethod
    def actor(
        self,
        buffer: RolloutBuffer | TensorRolloutBuffer,
        noise: Tensor | None,
        recurrent_state: Tensor | None = None,
    ) -> Callable[[int], None]:
        """`act(t)`: from buffer.obs[t] and noise[t] to action[t] and env_action[t].

        noise: [T, N, ...] as the head draws it; None: the most likely actions. recurrent_state:
        [N, C], changed in place.
        """

    def native_call(self, act: Callable[[int], None]) -> NativeCall | None:
        """What `actor` has returned, for C++ to call; None: only Python can."""
        return None

    def act_some(self, act: Callable[[int], None]) -> Callable[[int, int, int], None] | None:
        """`act(t, begin, end)` for these envs alone, to the bit; None: only for all at once."""
        return None

    @abstractmethod
    def evaluate(
        self, obs: Tensor, action: Tensor, *, entropy: bool, segments: Segments | None = None
    ) -> Evaluation:
        """Log π(a|s), V(s) and, where asked for, the entropy of π(·|s). obs: [..., *obs]."""

    @abstractmethod
    def value(self, obs: Tensor, segments: Segments | None = None) -> Tensor:
        """V(s) in units of the reward. obs: [..., *obs]; returns [...]."""

    def evaluate_batch(self, batch: Batch, *, entropy: bool) -> Evaluation:
        return self.evaluate(batch.obs, batch.action, entropy=entropy, segments=batch.segments)

    def evaluate_old(self, rollout: Rollout) -> OldEvaluation:
        """Evaluate a rollout with the policy that acted in it. Raises `TrainingError` if it is not.

        A recurrent policy evaluates the first segment of every episode, then the second ones, which
        need the state that the first left, and so on.
        """
        if rollout.initial_state.shape[-1]:
            old = self._evaluate_segments(rollout)
        else:
            new = self.evaluate(rollout.obs, rollout.action, entropy=False)
            nothing = rollout.initial_state.new_empty(*rollout.mask.shape, 0)
            parameters = new.distribution.parameters
            old = OldEvaluation(new.log_prob, parameters, new.value, nothing, nothing)
        evaluated = torch.stack([old.parameters[0], old.parameters[-1]])
        if self.waits:
            self._gap = _gap(rollout, evaluated, self.policy.precision)
        elif not torch.equal(rollout.acted, evaluated):
            _check_gap(float(_gap(rollout, evaluated, self.policy.precision)))
        return old

    def _evaluate_segments(self, rollout: Rollout) -> OldEvaluation:
        steps, envs = rollout.mask.shape
        length = self.policy.bptt_steps

        def flat(x: Tensor) -> Tensor:
            return x.transpose(0, 1).flatten(0, 1)

        def back(x: Tensor) -> Tensor:
            return x.view(envs, steps, *x.shape[1:]).transpose(0, 1)

        ages = F.batches.ages(rollout.boundary)
        age = flat(ages)
        segment = F.batches.segments(age % length == 0)
        obs, action = flat(rollout.obs), flat(rollout.action)
        before = rollout.initial_state.new_zeros(envs * steps, rollout.initial_state.shape[-1])
        before[::steps] = rollout.initial_state
        evaluated, rows, number = [], [], age // length
        after = torch.empty_like(before)
        for which in range(int(number.max()) + 1):
            here = (number == which).nonzero().squeeze(-1)
            continued = here[(age[here] == which * length) & (which > 0)]
            before[continued] = after[continued - 1]
            counted = F.batches.consecutive(segment[here])
            segments = Segments(counted, before[here])
            old = self.evaluate(obs[here], action[here], entropy=False, segments=segments)
            assert old.recurrent_state is not None
            after[here] = old.recurrent_state[counted]
            evaluated.append((old.log_prob, old.distribution.parameters, old.value))
            rows.append(here)
        order = torch.cat(rows).argsort()
        parts = (torch.cat(part)[order] for part in zip(*evaluated, strict=True))
        return OldEvaluation(*map(back, (*parts, before, after)))

    def next_value(self, rollout: Rollout, old: OldEvaluation) -> Tensor:
        """V(s') of the true successors, for the bootstrap. [T, N].

        The next row's, except where an episode ended, by a time limit (truncation) or otherwise:
        there it is the value of its final observation; and in the last row, of what followed it.
        The recurrent state there is that of the row before.
        """

        def closing(obs: Tensor, state: Tensor) -> Tensor:
            if not state.shape[-1]:
                return self.value(obs)
            return self.value(obs, Segments(torch.arange(len(obs), device=obs.device), state))

        last = closing(rollout.last_obs, old.final_state[-1])
        following = torch.cat([old.value[1:], last[None]])
        if len(rollout.final_obs):
            ends = old.final_state.flatten(0, 1)[rollout.final_index]
            following.view(-1)[rollout.final_index] = closing(rollout.final_obs, ends)
        return following


def _gap(rollout: Rollout, evaluated: Tensor, precision: float) -> Tensor:
    """Largest difference between the distributions that acted and those evaluated; 0 if the same.

    They must be the same, or no ratio means much. The first row catches what moved during the
    rollout, the last one what came in its course. evaluated: [2, N, P].
    """
    acted = rollout.acted
    # Batches of other sizes are summed in another order: relative to the largest number in play.
    tolerance = precision * (evaluated.abs().max().clamp(min=1.0) + evaluated.abs())
    gap = (acted - evaluated).abs()
    real = torch.stack([torch.ones_like(rollout.mask[0]), rollout.mask[-1]]).unsqueeze(-1)
    close = (acted == evaluated) | (gap <= tolerance) | ~real
    return torch.where(close, 0.0, gap).max()


def _check_gap(gap: float) -> None:
    if gap != 0:
        raise TrainingError(
            f"the policy that acted is not the one that is evaluated (parameters differ by "
            f"{gap:.2g}): act() and evaluate() of the network disagree, or something that "
            "acting depends on moved during the rollout"
        )
