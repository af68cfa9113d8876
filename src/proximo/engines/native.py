"""The C++ engine, for small networks on a CPU."""

from __future__ import annotations

import ctypes
import inspect
import math
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from proximo.engines import library
from proximo.engines.base import Engine, Objective, OldEvaluation, Outcome
from proximo.engines.nonfinite import Skip, not_finite
from proximo.envs.tensors import TensorRolloutBuffer
from proximo.functional.distributions import log_slope
from proximo.nets.actor_critic import ActorCritic, Evaluation
from proximo.nets.bodies import MLP
from proximo.nets.heads import CategoricalHead, GaussianHead, Head
from proximo.nets.optimizer import FlatOptimizer
from proximo.types import Batch, Layout, LossSpec, NativeCall, Rollout, RolloutBuffer, Segments

WORTH_A_THREAD = 256
"""Samples from which evaluating them pays for starting a second thread."""
SPEC = (
    *("clip", "clip_high", "dual_clip", "beta", "entropy_coef", "value_coef", "value_clip"),
    *("huber_delta", "standardize"),
)
"""Fields of a `LossSpec` that the library takes under their own names."""


class _Kept(NamedTuple):
    """What acting in a buffer has left: log π(a|s) and the distributions' parameters."""

    buffer: RolloutBuffer
    log_prob: Tensor  # [T, N]
    parameters: Tensor  # [T, N, P]

    def of(self, rollout: Rollout) -> bool:
        """Whether these are the steps of this rollout."""
        pairs = ((self.buffer.obs, rollout.obs), (self.buffer.action, rollout.action))
        same = (here.ctypes.data == there.data_ptr() for here, there in pairs)
        return len(self.buffer) == len(rollout.reward) and all(same)


