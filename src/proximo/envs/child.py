"""The worker process: it makes its envs, then steps them at the trainer's commands."""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from proximo.envs.base import Envs
from proximo.envs.check import check_made
from proximo.envs.config import EnvConfig
from proximo.envs.library_warnings import install
from proximo.envs.make import make_env, make_envs
from proximo.envs.processes import BEGIN, MAP, Process, Shared
from proximo.errors import UsageError, explain, faults
from proximo.spaces import space_record


class _Env:
    """One env, and its rows in the shared memory."""

    def __init__(self, make: Callable[[], Envs], number: int) -> None:
        self._make, self._number = make, number
        self._envs, self._broken = make(), False
        self.agents, self.names = self._envs.agents, self._envs.names
        self.spaces = self._envs.obs_space, self._envs.action_space

    def share(self, shared: Shared) -> None:
        first = self._number * self.agents
        self._rows, self._shared = slice(first, first + self.agents), shared
        self._steps = shared.steps(self._rows)

    def do(self, command: bytes) -> None:
        """Begin or step. Raises whatever the env raises."""
        steps = self._steps
        steps.terminated[:], steps.done[:], steps.valid[:] = False, False, True
        steps.final_obs.clear()
        try:
            if command == BEGIN:
                self._begin()
            else:
                self._envs.step(self._state, steps, 0)
            self._look()
        except faults():
            self._broken = True
            raise
        for _, i, obs in steps.final_obs:
            self._shared.final[self._rows][i] = obs

    def _begin(self) -> None:
        if self._broken:  # another one in its place
            self.close()
            self._envs, self._broken = self._make(), False
        episode = self._shared.episode[self._rows]
        self._state = self._envs.start(int(episode[0]))
        self._state.episode = episode  # the trainer sees which one it is, even if this is the end
        self._steps.obs[1] = self._state.obs
        self._steps.reward[:] = 0

    def _look(self) -> None:
        """Raises `UsageError` for what is not finite."""
        steps = self._steps
        agents = [f"agent {name} " for name in self.names] or [""]
        for agent, reward in zip(agents, steps.reward[0], strict=True):
            if not np.isfinite(reward):
                raise UsageError(f"it gave {agent}the reward {reward}")
        for i, obs in (*enumerate(steps.obs[1]), *((i, obs) for _, i, obs in steps.final_obs)):
            if not np.isfinite(obs).all():
                raise UsageError(f"it gave {agents[i]}{self._envs.observations.not_finite(obs)}")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._envs.close()


def _in_words(error: BaseException) -> str:
    return str(error) if isinstance(error, UsageError) else explain(error)


def work() -> None:
    """Make the envs, then obey commands until the trainer is gone."""
    Process.inside = True
    commands, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # an env may print, and must not answer in our place
    order = json.loads(commands.readline())
    warnings: list[str] = []
    install(warnings.append)

    def answer(**words: Any) -> None:
        if warnings:  # for the trainer, which shows those of all processes once
            words["warnings"] = warnings.copy()
            warnings.clear()
        text = json.dumps(words).encode() + b"\n"
        while text:
            text = text[os.write(answers, text) :]

    env = EnvConfig(**{**order["env"], "wrappers": tuple(order["env"]["wrappers"])})
    if "envs" not in order:
        try:
            answer(**check_made(lambda: make_env(env))._asdict())
        except UsageError as error:
            answer(error=str(error))
        return
    first, last = order["envs"]
    try:
        make = partial(make_envs, env, order["seed"])
        envs = {i: _Env(partial(make, first=i), i) for i in range(first, last)}
        one = envs[first]
        records = [space_record(space) for space in one.spaces]
    except faults() as error:
        answer(error=_in_words(error))
        return
    answer(agents=one.agents, names=one.names, spaces=records)
    if commands.read(1) != MAP:
        return
    me = order["process"]
    shared = Shared(order["memory"], one.spaces, order["count"], one.agents, order["processes"])
    for one in envs.values():
        one.share(shared)
    while command := commands.read(1):
        failed = {}
        for i in np.flatnonzero(shared.active[first:last]) + first:
            shared.heartbeat[me] += 1
            shared.busy_env[me] = i
            try:
                envs[i].do(command)
            except faults() as error:
                failed[int(i)] = [_in_words(error), traceback.format_exc()]
        shared.busy_env[me] = -1
        answer(failures=failed)
    for one in envs.values():
        one.close()
