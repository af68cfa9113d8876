"""The C++ engine, for small networks on a CPU."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from proximo.engines.base import Engine, Objective, Outcome
from proximo.engines.library import NativePolicy
from proximo.engines.nonfinite import Skip, not_finite
from proximo.envs.tensors import TensorRolloutBuffer
from proximo.nets.actor_critic import ActorCritic, Evaluation
from proximo.nets.optimizer import FlatOptimizer
from proximo.types import Batch, Layout, RolloutBuffer, Segments


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
        objective: Objective,
        batch: Batch,
        layout: Layout,
        coefficients: dict[str, float],
        skip: Skip = lambda *_: None,
    ) -> Outcome:
        spec = objective.native_spec(coefficients)
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
