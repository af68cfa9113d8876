"""Coefficients that change while training. No torch here: the command line reads this."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """A coefficient as a function of progress p in [0, 1].

    constant: a;  linear: max(floor, a + (b - a) p);  cosine: max(floor, b + (a - b)(1 + cos πp)/2)

    Its text form is `0.1`, `linear:A:B`, `cosine:A:B`, or with a floor `linear:A:B:FLOOR`; that of
    a function of p, of the kind function, is its name.
    """

    kind: Literal["constant", "linear", "cosine", "function"]
    start: float
    end: float
    floor: float = -math.inf
    function: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "linear", "cosine", "function"):
            raise ValueError(f"there is no schedule {self.kind!r}: constant, linear or cosine")
        for name in ("start", "end", "floor"):  # NumPy's numbers have another text form
            object.__setattr__(self, name, float(getattr(self, name)))

    @staticmethod
    def parse(text: str | Callable[[float], float]) -> Schedule:
        """Read the text form, or take a function; `ValueError` gives the forms that exist."""
        if not isinstance(text, str):
            try:
                return Schedule("function", float(text(0.0)), float(text(1.0)), function=text)
            except Exception as error:
                raise ValueError(
                    f"{text!r:.80} is no schedule: it must give a number for progress in [0, 1], "
                    f"but {type(error).__name__}: {error}"
                ) from error
        kind, *rest = text.split(":") if ":" in text else ("constant", text)
        try:
            numbers = [float(part) for part in rest]
            if kind == "constant" and len(numbers) == 1:
                return Schedule("constant", numbers[0], numbers[0])
            if kind in ("linear", "cosine") and len(numbers) in (2, 3):
                return Schedule(kind, *numbers)  # type: ignore[arg-type]
        except ValueError:
            pass
        raise ValueError(
            f"{text!r} is no schedule: write a number, linear:START:END, cosine:START:END, "
            "or with a floor linear:START:END:FLOOR"
        )

    def __str__(self) -> str:
        if self.function:
            kind = self.function if hasattr(self.function, "__qualname__") else type(self.function)
            return f"{kind.__module__}:{kind.__qualname__}"
        if self.kind == "constant":
            return repr(self.start)
        floor = "" if self.floor == -math.inf else f":{self.floor!r}"
        return f"{self.kind}:{self.start!r}:{self.end!r}{floor}"

    def __call__(self, progress: float) -> float:
        if self.function:
            return float(self.function(progress))
        weight = {
            "constant": 0.0,
            "linear": progress,
            "cosine": (1 - math.cos(math.pi * progress)) / 2,
        }[self.kind]
        return max(self.floor, self.start + (self.end - self.start) * weight)

    @property
    def lowest(self) -> float:
        """The smallest value it takes, for range checks."""
        return min(self._values())

    @property
    def highest(self) -> float:
        """The largest value it takes, for range checks."""
        return max(self._values())

    def _values(self) -> list[float]:
        """The ends of a monotone schedule, and places between them of a function."""
        return [self(i / 100) for i in range(0, 101, 1 if self.function else 100)]


Coefficient = float | Schedule
"""A setting that can be scheduled."""


def as_schedule(value: Coefficient | str | Callable[[float], float]) -> Schedule:
    """A number, a schedule, its text form or a function of progress, as a schedule."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str) or callable(value):
        return Schedule.parse(value)
    return Schedule("constant", float(value), float(value))
