"""Control as a task: envs, policy and engine from a configuration, and the three verbs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from proximo.collect import collect
from proximo.envs.base import REPLAYED, Envs, Maker
from proximo.envs.make import make_envs, time_limit
from proximo.envs.watch import Bounds, Checked
from proximo.errors import UsageError, explained
from proximo.evaluation import step_limit
from proximo.imports import find
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.custom import Maker as NetMaker
from proximo.run import choices
from proximo.run.callbacks import Callback, Display, as_callback, overrides
from proximo.run.checkpoint import Checkpoint, Damaged, snapshot
from proximo.run.code import sayable
from proximo.run.config import Config, RunConfig, make_policy, success_threshold
from proximo.run.folder import RunFolder
from proximo.run.measurements import Measurements
from proximo.run.monitors import Doubts, Evaluate, Evaluation, StopAt, own_evaluation
from proximo.run.preflight import check_room, check_sizes
from proximo.run.profile import Profile
from proximo.run.session import RunLog, Session, Task
from proximo.spaces import check_columns, space_record
from proximo.state import TrainState
from proximo.types import Batch, Extra, Metrics, Rollout, Row, Watch


def make_session(
    config: Config,
    *,
    folder: RunFolder | None = None,
    source: Maker | VectorEnv | None = None,
    net: NetMaker | None = None,
    callbacks: Sequence[Callback | Callable[..., Any]] = (),
    display: Display | None = None,
    watch: Watch | None = None,
    start: Checkpoint | None = None,
    resume: Checkpoint | None = None,
) -> Session:
    """A run of control that stands ready to train. Raises `UsageError`.

    source, net: the env and the network that the configuration names, where they are at hand; else
    they are imported by name. watch: told what happens between updates. start: begin with the
    policy of this checkpoint. resume: continue from its state.
    """
    own = [as_callback(callback) for callback in callbacks]

    def build(log: RunLog) -> ControlTask:
        return ControlTask(config, log, own, source, net, start=start, resume=resume, watch=watch)

    return Session(build, folder=folder, callbacks=own, display=display, resume=resume)


def start_from(
    config: Config, run: str | Path | None, net: str
) -> tuple[Config, Checkpoint | None]:
    """Configuration and checkpoint to begin with the last policy of a run. net: for errors."""
    if run is None:
        return config, None
    source = RunFolder.open(run)
    policy = Checkpoint(source.checkpoint("last"))
    # A policy is its weights and how they are used: activation, normalisation, bounds.
    settings = source.read_config().net
    if settings.module and not config.net.module:
        raise UsageError(
            f"the network of {run}, {settings.module}, is code: importing it needs your word. If "
            f"you trust it, add: {net}{sayable(settings.module)}"
        )
    if settings.module:
        settings = dataclasses.replace(settings, module=config.net.module)
    return dataclasses.replace(config, net=settings), policy


def continued(
    config: Config, folder: RunFolder, saved: Checkpoint, changes: Mapping[str, Any]
) -> tuple[Config, str]:
    """The configuration of a resumed run, and the setting that has ended it, or "".

    changes: settings that are given anew; total_steps lets it continue whatever ended it.
    """
    changed = {name: value for name, value in changes.items() if value is not None}
    if "total_steps" in changed:
        changed = {"total_episodes": None, **changed}
        if _ended(config.run, folder, saved) == "stop_at":
            changed = {"stop_at": None, "success_at": success_threshold(config), **changed}
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, **changed))
    return config, _ended(config.run, folder, saved)


def _ended(run: RunConfig, folder: RunFolder, saved: Checkpoint) -> str:
    """The setting that has ended a run with this checkpoint, or "" if it continues."""
    if saved.steps and (ended := run.ended_by(saved.record)):
        return ended
    # The first checkpoints do not hold what the goal was compared with: their result tells.
    old = "last_trial_return" not in saved.record and run.stop_at is not None
    return "stop_at" if old and folder.has_result("stop_at", saved.updates) else ""


class ControlTask(Task):
    """Training a policy in envs: `collect` runs it, the algorithm prepares and updates."""

    config: Config
    run: RunConfig
    state: TrainState

    def __init__(
        self,
        config: Config,
        log: RunLog,
        callbacks: Sequence[Callback],
        source: Maker | VectorEnv | None,
        net: NetMaker | None,
        *,
        start: Checkpoint | None,
        resume: Checkpoint | None,
        watch: Watch | None,
    ) -> None:
        """See `make_session`. Whatever fails, what was opened is closed."""
        self.log, self.callbacks, self._source = log, callbacks, source
        self._is_new, self._starts = resume is None, start is not None
        self._threads = torch.get_num_threads()
        self.checked: Checked | None = None
        backend, how = choices.choose_backend(config.env, given=source is not None)
        changed: dict[str, Any] = {"backend": backend}
        config = dataclasses.replace(config, env=dataclasses.replace(config.env, **changed))
        if self._is_new and choices.has_threads(config.env):  # later run.threads is the engine's
            threads = config.env.threads or config.run.threads
            config = dataclasses.replace(
                config, env=dataclasses.replace(config.env, threads=threads)
            )
        if backend != "sync":
            log.note(f"envs: {backend} ({how})")
        if self._is_new:
            choices.check_backend(config.env)
        check_sizes(config, made=isinstance(source, VectorEnv))
        self.envs: Envs = make_envs(config.env, config.run.seed, source)
        self.envs.report = log.warn
        try:
            if log.folder:
                list(map(space_record, self.spaces))  # refused before training
            own = net or (find(config.net.module) if config.net.module else None)
            config = self._with_horizon(config)
            policy = self._make_policy(config, own)
            self.config = self._settle(config, policy)
            self.run = self.config.run
            self._readings = Measurements(self.config, self.envs.agents)
            by_evaluation = self.run.keep_best == "evaluation"
            self.best_by = "evaluation" if by_evaluation else "return_smoothed"
            if self._is_new and config.env.check:
                self.checked = self.envs.check()  # None: envs of ours, which are known
                notes = self.checked.notes if self.checked else ()
                log.note(*(f"the envs: {note}" for note in notes), doubtful=True)
            self.state = self._make_state(policy)
            self.state.skip_sink, self.state.watch = log.record_skip, watch
            if own:
                policy.check_own(policy.as_rows(self.state.envs.obs))
            self._load(start, resume)
        except BaseException:
            self.close()
            raise

    def collect(self, state: TrainState) -> Rollout:
        rollout, envs = self.config.rollout, self._readings.begin(state, self.envs)
        return collect(envs, state, self.config.env, steps=rollout.steps, episodes=rollout.episodes)

    def prepare(self, state: TrainState, rollout: Rollout) -> Batch:
        for callback in self.callbacks:
            rollout = callback.before_advantages(state, rollout)
        batch = self.config.algorithm.prepare(state, rollout)
        self._readings.take(state, rollout, batch)
        return batch

    def update(self, state: TrainState, batch: Batch) -> Metrics:
        metrics = self.config.algorithm.update(state, batch)
        return {**metrics, **self._readings.end(state, metrics)}

    def snapshot(self, best: float | None, extra: Extra) -> Callable[[Path], None]:
        state = dataclasses.replace(self.state, best=best)
        return snapshot(state, self.spaces, extra=extra)

    def best_snapshot(self, folder: RunFolder) -> Callable[[], None]:
        write = snapshot(self.state, self.spaces, policy_only=True)
        return lambda: write(folder.checkpoint("best"))

    def timed(self, profile: Profile) -> Task:
        self.envs = profile.timed(self.envs, step="env", made={"with_actor": "env"})
        self.state.engine = profile.timed(
            self.state.engine,
            made={"actor": "act"},
            evaluate_old="evaluate",
            next_value="evaluate",
            evaluate_batch="evaluate",
            finite="checks",
            descend="update",
        )
        # Algorithms that move actor and critic in turn take steps of their own, not the engine's.
        update = "update" if self.config.algorithm.separate_optimizers else "readings"
        return profile.timed(self, collect="collect", prepare="advantages", update=update)

    def result(self, folder: RunFolder | None, *, finished: bool) -> Row:
        state = self.state
        return {
            "steps": state.steps,
            "episodes": state.episodes,
            **state.recent_returns(),
            "return_smoothed": state.smoothed,
            "best": state.best,
        }

    def close(self) -> list[str]:
        torch.set_num_threads(self._threads)
        return self.envs.close()

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Of observations and of actions."""
        return self.envs.obs_space, self.envs.action_space

    def _with_horizon(self, config: Config) -> Config:
        """The configuration with the time limit for a horizon that is left to the env."""
        algorithm, env = config.algorithm, config.env
        if algorithm.discount_horizon != 0:
            return config
        limit = env.max_episode_steps or self.envs.time_limit or time_limit(env)
        if limit is None:
            raise UsageError(
                "algorithm.discount_horizon is 0, the env's time limit, but none is known: give a "
                "number of steps, or set env.max_episode_steps"
            )
        algorithm = dataclasses.replace(algorithm, discount_horizon=limit)
        self.log.note(f"discount: {algorithm.gamma:.6g} (1 - 1/{limit}, by the time limit)")
        return dataclasses.replace(config, algorithm=algorithm)

    def _make_policy(self, config: Config, net: NetMaker | None) -> ActorCritic:
        """The network, with its first weights, on the CPU. Raises `UsageError`."""
        agents = self.envs.agents
        config.check_samples(agents)
        if self._is_new:
            config.check_lone(agents)
            config.algorithm.check_used()
            if not self._starts:  # the network of an earlier run may stay as it was
                config.check_net(self.spaces)
        if agents > 1:
            self.log.note(f"agents: {agents} in each env, acting by one policy")
        with torch.random.fork_rng(devices=[]):
            if net is None:
                with torch.device("meta"):  # where it takes no memory
                    draft = make_policy(self.spaces, config)
                check_room(draft, self.envs, config)
            torch.manual_seed(config.run.seed)
            torch.set_num_threads(1)  # the first weights come out of LAPACK, which rounds by them
            policy = make_policy(self.spaces, config, net)
            torch.set_num_threads(self._threads)
        if net:  # which can be made only in earnest
            check_room(policy, self.envs, config)
        return policy

    def _settle(self, config: Config, policy: ActorCritic) -> Config:
        """The configuration with device, engine and threads chosen; the policy moves there."""
        device, why = choices.choose_device(config.run.device, policy, self.envs.device)
        self.log.note(f"device: {device} ({why}; {choices.size(policy):,} parameters)")
        policy.to(device)
        terms = any(overrides(callback, "loss") for callback in self.callbacks)
        engine, why = choices.choose_engine(
            config.run.engine, config.algorithm, policy, loss_terms=terms
        )
        samples = config.algorithm.minibatch_size
        if config.algorithm.minibatches == "whole" and not config.rollout.episodes:
            samples = self.envs.count * config.rollout.steps
        threads = choices.choose_threads(config.run.threads, engine, policy, samples)
        self.log.note(f"engine: {engine} ({why}), {threads} thread{'s' * (threads > 1)}")
        # The native engine has threads of its own, and small operations are slower on several.
        torch.set_num_threads(1 if engine == "native" else threads)
        self.log.note(*config.algorithm.notes, doubtful=True)
        updates = -(-config.run.total_steps // (self.envs.count * config.rollout.steps))
        if not config.rollout.episodes and updates < 10:
            self.log.note(
                f"total_steps is enough for {updates} updates only: more steps, or a smaller "
                "env.num_envs or rollout.steps, give more"
            )
        changed: dict[str, Any] = {"device": device, "engine": engine, "threads": threads}
        return dataclasses.replace(config, run=dataclasses.replace(config.run, **changed))

    def _make_state(self, policy: ActorCritic) -> TrainState:
        with explained("an env failed at its first reset"):
            envs = self.envs.start()
        run = self.run
        optimizer = self.config.algorithm.make_optimizer(policy)
        engine = choices.make_engine(run.engine, policy, optimizer, run.threads)
        engine.report = self.log.warn
        engine.graphs = run.cuda_graphs and run.engine == "torch" and policy.device.type == "cuda"
        engine.graphs_of_rollouts = engine.graphs and self.envs.device is not None
        engine.loss_terms = [c.loss for c in self.callbacks if overrides(c, "loss")]
        return TrainState(
            policy=policy,
            optimizer=optimizer,
            engine=engine,
            envs=envs,
            # Streams apart, so that longer rollouts do not change the order of minibatches.
            collecting=torch.Generator().manual_seed(2 * run.seed),
            shuffling=torch.Generator().manual_seed(2 * run.seed + 1),
            horizon=run.total_steps,
            smoothed=run.smoothed_from,
            smoothing=run.smoothing,
            success_at=success_threshold(self.config),
        )

    def _load(self, start: Checkpoint | None, resume: Checkpoint | None) -> None:
        """Restore what earlier runs left: a policy to begin with, or the whole state."""
        state = self.state
        if saved := start or resume:
            with contextlib.suppress(Damaged):  # as older versions wrote some
                check_columns(saved.spaces, self.spaces)
        if start:
            start.load_policy(state.policy)
            state.restore_moments(start)
        if resume:
            resume.load_state(state)
            whole = not self.envs.replayable or self.envs.remembered(state.envs).all()
            with explained("an env failed while its episode was replayed"):
                restored = self.envs.restore(state.envs)
            if not restored:
                state.reward_return = state.recurrent_state = None  # of the episodes that are gone
                why = "" if whole else f" (episodes of more than {REPLAYED:,} steps are not)"
                self.log.note(f"these envs cannot be brought back{why}: new episodes begin in them")

    def monitors(self, callbacks: Sequence[Callback]) -> list[Callback]:
        run, warn = self.run, self.log.warn
        if (threshold := self.state.success_at) is not None:
            self.log.note(f"counts as solved from a return of {threshold:g}")
        monitors: list[Callback] = []
        own = [own_evaluation(c, self.log.alert) for c in callbacks if overrides(c, "evaluate")]
        if run.stop_at is not None or (run.eval_every and not own):
            limit = step_limit(self.config.env, run.eval_max_episode_steps)
            evaluation = Evaluation(self.envs.apart(), run.eval_episodes, limit, warn)
        if run.eval_every:
            monitors.append(Evaluate(own or [evaluation], run.eval_every))
        if run.stop_at is not None:
            monitors.append(StopAt(evaluation, run.stop_at))
        bounds = Bounds(self.envs.observations)
        compared = not bounds.endless and (self.checked is None or self.checked.within)
        return [*monitors, Doubts(warn, bounds if compared else None)]
