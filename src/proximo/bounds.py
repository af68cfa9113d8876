"""Bounds of a setting, written beside it: `num: Annotated[int, at_least(1)] = 4`.

`check_values` holds settings to them, and the command line shows them in its help.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bound:
    """An interval of numbers, whose text completes "it must be"."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def wrong(self, value: Any) -> str:
        """Text that says what a value must be, or "" if it lies within the bounds.

        None has no bounds. They hold for every number of a list and for every value of a schedule;
        its last value may equal an open end, since progress never reaches 1.
        """
        if value is None:
            return ""
        if isinstance(value, tuple):
            return f"a list, each {self}" if any(map(self.wrong, value)) else ""
        numbers = [value(i / 100) for i in range(101)] if callable(value) else [value]
        if not all(map(math.isfinite, numbers)):
            return "a finite number"
        opens = (self.low_open and numbers[0] == self.low) or (
            self.high_open and numbers[0] == self.high
        )
        within = self.low <= min(numbers) and max(numbers) <= self.high
        return "" if within and not opens else str(self)

    def __str__(self) -> str:
        low, high = _text(self.low), _text(self.high)
        if self.high == math.inf:
            return f"{'above' if self.low_open else 'at least'} {low}"
        if self.low == -math.inf:
            return f"{'below' if self.high_open else 'at most'} {high}"
        return f"in {'(' if self.low_open else '['}{low}, {high}{')' if self.high_open else ']'}"


def at_least(low: float, *, below: float = math.inf) -> Bound:
    """Numbers from `low` on, [low, below)."""
    return Bound(low, below, high_open=True)


def above(low: float, *, at_most: float = math.inf) -> Bound:
    """Numbers greater than `low`, (low, at_most]."""
    return Bound(low, at_most, low_open=True)


def between(low: float, high: float) -> Bound:
    """Numbers from `low` to `high`, [low, high]."""
    return Bound(low, high)


def at_most(high: float) -> Bound:
    """Numbers up to `high`, (-inf, high]."""
    return Bound(high=high)


def _text(number: float) -> str:
    power = number.bit_length() - 1 if isinstance(number, int) else 0
    return f"2**{power}" if power > 16 and number == 2**power else f"{number:g}"
