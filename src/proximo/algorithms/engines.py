"""What acts, evaluates and takes the gradient steps: three ways to the same numbers.

torch is the reference and always works; compile has PyTorch generate code for the loss and its
gradient; native does everything for a small network on a CPU in C++.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from proximo.algorithms.skips import Skip, not_finite
from proximo.envs.tensors import TensorRolloutBuffer
from proximo.native.library import NativePolicy
from proximo.nets.actor_critic import ActorCritic, Evaluation
from proximo.nets.optimizer import FlatOptimizer
from proximo.types import Batch, RolloutBuffer, Segments

if TYPE_CHECKING:
    from proximo.algorithms.base import OnPolicy


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
        self,
        buffer: RolloutBuffer | TensorRolloutBuffer,
        noise: Tensor | None,
        recurrent_state: Tensor | None = None,
    ) -> Callable[[int], None]:
        """`act(t)`: from steps.obs[t] and noise[t] to action[t] and taken[t].

        noise: [T, N, ...] as the head draws it; None: the most likely actions. carry: [N, C], what
        is remembered, which moves on in place.
        """

    @abstractmethod
    def evaluate(
        self, obs: Tensor, action: Tensor, *, entropy: bool, segments: Segments | None = None
    ) -> Evaluation:
        """Log π(a|s), V(s) and, where asked for, the entropy of π(·|s). obs: [..., *obs]."""

    @abstractmethod
    def value(self, obs: Tensor, segments: Segments | None = None) -> Tensor:
        """V(s) in units of the reward. obs: [..., *obs]; returns [...]."""

    @abstractmethod
    def descend(
        self,
        algorithm: OnPolicy,
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


class TorchEngine(Engine):
    """PyTorch, operation by operation, or with the whole gradient compiled."""

    def __init__(
        self, policy: ActorCritic, optimizer: FlatOptimizer, *, compiled: bool = False
    ) -> None:
        super().__init__("compile" if compiled else "torch", policy, optimizer)
        self._compiled: _CompiledGradient | None = None
        self._size = 0
        self._looks = policy.device.type == "cpu"

    def actor(
        self,
        buffer: RolloutBuffer | TensorRolloutBuffer,
        noise: Tensor | None,
        recurrent_state: Tensor | None = None,
    ) -> Callable[[int], None]:
        policy = self.policy
        noise = noise.to(policy.device, policy.dtype) if noise is not None else None
        obs, action, parameters, taken = map(
            torch.as_tensor, (buffer.obs, buffer.action, buffer.parameters, buffer.env_action)
        )

        def act(t: int) -> None:
            if recurrent_state is not None and t:  # another episode begins with nothing remembered
                begins = buffer.done[t - 1] | ~buffer.valid[t - 1]
                recurrent_state.masked_fill_(
                    torch.as_tensor(begins, device=recurrent_state.device).unsqueeze(-1), 0
                )
            chosen, distribution, moved = policy.act(
                obs[t].to(policy.device), None if noise is None else noise[t], recurrent_state
            )
            if recurrent_state is not None and moved is not None:
                recurrent_state.copy_(moved)
            action[t] = chosen
            parameters[1] = distribution.parameters
            if t == 0:
                parameters[0] = parameters[1]
            taken[t] = policy.head.env_action(chosen.to(taken.device))

        return act

    def evaluate(
        self, obs: Tensor, action: Tensor, *, entropy: bool, segments: Segments | None = None
    ) -> Evaluation:
        return self.policy.evaluate(obs, action, entropy=entropy, segments=segments)

    def value(self, obs: Tensor, segments: Segments | None = None) -> Tensor:
        return self.policy.value(obs, segments)

    def descend(
        self,
        algorithm: OnPolicy,
        batch: Batch,
        layout: Layout,
        coefficients: dict[str, float],
        skip: Skip = lambda *_: None,
    ) -> Outcome:
        """On a CPU it looks at every minibatch before the step: a read costs a microsecond.

        On a device a read would wait for all that was handed to it. So no step is looked at, only
        their sum at the end; if that is not finite they are taken back, and taken again, looking.
        """
        if self._looks:
            return self._descend(algorithm, batch, layout, coefficients, skip)
        numbers = [flat.data for flat in self.optimizer.flats]
        numbers += [x for record in self.optimizer.records for x in record.values()]
        numbers += self.policy.buffers()
        before = [x.clone() for x in numbers]
        done = self._descend(algorithm, batch, layout, coefficients, None)
        if (done.terms["loss"] + done.terms["grad_norm"]).isfinite():
            return done
        for x, old in zip(numbers, before, strict=True):
            x.copy_(old)
        return self._descend(algorithm, batch, layout, coefficients, skip)

    def _descend(
        self,
        algorithm: OnPolicy,
        batch: Batch,
        layout: Layout,
        coefficients: dict[str, float],
        skip: Skip | None,
    ) -> Outcome:
        """skip: None takes every step, and reads nothing but where the algorithm may stop."""
        if self.name == "compile":
            self._compiled = self._compiled or _CompiledGradient(
                algorithm, self.policy, self.optimizer
            )
            self._compiled.set(coefficients)
        found, skipped = [], 0
        # One shape is compiled, the first; for others that would take too long.
        self._size = self._size or layout.bounds[0][1]
        epochs = zip(layout.orders.to(batch.obs.device), layout.bounds, strict=True)
        for done, (order, bounds) in enumerate(epochs, 1):
            mixed = batch[order]
            for number, (begin, end) in enumerate(pairwise(bounds), 1):
                if self._compiled and end - begin == self._size:
                    terms = self._compiled(mixed[begin:end])
                    norm = clip_gradient(self.optimizer.flats, algorithm.max_grad_norm)
                else:
                    loss, terms = algorithm.loss(self.policy, mixed[begin:end], coefficients)
                    for flat in self.optimizer.flats:
                        flat.grad.zero_()  # type: ignore[union-attr]
                    loss.backward()  # type: ignore[no-untyped-call]
                    norm = clip_gradient(self.optimizer.flats, algorithm.max_grad_norm)
                if skip and (what := not_finite(loss=terms["loss"], gradient_norm=norm)):
                    skipped += 1
                    skip(what, done, number, mixed[begin:end])
                    continue
                self.optimizer.step()
                found.append({**terms, "grad_norm": norm})
            if done < len(layout.orders) and algorithm.stops(self, batch):
                break
        names = found[0] if found else ()
        totals = {name: torch.stack([f[name] for f in found]).sum() for name in names}
        return Outcome(totals, done, len(found), skipped)


class _CompiledGradient:
    """The loss and its gradient by the flat vectors, as one compiled function.

    By the flat vectors, because then the gradient comes out of the compiled code as it is needed;
    by the modules' own parameters it would be put together by a dozen small operations.
    """

    def __init__(self, algorithm: OnPolicy, policy: ActorCritic, optimizer: FlatOptimizer) -> None:
        self._flats, self._on_gpu = optimizer.flats, policy.device.type == "cuda"
        objective = _Objective(algorithm, policy)
        places = [
            (name, index, (p.data_ptr() - flat.data_ptr()) // flat.itemsize, p.shape)
            for name, p in objective.named_parameters()
            for index, flat in enumerate(optimizer.flats)
            if 0 <= p.data_ptr() - flat.data_ptr() < flat.nbytes
        ]

        def loss(
            flats: list[Tensor], batch: Batch, coefficients: dict[str, Tensor]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            views = {
                name: flats[index][begin : begin + shape.numel()].view(shape)
                for name, index, begin, shape in places
            }
            return torch.func.functional_call(objective, views, (batch, coefficients))  # type: ignore[no-any-return]

        def gradient(
            flats: list[Tensor], batch: Batch, coefficients: dict[str, Tensor]
        ) -> tuple[list[Tensor], dict[str, Tensor]]:
            compute = torch.func.grad_and_value(loss, has_aux=True)
            found, (_, terms) = compute(flats, batch, coefficients)
            return found, terms

        # On a GPU one launch replays the whole graph of kernels.
        mode = "reduce-overhead" if self._on_gpu else None
        self._gradient = torch.compile(gradient, dynamic=False, mode=mode)

    def set(self, coefficients: dict[str, float]) -> None:
        """Scheduled settings, as tensors: numbers would be compiled in, and anew at each change."""
        like = self._flats[0]
        self._coefficients = {name: like.new_tensor(x) for name, x in coefficients.items()}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Write the gradient where the optimizer looks for it; returns the terms of the loss."""
        if self._on_gpu:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        flats = [flat.detach() for flat in self._flats]
        found, terms = self._gradient(flats, batch, self._coefficients)
        for flat, gradient in zip(self._flats, found, strict=True):
            flat.grad.copy_(gradient)  # type: ignore[union-attr]
        # A replay writes its results where the last one wrote them.
        return {name: term.clone() for name, term in terms.items()} if self._on_gpu else terms


