"""When to log, evaluate, save and stop, each called with (state, rollout, metrics).

A callback may add to `metrics`, which is then logged, and ends the training by returning True.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import orjson
import torch

from proximo.collect import make_room
from proximo.disk import Lines
from proximo.envs.base import Envs
from proximo.envs.watch import Bounds
from proximo.errors import TrainingError, faults
from proximo.evaluate import EpisodePlayer, Scores
from proximo.run.checkpoint import Keeper, Snapshot
from proximo.run.config import RunConfig
from proximo.run.folder import RunFolder
from proximo.state import TrainState
from proximo.types import Metrics, Rollout

TRAINING_EVALUATION_SEED = 2_000_000
"""First seed of evaluations while training; `proximo eval` starts elsewhere, on unseen seeds."""

Callback = Callable[[TrainState, Rollout, Metrics], bool | None]
Row = dict[str, Any]


class Display(Protocol):
    """What shows the progress of a run."""

    def show(self, row: Row) -> None:
        """Take in the row of the update that has just ended."""


class Evaluate:
    """Every so many updates, the mean return of deterministic episodes, as `evaluation`."""

    def __init__(self, evaluation: Evaluation, every: int) -> None:
        self._evaluation, self._every = evaluation, every

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        if state.updates % self._every == 0:
            self._evaluation(state, metrics)


class StopAt:
    """Evaluate once the smoothed return reaches a goal: `RunConfig.ended_by` compares the result.

    An evaluation that falls short is not repeated at every update, but after 2% of the horizon.
    """

    def __init__(self, evaluation: Evaluation, goal: float) -> None:
        self._evaluation, self._goal = evaluation, goal

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        if state.smoothed is None or state.smoothed < self._goal:
            return
        if (
            state.last_trial_steps is not None
            and state.steps - state.last_trial_steps < state.horizon / 50
        ):
            return
        state.last_trial_steps = state.steps
        state.last_trial_return = self._evaluation(state, metrics)


class Evaluation:
    """Deterministic episodes in an env apart: their mean return, as `evaluation`."""

    def __init__(self, env: Envs, episodes: int, limit: int, note: Callable[[str], None]) -> None:
        """limit: of steps, at which episodes are cut off; note: is told once if one was."""
        self._player, self._episodes = EpisodePlayer(env), episodes
        self._limit, self._note = limit, note
        self._noted = False

    def __call__(self, state: TrainState, metrics: Metrics) -> float:
        """Add it to the metrics, and return it. Raises `TrainingError` if the env fails."""
        try:
            scores = self._play(state)
        except faults() as error:
            what = f"the evaluation after update {state.updates} failed: {error}"
            raise TrainingError(what) from error
        metrics["evaluation"] = scores.mean
        if scores.cut:
            metrics["evaluation_episodes_cut"] = scores.cut
            if not self._noted:
                self._note(
                    f"the evaluation after update {state.updates}: "
                    f"{scores.said('--run.eval-max-episode-steps')}"
                )
            self._noted = True
        return metrics["evaluation"]

    @torch.no_grad()
    def _play(self, state: TrainState) -> Scores:
        policy = state.policy
        room = make_room(policy, np.zeros((1, *policy.obs_shape), policy.observations.dtype), 1)
        act = state.engine.actor(room, None)

        def env_action(row: np.ndarray) -> Any:
            room.obs[0, 0] = row
            act(0)
            return room.env_action[0, 0]

        def watch(episode: int) -> None:
            if state.watch:
                doing = f"evaluating: episode {episode + 1} of {self._episodes}"
                state.watch(state.steps, doing)

        return self._player.play(
            policy if policy.state_size else env_action,  # the engine's actor has no episodes
            episodes=self._episodes,
            seed=TRAINING_EVALUATION_SEED,
            limit=self._limit,
            watch=watch,
        )


class LookAgain:
    """Every so many updates, what was seen last against its bounds; says once what lies outside."""

    EVERY = 16

    def __init__(self, bounds: Bounds, note: Callable[[str], None]) -> None:
        self._bounds, self._note = bounds, note
        self._done = bounds.endless

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        if self._done or state.updates % self.EVERY:
            return
        seen = rollout.obs[-1][rollout.mask[-1]]  # the row of an agent that is away holds zeros
        if outside := self._bounds.outside(seen.cpu().numpy()):
            self._note(f"the envs: after update {state.updates}, {outside}")
            self._done = True


class LoneAdvantages:
    """Says once that advantages stood alone where they are to be standardised."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._done = note, False

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        count = metrics.get("lone_advantages")
        if not count or self._done:
            return
        self._done = True
        self._note(
            f"algorithm.normalize_advantage: in update {state.updates}, {count:g} of the "
            "minibatches or episodes had one sample, whose deviation from its own mean is 0; it "
            "was standardised with others, or left as it is where there were none"
        )


