"""Where the time of a run goes: `--run.profile`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from proximo.algorithms.base import OnPolicy
from proximo.engines.base import Engine
from proximo.envs.base import Envs
from proximo.envs.tensors import TensorRolloutBuffer
from proximo.nets.actor_critic import Evaluation
from proximo.run.callbacks import Callback
from proximo.state import TrainState
from proximo.types import Batch, EnvState, Metrics, Rollout, RolloutBuffer

PHASES = {
    "env": "stepping the envs",
    "act": "choosing actions",
    "collect": "noise, returns",
    "checks": "whether all numbers are finite",
    "evaluate": "values and log-probabilities",
    "advantages": "advantages, targets, their layout",
    "update": "gradient steps",
    "readings": "order of minibatches, KL, running moments",
    "callbacks": "display, logs, evaluations, your callbacks",
    "checkpoints": "copies of the best policy, files",
}


class Profile:
    """A clock that is always in one phase, so that the phases add up to the whole."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._processor = dict.fromkeys(PHASES, 0.0)
        self._phase = "collect"
        self._state: TrainState | None = None
        self._begin = 0
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def switch(self, phase: str) -> str:
        """From now on it is this phase; returns the one before."""
        wall, cpu = time.perf_counter(), time.process_time()
        before = self._phase
        self._seconds[before] += wall - self._wall
        self._processor[before] += cpu - self._cpu
        self._phase, self._wall, self._cpu = phase, wall, cpu
        return before

    def start(self, state: TrainState) -> None:
        """Begin to count, from where this state stands."""
        self.switch("collect")
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._processor = dict.fromkeys(PHASES, 0.0)
        self._state, self._begin = state, state.steps

    def report(self) -> dict[str, Any]:
        """Per phase: microseconds per environment step, its share of them, and of processor time.

        `ceiling`: steps per second if nothing but the envs took time; `reached`: the share of it.
        """
        self.switch(self._phase)
        assert self._state is not None
        steps = max(self._state.steps - self._begin, 1)
        total = sum(self._seconds.values())
        processor = max(sum(self._processor.values()), 1e-9)
        return {
            "phases": {
                name: {
                    "microseconds_per_step": 1e6 * self._seconds[name] / steps,
                    "share": self._seconds[name] / total,
                    "processor_share": self._processor[name] / processor,
                }
                for name in PHASES
            },
            "steps_per_second": steps / total,
            "ceiling": steps / max(self._seconds["env"], 1e-9),
            "reached": self._seconds["env"] / total,
        }


def in_words(report: dict[str, Any]) -> list[str]:
    """The report as a table, and what it means."""
    lines = [f"{'where the time went':<56} us/step   time  processor"]
    for name, phase in report["phases"].items():
        lines.append(
            f"  {name:<12}{PHASES[name]:<42}{phase['microseconds_per_step']:>8.2f} "
            f"{phase['share']:>6.1%} {phase['processor_share']:>9.1%}"
        )
    lines.append(
        f"the envs alone would run at {report['ceiling']:,.0f} steps/s: "
        f"{report['steps_per_second']:,.0f} is {report['reached']:.0%} of that"
    )
    return lines


class TimedEnvs(Envs):
    """Envs whose steps are timed."""

    def __init__(self, envs: Envs, profile: Profile) -> None:
        super().__init__(envs.count, envs.obs_space, envs.action_space)
        self.replayable, self.device = envs.replayable, envs.device
        self.agents, self.names = envs.agents, envs.names
        self._envs, self._profile = envs, profile

    def fresh(self, state: EnvState) -> None:
        self._envs.fresh(state)

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        before = self._profile.switch("env")
        self._envs.step(state, buffer, t)
        self._profile.switch(before)

    def remember(self, state: EnvState, buffer: RolloutBuffer) -> None:
        self._envs.remember(state, buffer)

    def restore(self, state: EnvState) -> bool:
        return self._envs.restore(state)

    def _close(self) -> list[str]:
        return self._envs.close()


class TimedEngine(Engine):
    """An engine whose work is timed."""

    def __init__(self, engine: Engine, profile: Profile) -> None:
        super().__init__(engine.name, engine.policy, engine.optimizer)
        self._engine, self._profile = engine, profile

    def actor(
        self,
        buffer: RolloutBuffer | TensorRolloutBuffer,
        noise: Tensor | None,
        recurrent_state: Tensor | None = None,
    ) -> Callable[[int], None]:
        act, switch = self._engine.actor(buffer, noise, recurrent_state), self._profile.switch

        def timed(t: int) -> None:
            before = switch("act")
            act(t)
            switch(before)

        return timed

    def evaluate(self, *args: Any, **kwargs: Any) -> Evaluation:
        before = self._profile.switch("evaluate")
        found = self._engine.evaluate(*args, **kwargs)
        self._profile.switch(before)
        return found

    def value(self, *args: Any, **kwargs: Any) -> Tensor:
        before = self._profile.switch("evaluate")
        found = self._engine.value(*args, **kwargs)
        self._profile.switch(before)
        return found

    def finite(self, *numbers: np.ndarray | Tensor) -> bool:
        before = self._profile.switch("checks")
        found = self._engine.finite(*numbers)
        self._profile.switch(before)
        return found

    def descend(self, *args: Any) -> Any:
        before = self._profile.switch("update")
        done = self._engine.descend(*args)
        self._profile.switch(before)
        return done


class TimedAlgorithm:
    """The two calls of the loop to an algorithm, timed."""

    def __init__(self, algorithm: OnPolicy, profile: Profile) -> None:
        self._algorithm, self._switch = algorithm, profile.switch

    def prepare(self, state: TrainState, rollout: Rollout) -> Batch:
        self._switch("advantages")
        batch = self._algorithm.prepare(state, rollout)
        self._switch("readings")
        return batch

    def update(self, state: TrainState, batch: Batch) -> Metrics:
        if self._algorithm.separate_optimizers:  # it takes steps of its own, besides the engine's
            self._switch("update")
        return self._algorithm.update(state, batch)


def phase_begins(profile: Profile, phase: str) -> Callback:
    """To stand among the callbacks, where this phase begins."""

    def switch(state: TrainState, rollout: Rollout, metrics: Metrics) -> None:
        profile.switch(phase)

    return switch
