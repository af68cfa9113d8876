"""Algorithm 1 of the paper, and the public function `train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from proximo.agent import Agent
from proximo.algorithms.base import OnPolicy
from proximo.collect import collect
from proximo.envs.base import Envs, Maker
from proximo.envs.config import EnvConfig
from proximo.errors import UsageError
from proximo.named import name_of
from proximo.nets.config import NetConfig
from proximo.nets.custom import Maker as NetMaker
from proximo.run.callbacks import Callback
from proximo.run.config import Config, RolloutConfig, RunConfig, check_storable, from_tables
from proximo.run.folder import RunFolder
from proximo.run.presets import find_preset
from proximo.run.session import Session
from proximo.state import TrainState


def learn(envs: Envs, state: TrainState, config: Config, callbacks: Sequence[Callback]) -> bool:
    """Schulman et al. 2017 (arXiv 1707.06347), Algorithm 1. Returns whether a callback ended it."""
    algorithm, steps, episodes = config.algorithm, config.rollout.steps, config.rollout.episodes
    while not config.run.ended_by(vars(state)):
        rollout = collect(envs, state, config.env, steps=steps, episodes=episodes)
        batch = algorithm.prepare(state, rollout)  # advantages and value targets, once
        metrics = algorithm.update(state, batch)  # K epochs of minibatches of size M <= NT
        state.advance(rollout, config.run.smoothing)
        if any([callback(state, rollout, metrics) for callback in callbacks]):  # noqa: C419 each is called
            return True
    return False


def run_session(session: Session) -> Agent:
    """Train in a session that stands ready, and close it."""
    with session:
        stopped = learn(session.envs, session.state, session.running, session.callbacks)
        result = session.finish(stopped=stopped)
        return Agent(session.policy, session.config, session.spaces, result)


def _check_kinds(net: object, rollout: object, run_config: object, callbacks: object) -> None:
    """Arguments of another kind than `train` takes. Raises `UsageError`."""
    if not isinstance(callbacks, Sequence):
        found = "a function" if callable(callbacks) else repr(callbacks)
        raise UsageError(f"callbacks is {found}: give a list of them, [function]")
    for index, callback in enumerate(callbacks):
        if not callable(callback):
            raise UsageError(f"callbacks[{index}] is {callback!r}: give a function")
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
    callbacks: Sequence[Callback] = (),
) -> Agent:
    """Train a policy and return it.

    env: a Gymnasium id, `module:Class`, an `EnvConfig`, a callable that makes one env (or a
    PettingZoo `ParallelEnv`, whose agents share the policy), or a Gymnasium `VectorEnv`. algorithm:
    what to train with; where it is left out, the preset of the env if there is one, else
    PPO's defaults. total_steps, seed, envs: shorthands for `RunConfig.total_steps`,
    `RunConfig.seed`, `EnvConfig.num_envs`. net: settings of the networks, or the class of a
    `torch.nn.Module` of your own (docs/networks.md). run_dir: a new folder to keep the run in; None
    keeps nothing. callbacks: called with (state, rollout, metrics) after each update; True ends the
    training.

    Raises `UsageError` for settings and envs that do not work, before any training.
    """
    source = None if isinstance(env, str | EnvConfig) else env
    named = env.id if isinstance(env, EnvConfig) else env if isinstance(env, str) else ""
    if isinstance(source, gym.Env):
        raise UsageError(f"env is one env, {source}: pass a callable that makes it, lambda: ...")
    if algorithm is not None and not isinstance(algorithm, OnPolicy):
        raise UsageError(f"algorithm is {algorithm!r}: give an instance, such as PPO()")
    _check_kinds(net, rollout, run_config, callbacks)
    preset = find_preset("ppo", named) if algorithm is None and isinstance(env, str) else None
    config = from_tables(preset.tables if preset else {})
    steps = config.rollout if algorithm is None else RolloutConfig(steps=algorithm.rollout_steps)
    env_config = env if isinstance(env, EnvConfig) else dataclasses.replace(config.env, id=named)
    if preset and num_envs is not None:
        raise UsageError(
            f"num_envs={num_envs} changes the preset of {named}, which fits its own number: "
            "give an algorithm too, such as PPO()"
        )
    if isinstance(source, VectorEnv) and num_envs not in (None, source.num_envs):
        raise UsageError(
            f"envs is {num_envs}, but the vector env has {source.num_envs}: leave envs out"
        )
    count = source.num_envs if isinstance(source, VectorEnv) else num_envs
    if count is not None:
        env_config = dataclasses.replace(env_config, num_envs=count)
    own = None if isinstance(net, NetConfig) else net
    if own:
        net = dataclasses.replace(config.net, module=name_of(own))
    run = run_config or config.run
    config = Config(
        algorithm=algorithm or config.algorithm,
        rollout=rollout or steps,
        env=env_config,
        net=net if isinstance(net, NetConfig) else config.net,
        run=dataclasses.replace(
            run,
            total_steps=run.total_steps if total_steps is None else total_steps,
            seed=run.seed if seed is None else seed,
        ),
    )
    config.check()
    if run_dir is not None:
        check_storable(config, own)
    folder = RunFolder.create(run_dir, config) if run_dir is not None else None
    session = Session(config, folder=folder, source=source, net=own, callbacks=callbacks)
    return run_session(session)