class LargeRewards:
    """Says once, after the first update, that rewards are larger than a critic learns well."""

    LIMIT = 1000.0

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._done = note, False

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        if self._done:
            return
        self._done = True
        largest = float(rollout.reward.abs().max())
        if largest >= self.LIMIT:
            self._note(
                f"rewards reach {largest:g}, and the critic learns slowly what lies far from 1: "
                "--algorithm.normalize-reward divides by their running deviation, "
                "--env.reward-scale by a number of yours"
            )


class KeepBest:
    """Note the best score; `Save` writes the policy that had it."""

    def __init__(self, measure: str) -> None:
        self._measure = measure

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        score = metrics.get("evaluation") if self._measure == "evaluation" else state.smoothed
        if score is not None and (state.best is None or score > state.best):
            state.best = score
            metrics["is_best"] = 1.0


class Record:
    """One row per update: to the display, and every `log_every` updates to metrics.jsonl."""

    def __init__(
        self,
        folder: RunFolder | None,
        display: Display | None,
        *,
        run: RunConfig,
        threshold: float | None,
        last: Row,
        steps: int,
        say: Callable[[str], None],
    ) -> None:
        """last: the row that was logged last, if there was one; steps: taken so far.

        say: told once when the disk or the display begins to fail. Raises `OSError`.
        """
        self._file = Lines(folder.metrics_file, say) if folder else None
        self._say = say
        self._folder, self._run, self._display, self._threshold = folder, run, display, threshold
        self._clock = time.perf_counter()
        self.seconds, self._steps = last.get("seconds", 0.0), steps
        self.row = last if last.get("steps") == steps else {}
        self._recent: Row = {}
        self._written = True
        self._left_out: set[str] = set()

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        self.seconds += elapsed
        speed = (state.steps - self._steps) / elapsed
        self._steps = state.steps
        if rollout.episodes or not self._recent:
            self._recent = recent_returns(state, self._threshold)
        latest = [episode.ret for episode in rollout.episodes]
        policy = state.policy
        cut = policy.head.cut_off(rollout.action)
        if cut is not None:
            metrics["action_clip_fraction"] = float(cut[rollout.mask].float().mean())
        self._make_plain(metrics)
        self.row = {
            "update": state.updates,
            "steps": state.steps,
            "episodes": state.episodes,
            "return_latest": _mean(latest) if latest else None,
            **self._recent,
            "return_smoothed": state.smoothed,
            "best": state.best,
            **metrics,
            **({"skipped_steps": state.skipped} if state.skipped else {}),
            "seconds": round(self.seconds, 3),
            "steps_per_second": round(speed, 1),
        }
        self.row.pop("is_best", None)
        self._written = False
        if state.updates % self._run.log_every == 0 or self._run.ended_by(vars(state)):
            self._write()  # the last row before the state in which the run has ended is saved
        try:
            if self._display:
                self._display.show(self.row)
        except OSError as error:  # what reads it has gone, or a full disk
            self._display = None
            self._say(f"progress cannot be shown any more ({error.strerror}): training goes on")

    def _make_plain(self, metrics: Metrics) -> None:
        """Let what callbacks have added be numbers; what is none is left out, and named once."""
        for name, value in list(metrics.items()):
            if type(name) is str and type(value) is float:
                continue
            try:
                metrics[name] = _number(name, value)
            except (TypeError, ValueError, RuntimeError):
                del metrics[name]
                if name not in self._left_out:
                    self._left_out.add(name)
                    self._say(
                        f"metrics[{name!r}] is {value!r:.80}, which is not one number with a "
                        "name: a callback has put it there, and it is not logged"
                    )

    def _write(self) -> None:
        if self._file and not self._written:
            self._file.write(_line(self.row))
            self._written = True

    def sync(self) -> None:
        """Bring the rows and the log to the disk: what a checkpoint follows must outlive it."""
        if self._file and self._folder:
            self._file.sync()
            self._folder.sync_log()

    def close(self) -> None:
        """Write the last row too, whether or not its turn had come. Raises `OSError`."""
        self._write()
        if self._file:
            self._file.close()


