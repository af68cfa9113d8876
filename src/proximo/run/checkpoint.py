"""TrainState <-> one file: tensors as safetensors, everything else as JSON in its header.

One file, so that it is replaced in one step and never half written; its SHA-256, so that damage is
found; no pickle, so that loading runs no code. The same state gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from proximo.spaces import recorded_space, space_record
from proximo.types import Episode, Moments, TrainState, UsageError

SCHEMA = 1
_COUNTERS = (
    *("horizon", "steps", "updates", "episodes", "smoothed", "best", "last_trial_steps"),
    *("beta", "rate_scale", "skipped"),
)
_OPTIONAL = ("reward_return", "carry", "ahead")
_MOMENTS = ("obs_moments", "return_moments", "reward_moments")
_GENERATORS = ("collecting", "shuffling")
_WORLD_ARRAYS = ("obs", "episode", "resetting", "ret", "length")


class Snapshot:
    """A copy of a state as it stands now, to be written now or later."""

    def __init__(
        self,
        state: TrainState,
        spaces: tuple[gym.Space[Any], gym.Space[Any]],
        *,
        policy_only: bool = False,
    ) -> None:
        """`policy_only` leaves out what only resuming needs: smaller, and quicker to take."""
        self._tensors, self._record = _pack(state, policy_only=policy_only)
        self._spaces = spaces

    def write(self, path: Path) -> None:
        """Replace what stands at `path` in one step."""
        record = {**self._record, "spaces": [space_record(space) for space in self._spaces]}
        write(path, self._tensors, record)


def write(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> str:
    """Tensors of their own memory and a JSON record, in one file that `Checkpoint` reads.

    Returns the SHA-256 of its content.
    """
    text = json.dumps({"schema": SCHEMA, **record}, sort_keys=True)
    header = {"record": text, "sha256": _digest(tensors, text)}
    # One key, because safetensors does not keep the order of several.
    data = safetensors.torch.save(tensors, {"proximo": json.dumps(header)})
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return header["sha256"]


def keep_first(
    folder: Path, update: int, tensors: dict[str, Tensor], record: dict[str, Any]
) -> Path:
    """Write a file of this update, if there is none of another; returns where the one stands."""
    for path in folder.glob("update-*.safetensors"):
        return path
    folder.mkdir(exist_ok=True)
    path = folder / f"update-{update}.safetensors"
    write(path, {name: own_copy(tensor) for name, tensor in tensors.items()}, record)
    return path


class Checkpoint:
    """What a checkpoint file holds, verified."""

    def __init__(self, path: Path) -> None:
        """Read `path`. Raises `UsageError` if it is missing, damaged or of another schema."""
        self._path = path
        if not path.is_file():
            raise UsageError(f"there is no checkpoint {path}: {_others(path)}")
        try:
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
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            raise UsageError(
                f"the checkpoint {path} is damaged ({error}): {_others(path)}"
            ) from error
        if self.record.get("schema") != SCHEMA:
            raise UsageError(
                f"the checkpoint {path} has schema {self.record.get('schema')}, this version of "
                f"Proximo reads schema {SCHEMA}: use the version that wrote it (versions.json)"
            )

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Of the observations and of the actions."""
        obs, action = self.record["spaces"]
        return recorded_space(obs), recorded_space(action)

    @property
    def updates(self) -> int:
        return int(self.record["updates"])

    @property
    def steps(self) -> int:
        return int(self.record["steps"])

    def load_policy(self, policy: torch.nn.Module) -> None:
        """Put the saved weights into this policy; `UsageError` names the first misfit."""
        saved = {
            name.removeprefix("policy."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith("policy.")
        }
        for name, own in policy.state_dict().items():
            if name not in saved or saved[name].shape != own.shape:
                found = tuple(saved[name].shape) if name in saved else "nothing"
                raise UsageError(
                    f"the saved policy has {found} where {name} {tuple(own.shape)} belongs: its "
                    "network, its kind of critic or its world's spaces differ from the ones here"
                )
        policy.load_state_dict(saved)

    def load_moments(self, state: TrainState) -> None:
        """The running moments that belong to the policy's normalisation."""
        for name in _MOMENTS:
            if f"{name}.number" in self.tensors:
                setattr(
                    state, name, Moments(*(self.tensors[f"{name}.{f}"] for f in Moments._fields))
                )

    def load_state(self, state: TrainState) -> None:
        """Everything, into a state that was built from the same configuration.

        Raises `UsageError` for a checkpoint that holds only a policy, as `best` does.
        """
        if self.record["policy_only"]:
            raise UsageError(
                f"the checkpoint {self._path} holds a policy and no more: begin a new run with it "
                "by --from"
            )
        self.load_policy(state.policy)
        self.load_moments(state)
        for name in _COUNTERS:
            if name in self.record:  # the last three came later than the first checkpoints
                setattr(state, name, self.record[name])
        state.recent = deque((Episode(*e) for e in self.record["recent"]), maxlen=100)
        for name in _GENERATORS:
            getattr(state, name).set_state(self.tensors[name])
        for name in _OPTIONAL:
            setattr(state, name, self.tensors.get(name))
        for index, record in enumerate(state.optimizer.records):
            for name, tensor in record.items():
                tensor.copy_(self.tensors[f"optimizer.{index}.{name}"])
        world = state.worlds
        for name in _WORLD_ARRAYS:
            setattr(world, name, self.tensors[f"worlds.{name}"].numpy().copy())
        world.actions = [
            [self.tensors[f"worlds.actions.{i}"].numpy()]
            if f"worlds.actions.{i}" in self.tensors
            else []
            for i in range(len(world.episode))
        ]


def _others(path: Path) -> str:
    """What a user whose checkpoint is gone can turn to."""
    names = sorted(p.name for p in path.parent.glob("*.safetensors") if p != path)
    if not names:
        return "the run has no other"
    return f"the run has others: {', '.join(names)}"


def _pack(state: TrainState, *, policy_only: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {f"policy.{name}": tensor for name, tensor in state.policy.state_dict().items()}
    for name in _MOMENTS:
        if (moments := getattr(state, name)) is not None:
            tensors |= {f"{name}.{field}": value for field, value in moments._asdict().items()}
    if not policy_only:
        tensors |= _pack_rest(state)
    record: dict[str, Any] = {name: getattr(state, name) for name in _COUNTERS}
    record |= {
        "policy_only": policy_only,
        "recent": [] if policy_only else [list(episode) for episode in state.recent],
    }
    # Cloned, because the parameters are views into one vector and safetensors wants each alone.
    return {name: own_copy(tensor) for name, tensor in tensors.items()}, record


def own_copy(tensor: Tensor) -> Tensor:
    """Its numbers as they stand now, in memory of their own on the CPU."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).cpu()


def _pack_rest(state: TrainState) -> dict[str, Tensor]:
    world, tensors = state.worlds, {}
    for index, record in enumerate(state.optimizer.records):
        for name, tensor in record.items():
            tensors[f"optimizer.{index}.{name}"] = tensor
    for name in _GENERATORS:
        tensors[name] = getattr(state, name).get_state()
    for name in _OPTIONAL:
        if (tensor := getattr(state, name)) is not None:
            tensors[name] = tensor
    for name in _WORLD_ARRAYS:
        tensors[f"worlds.{name}"] = torch.as_tensor(getattr(world, name))
    for i, stretches in enumerate(world.actions):
        if stretches:
            tensors[f"worlds.actions.{i}"] = torch.from_numpy(np.concatenate(stretches))
    return tensors


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
