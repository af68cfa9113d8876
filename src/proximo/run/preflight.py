"""Whether what a configuration asks for can be held at all, before any of it is made.

What is counted is the least that it takes, so that nothing is refused that would fit.
"""

from __future__ import annotations

import contextlib
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from proximo.collect import allocate
from proximo.envs.base import Envs
from proximo.errors import UsageError
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.config import NetConfig
from proximo.run.choices import size
from proximo.run.config import Config

LEAST_STEP = 16
"""Bytes of one step of the smallest env there is."""
LEAST_ENV = 1000
"""Bytes of a single env; Gymnasium's CartPole takes five times as many."""
PARAMETER = 2 * 4
"""Bytes of a parameter: its value and its gradient, in float32."""
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Where a container says what it may use, below /sys/fs/cgroup."""


def memory() -> int:
    """Bytes of memory that this machine has, or this container."""
    if not hasattr(os, "sysconf"):  # not on every system
        return 2**62
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return min(found)


def check_sizes(config: Config, *, made: bool) -> None:
    """For the smallest envs there are, before any is made. made: the caller brings the envs."""
    env, net = config.env, config.net
    if not net.module:
        layers = sum(net.hidden[:1]) + sum(a * b for a, b in pairwise(net.hidden))
        _check_network(net, layers + (net.recurrent != "none") * net.recurrent_size**2)
    if made:
        return
    if env.backend in ("sync", "workers"):
        _refuse(f"env.num_envs is {env.num_envs}", "the envs take", env.num_envs * LEAST_ENV)
    _check_rollout(config, env.num_envs, LEAST_STEP, None)


def check_room(policy: ActorCritic, envs: Envs, config: Config) -> None:
    """For this network, which may be on the meta device, in these envs. Raises `UsageError`."""
    _check_network(config.net, size(policy))
    seen = np.zeros((1, *policy.obs_shape), policy.observations.dtype)
    room = vars(allocate(policy, seen, 1))
    step = sum(room[name].nbytes for name in room.keys() - {"obs", "parameters", "final_obs"})
    _check_rollout(config, envs.count, step + room["obs"][1:].nbytes, envs.device)


def _check_rollout(config: Config, rows: int, each: int, device: torch.device | None) -> None:
    rollout, count = config.rollout, rows * config.rollout.steps
    said = f"rollout.steps is {rollout.steps} and env.num_envs {config.env.num_envs}"
    if rollout.episodes:  # of one step at least
        said, count = f"rollout.episodes is {rollout.episodes}", rollout.episodes
    _refuse(said, "a rollout takes", count * each, device)


def _check_network(net: NetConfig, parameters: int) -> None:
    said = f"net.hidden is {net.hidden}"
    if net.recurrent != "none":
        said += f" and net.recurrent_size {net.recurrent_size}"
    _refuse(said, f"{parameters:,} parameters and their gradients take", parameters * PARAMETER)


def _refuse(said: str, what: str, needed: int, device: torch.device | None = None) -> None:
    there, place = memory(), "this machine"
    if device and device.type == "cuda":
        there, place = torch.cuda.mem_get_info(device)[1], str(device)
    if needed > there:
        raise UsageError(
            f"{said}: {what} {needed:,} bytes at least, and {place} has {there:,}: give less"
        )
