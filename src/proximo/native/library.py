"""The bridge to engine.cpp: when it can be used, and one epoch through it."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proximo.nets.actor_critic import ActorCritic, GaussianHead
from proximo.types import Batch, LossSpec

LIBRARY = Path(__file__).with_name("engine.so")
VERSION = 1
"""Of the interface; a library of another version is not used."""
MAX_LAYERS = 6
WIDEST = 256
"""Hidden layers wider than this run on PyTorch, whose kernels are faster on large matrices."""

_ACTIVATIONS = {"tanh": 0, "relu": 1, "elu": 2}
_VALUE_LOSSES = {"mse": 0, "huber": 1, "clipped": 2}
_SUMS = ("loss", "policy_loss", "value_loss", "grad_norm")

_int, _float, _pointer = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class _Spec(ctypes.Structure):
    _fields_ = (
        *((name, _int) for name in ("inputs", "actions", "hidden_count")),
        ("hidden", _int * MAX_LAYERS),
        *((name, _int) for name in ("activation", "shared", "head", "value_loss", "standardize")),
        *((name, _float) for name in ("clip", "entropy_coef", "value_coef", "value_clip")),
        *((name, _float) for name in ("huber_delta", "max_norm", "beta1", "beta2", "eps")),
    )


class _Data(ctypes.Structure):
    _fields_ = tuple(
        (name, _pointer)
        for name in ("obs", "choice", "action", "log_prob", "advantage", "target", "value")
    )


class _Group(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("weights", "gradient", "mean", "square")),
        ("size", ctypes.c_int64),
        ("rate", _float),
    )


@cache
def _load() -> tuple[Any, str]:
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
    library.proximo_epoch.restype = None
    return library, ""


def obstacle(policy: torch.nn.Module, spec: LossSpec | None, optimizer: object) -> str:
    """Why this update cannot run natively, in a few words; empty if it can."""
    library, missing = _load()
    if library is None:
        return missing
    if spec is None:
        return "the loss is not one that it knows"
    if type(policy) is not ActorCritic:
        return "the network is not one that it knows"
    modules = list(policy.modules())
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules):
        return "the network has hooks"
    widths = [layer.out_features for layer in policy.actor.linears()]
    reasons = {
        "the optimizer is not Adam": type(optimizer) is not torch.optim.Adam,
        "the network is not on a CPU": policy.device.type != "cpu",
        "the network is not in single precision": policy.dtype != torch.float32,
        "some parameters are frozen": not all(p.requires_grad for p in policy.parameters()),
        f"the network has more than {MAX_LAYERS} layers": len(widths) > MAX_LAYERS,
        f"a layer is wider than {WIDEST}": max(widths) > WIDEST,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


class NativeUpdate:
    """One update's data, laid out for the library. Everything it points to is kept alive here."""

    def __init__(
        self, policy: ActorCritic, optimizer: torch.optim.Optimizer, batch: Batch, spec: LossSpec
    ) -> None:
        library, _ = _load()
        self._library, self._optimizer = library, optimizer
        gaussian = isinstance(policy.head, GaussianHead)
        target, value = batch.target, batch.value
        if policy.normalize_returns:  # the library sees the critic in its own units
            target, value = (
                (x - policy.return_shift) / policy.return_scale for x in (target, value)
            )
        with torch.no_grad():
            self._tensors: dict[str, Tensor] = {
                "obs": policy.inputs(batch.obs).reshape(len(batch), -1).contiguous(),
                "choice" if not gaussian else "action": batch.action.contiguous(),
                "log_prob": batch.log_prob.contiguous(),
                "advantage": batch.advantage.contiguous(),
                "target": target.contiguous(),
                "value": value.contiguous(),
            }
        for name, tensor in self._tensors.items():
            expected = torch.int64 if name == "choice" else torch.float32
            assert tensor.dtype == expected, name
            assert len(tensor) == len(batch), name
        self._data = _Data(**{name: tensor.data_ptr() for name, tensor in self._tensors.items()})
        linears = policy.actor.linears()
        self._spec = _Spec(
            inputs=linears[0].in_features,
            actions=policy.head.size,
            hidden_count=len(linears),
            hidden=(_int * MAX_LAYERS)(*(layer.out_features for layer in linears)),
            activation=_ACTIVATIONS[policy.actor.activation],
            shared=policy.critic is None,
            head=gaussian,
            value_loss=_VALUE_LOSSES[spec.value_loss],
            standardize=spec.standardize,
            clip=spec.clip,
            entropy_coef=spec.entropy_coef,
            value_coef=spec.value_coef,
            value_clip=spec.value_clip,
            huber_delta=spec.huber_delta,
            max_norm=spec.max_grad_norm or 0.0,
            beta1=optimizer.param_groups[0]["betas"][0],
            beta2=optimizer.param_groups[0]["betas"][1],
            eps=optimizer.param_groups[0]["eps"],
        )

    def epoch(self, order: Tensor, bounds: list[int]) -> dict[str, Tensor]:
        """Minibatches order[bounds[n] : bounds[n + 1]] in turn; returns their terms, added up."""
        groups = self._optimizer.param_groups
        states = [self._adam_state(group["params"][0]) for group in groups]
        packed = (_Group * len(groups))(
            *(
                _Group(
                    weights=group["params"][0].data_ptr(),
                    gradient=group["params"][0].grad.data_ptr(),
                    mean=state["exp_avg"].data_ptr(),
                    square=state["exp_avg_sq"].data_ptr(),
                    size=group["params"][0].numel(),
                    rate=float(group["lr"]),
                )
                for group, state in zip(groups, states, strict=True)
            )
        )
        order = order.contiguous()
        edges = torch.tensor(bounds, dtype=torch.int64)
        sums = torch.zeros(len(_SUMS), dtype=torch.float64)
        self._library.proximo_epoch(
            ctypes.byref(self._spec),
            ctypes.byref(self._data),
            packed,
            len(groups),
            _pointer(order.data_ptr()),
            _pointer(edges.data_ptr()),
            ctypes.c_int64(len(bounds) - 1),
            ctypes.c_int64(int(states[0]["step"])),
            _pointer(sums.data_ptr()),
        )
        for state in states:
            state["step"] += len(bounds) - 1
        return dict(zip(_SUMS, sums, strict=True))

    def _adam_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Adam's own record, begun as PyTorch would begin it: both engines go on from it."""
        state: dict[str, Tensor] = self._optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
