"""TrainState <-> one file: tensors as safetensors, everything else as JSON in its header.

One file, so that it is replaced in one step and never half written; its SHA-256, so that damage is
found; no pickle, so that loading runs no code. The same state gives the same bytes.

Reading allocates a multiple of the file's size and no more: safetensors bounds the header and the
tensors by the file, JSON takes at most some thirty bytes for each of its own, and what a file says
of sizes is compared with what was saved before anything of that size is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from proximo.disk import check_regular, replace
from proximo.errors import UsageError
from proximo.spaces import recorded_space, space_record
from proximo.state import NUMBERS, Saved, TrainState
from proximo.types import Extra

SCHEMA = 1
LONGEST_HEADER = 100_000_000
"""Bytes of a header that safetensors reads; it would write a longer one."""
MOST_NAMED = 8
"""Other checkpoints that an error names."""
_CONTROL = {"policy_only", "recent", "spaces", "horizon", "steps", "updates", "episodes"}
_CONTROL |= {"smoothed", "best", "last_trial_steps"}
_LANGUAGE = {"counters", "stage", "data", "finished"}
"""What the record of every file of schema 1 has."""
_KINDS = {"policy_only": bool, "counters": dict, "stage": str, "data": str, "finished": bool}
_COUNTERS = {f.name: str(f.type) for f in fields(TrainState) if f.type in NUMBERS}
_COUNTERS |= {"tokens": "int", "ptx": "int"}  # of language models
_LOWEST = {"horizon": 1, "smoothed": -1e300, "best": -1e300, "last_trial_return": -1e300}
"""Of a number in the record; 0 for all others."""
_DAMAGE = (
    *(safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError, LookupError),
    *(ArithmeticError, AssertionError, RuntimeError),
)
"""Whatever reading raises where what it reads is not what was written."""
RENAMED = {
    "worlds.": "envs.",  # names of schema 1
    "carry": "recurrent_state",  # names of schema 1
    "policy.actor_memory.": "policy.actor_recurrent.",  # names of schema 1
    "policy.critic_memory.": "policy.critic_recurrent.",  # names of schema 1
}
"""Beginnings of the names of tensors in files of earlier versions, and what they are now."""


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        if name == old or (name.startswith(old) and not old[-1].isalpha()):
            return new + name.removeprefix(old)
    return name


class Damaged(UsageError):
    """A checkpoint that is missing, or is not what was written."""


def snapshot(
    state: TrainState,
    spaces: tuple[gym.Space[Any], gym.Space[Any]],
    *,
    policy_only: bool = False,
    extra: Extra = ({}, {}),
) -> Callable[[Path], Any]:
    """Copy a state as it stands now; returns what writes it to a file, now or later.

    policy_only: leave out what only resuming needs. extra: what the file holds besides.
    """
    # Cloned, because the parameters are views into one vector and safetensors wants each alone.
    tensors = state.tensors(policy_only=policy_only) | extra[0]
    tensors = {name: own_copy(tensor) for name, tensor in tensors.items()}
    record = state.record(policy_only=policy_only) | extra[1]
    return lambda path: write(path, tensors, {**record, "spaces": [*map(space_record, spaces)]})


def write(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> str:
    """Write a checkpoint to disk: tensors of their own memory, a JSON record; returns SHA-256."""
    text = json.dumps({"schema": SCHEMA, **record}, sort_keys=True)
    header = {"record": text, "sha256": _digest(tensors, text)}
    # One key, because safetensors does not keep the order of several.
    data = safetensors.torch.save(tensors, {"proximo": json.dumps(header)})
    if int.from_bytes(data[:8], "little") > LONGEST_HEADER:
        raise UsageError(
            "the env's spaces have too many numbers for a checkpoint: let it show smaller "
            "observations, or train without a run folder"
        )
    replace(path, data, within=path.parent.parent)  # both of the run folder and what it is in
    return header["sha256"]


class Checkpoint(Saved):
    """What a checkpoint file holds, verified."""

    def __init__(self, path: Path) -> None:
        """Read `path`. Raises `UsageError`: `Damaged`, or of another schema."""
        self.path = path
        if not path.is_file():
            raise Damaged(f"there is no checkpoint {path}: {_others(path)}")
        try:
            check_regular(path)
            with safetensors.safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["proximo"])
                # Cloned into memory of PyTorch's own: where a tensor begins within the file, its
                # numbers are aligned otherwise, and by that a product differs in its last bits.
                names = list(file.keys())
                self.tensors = {name: file.get_tensor(name).clone() for name in names}
            text = header["record"]
            self.sha256: str = header["sha256"]
            if _digest(self.tensors, text) != self.sha256:
                raise ValueError("its SHA-256 does not match its content")
            self.record: dict[str, Any] = json.loads(text)
            self.tensors = {_renamed(name): x for name, x in self.tensors.items()}
            schema = self.record.get("schema")
            if schema == SCHEMA:
                _check(self.record)
        except _DAMAGE as error:
            raise Damaged(
                f"the checkpoint {path} is damaged ({_said(error)}): {_others(path)}"
            ) from error
        if schema != SCHEMA:
            raise UsageError(
                f"the checkpoint {path} has schema {schema!r:.40}, this version of "
                f"Proximo reads schema {SCHEMA}: use the version that wrote it (versions.json)"
            )

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Of the observations and of the actions."""
        most = sum(tensor.nbytes for tensor in self.tensors.values())
        try:
            obs, action = (recorded_space(record, most) for record in self.record["spaces"])
        except _DAMAGE as error:
            raise Damaged(
                f"the spaces in the checkpoint {self.path} are damaged ({_said(error)})"
            ) from error
        return obs, action

    @property
    def updates(self) -> int:
        counters = self.record.get("counters", self.record)  # in the first, of a language model
        if "updates" not in counters:
            raise UsageError(f"{self.path} is no checkpoint of a run")
        return int(counters["updates"])

    @property
    def steps(self) -> int:
        if "policy_only" not in self.record:
            raise UsageError(f"{self.path} is no checkpoint of a policy for envs")
        return int(self.record["steps"])

    def load_state(self, state: TrainState) -> None:
        """Restore a state of the same configuration. Raises `UsageError`, for `best` too."""
        if self.record["policy_only"]:
            raise UsageError(
                f"the checkpoint {self.path} holds a policy and no more: begin a new run with it "
                "by --from"
            )
        state.restore(self)


