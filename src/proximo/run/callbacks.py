"""When to log, evaluate, save and stop, each called with (state, rollout, metrics).

A callback may add to `metrics`, which is then logged, and ends the training by returning True.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import orjson
import torch

from proximo.collect import make_room
from proximo.envs.check import Bounds
from proximo.evaluate import Player, Supervised, evaluate
from proximo.nets.actor_critic import ActorCritic
from proximo.run.checkpoint import Keeper, Snapshot
from proximo.run.disk import Lines
from proximo.run.folder import RunFolder
from proximo.types import Metrics, Rollout, TrainingError, TrainState, faults

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

    def __init__(self, world: gym.Env | Supervised, every: int, episodes: int) -> None:
        self._world, self._every, self._episodes = world, every, episodes

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        if state.updates % self._every == 0:
            metrics["evaluation"] = evaluation(state, self._world, self._episodes)


class StopAt:
    """End once the smoothed return and then an evaluation reach a return.

    An evaluation that falls short is not repeated at every update, but after 2% of the horizon.
    """

    def __init__(self, world: gym.Env | Supervised, goal: float, episodes: int) -> None:
        self._world, self._goal, self._episodes = world, goal, episodes
        self.reached = False

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> bool:
        if state.smoothed is None or state.smoothed < self._goal:
            return False
        if (
            state.last_trial_steps is not None
            and state.steps - state.last_trial_steps < state.horizon / 50
        ):
            return False
        state.last_trial_steps = state.steps
        metrics["evaluation"] = evaluation(state, self._world, self._episodes)
        self.reached = metrics["evaluation"] >= self._goal
        return self.reached


class StopAfter:
    """End once so many episodes are complete."""

    def __init__(self, episodes: int) -> None:
        self._episodes = episodes
        self.reached = False

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> bool:
        self.reached = state.episodes >= self._episodes
        return self.reached


def evaluation(state: TrainState, world: gym.Env | Supervised, episodes: int) -> float:
    """Mean return of deterministic episodes. Raises `TrainingError` if the world fails."""
    policy: ActorCritic = state.policy  # type: ignore[assignment]
    room = make_room(policy, np.zeros((1, *policy.obs_shape), policy.observations.dtype), 1)
    act = state.engine.actor(room, None)

    def taken(row: np.ndarray) -> Any:
        room.obs[0, 0] = row
        act(0)
        return room.taken[0, 0]

    def choose(obs: Any, generator: object) -> Any:
        return policy.actions.nested(taken(policy.observations.row(obs)))

    def watch(episode: int) -> None:
        if state.watch:
            state.watch(state.steps, f"evaluating: episode {episode + 1} of {episodes}")

    engine, seed = not policy.carry_size, TRAINING_EVALUATION_SEED  # its actor has no episodes
    try:
        with torch.no_grad():
            if isinstance(world, Supervised):
                begin = lambda: taken if engine else Player(policy).act  # noqa: E731
                scores = world.play(begin, episodes=episodes, seed=seed, watch=watch)
            else:
                player = choose if engine else policy
                scores = evaluate(player, world, episodes=episodes, seed=seed, watch=watch)
    except faults() as error:
        what = f"the evaluation after update {state.updates} failed: {error}"
        raise TrainingError(what) from error
    return float(scores.returns.mean())


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
            self._note(f"the worlds: after update {state.updates}, {outside}")
            self._done = True


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
    """One row per update: to the display, and every `every` updates to metrics.jsonl."""

    def __init__(
        self,
        folder: RunFolder | None,
        display: Display | None,
        *,
        every: int,
        threshold: float | None,
        seconds: float,
        steps: int,
        say: Callable[[str], None],
    ) -> None:
        """say: told once when the disk or the display begins to fail. Raises `OSError`."""
        self._file = Lines(folder.metrics_file, say) if folder else None
        self._say = say
        self._display, self._every, self._threshold = display, every, threshold
        self._clock = time.perf_counter()
        self._seconds, self._steps = seconds, steps
        self.row: Row = {}
        self._recent: Row = {}
        self._written = True

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        self._seconds += elapsed
        speed = (state.steps - self._steps) / elapsed
        self._steps = state.steps
        if rollout.episodes or not self._recent:
            self._recent = recent_returns(state, self._threshold)
        policy: ActorCritic = state.policy  # type: ignore[assignment]
        cut = policy.head.cut_off(rollout.action)
        if cut is not None:
            metrics["action_clip_fraction"] = float(cut[rollout.mask].float().mean())
        self.row = {
            "update": state.updates,
            "steps": state.steps,
            "episodes": state.episodes,
            "return_latest": _mean([episode.ret for episode in rollout.episodes]),
            **self._recent,
            "return_smoothed": state.smoothed,
            "best": state.best,
            **metrics,
            **({"skipped_steps": state.skipped} if state.skipped else {}),
            "seconds": round(self._seconds, 3),
            "steps_per_second": round(speed, 1),
        }
        self.row.pop("is_best", None)
        self._written = False
        if state.updates % self._every == 0:
            self._write()
        try:
            if self._display:
                self._display.show(self.row)
        except OSError as error:  # what reads it has gone, or a full disk
            self._display = None
            self._say(f"progress cannot be shown any more ({error.strerror}): training goes on")

    def _write(self) -> None:
        if self._file and not self._written:
            self._file.write(_line(self.row))
            self._written = True

    def close(self) -> None:
        """Write the last row too, whether or not its turn had come. Raises `OSError`."""
        self._write()
        if self._file:
            self._file.close()


def _line(row: Row) -> bytes:
    """JSON, in which a reading that does not exist (NaN) is null."""
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def recent_returns(state: TrainState, threshold: float | None) -> Row:
    """Return, length and share of successes over the last 100 episodes; None before the first."""
    if not state.recent:
        return {"return_mean": None, "length_mean": None}
    # Every update pays for this: a few calls over the whole window, none of them per episode.
    returns, lengths = zip(*state.recent, strict=True)
    count = len(returns)
    row = {"return_mean": sum(returns) / count, "length_mean": sum(lengths) / count}
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
    ) -> None:
        """start: the score of the best policy that is kept already."""
        self._folder, self._spaces, self._every, self._keeper = folder, spaces, every, keeper
        self._best: tuple[Snapshot, float | None] | None = None  # to be written, and its score
        self._kept = start

    def __str__(self) -> str:
        return str(self._keeper)

    def first(self, state: TrainState) -> None:
        """Raises `OSError`."""
        snapshot = Snapshot(state, self._spaces)
        snapshot.write(self._folder.checkpoint(0))
        self._keeper.last(0, snapshot.write)

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        if "is_best" in metrics:
            self._best = Snapshot(state, self._spaces, policy_only=True), state.best
        if self._every and state.updates % self._every == 0:
            path, snapshot = self._folder.checkpoint(state.updates), Snapshot(state, self._spaces)
            self._keeper.attempt("numbered", lambda: snapshot.write(path))
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
        if self._best:  # the last must not know of a best that could be lost
            state = dataclasses.replace(state, best=self._kept)
        self._keeper.last(state.updates, Snapshot(state, self._spaces).write)
