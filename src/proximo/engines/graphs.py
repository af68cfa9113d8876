"""CUDA graphs: kernels that are recorded once and then launched all at once.

A replay reads and writes the memory that the recording did, and runs no Python. So only what keeps
its tensors in place can be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from proximo.envs.tensors import TensorRolloutBuffer
from proximo.nets.optimizer import clip_gradient
from proximo.types import Batch

if TYPE_CHECKING:
    from proximo.engines.base import Engine, Objective

DEPTH = 6
"""Levels of an object's parts that `places` looks into."""


def capture(
    function: Callable[[], Any], generators: Iterable[torch.Generator] = ()
) -> Callable[[], None]:
    """Record the kernels of a function, which does not run them; returns what replays them.

    It must have run before, for libraries initialise at their first call. generators: those on the
    device that it draws from, besides PyTorch's own, so that every replay draws on.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        function()
    replay: Callable[[], None] = graph.replay
    return replay


def places(thing: Any) -> dict[str, Any]:
    """Address of every tensor in an object, and the value of every number outside of tensors.

    What differs before and after a step would not be the same in a replay: see `moved`.
    """
    return dict(_places(thing, "", set(), DEPTH))


def _places(thing: Any, name: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, Tensor):
        yield name, (thing.data_ptr(), tuple(thing.shape))
    elif isinstance(thing, np.ndarray):
        yield name, hash(thing.tobytes())
    elif isinstance(thing, torch.Generator | bool | int | float | str | np.generic):
        yield name, thing
    elif depth and id(thing) not in seen:
        seen.add(id(thing))
        parts: Any = ()
        if isinstance(thing, Mapping):
            parts = ((f"{name}[{key!r}]", part) for key, part in thing.items())
        elif isinstance(thing, list | tuple):
            parts = ((f"{name}[{i}]", part) for i, part in enumerate(thing))
        elif not isinstance(thing, type | FunctionType | MethodType | ModuleType):
            own = getattr(thing, "__dict__", {})
            parts = ((f"{name}.{key}".lstrip("."), part) for key, part in own.items())
        for label, part in parts:
            yield from _places(part, label, seen, depth - 1)


def moved(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The first part that is elsewhere, or another number, than before; empty if none is."""
    changed = (name for name in {**after, **before} if before.get(name) != after.get(name))
    return next(changed, "")


class RolloutGraph:
    """All steps of a rollout in envs that hold tensors, as a graph."""

    def __init__(
        self, buffer: TensorRolloutBuffer, noise: Tensor, recurrent_state: Tensor | None
    ) -> None:
        """What the steps read and write: the graph's own memory."""
        self.buffer, self.noise, self.recurrent_state = buffer, noise, recurrent_state
        self._replay: Callable[[], None] | None = None

    def record(self, run: Callable[[], Any], envs: Any) -> str:
        """Record the steps; returns the first part of the envs that did not stay in place, or "".

        If there is one, a replay is right this once, and must not be repeated: it would begin with
        the same numbers again.
        """
        before = places(envs)
        drawn = [x for x in before.values() if isinstance(x, torch.Generator)]
        self._replay = capture(run, [x for x in drawn if x.device.type == "cuda"])
        return moved(before, places(envs))

    def __call__(
        self, steps: TensorRolloutBuffer, noise: Tensor, recurrent_state: Tensor | None
    ) -> None:
        """Take the steps from steps.obs[0] on, into `steps`; the recurrent state moves in place."""
        assert self._replay is not None, "it is recorded first"
        self.buffer.obs[0].copy_(steps.obs[0])
        self.noise.copy_(noise)
        if self.recurrent_state is not None and recurrent_state is not None:
            self.recurrent_state.copy_(recurrent_state)
        self._replay()
        if self.recurrent_state is not None and recurrent_state is not None:
            recurrent_state.copy_(self.recurrent_state)
        for name, own in vars(self.buffer).items():
            if isinstance(own, Tensor):
                getattr(steps, name).copy_(own)
        steps.final_obs.extend(x if x is None else x.clone() for x in self.buffer.final_obs)


class StepGraph:
    """A gradient step as a graph: gather, loss, backward, clipping and the optimizer's step."""

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        batch: Batch,
        size: int,
        terms: Iterable[str],
    ) -> None:
        """batch: a replay reads from its memory. size: of the minibatch. terms: of the loss."""
        self._engine, self._objective = engine, objective
        self._optimizer, self.batch = engine.optimizer, batch
        self._index = torch.zeros(size, dtype=torch.int64, device=batch.obs.device)
        like = engine.optimizer.flats[0]
        self._rates = [like.new_zeros(()).detach() for _ in engine.optimizer.flats]
        self._coefficients: dict[str, Tensor] = {}
        self.totals = {name: torch.zeros_like(self._rates[0]) for name in terms}
        """Sums over the steps of an update, among them `grad_norm` and `clipped`."""
        self._replay: Callable[[], None] | None = None

    def set(self, coefficients: Mapping[str, float]) -> None:
        """Scheduled settings of an update, whose totals begin at 0."""
        self._coefficients = self._coefficients or {
            name: torch.zeros_like(self._rates[0]) for name in coefficients
        }
        # A number that fills a tensor goes to the device as an argument of a kernel.
        for name, value in coefficients.items():
            self._coefficients[name].fill_(value)
        for own, rate in zip(self._rates, self._optimizer.rates, strict=True):
            own.fill_(rate)
        for total in self.totals.values():
            total.zero_()

    def __call__(self, index: Tensor) -> None:
        """Take the step of these samples; without a replay where there are fewer or more."""
        if len(index) != len(self._index):
            self._step(index)
            return
        self._index.copy_(index)
        if self._replay is None:
            floats, self._optimizer.rates = self._optimizer.rates, [*self._rates]
            try:
                self._replay = capture(partial(self._step, self._index))
            finally:
                self._optimizer.rates = floats
        self._replay()

    def _step(self, index: Tensor) -> None:
        engine, limit = self._engine, self._objective.max_grad_norm
        terms = engine.gradient(self._objective, self.batch[index], self._coefficients)
        norm = clip_gradient(self._optimizer.gradients, limit)
        self._optimizer.step()
        found = {**terms, "grad_norm": norm}
        if limit is not None:
            found["clipped"] = (norm > limit).to(norm.dtype)
        for name, term in found.items():
            self.totals[name].add_(term)
