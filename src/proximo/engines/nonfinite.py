"""Gradient steps that are skipped because a loss or a gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from proximo.types import Batch

if TYPE_CHECKING:
    from torch import Tensor

Skip = Callable[[str, int, int, Batch], None]
"""Receives a minibatch whose step is skipped: the reason, its epoch and number, its samples."""

REMEDIES = (
    "a smaller learning rate, reward scaling or observation normalisation are the usual remedies"
)


def not_finite(**numbers: Tensor | float) -> str:
    """The first of these that is not finite, in words; empty if all are."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            return f"the {name.replace('_', ' ')} is {float(number)}"
    return ""
