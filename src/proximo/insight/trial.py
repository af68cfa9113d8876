"""A few updates in earnest: how fast training is, and which share of it the envs take."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any, NamedTuple

from proximo.envs.config import EnvConfig, cores
from proximo.envs.envpool import is_pooled
from proximo.envs.make import has_vector_version, make_envs
from proximo.envs.survey import play
from proximo.envs.watch import Clock, Sampler
from proximo.errors import UsageError
from proximo.loop import run_control
from proximo.run.choices import choose_backend
from proximo.run.config import Config
from proximo.run.control import make_session

SLOW = 1e-4
"""Seconds of a step from which processes of their own are worth trying."""
BIGGEST = 2**31
"""Steps that the trial never reaches."""


class Speed(NamedTuple):
    """Speed of training, and the envs' part of it."""

    steps_per_second: float
    env_share: float


def try_training(
    config: Config, envs_per_second: float, agents: int, seconds: float
) -> Speed | None:
    """Train for this time, and throw it away; None where one update would take longer.

    Raises `UsageError` for what cannot be trained.
    """
    rows = config.env.num_envs * agents
    least = -(-config.algorithm.minibatch_size // rows)
    if config.rollout.episodes or 2 * least * rows > envs_per_second * seconds:
        return None
    room = int(envs_per_second * seconds / 4 / rows)
    steps = min(max(room, least), config.rollout.steps)
    end = time.monotonic() + seconds

    def stop(state: Any, rollout: Any, row: Any) -> bool:
        return time.monotonic() > end or state.updates >= 100

    plain = dataclasses.replace(
        config,
        rollout=dataclasses.replace(config.rollout, steps=steps),
        env=dataclasses.replace(config.env, check=False),
        run=dataclasses.replace(
            config.run, total_steps=BIGGEST, stop_at=None, eval_every=0, profile=True
        ),
    )
    found = run_control(make_session(plain, callbacks=[stop])).result["profile"]
    return Speed(found["steps_per_second"], found["reached"])


def other_backends(env: EnvConfig, here: float, seconds: float) -> dict[str, float]:
    """Steps per second of backends that may be faster than single envs in turn, as measured.

    here: seconds of a step of a single env. seconds: for each backend.
    """
    if env.backend not in ("auto", "sync") or env.wrappers or env.action_masks != "observation":
        return {}
    wanted = []
    if has_vector_version(env):
        wanted.append("vector")
    if here > SLOW and cores() > 1 and choose_backend(env, given=False)[0] == "sync":
        wanted.append("workers")
    if is_pooled(env.id):
        wanted.append("envpool")
    speeds = {}
    for backend in wanted:
        chosen: dict[str, Any] = {"backend": backend}
        with contextlib.suppress(UsageError):  # it has not the same spaces, or no memory
            speeds[backend] = _speed(dataclasses.replace(env, **chosen), seconds)
    return speeds


def _speed(env: EnvConfig, seconds: float) -> float:
    """Steps per second of random play in these envs, with a backend. Raises `UsageError`."""
    envs = make_envs(env, 0)
    try:
        clock, sampler = Clock(seconds, BIGGEST), Sampler(envs.actions)
        played = play(envs, "random", sampler.draw, clock, BIGGEST)
    finally:
        envs.close()
    return played.steps / max(played.seconds, 1e-9)
