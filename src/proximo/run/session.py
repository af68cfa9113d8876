"""A run from its configuration to its result: everything around the loop."""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from proximo.algorithms.update import choose_engine
from proximo.envs.make import Maker, Worlds, make_world, make_worlds, return_threshold
from proximo.nets.actor_critic import ActorCritic
from proximo.run.callbacks import (
    Callback,
    Display,
    Evaluate,
    KeepBest,
    Record,
    Save,
    StopAt,
    recent_returns,
)
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import Config, RunConfig
from proximo.run.folder import RunFolder
from proximo.types import TrainState, UsageError, explain

SMALL = 1_000_000
"""Parameters up to which a network runs on the CPU, on one thread, unless told otherwise."""


class Session:
    """Worlds, state, callbacks and folder of one run; leaving it closes them all.

    An error before the first update removes the folder of a new run: there is nothing to keep.
    """

    def __init__(
        self,
        config: Config,
        *,
        folder: RunFolder | None = None,
        source: Maker | VectorEnv | None = None,
        callbacks: Sequence[Callback] = (),
        display: Display | None = None,
        start: Checkpoint | None = None,
        resume: Checkpoint | None = None,
    ) -> None:
        """`start`: begin with this policy. `resume`: go on from this state. Raises `UsageError`."""
        self._folder, self._source, self._display = folder, source, display
        self._is_new = resume is None
        self._world: gym.Env | None = None
        self._threads = torch.get_num_threads()
        self._record: Record | None = None
        self._stop_at: StopAt | None = None
        self._save: Save | None = None
        self.interruption = "callback"
        """What `stopped_by` says when a callback has ended the run."""
        self.notes: list[str] = []
        """What the user should know about how this run was set up."""
        try:
            self.worlds: Worlds = make_worlds(config.env, config.run.seed, source)
            try:
                self.state = self._build(config)
                rows = self._load(start, resume)
                self.callbacks = self._attach(callbacks, rows, fresh=resume is None)
            except BaseException:
                self._close()
                raise
        except BaseException:
            if self._is_new and folder:
                folder.remove()
            raise

    def _build(self, config: Config) -> TrainState:
        """Network and state at their beginning; `self.config` with every `auto` settled."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            policy = ActorCritic(self.worlds.obs_space, self.worlds.action_space, config.net)
        run = self._resolve(config.run, policy)
        torch.set_num_threads(run.threads)
        policy.to(run.device)
        state, why = self._make_state(policy, config, run)
        run = dataclasses.replace(run, engine=state.engine.name)
        self.config = dataclasses.replace(config, run=run)
        self.notes += [self._about_device(policy), f"engine: {run.engine} ({why})"]
        updates = -(-run.total_steps // (config.env.worlds * config.rollout.steps))
        if not config.rollout.episodes and updates < 10:
            self.notes.append(
                f"total_steps is enough for {updates} updates only: more steps, or a smaller "
                "env.worlds or rollout.steps, give more"
            )
        return state

    def _load(self, start: Checkpoint | None, resume: Checkpoint | None) -> list[dict[str, Any]]:
        """What earlier runs hand on; returns the metrics that were logged up to there."""
        state, folder, rows = self.state, self._folder, []
        if start:
            start.load_policy(self.policy)
            start.load_moments(state)
        if resume:
            resume.load_state(state)
            if not self._restored(self.worlds, state):
                state.reward_return = None  # it belongs to the episodes that are gone
                self.notes.append("these worlds cannot be brought back: new episodes begin in them")
            rows = folder.cut_metrics(state.updates, self.config.run.log_every) if folder else []
        if folder:
            folder.write_config(self.config)
        return rows

    def _attach(
        self, own: Sequence[Callback], rows: list[dict[str, Any]], *, fresh: bool
    ) -> list[Callback]:
        """The callbacks, in the order in which they are called."""
        run, state, folder = self.config.run, self.state, self._folder
        threshold = return_threshold(self.config.env) if run.stop_at is None else run.stop_at
        if threshold is not None:
            self.notes.append(f"counts as solved from a return of {threshold:g}")
        self._threshold = threshold
        self._record = Record(
            folder,
            self._display,
            every=run.log_every,
            threshold=threshold,
            seconds=rows[-1]["seconds"] if rows else 0.0,
            steps=state.steps,
        )
        callbacks: list[Callback] = []
        if run.eval_every:
            callbacks.append(Evaluate(self.world, run.eval_every, run.eval_episodes))
        if run.stop_at is not None:
            self._stop_at = StopAt(self.world, run.stop_at, run.eval_episodes)
            callbacks.append(self._stop_at)
        callbacks += [KeepBest(run.keep_best), *own, self._record]
        if folder:
            self._save = Save(folder, self.spaces, run.save_every)
            if fresh:
                self._save.first(state)
            callbacks.append(self._save)
        return callbacks

    @property
    def policy(self) -> ActorCritic:
        return self.state.policy  # type: ignore[return-value]

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        return self.worlds.obs_space, self.worlds.action_space

    @property
    def world(self) -> gym.Env:
        """One world apart, for evaluations."""
        if isinstance(self._source, VectorEnv):
            raise UsageError(
                "a vector world cannot be evaluated one episode at a time: leave out stop_at and "
                "eval_every, or pass a callable that makes one world"
            )
        if self._world is None:
            self._world = make_world(self.config.env, self._source)
        return self._world

    @staticmethod
    def _about_device(policy: ActorCritic) -> str:
        count = sum(p.numel() for p in policy.parameters())
        kind = policy.device.type
        why = "small networks are faster there" if kind == "cpu" and count <= SMALL else "as set"
        return f"device: {kind} ({why}; {count:,} parameters)"

    @staticmethod
    def _resolve(run: RunConfig, policy: ActorCritic) -> RunConfig:
        """`auto` settled by a rule on sizes alone, never by a timing: the same again next time."""
        small = sum(p.numel() for p in policy.parameters()) <= SMALL
        device, threads = run.device, run.threads
        if device == "auto":
            device = "cuda" if not small and torch.cuda.is_available() else "cpu"
        elif device != "cpu" and not getattr(torch, device).is_available():
            raise UsageError(
                f"run.device is {device}, but PyTorch finds none here: use cpu or auto"
            )
        cores = os.cpu_count() or 1
        threads = min(threads, cores) or (1 if small else torch.get_num_threads())
        return dataclasses.replace(run, device=device, threads=threads)

    @staticmethod
    def _restored(worlds: Worlds, state: TrainState) -> bool:
        try:
            return worlds.restore(state.worlds)
        except Exception as error:
            raise UsageError(
                f"a world failed while its episode was replayed: {explain(error)}"
            ) from error

    def _make_state(
        self, policy: ActorCritic, config: Config, run: RunConfig
    ) -> tuple[TrainState, str]:
        """The state before the first update, and why it has the engine that it has."""
        try:
            worlds = self.worlds.start()
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"a world failed at its first reset: {explain(error)}") from error
        algorithm, seed = config.algorithm, run.seed
        optimizer = algorithm.make_optimizer(policy)
        engine, why = choose_engine(run.engine, algorithm, policy, optimizer, run.threads)
        state = TrainState(
            policy=policy,
            optimizer=optimizer,
            engine=engine,
            worlds=worlds,
            # Streams apart, so that longer rollouts do not change the order of minibatches.
            collecting=torch.Generator().manual_seed(2 * seed),
            shuffling=torch.Generator().manual_seed(2 * seed + 1),
            horizon=run.total_steps,
        )
        return state, why

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._record:
            self._record.close()
        self._close()
        if error and self._folder:
            if self._is_new and not self.state.updates:
                self._folder.remove()
            else:
                self._folder.note("".join(traceback.format_exception(kind, error, trace)))

    def _close(self) -> None:
        self.worlds.close()
        if self._world is not None:
            self._world.close()
        torch.set_num_threads(self._threads)

    def finish(self, *, stopped: bool) -> dict[str, Any]:
        """Save, and write down how it ended: by its steps, `stop_at`, a callback or a signal."""
        state, row = self.state, self._record.row if self._record else {}
        reason = "total_steps"
        if stopped:
            reason = "stop_at" if self._stop_at and self._stop_at.reached else self.interruption
        result = {
            "stopped_by": reason,
            "updates": state.updates,
            "steps": state.steps,
            "episodes": state.episodes,
            **recent_returns(state, self._threshold),
            "return_smoothed": state.smoothed,
            "best": state.best,
            "seconds": row.get("seconds", 0.0),
        }
        if self._save:
            self._save.flush(state)
        if self._folder:
            self._folder.write_result(result)
        return result
