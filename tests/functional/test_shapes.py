"""No silent broadcasting: a [B] against a [B, 1] is refused, and every tensor is named."""

import pytest
import torch

from proximo.functional.distributions import Gaussian
from proximo.functional.kl import k3
from proximo.functional.losses import (
    clipped_squared_error,
    clipped_surrogate,
    huber_error,
    squared_error,
    surrogate,
)
from proximo.functional.masked import (
    explained_variance,
    masked_mean,
    masked_var,
    standardize,
    standardize_groups,
)
from proximo.functional.returns import discounted_sum, gae, n_step, td_error
from proximo.functional.shapes import same_shape

GUARDED = {
    "surrogate": (surrogate, "log_prob", "old_log_prob", "advantage"),
    "clipped_surrogate": (
        lambda *x: clipped_surrogate(*x, 0.2),
        *("log_prob", "old_log_prob", "advantage"),
    ),
    "squared_error": (squared_error, "value", "target"),
    "huber_error": (huber_error, "value", "target"),
    "clipped_squared_error": (
        lambda *x: clipped_squared_error(*x, 0.2),
        *("value", "target", "old_value"),
    ),
    "k3": (k3, "log_prob", "old_log_prob"),
    "masked_mean": (masked_mean, "x", "mask"),
    "masked_var": (masked_var, "x", "mask"),
    "standardize": (standardize, "x", "mask"),
    "standardize_groups": (standardize_groups, "x", "group"),
    "explained_variance": (explained_variance, "prediction", "target"),
    "discounted_sum": (discounted_sum, "x", "decay"),
    "td_error": (
        lambda *x: td_error(*x, 0.9),
        *("reward", "value", "next_value", "terminated"),
    ),
    "gae": (lambda *x: gae(*x, 0.9, 0.9), "delta", "boundary"),
    "n_step": (lambda *x: n_step(*x, 0.9, 2), "delta", "boundary"),
    "Gaussian.log_prob": (
        lambda action, mean: Gaussian(mean, torch.zeros(())).log_prob(action),
        *("action", "mean"),
    ),
}
"""Every function that takes several tensors of one shape, and what it calls them."""


@pytest.mark.parametrize("name", GUARDED)
def test_a_column_among_rows_is_refused_by_name(name: str) -> None:
    function, *tensors = GUARDED[name]
    for odd in range(len(tensors)):
        arguments = [torch.zeros(3, 1) if i == odd else torch.zeros(3) for i in range(len(tensors))]
        with pytest.raises(ValueError, match="shapes differ") as error:
            function(*arguments)
        for i, tensor in enumerate(tensors):
            shape = "(3, 1)" if i == odd else "(3,)"
            assert f"{tensor} {shape}" in str(error.value)


def test_one_shape_passes() -> None:
    same_shape()
    same_shape(a=torch.zeros(2, 3))
    same_shape(a=torch.zeros(2, 3), b=torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("other", [(), (1,), (1, 3), (3, 1), (3, 3), (4,)])
def test_shapes_that_would_broadcast_differ_too(other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^shapes differ: a \(3,\), b \("):
        same_shape(a=torch.zeros(3), b=torch.zeros(other))
