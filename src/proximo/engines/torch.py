"""The reference engine: PyTorch, operation by operation or with the whole gradient compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from proximo.engines.base import Engine, Objective, Outcome
from proximo.engines.graphs import StepGraph
from proximo.engines.nonfinite import Skip
from proximo.envs.tensors import TensorRolloutBuffer
from proximo.errors import explain
from proximo.nets.actor_critic import ActorCritic, Evaluation
from proximo.nets.optimizer import FlatOptimizer
from proximo.types import Batch, Layout, RolloutBuffer, Segments


class TorchEngine(Engine):
    """PyTorch, operation by operation, or with the whole gradient compiled."""

    def __init__(
        self, policy: ActorCritic, optimizer: FlatOptimizer, *, compiled: bool = False
    ) -> None:
        super().__init__("compile" if compiled else "torch", policy, optimizer)
        self._compiled: _CompiledGradient | None = None
        self._size = 0
        self.waits = policy.device.type != "cpu"
        self._terms: tuple[str, ...] = ()  # of the first update, which warms up
        self._recorded: StepGraph | None = None

    def actor(
        self,
        buffer: RolloutBuffer | TensorRolloutBuffer,
        noise: Tensor | None,
        recurrent_state: Tensor | None = None,
    ) -> Callable[[int], None]:
        policy = self.policy
        noise = noise.to(policy.device, policy.dtype) if noise is not None else None
        obs, action, parameters, env_action = map(
            torch.as_tensor, (buffer.obs, buffer.action, buffer.parameters, buffer.env_action)
        )

        def act(t: int) -> None:
            if recurrent_state is not None and t:  # reset the hidden state (LSTM)
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
            env_action[t] = policy.head.env_action(chosen.to(env_action.device))

        return act

    @torch.no_grad()
    def evaluate(
        self, obs: Tensor, action: Tensor, *, entropy: bool, segments: Segments | None = None
    ) -> Evaluation:
        return self.policy.evaluate(obs, action, entropy=entropy, segments=segments)

    @torch.no_grad()
    def value(self, obs: Tensor, segments: Segments | None = None) -> Tensor:
        return self.policy.value(obs, segments)

    def loss(
        self, objective: Objective, batch: Batch, coefficients: Mapping[str, float | Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a minibatch, with the callbacks' terms, and what to report of it."""
        loss, terms = objective.loss(self.policy, batch, coefficients)
        if self.loss_terms:
            extra = torch.stack([term(self.policy, batch) for term in self.loss_terms]).sum()
            loss = loss + extra
            terms = {**terms, "loss": loss.detach(), "callback_loss": extra.detach()}
        return loss, terms

    def descend(
        self,
        objective: Objective,
        batch: Batch,
        layout: Layout,
        coefficients: dict[str, float],
        skip: Skip | None = lambda *_: None,
    ) -> Outcome:
        """On a CPU it looks at every minibatch before the step: a read costs a microsecond.

        On a device a read would wait for all that was handed to it. So no step is looked at, only
        their sum at the end; if that is not finite they are taken back, and taken again, looking.
        """
        if self.name == "compile":
            self._compiled = self._compiled or _CompiledGradient(self, objective)
            self._compiled.set(coefficients)
        # One shape is compiled, the first; for others that would take too long.
        self._size = self._size or layout.bounds[0][1]
        if not self.waits:
            return super().descend(objective, batch, layout, coefficients, skip)
        numbers = [flat.data for flat in self.optimizer.flats]
        numbers += [x for record in self.optimizer.records for x in record.values()]
        numbers += self.policy.buffers()
        before = [x.clone() for x in numbers]

        def restore() -> None:
            for x, old in zip(numbers, before, strict=True):
                x.copy_(old)

        done = None
        if self._can_record(objective):
            try:
                done = self._replayed(objective, batch, layout, coefficients)
            except RuntimeError as error:
                self.graphs, self._recorded = False, None
                self.report(f"gradient steps run without a CUDA graph: {explain(error)}")
                restore()
        if done is None:
            done = super().descend(objective, batch, layout, coefficients, None)
            self._terms = tuple(done.terms)
        if (done.terms["loss"] + done.terms["grad_norm"]).isfinite():
            return done
        restore()
        return super().descend(objective, batch, layout, coefficients, skip)

    def _can_record(self, objective: Objective) -> bool:
        """True where a step always is the same kernels, and Python has nothing to do in it."""
        ours = type(objective).__module__.startswith("proximo.") and not self.policy.own
        plain = ours and not self.loss_terms and not self.policy.state_size
        return self.graphs and plain and self.name == "torch" and bool(self._terms)

    def _replayed(
        self, objective: Objective, batch: Batch, layout: Layout, coefficients: dict[str, float]
    ) -> Outcome:
        """`descend` by replays."""
        step = self._recorded
        if step is None or len(step.batch) < len(batch):
            room = len(batch) + (len(batch) // 8 if step else 0)
            clips = () if objective.max_grad_norm is None else ("clipped",)
            names = (*self._terms, *clips)
            step = StepGraph(self, objective, batch.room(room), layout.bounds[0][1], names)
            self._recorded = step
        for own, new in zip(vars(step.batch).values(), vars(batch).values(), strict=True):
            own[: len(batch)].copy_(new)
        step.set(coefficients)
        count = 0
        orders = layout.orders.to(batch.obs.device)
        for done, (order, bounds) in enumerate(zip(orders, layout.bounds, strict=True), 1):
            for begin, end in pairwise(bounds):
                step(order[begin:end])
                count += 1
            if done < len(orders) and objective.stops(self, batch):
                break
        totals = {name: total.clone() for name, total in step.totals.items()}
        self.clipped_steps = totals.pop("clipped", 0)
        return Outcome(totals, done, count)

    def gradient(
        self, objective: Objective, minibatch: Batch, coefficients: dict[str, Any]
    ) -> dict[str, Tensor]:
        if self._compiled and len(minibatch) == self._size:
            return self._compiled(minibatch)
        loss, terms = self.loss(objective, minibatch, coefficients)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        return terms


class _CompiledGradient:
    """The loss and its gradient by the flat vectors, as one compiled function.

    By the flat vectors, because then the gradient comes out of the compiled code as it is needed;
    by the modules' own parameters it would be put together by a dozen small operations.
    """

    def __init__(self, engine: TorchEngine, objective: Objective) -> None:
        optimizer = engine.optimizer
        self._flats, self._gradients = optimizer.flats, optimizer.gradients
        self._on_gpu = engine.policy.device.type == "cuda"
        module = _LossModule(engine, objective)
        places = [
            (name, index, (p.data_ptr() - flat.data_ptr()) // flat.itemsize, p.shape)
            for name, p in module.named_parameters()
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
            found: tuple[Tensor, dict[str, Tensor]]
            found = torch.func.functional_call(module, views, (batch, coefficients))
            return found

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
        for own, gradient in zip(self._gradients, found, strict=True):
            own.copy_(gradient)
        # A replay writes its results where the last one wrote them.
        return {name: term.clone() for name, term in terms.items()} if self._on_gpu else terms


class _LossModule(nn.Module):
    """The loss as a module's forward, so that other parameters can be put in."""

    def __init__(self, engine: TorchEngine, objective: Objective) -> None:
        super().__init__()
        self._engine, self._objective, self.policy = engine, objective, engine.policy

    def forward(
        self, batch: Batch, coefficients: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self._engine.loss(self._objective, batch, coefficients)
