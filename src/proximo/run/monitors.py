"""What watches over a run of control: evaluations, and warnings of what is unhealthy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from proximo.collect import allocate
from proximo.envs.base import Envs
from proximo.envs.watch import Bounds
from proximo.errors import TrainingError, faults
from proximo.evaluation import BatchPlayer, Scores, player
from proximo.run.callbacks import Callback, Checked
from proximo.state import TrainState
from proximo.types import Rollout, Row

TRAINING_EVALUATION_SEED = 2_000_000
"""First seed of evaluations while training; `proximo eval` starts elsewhere, on unseen seeds."""


class Evaluation:
    """Deterministic episodes in an env apart: their mean return, as `evaluation`."""

    def __init__(self, env: Envs, episodes: int, limit: int, warn: Callable[[str], None]) -> None:
        """limit: steps of an episode at most; warn: told once if one was cut off there."""
        self._player, self._episodes = player(env), episodes
        self._limit, self._warn, self._warned = limit, warn, False

    def __call__(self, state: TrainState, row: Row) -> float:
        """Add it to the row, and return it. Raises `TrainingError` if the env fails."""
        try:
            scores = self._play(state)
        except faults() as error:
            what = f"the evaluation after update {state.updates} failed: {error}"
            raise TrainingError(what) from error
        row["evaluation"] = scores.mean
        if scores.cut:
            row["evaluation_episodes_cut"] = scores.cut
            if not self._warned:
                self._warn(
                    f"the evaluation after update {state.updates}: "
                    f"{scores.said('--run.eval-max-episode-steps')}"
                )
            self._warned = True
        return scores.mean

    @torch.no_grad()
    def _play(self, state: TrainState) -> Scores:
        policy = state.policy
        room = allocate(policy, np.zeros((1, *policy.obs_shape), policy.observations.dtype), 1)
        act = state.engine.actor(room, None)

        def env_action(row: np.ndarray) -> Any:
            room.obs[0, 0] = row
            act(0)
            return room.env_action[0, 0]

        def watch(episode: int) -> None:
            if state.watch:
                state.watch(state.steps, f"evaluating: episode {episode + 1} of {self._episodes}")

        how: dict[str, Any] = {"episodes": self._episodes, "seed": TRAINING_EVALUATION_SEED}
        how |= {"limit": self._limit, "watch": watch}
        if isinstance(self._player, BatchPlayer):
            return self._player.play(policy, **how)
        # The engine's actor has no episodes.
        return self._player.play(policy if policy.state_size else env_action, **how)


class Evaluate(Callback):
    """Every so many updates, the run's own evaluation, or those of the user's callbacks."""

    def __init__(self, evaluations: Sequence[Callable[[TrainState, Row], Any]], every: int) -> None:
        self._evaluations, self._every = evaluations, every

    def __call__(self, state: TrainState, rollout: Rollout, row: Row) -> None:
        if state.updates % self._every == 0:
            for evaluation in self._evaluations:
                evaluation(state, row)


class StopAt(Callback):
    """Evaluate where the smoothed return reaches a goal, at most every 2% of the horizon."""

    def __init__(self, evaluation: Evaluation, goal: float) -> None:
        self._evaluation, self._goal = evaluation, goal

    def __call__(self, state: TrainState, rollout: Rollout, row: Row) -> None:
        last = state.last_trial_steps
        due = last is None or state.steps - last >= state.horizon / 50
        if due and state.smoothed is not None and state.smoothed >= self._goal:
            state.last_trial_steps = state.steps
            state.last_trial_return = self._evaluation(state, row)


class Doubts(Callback):
    """Warns, once of each, of what may be wrong with the experience of a run."""

    EVERY = 16
    """Updates between comparisons of the last observations with their bounds."""
    phase = "checks"

    def __init__(self, warn: Callable[[str], None], bounds: Bounds | None) -> None:
        """bounds: those of the observations; None: they are not compared."""
        self._warn, self._bounds, self._check_lone = warn, bounds, True

    def __call__(self, state: TrainState, rollout: Rollout, row: Row) -> None:
        if self._bounds and state.updates % self.EVERY == 0:
            seen = rollout.obs[-1][rollout.mask[-1]]  # the row of an agent that is away holds zeros
            if outside := self._bounds.outside(seen.cpu().numpy()):
                self._warn(f"the envs: after update {state.updates}, {outside}")
                self._bounds = None
        if self._check_lone and (count := row.get("lone_advantages")):
            self._check_lone = False
            self._warn(
                f"algorithm.normalize_advantage: in update {state.updates}, {count:g} of the "
                "minibatches or episodes had one sample, whose deviation from its own mean is 0; "
                "it was standardised with others, or left as it is where there were none"
            )


def own_evaluation(callback: Callback, say: Callable[[str], None]) -> Callable[..., Any]:
    """The `evaluate` of a user's callback, as `Evaluate` calls it."""
    plain = Checked(callback, say).plain

    def evaluation(state: TrainState, row: Row) -> None:
        row |= callback.evaluate(state)
        plain(row)

    return evaluation
