"""Gradient steps that are left out, because a loss or a gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from proximo.types import Batch, Keep, TrainingError, TrainState

if TYPE_CHECKING:
    from proximo.algorithms.base import OnPolicy

Skip = Callable[[str, int, int, Batch], None]
"""Told of a minibatch that is not stepped along: why, its epoch and number, its samples."""

REMEDIES = (
    "a smaller learning rate, reward scaling or observation normalisation are the usual remedies"
)


def not_finite(**numbers: Tensor | float) -> str:
    """Which of these is not finite, in words; nothing if all are."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            return f"the {name.replace('_', ' ')} is {float(number)}"
    return ""


def leave_out(
    algorithm: OnPolicy,
    state: TrainState,
    what: str,
    where: str,
    samples: Batch,
    coefficients: dict[str, float],
) -> None:
    """Count a gradient step that is not taken. Raises `TrainingError` past `skip_budget`.

    The weights must stand as they did before it: they are kept with its samples. where: in the
    update, as ", epoch 1, minibatch 2".
    """
    state.skipped += 1
    where = f"update {state.updates + 1}{where}"
    tensors = {f"policy.{name}": x for name, x in state.policy.state_dict().items()}
    tensors |= {f"batch.{name}": x for name, x in vars(samples).items()}
    record = {"update": state.updates + 1, "coefficients": coefficients}
    settle(state.keep, what, where, tensors, record, state.skipped, algorithm.skip_budget)


def settle(
    keep: Keep | None,
    what: str,
    where: str,
    tensors: dict[str, Tensor],
    record: dict[str, object],
    skipped: int,
    budget: int,
) -> None:
    """Keep what a step was not taken along. Raises `TrainingError` if it was one too many."""
    text = f"{what} in {where}"
    record |= {"what": what, "where": where}
    place = keep(text, tensors, record) if keep else ""
    if skipped > budget:
        kept = f" The first stands in {place}, with the weights before it" if place else ""
        raise TrainingError(
            f"{text}. Gradient steps that this run has left out for that: {skipped}, but "
            f"algorithm.skip_budget is {budget}: {REMEDIES}.{kept}"
        )
