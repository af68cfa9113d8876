"""The interface of the C++ library: its structures, and the policies that it can run."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from proximo import native
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.bodies import MLP
from proximo.nets.heads import BernoulliHead, CategoricalHead, GaussianHead, Head, JointHead
from proximo.types import LossSpec

LIBRARY = native.ENGINE
MAX_LAYERS = 6
WIDEST = 512
"""Wider layers run on PyTorch: at 512 units native is twice as fast, at 1024 no faster."""

ACTIVATIONS = {"tanh": 0, "relu": 1, "elu": 2}
VALUE_LOSSES = {"mse": 0, "huber": 1, "clipped": 2}
SUMS = ("loss", "policy_loss", "value_loss", "grad_norm")
OBJECTIVES = {"ratio": 0, "log": 1, "none": 2, "spo": 3}
OPTIMIZERS = {"adam": 0, "rmsprop": 1, "sgd": 2}
HEADS: dict[type[Head], int] = {CategoricalHead: 0, BernoulliHead: 1, GaussianHead: 2}
RECURRENT: dict[type[torch.nn.Module], int] = {torch.nn.GRU: 1, torch.nn.LSTM: 2}
NAMES = {"avx2": "AVX2", "avx512": "AVX-512"}
"""Kernels by the name of what they use of the processor; the others are what every one has."""
NUMBERS = {"int64": 0, "float32": 1, "float64": 2}
ARRAYS = {np.dtype(name) for name in (*NUMBERS, "bool")}
TENSORS = {torch.float32, torch.int64, torch.bool}
"""Types of the numbers that pointers point to."""

_int, _long, _float, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
Widths = _int * MAX_LAYERS


def _fields(**kinds: Any) -> tuple[tuple[str, Any], ...]:
    """Fields of a C structure by their type, as in i="rows columns", f="scale"."""
    types = {"i": _int, "l": _long, "f": _float, "p": _pointer}
    return tuple((name, types[kind[0]]) for kind, names in kinds.items() for name in names.split())


class _Structure(ctypes.Structure):
    """A structure of C, which is given arrays and tensors where it has pointers."""

    pointers: ClassVar[set[str]]

    def __init_subclass__(cls, **_: Any) -> None:
        cls.pointers = {field[0] for field in cls._fields_ if field[1] is _pointer}

    def __init__(self, **values: Any) -> None:
        for name in self.pointers & values.keys():
            values[name] = _address(values[name])
        super().__init__(**values)


class _Head(_Structure):
    _fields_ = _fields(
        i="kind size squash tanh_mean softplus", l="start", p="low high middle half_range"
    )


class _Policy(_Structure):
    _fields_ = (
        *_fields(i="inputs columns hidden_count"),
        ("hidden", Widths),
        *_fields(i="critic_count"),
        ("critic_hidden", Widths),
        *_fields(
            i="activation shared head_count recurrent recurrent_size state_size",
            f="obs_clip",
            p="heads actor critic obs_shift obs_scale measured return_shift return_scale",
        ),
    )


class _Rollout(_Structure):
    _fields_ = (
        *_fields(
            l="num_envs",
            p="obs noise choice action env_action parameters log_prob every",
            i="env_action_type",
        ),
        *_fields(p="recurrent_state done valid"),
    )


class _Batch(_Structure):
    _fields_ = _fields(
        l="count",
        p="obs choice action log_prob value advantage target parameters begins initial_state",
    )


class _Evaluation(_Structure):
    _fields_ = _fields(p="log_prob entropy value parameters recurrent_state")


class _Part(_Structure):
    _fields_ = _fields(p="gradient first second", l="size", f="rate")


class _Update(_Structure):
    _fields_ = (
        *_fields(
            i="epochs objective value_loss standardize optimizer threads",
            f="clip clip_high dual_clip beta entropy_coef value_coef value_clip huber_delta "
            "max_norm target_kl decay1 decay2 eps",
            l="step",
            p="order bounds",
        ),
        ("parts", _Part * 2),
        ("sums", ctypes.c_double * len(SUMS)),
        *_fields(i="epochs_done steps_done clipped_steps finite", f="loss norm"),
    )


STRUCTURES = (_Head, _Policy, _Rollout, _Batch, _Evaluation, _Part, _Update)
"""In the order of interface.h, whose sizes must be the same."""


@cache
def load() -> tuple[Any, str]:
    """The library, or None and why not."""
    library, missing = native.load(LIBRARY, "proximo_version", native.ENGINE_VERSION)
    if library is None:
        return None, missing
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
    library.proximo_act_some.restype = None
    library.proximo_act_some.argtypes = [_pointer, _long, _long, _long]
    library.proximo_close.argtypes = [_pointer]
    return library, ""


def kernels() -> str:
    """Name of the kernels that the library has chosen for this processor; empty if unknown."""
    library, _ = load()
    if library is None or not hasattr(library, "proximo_kernels"):  # built from older sources
        return ""
    library.proximo_kernels.restype = ctypes.c_char_p
    name = str(library.proximo_kernels().decode())
    return NAMES.get(name, "NEON" if platform.machine() in ("aarch64", "arm64") else name)


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
    heads = simple_heads(policy.head)
    foreign = next((type(head) for head in heads if type(head) not in HEADS), None)
    if foreign:
        return f"it does not know a {foreign.__name__}"
    layers = [actor.linears, critic.linears if critic else []]
    widths = [layer.out_features for part in layers for layer in part]
    remembered = policy.actor_recurrent.size if policy.actor_recurrent else 0
    squashed = any(isinstance(head, GaussianHead) and head.squash for head in heads)
    reasons = {
        "its entropy of squashed actions is an integral": squashed and spec.entropy_coef != 0,
        "its critic judges actions": policy.q_critic,
        "it does not know layer normalisation": any(b.norms for b in (actor, critic) if b),
        "its critic puts out symlog values or a histogram": not policy.value_scale.plain,
        "the network is not on a CPU": policy.device.type != "cpu",
        "the network is not in single precision": policy.dtype != torch.float32,
        "some parameters are frozen": not all(p.requires_grad for p in policy.parameters()),
        f"the network has more than {MAX_LAYERS} layers": max(map(len, layers)) > MAX_LAYERS,
        f"a layer is wider than {WIDEST}": max([*widths, remembered]) > WIDEST,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def simple_heads(head: Head) -> list[Head]:
    """The heads that stand side by side in this one."""
    if type(head) is not JointHead:
        return [head]
    return [inner for part in head.heads for inner in simple_heads(part)]


def _address(value: Any) -> Any:
    """Address of the first number of a contiguous array or tensor; anything else as it is."""
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        assert value.dtype in TENSORS
        return value.data_ptr()
    if isinstance(value, np.ndarray):
        assert value.flags.c_contiguous
        assert value.dtype in ARRAYS
        return value.ctypes.data
    return value
