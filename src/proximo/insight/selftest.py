"""Known answers: does an installation learn, resume and compute what it must?"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proximo.agent import Agent
from proximo.algorithms.ppo import PPO
from proximo.engines.library import load as load_library
from proximo.envs.config import EnvConfig
from proximo.envs.testing import probes
from proximo.errors import explain, faults
from proximo.functional.schedules import Schedule
from proximo.insight.installation import Line
from proximo.loop import resume, train
from proximo.nets.config import NetConfig
from proximo.run.config import RolloutConfig, RunConfig

GOAL = 0.1
"""Distance from the right value that a learned one may have."""
ROUNDING = 1e-4
"""Difference of weights of about 1 by which two engines may differ after an update."""
ENV = "CartPole-v1"
ROWS = 64
"""Steps of a rollout in each of two envs."""


def self_test() -> Iterator[Line]:
    """Run the tests, one after the other; none takes more than some seconds."""
    engines = ["torch", *(["native"] if load_library()[0] else [])]
    for engine in engines:
        yield _passed(f"learning ({engine})", partial(_learns, engine))
    yield _passed("resuming", _resumes)
    if "native" in engines:
        yield _passed("native against torch", _agrees)
    yield _passed("worker processes", _workers)


def _passed(subject: str, test: Callable[[], tuple[bool, str]]) -> Line:
    """The line of a test: whether it holds, and what was found."""
    begin = time.perf_counter()
    try:
        holds, found = test()
    except faults() as error:
        holds, found = False, f"failed: {explain(error)}"
    return Line(
        state="ok" if holds else "broken",
        subject=subject,
        found=f"{found} ({time.perf_counter() - begin:.1f} s)",
        remedy=""
        if holds
        else "install Proximo and its packages again in a new environment "
        "(python -m venv), and report it if it stays",
    )


def _learns(engine: str) -> tuple[bool, str]:
    """A probe whose best action has the sign of what it shows: V = 1 in both of its states."""
    agent = train(
        probes.BestActionGivenObservation,
        PPO(gamma=0.9, learning_rate=Schedule.parse("linear:1e-2:0"), epochs=4),
        rollout=RolloutConfig(steps=64),
        net=NetConfig(hidden=(32, 32)),
        run_config=_run(engine, total_steps=4_000),
        seed=1,
    )
    seen = torch.tensor([[-1.0], [1.0]])
    with torch.no_grad():
        value = agent.policy.value(seen).tolist()
    actions = agent.act(seen.numpy()).tolist()
    close = all(abs(x - 1) <= GOAL for x in value)
    found = f"actions {actions}, values {', '.join(f'{x:.2f}' for x in value)} (right: [0, 1], 1)"
    return actions == [0, 1] and close, found


def _resumes() -> tuple[bool, str]:
    """A run that was stopped and resumed has the weights of one that was not, to the bit."""
    with tempfile.TemporaryDirectory() as place:
        halves, whole = Path(place, "halves"), Path(place, "whole")
        _short("auto", halves, updates=2)
        again = resume(halves, total_steps=4 * 2 * ROWS)
        straight = _short("auto", whole, updates=4)
        same = _same(_weights(again), _weights(straight))
    return same, "4 updates in two parts " + ("equal" if same else "differ from") + " 4 in one" + (
        " to the bit" if same else ""
    )


def _agrees() -> tuple[bool, str]:
    """One update by both engines from the same experience."""
    torch_run, native_run = (_short(engine, None, updates=1) for engine in ("torch", "native"))
    pairs = zip(_weights(torch_run).values(), _weights(native_run).values(), strict=True)
    far = max(float((a - b).abs().max()) for a, b in pairs)
    return far <= ROUNDING, f"weights after an update differ by {far:.1e} (allowed: {ROUNDING:.0e})"


def _workers() -> tuple[bool, str]:
    """Envs in processes of their own give the weights of envs in this one, to the bit."""
    if os.name != "posix":
        return True, "not on this system"
    apart = _short("auto", None, updates=1, backend="workers")
    same = _same(_weights(apart), _weights(_short("auto", None, updates=1)))
    return same, f"2 envs in processes give {'the same' if same else 'other'} bits as in this one"


def _short(engine: str, run_dir: Path | None, *, updates: int, backend: str = "sync") -> Agent:
    """A run of a few small updates."""
    backends: dict[str, Any] = {"backend": backend, "num_envs": 2, "check": False}
    return train(
        EnvConfig(id=ENV, **backends),
        PPO(epochs=1, minibatch_size=32),
        rollout=RolloutConfig(steps=ROWS),
        run_config=_run(engine, total_steps=updates * 2 * ROWS),
        seed=1,
        run_dir=run_dir,
    )


def _run(engine: Any, *, total_steps: int) -> RunConfig:
    return RunConfig(engine=engine, total_steps=total_steps, threads=1)


def _weights(agent: Agent) -> dict[str, Tensor]:
    return {name: x for name, x in agent.policy.state_dict().items() if x.is_floating_point()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(np.array_equal(one[name].numpy(), other[name].numpy()) for name in one)
