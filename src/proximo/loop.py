"""Algorithm 1 of the paper, and the public function `train`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from proximo.agent import Agent, load
from proximo.algorithms.base import OnPolicy
from proximo.envs.base import Maker
from proximo.envs.config import EnvConfig
from proximo.errors import UsageError
from proximo.imports import find, name_of
from proximo.nets.config import NetConfig
from proximo.nets.custom import Maker as NetMaker
from proximo.run.callbacks import Callback
from proximo.run.code import Code
from proximo.run.config import Config, RolloutConfig, RunConfig, RunSettings, task_name
from proximo.run.consent import WHAT, Named, allow, python_line
from proximo.run.control import continued, make_session, start_from
from proximo.run.display import CONTROL, Display, Screen, make_display, screen_of_call
from proximo.run.folder import RunFolder
from proximo.run.keeping import newest
from proximo.run.named_callbacks import AnyCallback, check_callbacks, with_callbacks
from proximo.run.presets import find_preset
from proximo.run.session import Session, Task
from proximo.types import Row


def learn(task: Task, state: Any, run: RunSettings, callbacks: Sequence[Callback]) -> bool:
    """Schulman et al. 2017 (arXiv 1707.06347), Algorithm 1; returns whether a callback ended it."""
    while not state.finished(run):
        rollout = task.collect(state)  # run the old policy
        batch = task.prepare(state, rollout)  # advantages and value targets, once
        metrics = task.update(state, batch)  # K epochs of minibatches of size M <= NT
        row = state.advance(rollout, metrics)  # counters, and everything that is logged
        if any([callback(state, rollout, row) for callback in callbacks]):  # noqa: C419 each is called
            return True
    return False


def run_session(session: Session, display: Display | None = None) -> Row:
    """Train in a session that stands ready, and close it; returns how the training ended.

    display: one to open meanwhile, with the notes on the setup over it.
    """
    if display:
        display.notes = session.log.setup_notes
    with display or contextlib.nullcontext(), session:
        stopped = learn(session.task, session.state, session.run, session.callbacks)
        return session.finish(stopped=stopped)


def run_control(session: Session, display: Display | None = None) -> Agent:
    """`run_session` of a control task; returns the agent."""
    result = run_session(session, display)
    task: Any = session.task
    return Agent(task.state.policy, task.config, task.spaces, result)


def _run(screen: Screen | None, config: Config, folder: RunFolder | None, **parts: Any) -> Agent:
    """Train as a call from Python, with its progress on this screen. parts: of the session."""
    total, task = config.run.total_steps, task_name(config)
    display = make_display(screen, CONTROL, total, folder, task)
    watch = display.move if display else None
    session = make_session(config, folder=folder, display=display, watch=watch, **parts)
    return run_control(session, display)


def _check_kinds(
    algorithm: object, net: object, rollout: object, run_config: object, callbacks: object
) -> None:
    """Arguments of another kind than `train` takes. Raises `UsageError`."""
    if not isinstance(algorithm, OnPolicy | None):
        raise UsageError(f"algorithm is {algorithm!r}: give an instance, such as PPO()")
    check_callbacks(callbacks)
    sections = (("rollout", rollout, RolloutConfig), ("run_config", run_config, RunConfig))
    for name, section, kind in sections:
        if not isinstance(section, kind | None):
            raise UsageError(f"{name} is {section!r}: give a {kind.__name__}")
    if isinstance(net, torch.nn.Module):
        raise UsageError(
            f"net is a module, one {type(net).__name__}: give its class, or what makes it"
        )
    if not (isinstance(net, NetConfig | None) or callable(net)):
        raise UsageError(f"net is {net!r}: give a class, or NetConfig(module='module:Class')")


def train(
    env: str | EnvConfig | Maker | VectorEnv,
    algorithm: OnPolicy | None = None,
    *,
    total_steps: int | None = None,
    seed: int | None = None,
    num_envs: int | None = None,
    rollout: RolloutConfig | None = None,
    net: NetConfig | NetMaker | None = None,
    run_config: RunConfig | None = None,
    run_dir: str | Path | None = None,
    start: str | Path | None = None,
    callbacks: Sequence[AnyCallback] = (),
    progress: bool | None = None,
    **renamed: Any,
) -> Agent:
    """Train a policy and return it.

    env: a Gymnasium id, `module:Class`, an `EnvConfig`, a callable that makes one env (or a
    PettingZoo `ParallelEnv`, whose agents share the policy), or a Gymnasium `VectorEnv`. algorithm:
    what to train with; where it is left out, the preset of the env if there is one, else PPO's
    defaults. total_steps, seed, num_envs: shorthands for `RunConfig.total_steps`, `RunConfig.seed`,
    `EnvConfig.num_envs`. net: settings of the networks, or the class of a `torch.nn.Module` of your
    own (docs/networks.md). run_dir: a new folder to keep the run in; None keeps nothing. start: a
    run folder, with whose last policy and network to begin. callbacks: each a `Callback`, or a
    function that is called with (state, rollout, row) after each update; True ends the training.
    progress: show how far it is; None: if stderr is a terminal, or this is a notebook.

    Raises `UsageError` for settings and envs that do not work, before any training.
    """
    screen = screen_of_call(progress)
    if "worlds" in renamed:  # names of schema 1
        raise UsageError("train has no argument worlds: use num_envs")  # names of schema 1
    if renamed:
        raise TypeError(f"train() got an unexpected keyword argument {min(renamed)!r}")
    source = None if isinstance(env, str | EnvConfig) else env
    if isinstance(source, gym.Env):
        raise UsageError(f"env is one env, {source}: pass a callable that makes it, lambda: ...")
    _check_kinds(algorithm, net, rollout, run_config, callbacks)
    preset = find_preset("ppo", env) if algorithm is None and isinstance(env, str) else None
    if preset and num_envs is not None:
        raise UsageError(
            f"num_envs={num_envs} changes the preset of {env}, which fits its own number: give an "
            "algorithm too, such as PPO()"
        )
    if isinstance(source, VectorEnv):
        if num_envs not in (None, source.num_envs):
            raise UsageError(
                f"num_envs is {num_envs}, but the vector env has {source.num_envs}: leave it out"
            )
        num_envs = source.num_envs
    own = None if isinstance(net, NetConfig) else net
    values = {
        "env.id": env if isinstance(env, str) else None,
        "env.num_envs": num_envs,
        "net.module": name_of(own) if own else None,
        "run.total_steps": total_steps,
        "run.seed": seed,
    }
    config = Config.of(
        preset.tables if preset else {},
        values,
        algorithm=algorithm,
        rollout=rollout,
        env=env if isinstance(env, EnvConfig) else None,
        net=net if isinstance(net, NetConfig) else None,
        run=run_config,
    )
    config, policy = start_from(config, start, "net=")
    config, made = with_callbacks(config, callbacks, again=False, kept=run_dir is not None)
    folder = RunFolder.create(run_dir, config, net=own) if run_dir is not None else None
    return _run(screen, config, folder, source=source, net=own, callbacks=made, start=policy)


def resume(
    run_dir: str | Path,
    *,
    total_steps: int | None = None,
    total_episodes: int | None = None,
    stop_at: float | None = None,
    engine: str | None = None,
    device: str | None = None,
    env: str | Maker | VectorEnv | None = None,
    wrappers: Sequence[str] = (),
    net: str | NetMaker | None = None,
    algorithm: str | type[OnPolicy] | None = None,
    schedules: Sequence[Code] = (),
    callbacks: Sequence[AnyCallback | str] = (),
    strict: bool = False,
    progress: bool | None = None,
) -> Agent:
    """Continue the run of a folder exactly where its last checkpoint stands; returns the agent.

    total_steps, total_episodes, stop_at: train to these instead, whatever ended the run. engine,
    device: compute by others; the bits then differ in the last places. env, wrappers, net,
    algorithm, schedules, callbacks: code of your own that the run has, or its names, module:Name;
    further callbacks may be given. strict: refuse a damaged last checkpoint instead of using an
    older one. progress: as for `train`. A run that is over is returned as it is.

    Raises `UsageError` for code that is not named, and for what does not fit.
    """
    screen = screen_of_call(progress)
    check_callbacks(callbacks)
    folder = RunFolder.open(run_dir)
    folder.check_begun()
    named = Named(
        env=env,
        wrappers=tuple(wrappers),
        net=net,
        algorithm=algorithm,
        schedules=tuple(schedules),
        callbacks=tuple(callbacks),
    )
    line = python_line(f"resume({str(run_dir)!r}")
    config = allow(folder.read_config(), named, WHAT, line)
    config, made = with_callbacks(config, callbacks, again=True, kept=True)
    saved = newest(folder, strict=strict)
    changes = {
        "total_steps": total_steps,
        "total_episodes": total_episodes,
        "stop_at": stop_at,
        "engine": engine,
        "device": device,
    }
    config, ended = continued(config, folder, saved, changes)
    if ended and folder.has_result(ended, saved.updates):
        return load(run_dir, net=net, algorithm=algorithm)
    own = find(net) if isinstance(net, str) else net
    source = None if isinstance(env, str) else env
    return _run(screen, config, folder, source=source, net=own, callbacks=made, resume=saved)
