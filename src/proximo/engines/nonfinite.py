"""Gradient steps that are skipped because a loss or a gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from proximo.errors import TrainingError
from proximo.types import Batch, SkipSink

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


def record_skip(
    sink: SkipSink | None,
    what: str,
    where: str,
    tensors: dict[str, Tensor],
    record: dict[str, object],
    skipped: int,
    budget: int,
) -> None:
    """Hand a skipped step to the sink. Raises `TrainingError` if there were too many.

    where: as "update 3, epoch 1, minibatch 2".
    """
    text = f"{what} in {where}"
    record |= {"what": what, "where": where}
    place = sink(text, tensors, record) if sink else ""
    if skipped > budget:
        kept = f" The first stands in {place}, with the weights before it" if place else ""
        raise TrainingError(
            f"{text}. Gradient steps that this run has left out for that: {skipped}, but "
            f"algorithm.skip_budget is {budget}: {REMEDIES}.{kept}"
        )