def _line(row: Row) -> bytes:
    """JSON, in which a reading that does not exist (NaN) is null."""
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def _number(name: Any, value: Any) -> Any:
    """A reading as JSON can hold it: of a tensor or an array, its one number. Raises if not."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        value = value.item()
    if not (isinstance(name, str) and isinstance(value, str | int | float | None)):
        raise TypeError
    return float(value) if isinstance(value, int) and abs(value) >= 2**63 else value


def _mean(values: Sequence[float]) -> float:
    """Never beyond all of them, as rounding alone would have it."""
    return min(max(sum(values) / len(values), min(values)), max(values))


def recent_returns(state: TrainState, threshold: float | None) -> Row:
    """Return, length and share of successes over the last 100 episodes; None before the first."""
    if not state.recent:
        return {"return_mean": None, "length_mean": None}
    # Every update pays for this: a few calls over the whole window, none of them per episode.
    returns, lengths = zip(*state.recent, strict=True)
    count = len(returns)
    row = {"return_mean": _mean(returns), "length_mean": sum(lengths) / count}
    if threshold is not None:
        row["success_rate"] = sum(map(float(threshold).__le__, returns)) / count
    return row


class Save:
    """Checkpoints: update 0, the last few, the best, and every `every` updates."""

    def __init__(
        self,
        folder: RunFolder,
        spaces: tuple[gym.Space[Any], gym.Space[Any]],
        every: int,
        keeper: Keeper,
        start: float | None,
        sync: Callable[[], None],
    ) -> None:
        """start: the score of the best policy that is kept already; sync: called before a save."""
        self._folder, self._spaces, self._every, self._keeper = folder, spaces, every, keeper
        self._sync = sync
        self._best: tuple[Snapshot, float | None] | None = None  # to be written, and its score
        self._kept = start

    def __str__(self) -> str:
        return str(self._keeper)

    def first(self, state: TrainState) -> None:
        """Raises `OSError`."""
        snapshot = self._snapshot(state)
        snapshot.write(self._folder.checkpoint(0))
        self._keeper.last(0, snapshot.write)

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        if "is_best" in metrics:
            self._best = Snapshot(state, self._spaces, policy_only=True), state.best
        if self._every and state.updates % self._every == 0:
            path = self._folder.checkpoint(state.updates)
            self._keeper.attempt("best", self._write_best)
            self._keeper.attempt("numbered", lambda: self._snapshot(state).write(path))
        self._keeper.now_and_then(lambda: self._write(state))

    def attempt(self, state: TrainState) -> bool:
        """Whether all of it could be written."""
        return self._keeper.attempt("last", lambda: self._write(state)) and not self._best

    def flush(self, state: TrainState) -> None:
        """Write the best and the last, each though the other fails. Raises `OSError`."""
        try:
            self._write_best()
        finally:
            self._write_last(state)

    def _write(self, state: TrainState) -> None:
        self._keeper.attempt("best", self._write_best)
        self._write_last(state)

    def _write_best(self) -> None:
        if self._best:
            snapshot, score = self._best
            snapshot.write(self._folder.checkpoint("best"))
            self._best, self._kept = None, score

    def _write_last(self, state: TrainState) -> None:
        self._keeper.last(state.updates, self._snapshot(state).write)

    def _snapshot(self, state: TrainState) -> Snapshot:
        """The state to resume from: what was logged up to there is on the disk before it."""
        self._sync()
        if self._best:  # it must not know of a best that could be lost
            state = dataclasses.replace(state, best=self._kept)
        return Snapshot(state, self._spaces)