class NativeEngine(Engine):
    """The C++ library, in place on the flat vectors of weights and of the optimizer's records."""

    def __init__(self, policy: ActorCritic, optimizer: FlatOptimizer, threads: int) -> None:
        super().__init__("native", policy, optimizer)
        self._library, missing = library.load()
        assert self._library, missing
        self._threads = threads
        self._kept: _Kept | None = None  # of a rollout, until it is evaluated
        self._action = "choice" if policy.head.action_dtype is torch.int64 else "action"
        flats, actor, own = optimizer.flats, policy.actor, policy.critic
        assert isinstance(actor, MLP)
        assert isinstance(own, MLP | None)
        first, last = policy.actor_parameters()[0], policy.baseline.bias
        assert first.data_ptr() == flats[0].data_ptr(), "the weights are not one flat vector"
        end = flats[-1].data_ptr() + flats[-1].nbytes
        assert last.data_ptr() + last.nbytes == end, "the weights are not one flat vector"
        self._rated, parts = zip(*self._slices(), strict=True)  # the vector of each part
        self._parts = (library._Part * 2)(*parts)
        self._bounds: list[np.ndarray] = []  # in single precision, to which the library points
        heads = library.simple_heads(policy.head)
        self._heads = (library._Head * len(heads))(*map(self._head, heads))
        widths = [math.prod(head.action_shape) for head in heads]
        self._squashed = [
            (slice(end - head.size, end), head.half_range.log())
            for head, end in zip(heads, accumulate(widths), strict=True)
            if isinstance(head, GaussianHead) and head.squash
        ]
        linears, seen, memory = actor.linears, policy.observations, policy.actor_recurrent
        shown, valued = policy.normalize_obs, policy.normalize_returns
        critic = policy.critic_parameters()[0] if own else None
        valuers = own.linears if own else ()
        self._struct = library._Policy(
            inputs=seen.mask_begin,
            columns=seen.width,
            hidden_count=len(linears),
            hidden=library.Widths(*(layer.out_features for layer in linears)),
            critic_count=len(valuers),
            critic_hidden=library.Widths(*(layer.out_features for layer in valuers)),
            activation=library.ACTIVATIONS[actor.activation],
            shared=policy.critic is None,
            head_count=len(heads),
            recurrent=library.RECURRENT[type(memory.cell)] if memory else 0,
            recurrent_size=memory.size if memory else 0,
            state_size=policy.state_size,
            obs_clip=policy.obs_clip,
            heads=ctypes.addressof(self._heads),
            actor=first,
            critic=critic,
            obs_shift=policy.obs_shift if shown else None,
            obs_scale=policy.obs_scale if shown else None,
            measured=policy.measured if shown else None,
            return_shift=policy.return_shift if valued else None,
            return_scale=policy.return_scale if valued else None,
        )

    def _head(self, head: Head) -> library._Head:
        kind = library.HEADS[type(head)]
        if not isinstance(head, GaussianHead):
            start = head.start if isinstance(head, CategoricalHead) else 0
            return library._Head(kind=kind, size=head.outputs, start=start)
        low, high = _single(head.low, np.inf), _single(head.high, -np.inf)
        self._bounds += [low, high]
        return library._Head(
            kind=kind,
            size=head.size,
            squash=head.squash,
            tanh_mean=head.bounded,
            softplus=not head.free,
            low=low,
            high=high,
            middle=head.middle,
            half_range=head.half_range,
        )

    def actor(
        self,
        buffer: RolloutBuffer | TensorRolloutBuffer,
        noise: Tensor | None,
        recurrent_state: Tensor | None = None,
    ) -> Callable[[int], None]:
        """`Engine.actor`; the weights are read now."""
        buffer = buffer if isinstance(buffer, RolloutBuffer) else buffer.on_host()
        noise = noise.to(torch.float32).contiguous() if noise is not None else None
        # An env that wants another type of number than the library gives gets a copy.
        taken = buffer.env_action
        foreign = taken.dtype.name not in library.NUMBERS
        if foreign:
            taken = np.empty(taken.shape, np.int64 if self._action == "choice" else np.float32)
        kept = self._kept = None if self.policy.state_size else self._room(buffer)
        rollout = library._Rollout(
            num_envs=buffer.obs.shape[1],
            obs=buffer.obs,
            noise=noise,
            env_action=taken,
            env_action_type=library.NUMBERS[taken.dtype.name],
            parameters=buffer.parameters,
            log_prob=kept and kept.log_prob,
            every=kept and kept.parameters,
            recurrent_state=recurrent_state,
            done=buffer.done,
            valid=buffer.valid,
            **{self._action: buffer.action},
        )
        handle = self._library.proximo_open(ctypes.byref(self._struct), ctypes.byref(rollout))
        if not handle:
            raise MemoryError("there is no memory for the native engine")
        native = partial(self._library.proximo_act, handle)

        def act(t: int) -> None:
            native(t)
            buffer.env_action[t] = taken[t]

        chosen = act if foreign else native
        # What it points to lives as long as it does.
        weakref.finalize(
            chosen, _close, self._library, handle, self, noise, taken, buffer, kept, recurrent_state
        )
        return chosen

    def _room(self, buffer: RolloutBuffer) -> _Kept:
        rows = buffer.reward.shape
        return _Kept(buffer, _empty(*rows), _empty(*rows, self.policy.head.parameter_count))

    def native_call(self, act: Callable[[int], None]) -> NativeCall | None:
        act = inspect.unwrap(act)  # from a profile's clock
        if not isinstance(act, partial):
            return None
        function = ctypes.cast(self._library.proximo_act, ctypes.c_void_p).value
        return NativeCall(function, act.args[0])

    def act_some(self, act: Callable[[int], None]) -> Callable[[int, int, int], None] | None:
        if not isinstance(act, partial):
            return None
        return partial(self._library.proximo_act_some, *act.args)

    def evaluate_old(self, rollout: Rollout) -> OldEvaluation:
        """`Engine.evaluate_old`, without what `actor` knows already: the same to the bit."""
        kept, self._kept = self._kept, None
        if kept is None or not kept.of(rollout):
            return super().evaluate_old(rollout)
        log_prob = kept.log_prob
        if self._squashed:
            log_prob -= self._log_slope(rollout.action)
        nothing = rollout.initial_state.new_empty(*rollout.mask.shape, 0)
        return OldEvaluation(log_prob, kept.parameters, self.value(rollout.obs), nothing, nothing)

    def evaluate(
        self, obs: Tensor, action: Tensor, *, entropy: bool, segments: Segments | None = None
    ) -> Evaluation:
        return self._judge(obs, action, segments, entropy=entropy, value=True)

    def evaluate_batch(self, batch: Batch, *, entropy: bool) -> Evaluation:
        return self._judge(batch.obs, batch.action, batch.segments, entropy=entropy, value=False)

    def _judge(
        self, obs: Tensor, action: Tensor, segments: Segments | None, *, entropy: bool, value: bool
    ) -> Evaluation:
        head = self.policy.head
        shape = action.shape[: action.dim() - len(head.action_shape)]
        log_prob, values = _empty(*shape), _empty(*shape) if value else _empty(0)
        entropies = _empty(*shape) if entropy else None
        parameters = _empty(*shape, head.parameter_count)
        to = {"log_prob": log_prob, "entropy": entropies, "parameters": parameters}
        if value:
            to["value"] = values
        recurrent_state = self._evaluate(obs, action, segments, **to)
        if self._squashed:
            log_prob -= self._log_slope(action)
        distribution = head.restore(parameters)
        if entropy and self._squashed:  # the library's entropies are those of u as well
            entropies = distribution.entropy()
        return Evaluation(log_prob, entropies, values, distribution, recurrent_state)

    def value(self, obs: Tensor, segments: Segments | None = None) -> Tensor:
        value = _empty(*obs.shape[: obs.dim() - len(self.policy.obs_shape)])
        self._evaluate(obs, None, segments, value=value)
        return value

    def _evaluate(
        self, obs: Tensor, action: Tensor | None, segments: Segments | None, **to: Tensor | None
    ) -> Tensor | None:
        """Fill in these fields of a `_Evaluation`. Returns the state after each segment, [S, C]."""
        obs = obs.contiguous()
        begins = before = recurrent_state = None
        if segments:
            begins, before = _begins(segments), segments.initial_state.contiguous()
            recurrent_state = _empty(int(begins.sum()), self.policy.state_size)
        action = action.contiguous() if action is not None else None
        count = math.prod(obs.shape[: obs.dim() - len(self.policy.obs_shape)])
        batch = library._Batch(
            count=count,
            obs=obs,
            begins=begins,
            initial_state=before,
            **{self._action: action},
        )
        to["recurrent_state"] = recurrent_state
        results = library._Evaluation(**to)
        threads = self._threads if count >= WORTH_A_THREAD else 1
        failed = self._library.proximo_evaluate(
            ctypes.byref(self._struct), ctypes.byref(batch), ctypes.byref(results), threads
        )
        if failed:
            raise MemoryError("there is no memory for the native engine")
        return recurrent_state

    def _log_slope(self, action: Tensor) -> Tensor | float:
        """Log |da/du| of squashed actions: the library's densities are those of u."""
        return sum(
            (log_slope(action[..., own], reach).sum(-1) for own, reach in self._squashed), 0.0
        )

    def descend(
        self,
        objective: Objective,
        batch: Batch,
        layout: Layout,
        coefficients: dict[str, float],
        skip: Skip | None = lambda *_: None,
    ) -> Outcome:
        spec = objective.native_spec(coefficients)
        assert spec is not None
        assert skip
        totals: dict[str, Tensor] = {}
        epoch = number = steps = skipped = self.clipped_steps = 0
        while True:
            rest = layout.behind(epoch, number)
            terms, done, taken, bad = self._update(batch, spec, rest.orders, rest.bounds)
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

    def _update(
        self, batch: Batch, spec: LossSpec, orders: Tensor, bounds: list[list[int]]
    ) -> tuple[dict[str, Tensor], int, int, dict[str, float]]:
        """All epochs and minibatches: orders[k][bounds[k][n] : bounds[k][n + 1]] in turn.

        orders: [K, B] int64. Returns the minibatches' terms, added up, how many epochs and steps
        there were, and nothing; fewer after the KL's limit, or where a minibatch was not finite:
        then its loss and gradient norm, for it ends before the step along that one.
        """
        policy = self.policy
        target, value = batch.target, batch.value
        if policy.normalize_returns:  # the library sees the critic in its own units
            target, value = (
                (x - policy.return_shift) / policy.return_scale for x in (target, value)
            )
        with torch.no_grad():
            tensors = {
                "obs": self._rows(batch.obs).contiguous(),
                self._action: batch.action.contiguous(),
                "log_prob": (batch.log_prob + self._log_slope(batch.action)).contiguous(),
                "value": value.contiguous(),
                "parameters": batch.parameters.contiguous(),
                "advantage": batch.advantage.contiguous(),
                "target": target.contiguous(),
            }
            if segments := batch.segments:
                tensors |= {
                    "begins": _begins(segments),
                    "initial_state": segments.initial_state.contiguous(),
                }
        data = library._Batch(count=len(batch), **tensors)
        optimizer = self.optimizer
        adam = optimizer.kind == "adam"
        edges = torch.tensor([edge for epoch in bounds for edge in epoch], dtype=torch.int64)
        orders = orders.contiguous()
        call = library._Update(
            epochs=len(orders),
            objective=library.OBJECTIVES[spec.policy],
            value_loss=library.VALUE_LOSSES[spec.value_loss],
            optimizer=library.OPTIMIZERS[optimizer.kind],
            threads=self._threads,
            **{name: getattr(spec, name) for name in SPEC},
            max_norm=spec.max_grad_norm or 0.0,
            target_kl=spec.target_kl or 0.0,
            decay1=optimizer.betas[0],
            decay2=optimizer.betas[1] if adam else optimizer.alpha,
            eps=optimizer.eps,
            step=int(optimizer.records[0]["step"]) if adam else 0,
            order=orders,
            bounds=edges,
            parts=self._parts,
            finite=1,
        )
        for part, index in zip(call.parts, self._rated, strict=False):
            part.rate = optimizer.rates[index]
        failed = self._library.proximo_update(
            ctypes.byref(self._struct), ctypes.byref(data), ctypes.byref(call)
        )
        if failed:
            raise MemoryError("there is no memory for the native engine")
        for record in optimizer.records:
            if "step" in record:
                record["step"] += call.steps_done
        self.clipped_steps += call.clipped_steps
        sums = torch.tensor(list(call.sums), dtype=torch.float64)
        terms = dict(zip(library.SUMS, sums, strict=True))
        if spec.policy == "none":
            del terms["policy_loss"]
        bad = {} if call.finite else {"loss": call.loss, "gradient_norm": call.norm}
        return terms, call.epochs_done, call.steps_done, bad

    def _rows(self, obs: Tensor) -> Tensor:
        """Observations as the networks take them, and behind them what is legal."""
        inputs, masks = self.policy.inputs(obs), obs[..., self.policy.observations.mask_begin :]
        return torch.cat([inputs, masks], -1) if self.policy.masked else inputs

    def _slices(self) -> Iterator[tuple[int, library._Part]]:
        """The actor's slice of weights and records, and the critic's: each of which vector."""
        optimizer, policy = self.optimizer, self.policy
        actor = sum(p.numel() for p in policy.actor_parameters())
        slices: list[tuple[int, slice]] = [(0, slice(0, actor)), (0, slice(actor, None))]
        if policy.critic is None:
            slices = [(0, slice(None))]
        elif len(optimizer.flats) == 2:
            slices = [(0, slice(None)), (1, slice(None))]
        for index, piece in slices:
            flat, record = optimizer.flats[index], optimizer.records[index]
            assert flat.grad is not None
            second = "exp_avg_sq" if optimizer.kind == "adam" else "square_avg"
            part = library._Part(
                gradient=flat.grad[piece],
                first=record["exp_avg"][piece] if "exp_avg" in record else None,
                second=record[second][piece] if second in record else None,
                size=flat[piece].numel(),
            )
            yield index, part


def _begins(segments: Segments) -> Tensor:
    """[B] bool: whether a row is the first of its stretch."""
    begins = torch.ones(len(segments.segment_id), dtype=torch.bool)
    torch.ne(segments.segment_id[1:], segments.segment_id[:-1], out=begins[1:])
    return begins


def _close(library: Any, handle: int, *kept: object) -> None:
    library.proximo_close(handle)


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


def _single(bound: np.ndarray, inwards: float) -> np.ndarray:
    """A bound in single precision, on the inner side of it where that rounds."""
    bound = bound.reshape(-1)
    rounded = bound.astype(np.float32)
    outside = rounded < bound if inwards > 0 else rounded > bound
    return np.where(outside, np.nextafter(rounded, np.float32(inwards)), rounded)