class _Objective(nn.Module):
    """The loss as a module's forward, so that other parameters can be put in."""

    def __init__(self, algorithm: OnPolicy, policy: ActorCritic) -> None:
        super().__init__()
        self._algorithm, self.policy = algorithm, policy

    def forward(
        self, batch: Batch, coefficients: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self._algorithm.loss(self.policy, batch, coefficients)


class NativeEngine(Engine):
    """The C++ library, which uses the policy's weights and the optimizer's records in place."""

    def __init__(self, policy: ActorCritic, optimizer: FlatOptimizer, threads: int) -> None:
        super().__init__("native", policy, optimizer)
        self._native = NativePolicy(policy, optimizer, threads)

    def actor(
        self,
        buffer: RolloutBuffer | TensorRolloutBuffer,
        noise: Tensor | None,
        recurrent_state: Tensor | None = None,
    ) -> Callable[[int], None]:
        arrays = buffer if isinstance(buffer, RolloutBuffer) else buffer.on_host()
        return self._native.actor(arrays, noise, recurrent_state)

    def evaluate(
        self, obs: Tensor, action: Tensor, *, entropy: bool, segments: Segments | None = None
    ) -> Evaluation:
        return self._native.evaluate(obs, action, entropy=entropy, segments=segments)

    def value(self, obs: Tensor, segments: Segments | None = None) -> Tensor:
        return self._native.value(obs, segments)

    def descend(
        self,
        algorithm: OnPolicy,
        batch: Batch,
        layout: Layout,
        coefficients: dict[str, float],
        skip: Skip = lambda *_: None,
    ) -> Outcome:
        spec = algorithm.loss_spec(coefficients)
        assert spec is not None
        totals: dict[str, Tensor] = {}
        epoch = number = steps = skipped = 0
        while True:
            rest = layout.behind(epoch, number)
            terms, done, taken, bad = self._native.update(batch, spec, rest.orders, rest.bounds)
            totals = {name: totals[name] + x for name, x in terms.items()} if totals else terms
            steps += taken
            if not bad:
                return Outcome(totals if steps else {}, epoch + done, steps, skipped)
            # It ended at the minibatch behind those taken, and goes on behind that one.
            number = taken - sum(len(b) - 1 for b in rest.bounds[:done]) + (0 if done else number)
            epoch += done
            begin, end = layout.bounds[epoch][number : number + 2]
            samples = batch[layout.orders[epoch][begin:end]]
            skip(not_finite(**bad), epoch + 1, number + 1, samples)
            number, skipped = number + 1, skipped + 1


def _finite(numbers: np.ndarray | Tensor) -> bool:
    if isinstance(numbers, Tensor):
        return bool(numbers.isfinite().all())
    return bool(np.isfinite(numbers).all())


def clip_gradient(flats: list[nn.Parameter], max_norm: float | None) -> Tensor:
    """G <- g min(1, max_norm/|g|), over all vectors. Returns |g| before, on the device."""
    gradients = [flat.grad for flat in flats if flat.grad is not None]
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    norm: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if max_norm is not None:
        scale = max_norm / norm.clamp(min=max_norm)
        for gradient in gradients:
            gradient.mul_(scale)
    return norm
