"""A run from its configuration to its result: everything around the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from proximo.disk import warn, writable
from proximo.envs.base import REPLAYED, Envs, Maker
from proximo.envs.make import make_envs
from proximo.envs.watch import Bounds, Checked
from proximo.errors import TrainingError, UsageError, explain, faults
from proximo.evaluate import step_limit
from proximo.named import find
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.custom import Maker as NetMaker
from proximo.run.callbacks import (
    Callback,
    Display,
    Evaluate,
    Evaluation,
    KeepBest,
    LargeRewards,
    LoneAdvantages,
    LookAgain,
    Record,
    Save,
    StopAt,
    recent_returns,
)
from proximo.run.checkpoint import Checkpoint, Damaged, Keeper, keep_first
from proximo.run.choices import (
    check_backend,
    choose_backend,
    choose_device,
    choose_engine,
    choose_threads,
    make_engine,
    size,
)
from proximo.run.config import Config, make_policy, success_threshold
from proximo.run.folder import RunFolder, lost_rows
from proximo.run.memory import check_room, check_sizes
from proximo.run.profile import Profile, TimedAlgorithm, TimedEngine, TimedEnvs, phase_begins
from proximo.spaces import check_columns, space_record
from proximo.state import TrainState
from proximo.types import Watch


class Session:
    """Envs, state, callbacks and folder of one run; leaving it closes them all.

    An error before the first update removes the folder of a new run: there is nothing to keep,
    unless it is a `TrainingError`, after which the first minibatch that went wrong stands there.
    """

    def __init__(
        self,
        config: Config,
        *,
        folder: RunFolder | None = None,
        source: Maker | VectorEnv | None = None,
        net: NetMaker | None = None,
        callbacks: Sequence[Callback] = (),
        display: Display | None = None,
        watch: Watch | None = None,
        start: Checkpoint | None = None,
        resume: Checkpoint | None = None,
    ) -> None:
        """`start`: begin with this policy. `resume`: go on from this state. Raises `UsageError`.

        source and net stand for the env and the network that the configuration names; what is
        not given is imported by its name. watch: told what happens between updates.
        """
        self._folder, self._source, self._net = folder, source, net
        self._is_new, self._start, self._display = resume is None, start, display
        self._threads = torch.get_num_threads()
        self._record: Record | None = None
        self._save: Save | None = None
        self.profile: Profile | None = None
        self.interruption = "callback"
        """What `stopped_by` says when a callback has ended the run."""
        self.checked: Checked | None = None
        self.doubts: list[str] = []
        """What may be wrong with the run, seen before training or in it."""
        self.notes: list[str] = []
        """What the user should know about how this run was set up."""
        try:
            if folder:
                folder.claim()
            backend, how = choose_backend(config.env, given=source is not None)
            env = dataclasses.replace(config.env, backend=backend)  # type: ignore[arg-type]
            config = dataclasses.replace(config, env=env)
            if backend != "sync":
                self.notes.append(f"envs: {backend} ({how})")
            if self._is_new:
                check_backend(config.env)
            check_sizes(config, made=isinstance(source, VectorEnv))
            self.envs: Envs = make_envs(config.env, config.run.seed, source)
            self.envs.report = self._restarted
            try:
                if folder:
                    list(map(space_record, self.spaces))  # refused before training
                self.state = self._build(config)
                self.state.skip_sink, self.state.watch = self._keep, watch
                self._load(start, resume)
                self.callbacks = self._attach(callbacks, resume)
                ended = config.run.ended_by(vars(self.state))  # then there is no time to measure
                self.running = self._timed() if config.run.profile and not ended else self.config
                """What the loop runs by: the configuration, with its algorithm timed if asked."""
            except BaseException:
                self._close()
                raise
        except BaseException:
            if self._is_new and folder:
                folder.remove()
            elif folder:
                folder.release()
            raise

    def _build(self, config: Config) -> TrainState:
        """Network and state at their beginning; `self.config` with every `auto` settled."""
        net = self._net or (find(config.net.module) if config.net.module else None)
        agents = self.envs.agents
        config.check_samples(agents)
        if self._is_new:
            # One that began earlier may go on as it was, and so may the network of such a run.
            config.check_lone(agents)
            config.algorithm.check_used()
            if not self._start:
                config.check_net(self.spaces)
        if agents > 1:
            self.notes.append(f"agents: {agents} in each env, acting by one policy")
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
        device, why = choose_device(config.run.device, policy, self.envs.device)
        self.notes.append(f"device: {device} ({why}; {size(policy):,} parameters)")
        policy.to(device)
        engine, why = choose_engine(config.run.engine, config.algorithm, policy)
        samples = config.algorithm.minibatch_size
        if config.algorithm.minibatches == "whole" and not config.rollout.episodes:
            samples = self.envs.count * config.rollout.steps
        threads = choose_threads(config.run.threads, engine, policy, samples)
        self.notes.append(f"engine: {engine} ({why}), {threads} thread{'s' * (threads > 1)}")
        # The native engine has threads of its own, and small operations are slower on several.
        torch.set_num_threads(1 if engine == "native" else threads)
        run = dataclasses.replace(config.run, device=device, engine=engine, threads=threads)  # type: ignore[arg-type]
        self.config = dataclasses.replace(config, run=run)
        self.doubts += config.algorithm.notes
        self.notes += config.algorithm.notes
        if self._is_new and config.env.check:
            self._check()
        state = self._make_state(policy)
        if net:
            policy.check_own(policy.as_rows(state.envs.obs))
        updates = -(-run.total_steps // (self.envs.count * config.rollout.steps))
        if not config.rollout.episodes and updates < 10:
            self.notes.append(
                f"total_steps is enough for {updates} updates only: more steps, or a smaller "
                "env.num_envs or rollout.steps, give more"
            )
        return state

    def _check(self) -> None:
        """Look for mistakes in the envs. Raises `UsageError` for those that forbid training."""
        self.checked = self.envs.check()
        if not self.checked:  # known: with a backend of ours
            return
        found = [f"the envs: {note}" for note in self.checked.notes]
        self.doubts += found
        self.notes += found

    def _load(self, start: Checkpoint | None, resume: Checkpoint | None) -> None:
        """What earlier runs hand on."""
        state = self.state
        if saved := start or resume:
            with contextlib.suppress(Damaged):  # as older versions wrote some
                check_columns(saved.spaces, self.spaces)
        if start:
            start.load_policy(self.policy)
            start.load_moments(state)
        if resume:
            resume.load_state(state)
            whole = not self.envs.replayable or self.envs.remembered(state.envs).all()
            if not self._restored(self.envs, state):
                state.reward_return = state.recurrent_state = None  # of the episodes that are gone
                why = "" if whole else f" (episodes of more than {REPLAYED:,} steps are not)"
                self.notes.append(
                    f"these envs cannot be brought back{why}: new episodes begin in them"
                )

    def _cut(self, folder: RunFolder) -> list[dict[str, Any]]:
        """Let the folder tell of this state and no other; returns the rows up to it.

        Whatever it is killed between, the run continues from this state by what was written last.
        """
        state, run = self.state, self.config.run
        ended = bool(run.ended_by(vars(state)))
        with writable(folder.path):
            folder.enter()
            folder.write_config(self.config)  # first: it says whether the run has ended here
            rows, lost = folder.cut_metrics(state.updates, run.log_every, done=ended)
            folder.remove_result()
        if doubt := lost_rows(rows, lost, state.updates, steps=state.steps):
            self.notes.append(doubt)
            self.doubts.append(doubt)
        return rows

    def _attach(self, own: Sequence[Callback], resume: Checkpoint | None) -> list[Callback]:
        """The callbacks, in the order in which they are called."""
        run, state, folder = self.config.run, self.state, self._folder
        threshold = success_threshold(self.config)
        if threshold is not None:
            self.notes.append(f"counts as solved from a return of {threshold:g}")
        self._threshold = threshold
        callbacks: list[Callback] = []
        if run.eval_every or run.stop_at is not None:
            limit = step_limit(self.config.env, run.eval_max_episode_steps)
            evaluation = Evaluation(self.envs.apart(), run.eval_episodes, limit, self._doubt)
        if run.eval_every:
            callbacks.append(Evaluate(evaluation, run.eval_every))
        if run.stop_at is not None:
            callbacks.append(StopAt(evaluation, run.stop_at))
        # What can be refused has been: from here on the folder is changed.
        rows = self._cut(folder) if folder else []
        with writable(folder.metrics_file if folder else ""):
            self._record = Record(
                folder,
                self._display,
                run=run,
                threshold=threshold,
                last=rows[-1] if rows else {},
                steps=state.steps,
                say=self._warn,
            )
        if not (self.checked and not self.checked.within):
            callbacks.append(LookAgain(Bounds(self.policy.observations), self._doubt))
        callbacks.append(LoneAdvantages(self._doubt))
        if not (self.config.algorithm.normalize_reward or self.config.net.normalize_returns):
            callbacks.append(LargeRewards(self._doubt))
        callbacks += [KeepBest(run.keep_best), *own, self._record]
        if folder:
            keeper = Keeper(folder, run.keep_last, self._warn, resume)
            sync = self._record.sync
            self._save = Save(folder, self.spaces, run.save_every, keeper, state.best, sync)
            if not resume:
                with writable(folder.path):
                    self._save.first(state)
            callbacks.append(self._save)
        return callbacks

    def _doubt(self, text: str) -> None:
        self.doubts.append(text)
        if self._folder:
            self._folder.note(text)

    def _keep(self, text: str, tensors: dict[str, Tensor], record: dict[str, Any]) -> str:
        place = ""
        if self._folder:
            place = keep_first(self._folder.nonfinite, record["update"], tensors, record)
        said = f"a gradient step was left out: {text}{place and f' (the first: {place})'}"
        if self.state.skipped == 1:
            self._doubt(said)
        elif self._folder:
            self._folder.note(said)
        return place

    def _warn(self, text: str) -> None:
        """Of what the user can mend while training goes on: said at once."""
        warn(text)
        self.notes.append(text)
        self._doubt(text)

    def _restarted(self, text: str, trace: str) -> None:
        self._doubt(text)
        if self._folder and trace:
            self._folder.note(trace)

    def _timed(self) -> Config:
        self.profile = profile = Profile()
        self.envs = TimedEnvs(self.envs, profile)
        self.state.engine = TimedEngine(self.state.engine, profile)
        for place, callback in enumerate(self.callbacks):
            if isinstance(callback, LookAgain):
                self.callbacks[place + 1 : place + 1] = [phase_begins(profile, "callbacks")]
                self.callbacks[place:place] = [phase_begins(profile, "checks")]
                break
        if self._save:
            self.callbacks.insert(-1, phase_begins(profile, "checkpoints"))
        self.callbacks.insert(0, phase_begins(profile, "callbacks"))
        self.callbacks.append(phase_begins(profile, "collect"))
        algorithm = TimedAlgorithm(self.config.algorithm, profile)
        return dataclasses.replace(self.config, algorithm=algorithm)  # type: ignore[arg-type]

    def save(self) -> bool:
        """Write the state as it stands; returns whether the run is kept and the disk took it."""
        return self._save is not None and self._save.attempt(self.state)

    @property
    def policy(self) -> ActorCritic:
        return self.state.policy

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        return self.envs.obs_space, self.envs.action_space

    @staticmethod
    def _restored(envs: Envs, state: TrainState) -> bool:
        try:
            return envs.restore(state.envs)
        except UsageError:
            raise
        except faults() as error:
            raise UsageError(
                f"an env failed while its episode was replayed: {explain(error)}"
            ) from error

    def _make_state(self, policy: ActorCritic) -> TrainState:
        try:
            envs = self.envs.start()
        except UsageError:
            raise
        except faults() as error:
            raise UsageError(f"an env failed at its first reset: {explain(error)}") from error
        run = self.config.run
        optimizer = self.config.algorithm.make_optimizer(policy)
        return TrainState(
            policy=policy,
            optimizer=optimizer,
            engine=make_engine(run.engine, policy, optimizer, run.threads),
            envs=envs,
            # Streams apart, so that longer rollouts do not change the order of minibatches.
            collecting=torch.Generator().manual_seed(2 * run.seed),
            shuffling=torch.Generator().manual_seed(2 * run.seed + 1),
            horizon=run.total_steps,
            smoothed=run.smoothed_from,
        )

    def __enter__(self) -> Self:
        if self.profile:
            self.profile.start(self.state)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(well=error is None)
        if error and self._folder:
            if self._is_new and not self.state.updates and not isinstance(error, TrainingError):
                self._folder.remove()
            else:
                self._folder.note("".join(traceback.format_exception(kind, error, trace)))

    def _close(self, *, well: bool = False) -> None:
        """Close what is open. well: nothing worse is to be said than what fails here."""
        if self._record:
            with contextlib.suppress(OSError):  # `finish` has said so, or there is worse to say
                self._record.close()
        failed = self.envs.close()
        for text in dict.fromkeys(failed if well else ()):
            self._warn(text)
        torch.set_num_threads(self._threads)
        if self._folder:
            self._folder.release()

    def finish(self, *, stopped: bool) -> dict[str, Any]:
        """Save, and write down how it ended: by its steps, `stop_at`, a callback or a signal.

        Raises `TrainingError` if the disk does not take it.
        """
        state, row = self.state, self._record.row if self._record else {}
        reason = self.config.run.ended_by(vars(state))
        if stopped and reason in ("", "total_steps"):
            reason = self.interruption
        result = {
            "stopped_by": reason,
            "updates": state.updates,
            "steps": state.steps,
            "episodes": state.episodes,
            **recent_returns(state, self._threshold),
            "return_smoothed": state.smoothed,
            "best": state.best,
            "seconds": round(self._record.seconds, 3) if self._record else 0.0,
        }
        if "evaluation" in row:  # of the policy as it is now, not of those that came before it
            result["evaluation"] = row["evaluation"]
        if self.doubts:
            result["doubts"] = self.doubts
        if self.profile:
            result["profile"] = self.profile.report()
        try:
            if self._folder and self._save and self._record:
                self._save.flush(state)
                self._folder.write_result(result)
                self._record.close()
        except OSError as error:
            raise TrainingError(
                f"training has ended, but {error.filename} could not be written "
                f"({error.strerror}); {self._save}"
            ) from error
        return result