def own_copy(tensor: Tensor) -> Tensor:
    """Its numbers as they stand now, in memory of their own on the CPU."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).cpu()


def _check(record: dict[str, Any]) -> None:
    """Refuse a record that Proximo has not written. Raises `ValueError`."""
    needed = _LANGUAGE if "counters" in record else set[str]()
    needed = needed | _CONTROL if "policy_only" in record else needed
    if missing := needed - record.keys():
        raise ValueError(f"it has no {min(missing)}")
    for name, value in record.items():
        if not _fits(name, value):
            raise ValueError(f"its {name} is {value!r:.80}")
    if "counters" in record:
        _check(record["counters"])


def _fits(name: str, value: Any) -> bool:
    """A part of a record can have been written."""
    if name in _COUNTERS:
        whole, optional = _COUNTERS[name].startswith("int"), _COUNTERS[name].endswith("None")
        return (optional and value is None) or _is_number(value, _LOWEST.get(name, 0), whole=whole)
    if name == "recent":
        return type(value) is list and len(value) <= 100 and all(map(_is_episode, value))
    if name == "spaces":
        return type(value) is list and len(value) == 2
    return type(value) is _KINDS.get(name, type(value))


def _is_number(value: Any, lowest: float, *, whole: bool) -> bool:
    kinds, highest = ((int,), 2**62) if whole else ((int, float), 1e300)
    return type(value) in kinds and lowest <= value <= highest


def _is_episode(value: Any) -> bool:
    if type(value) is not list or len(value) not in (2, 3):  # two: of earlier versions
        return False
    if type(value[-1]) is not bool and len(value) == 3:
        return False
    return _is_number(value[0], -1e300, whole=False) and _is_number(value[1], 0, whole=True)


def _said(error: Exception) -> str:
    """What went wrong, in one line and not too long."""
    return " ".join(f"{error}".split())[:200] or type(error).__name__


def _others(path: Path) -> str:
    """What a user whose checkpoint is gone can turn to."""
    names = sorted(p.name for p in path.parent.glob("*.safetensors") if p != path)
    if not names:
        return "the run has no other"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"the run has others: {', '.join(names[:MOST_NAMED])}{more}"


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
