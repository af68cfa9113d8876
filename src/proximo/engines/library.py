"""The bridge to engine.cpp: when it can be used, and what it does with a policy's weights."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proximo.functional.distributions import log_slope
from proximo.nets.actor_critic import ActorCritic, Evaluation
from proximo.nets.bodies import MLP
from proximo.nets.heads import BernoulliHead, CategoricalHead, GaussianHead, Head, JointHead
from proximo.nets.optimizer import FlatOptimizer
from proximo.types import Batch, LossSpec, RolloutBuffer, Segments

LIBRARY = Path(__file__).parents[1] / "native" / "engine.so"
VERSION = 7
"""Of the interface; a library of another version is not used."""
MAX_LAYERS = 6
WIDEST = 512
"""Wider layers run on PyTorch: at 512 units native is twice as fast, at 1024 no faster."""
WORTH_A_THREAD = 256
"""Samples from which evaluating them pays for starting a second thread."""

_ACTIVATIONS = {"tanh": 0, "relu": 1, "elu": 2}
_VALUE_LOSSES = {"mse": 0, "huber": 1, "clipped": 2}
_SUMS = ("loss", "policy_loss", "value_loss", "grad_norm")
_OBJECTIVES = {"ratio": 0, "log": 1, "none": 2}
_OPTIMIZERS = {"adam": 0, "rmsprop": 1, "sgd": 2}
_HEADS: dict[type[Head], int] = {CategoricalHead: 0, BernoulliHead: 1, GaussianHead: 2}
_MEMORIES: dict[type[torch.nn.Module], int] = {torch.nn.GRU: 1, torch.nn.LSTM: 2}
_NUMBERS = {"int64": 0, "float32": 1, "float64": 2}

_int, _long, _float, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def _fields(**kinds: Any) -> tuple[tuple[str, Any], ...]:
    """Fields of a C structure by their type, as in i="rows columns", f="scale"."""
    types = {"i": _int, "l": _long, "f": _float, "p": _pointer}
    return tuple((name, types[kind[0]]) for kind, names in kinds.items() for name in names.split())


class _Head(ctypes.Structure):
    _fields_ = _fields(
        i="kind size squash tanh_mean softplus", l="start", p="low high middle half_range"
    )


class _Policy(ctypes.Structure):
    _fields_ = (
        *_fields(i="inputs columns hidden_count"),
        ("hidden", _int * MAX_LAYERS),
        *_fields(i="critic_count"),
        ("critic_hidden", _int * MAX_LAYERS),
        *_fields(
            i="activation shared head_count recurrent recurrent_size state_size",
            f="obs_clip",
            p="heads actor critic obs_shift obs_scale measured return_shift return_scale",
        ),
    )


class _Rollout(ctypes.Structure):
    _fields_ = (
        *_fields(
            l="num_envs", p="obs noise choice action env_action parameters", i="env_action_type"
        ),
        *_fields(p="recurrent_state done valid"),
    )


class _Batch(ctypes.Structure):
    _fields_ = _fields(
        l="count",
        p="obs choice action log_prob value advantage target parameters begins initial_state",
    )


class _Evaluation(ctypes.Structure):
    _fields_ = _fields(p="log_prob entropy value parameters recurrent_state")


class _Part(ctypes.Structure):
    _fields_ = _fields(p="gradient first second", l="size", f="rate")


class _Update(ctypes.Structure):
    _fields_ = (
        *_fields(
            i="epochs objective value_loss standardize optimizer threads",
            f="clip clip_high dual_clip beta entropy_coef value_coef value_clip huber_delta "
            "max_norm target_kl decay1 decay2 eps",
            l="step",
            p="order bounds",
        ),
        ("parts", _Part * 2),
        ("sums", ctypes.c_double * len(_SUMS)),
        *_fields(i="epochs_done steps_done finite", f="loss norm"),
    )


STRUCTURES = (_Head, _Policy, _Rollout, _Batch, _Evaluation, _Part, _Update)
"""In the order of interface.h, whose sizes must be the same."""


@cache
def load() -> tuple[Any, str]:
    """The library, or None and why not."""
    if not LIBRARY.is_file():
        return None, "it was not built when Proximo was installed (no C++ compiler)"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        found = library.proximo_version()
    except (OSError, AttributeError) as error:
        return None, f"{LIBRARY} cannot be loaded: {error}"
    if found != VERSION:
        return None, f"{LIBRARY} is of version {found}, not {VERSION}: install Proximo again"
    library.proximo_size.restype = _long
    for number, structure in enumerate(STRUCTURES):
        there, here = library.proximo_size(number), ctypes.sizeof(structure)
        if there != here:
            name = structure.__name__.strip("_")
            return None, f"{LIBRARY} has {name} of {there} bytes, not {here}: install Proximo again"
    library.proximo_open.restype = _pointer
    library.proximo_open.argtypes = [_pointer, _pointer]
    library.proximo_act.restype = library.proximo_close.restype = None
    library.proximo_act.argtypes = [_pointer, _long]
    library.proximo_close.argtypes = [_pointer]
    return library, ""


def obstacle(policy: torch.nn.Module, spec: LossSpec | None) -> str:
    """Why this policy and update cannot run natively, in a few words; empty if they can.

    They can with small multilayer perceptrons, in single precision on a CPU, and choices, bits and
    Gaussian numbers for actions, together or alone, with masks or without.
    """
    library, missing = load()
    if library is None:
        return missing
    if spec is None:
        return "the loss is not one that it knows"
    if type(policy) is not ActorCritic:
        return "the network is not one that it knows"
    modules = list(policy.modules())
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules):
        return "the network has hooks"
    actor, critic = policy.actor, policy.critic
    if policy.own:
        return "net.module is code of your own"
    if not (isinstance(actor, MLP) and isinstance(critic, MLP | None)):
        return "the network has more than fully connected layers"
    heads = _simple(policy.head)
    foreign = next((type(head) for head in heads if type(head) not in _HEADS), None)
    if foreign:
        return f"it does not know a {foreign.__name__}"
    layers = [actor.linears, critic.linears if critic else []]
    widths = [layer.out_features for part in layers for layer in part]
    remembered = policy.actor_recurrent.size if policy.actor_recurrent else 0
    squashed = any(isinstance(head, GaussianHead) and head.squash for head in heads)
    reasons = {
        "its entropy of squashed actions is an integral": squashed and spec.entropy_coef != 0,
        "its critic judges actions": policy.q_critic,
        "the network is not on a CPU": policy.device.type != "cpu",
        "the network is not in single precision": policy.dtype != torch.float32,
        "some parameters are frozen": not all(p.requires_grad for p in policy.parameters()),
        f"the network has more than {MAX_LAYERS} layers": max(map(len, layers)) > MAX_LAYERS,
        f"a layer is wider than {WIDEST}": max([*widths, remembered]) > WIDEST,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _simple(head: Head) -> list[Head]:
    """The heads that stand side by side in this one."""
    if type(head) is not JointHead:
        return [head]
    return [inner for part in head.heads for inner in _simple(part)]


def _address(array: np.ndarray | Tensor | None) -> int | None:
    """Where the numbers begin, in the order in which they lie."""
    if array is None:
        return None
    if isinstance(array, Tensor):
        assert array.is_contiguous()
        assert array.dtype in (torch.float32, torch.int64, torch.bool)
        return array.data_ptr()
    assert array.flags.c_contiguous
    assert array.dtype.name in (*_NUMBERS, "bool")
    return array.ctypes.data


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


def _single(bound: np.ndarray, inwards: float) -> np.ndarray:
    """A bound in single precision, on the inner side of it where that rounds."""
    bound = bound.reshape(-1)
    rounded = bound.astype(np.float32)
    outside = rounded < bound if inwards > 0 else rounded > bound
    return np.where(outside, np.nextafter(rounded, np.float32(inwards)), rounded)


class NativePolicy:
    """An ActorCritic's weights, used by the library in place: what it learns, the module has.

    The optimizer holds them as flat vectors (`OnPolicy.make_optimizer`).
    """

    def __init__(self, policy: ActorCritic, optimizer: FlatOptimizer, threads: int) -> None:
        self._library, missing = load()
        assert self._library, missing
        self._policy, self._optimizer, self._threads = policy, optimizer, threads
        self._action = "choice" if policy.head.action_dtype is torch.int64 else "action"
        flats, actor, own = optimizer.flats, policy.actor, policy.critic
        assert isinstance(actor, MLP)
        assert isinstance(own, MLP | None)
        first, last = policy.actor_parameters()[0], policy.baseline.bias
        assert first.data_ptr() == flats[0].data_ptr(), "the weights are not one flat vector"
        end = flats[-1].data_ptr() + flats[-1].nbytes
        assert last.data_ptr() + last.nbytes == end, "the weights are not one flat vector"
        self._bounds: list[np.ndarray] = []  # in single precision, to which the library points
        heads = _simple(policy.head)
        self._heads = (_Head * len(heads))(*map(self._head, heads))
        widths = [math.prod(head.action_shape) for head in heads]
        self._squashed = [
            (slice(end - head.size, end), head.half_range.log())
            for head, end in zip(heads, accumulate(widths), strict=True)
            if isinstance(head, GaussianHead) and head.squash
        ]
        linears, seen, memory = actor.linears, policy.observations, policy.actor_recurrent
        shown, valued = policy.normalize_obs, policy.normalize_returns
        critic = policy.critic_parameters()[0] if own else None
        widths_of_critic = [layer.out_features for layer in own.linears] if own else []
        self._struct = _Policy(
            inputs=seen.mask_begin,
            columns=seen.width,
            hidden_count=len(linears),
            hidden=(_int * MAX_LAYERS)(*(layer.out_features for layer in linears)),
            critic_count=len(widths_of_critic),
            critic_hidden=(_int * MAX_LAYERS)(*widths_of_critic),
            activation=_ACTIVATIONS[actor.activation],
            shared=policy.critic is None,
            head_count=len(heads),
            recurrent=_MEMORIES[type(memory.cell)] if memory else 0,
            recurrent_size=memory.size if memory else 0,
            state_size=policy.state_size,
            obs_clip=policy.obs_clip,
            heads=ctypes.addressof(self._heads),
            actor=first.data_ptr(),
            critic=critic.data_ptr() if critic is not None else None,
            obs_shift=_address(policy.obs_shift if shown else None),
            obs_scale=_address(policy.obs_scale if shown else None),
            measured=_address(policy.measured if shown else None),
            return_shift=_address(policy.return_shift if valued else None),
            return_scale=_address(policy.return_scale if valued else None),
        )

    def _head(self, head: Head) -> _Head:
        kind = _HEADS[type(head)]
        if not isinstance(head, GaussianHead):
            start = head.start if isinstance(head, CategoricalHead) else 0
            return _Head(kind=kind, size=head.outputs, start=start)
        low, high = _single(head.low, np.inf), _single(head.high, -np.inf)
        self._bounds += [low, high]
        return _Head(
            kind=kind,
            size=head.size,
            squash=head.squash,
            tanh_mean=head.bounded,
            softplus=not head.free,
            low=_address(low),
            high=_address(high),
            middle=_address(head.middle),
            half_range=_address(head.half_range),
        )

    def actor(
        self, buffer: RolloutBuffer, noise: Tensor | None, recurrent_state: Tensor | None
    ) -> Callable[[int], None]:
        """act(t), from obs[t] and noise[t] to action[t] and taken[t]; the weights are read now.

        recurrent_state: [N, C], which moves on in place.
        """
        noise = noise.to(torch.float32).contiguous() if noise is not None else None
        # An env that wants another type of number than the library gives gets a copy.
        taken = buffer.env_action
        foreign = taken.dtype.name not in _NUMBERS
        if foreign:
            taken = np.empty(taken.shape, np.int64 if self._action == "choice" else np.float32)
        rollout = _Rollout(
            num_envs=buffer.obs.shape[1],
            obs=_address(buffer.obs),
            noise=_address(noise),
            env_action=_address(taken),
            env_action_type=_NUMBERS[taken.dtype.name],
            parameters=_address(buffer.parameters),
            recurrent_state=_address(recurrent_state),
            done=_address(buffer.done),
            valid=_address(buffer.valid),
            **{self._action: _address(buffer.action)},
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
            chosen, _close, self._library, handle, self, noise, taken, buffer, recurrent_state
        )
        return chosen

    def evaluate(
        self, obs: Tensor, action: Tensor, *, entropy: bool, segments: Segments | None
    ) -> Evaluation:
        """As `ActorCritic.evaluate`, without gradients. obs: [..., *obs]."""
        shape = action.shape[: action.dim() - len(self._policy.head.action_shape)]
        log_prob, value = _empty(*shape), _empty(*shape)
        entropies = _empty(*shape) if entropy else None
        parameters = _empty(*shape, self._policy.head.parameter_count)
        recurrent_state = self._evaluate(
            obs, action, log_prob, entropies, value, parameters, segments
        )
        distribution = self._policy.head.restore(parameters)
        if entropy and self._squashed:  # the library's entropies are those of u as well
            entropies = distribution.entropy()
        return Evaluation(log_prob, entropies, value, distribution, recurrent_state)

    def value(self, obs: Tensor, segments: Segments | None) -> Tensor:
        """V(s) in units of the reward. obs: [..., *obs]; returns [...]."""
        value = _empty(*obs.shape[: obs.dim() - len(self._policy.obs_shape)])
        self._evaluate(obs, None, None, None, value, None, segments)
        return value

    def _evaluate(
        self,
        obs: Tensor,
        action: Tensor | None,
        log_prob: Tensor | None,
        entropy: Tensor | None,
        value: Tensor,
        parameters: Tensor | None,
        segments: Segments | None,
    ) -> Tensor | None:
        """Fills in the rest; returns what is remembered behind every stretch. [S, C]."""
        obs = obs.contiguous()
        begins = before = recurrent_state = None
        if segments:
            begins, before = _begins(segments), segments.initial_state.contiguous()
            recurrent_state = _empty(int(begins.sum()), self._policy.state_size)
        action = action.contiguous() if action is not None else None
        batch = _Batch(
            count=value.numel(),
            obs=_address(obs),
            begins=_address(begins),
            initial_state=_address(before),
            **{self._action: _address(action)},
        )
        to = _Evaluation(*map(_address, (log_prob, entropy, value, parameters, recurrent_state)))
        threads = self._threads if value.numel() >= WORTH_A_THREAD else 1
        failed = self._library.proximo_evaluate(
            ctypes.byref(self._struct), ctypes.byref(batch), ctypes.byref(to), threads
        )
        if failed:
            raise MemoryError("there is no memory for the native engine")
        if log_prob is not None and action is not None:
            log_prob -= self._log_slope(action)
        return recurrent_state

    def _log_slope(self, action: Tensor) -> Tensor | float:
        """Log |da/du| of squashed actions: the library's densities are those of u."""
        return sum(
            (log_slope(action[..., own], reach).sum(-1) for own, reach in self._squashed), 0.0
        )

    def update(
        self, batch: Batch, spec: LossSpec, orders: Tensor, bounds: list[list[int]]
    ) -> tuple[dict[str, Tensor], int, int, dict[str, float]]:
        """All epochs and minibatches: orders[k][bounds[k][n] : bounds[k][n + 1]] in turn.

        orders: [K, B] int64. Returns the minibatches' terms, added up, how many epochs and steps
        there were, and nothing; fewer after the KL's limit, or where a minibatch was not finite:
        then its loss and gradient norm, for it ends before the step along that one.
        """
        policy = self._policy
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
        data = _Batch(
            count=len(batch), **{name: _address(tensor) for name, tensor in tensors.items()}
        )
        optimizer = self._optimizer
        adam = optimizer.kind == "adam"
        edges = torch.tensor([edge for epoch in bounds for edge in epoch], dtype=torch.int64)
        orders = orders.contiguous()
        call = _Update(
            epochs=len(orders),
            objective=_OBJECTIVES[spec.policy],
            value_loss=_VALUE_LOSSES[spec.value_loss],
            standardize=spec.standardize,
            optimizer=_OPTIMIZERS[optimizer.kind],
            threads=self._threads,
            clip=spec.clip,
            clip_high=spec.clip_high,
            dual_clip=spec.dual_clip,
            beta=spec.beta,
            entropy_coef=spec.entropy_coef,
            value_coef=spec.value_coef,
            value_clip=spec.value_clip,
            huber_delta=spec.huber_delta,
            max_norm=spec.max_grad_norm or 0.0,
            target_kl=spec.target_kl or 0.0,
            decay1=optimizer.betas[0],
            decay2=optimizer.betas[1] if adam else optimizer.alpha,
            eps=optimizer.eps,
            step=int(optimizer.records[0]["step"]) if adam else 0,
            order=_address(orders),
            bounds=_address(edges),
            parts=(_Part * 2)(*self._parts()),
            finite=1,
        )
        failed = self._library.proximo_update(
            ctypes.byref(self._struct), ctypes.byref(data), ctypes.byref(call)
        )
        if failed:
            raise MemoryError("there is no memory for the native engine")
        for record in optimizer.records:
            if "step" in record:
                record["step"] += call.steps_done
        sums = torch.tensor(list(call.sums), dtype=torch.float64)
        terms = dict(zip(_SUMS, sums, strict=True))
        if spec.policy == "none":
            del terms["policy_loss"]
        bad = {} if call.finite else {"loss": call.loss, "gradient_norm": call.norm}
        return terms, call.epochs_done, call.steps_done, bad

    def _rows(self, obs: Tensor) -> Tensor:
        """Observations as the networks take them, and behind them what is legal."""
        inputs, masks = self._policy.inputs(obs), obs[..., self._policy.observations.mask_begin :]
        return torch.cat([inputs, masks], -1) if self._policy.masked else inputs

    def _parts(self) -> list[_Part]:
        """The actor's slice of weights and records, and the critic's: of one vector or of two."""
        optimizer, policy = self._optimizer, self._policy
        actor = sum(p.numel() for p in policy.actor_parameters())
        slices: list[tuple[int, slice]] = [(0, slice(0, actor)), (0, slice(actor, None))]
        if policy.critic is None:
            slices = [(0, slice(None))]
        elif len(optimizer.flats) == 2:
            slices = [(0, slice(None)), (1, slice(None))]
        parts = []
        for index, piece in slices:
            flat, record = optimizer.flats[index], optimizer.records[index]
            assert flat.grad is not None
            second = "exp_avg_sq" if optimizer.kind == "adam" else "square_avg"
            parts.append(
                _Part(
                    gradient=_address(flat.grad[piece]),
                    first=_address(record["exp_avg"][piece]) if "exp_avg" in record else None,
                    second=_address(record[second][piece]) if second in record else None,
                    size=flat[piece].numel(),
                    rate=optimizer.rates[index],
                )
            )
        return parts


def _begins(segments: Segments) -> Tensor:
    """[B] bool: whether a row is the first of its stretch."""
    begins = torch.ones(len(segments.segment_id), dtype=torch.bool)
    torch.ne(segments.segment_id[1:], segments.segment_id[:-1], out=begins[1:])
    return begins


def _close(library: Any, handle: int, *kept: object) -> None:
    library.proximo_close(handle)
