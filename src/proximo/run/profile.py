"""Where the time of a run goes: `--run.profile`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from proximo.state import TrainState

T = TypeVar("T")

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

    def start(self, state: TrainState) -> None:
        """Begin to count, from where this state stands."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._processor = dict.fromkeys(PHASES, 0.0)
        self._phase, self._wall, self._cpu = "collect", time.perf_counter(), time.process_time()
        self._state, self._begin = state, state.steps

    def switch(self, phase: str) -> str:
        """From now on it is this phase; returns the one before."""
        wall, cpu = time.perf_counter(), time.process_time()
        before = self._phase
        self._seconds[before] += wall - self._wall
        self._processor[before] += cpu - self._cpu
        self._phase, self._wall, self._cpu = phase, wall, cpu
        return before

    def wrap(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """The same function, whose time counts in this phase."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = self.switch(phase)
            result = function(*args, **kwargs)
            self.switch(before)
            return result

        return timed

    def timed(self, thing: T, *, made: Mapping[str, str] | None = None, **phases: str) -> T:
        """The object with timed methods: name -> phase. made: methods that return what is timed."""
        wrapped = {name: self.wrap(getattr(thing, name), phase) for name, phase in phases.items()}
        for name, phase in (made or {}).items():
            wrapped[name] = self._making(getattr(thing, name), phase)
        return cast(T, _Timed(thing, wrapped))

    def _making(self, make: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def maker(*args: Any) -> Any:
            made = make(*args)
            return made and self.wrap(made, phase)

        return maker

    def report(self) -> dict[str, Any]:
        """Per phase: microseconds per environment step, its share of them, and of processor time.

        `ceiling`: steps per second if nothing but the envs took time; `reached`: the share of it.
        """
        self.switch(self._phase)
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


class _Timed:
    """An object of which some methods are replaced."""

    def __init__(self, thing: Any, methods: dict[str, Callable[..., Any]]) -> None:
        self._thing = thing
        vars(self).update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._thing, name)

    def __call__(self, *args: Any) -> Any:
        return vars(self)["__call__"](*args)


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
