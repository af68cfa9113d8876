"""Objectives: numbers and gradients by hand, and the identities that tie them together."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import grad, gradcheck
from torch.nn.functional import smooth_l1_loss

from proximo.functional.losses import (
    clipped_squared_error,
    clipped_surrogate,
    huber_error,
    preference_error,
    quadratic_surrogate,
    squared_error,
    surrogate,
)

seeds = st.integers(0, 2**32 - 1)
clips = st.floats(0.01, 0.9)


def draw(seed: int, rows: int, size: int = 16) -> list[Tensor]:
    """Normal numbers as `rows` separate vectors that want gradients. Never on a kink."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return [row.requires_grad_() for row in numbers]


def gradient(output: Tensor, wrt: Tensor) -> Tensor:
    return grad(output.sum(), wrt)[0]


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


# The policy's objectives


def test_surrogate_by_hand() -> None:
    log_prob, old = vector(math.log(0.6), math.log(0.1)), vector(math.log(0.3), math.log(0.2))
    same(surrogate(log_prob, old, vector(5, -4)), vector(2 * 5, 0.5 * -4))


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.1, -2.0, -2.2, -2.2),
        (1.5, 2.0, 2.4, 0.0),  # already as likely as it may become
        (1.5, -2.0, -3.0, -3.0),  # on the wrong side: not clipped
        (0.5, 2.0, 1.0, 1.0),  # on the wrong side: not clipped
        (0.5, -2.0, -1.6, 0.0),  # already as unlikely as it may become
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(
    ratio: float, advantage: float, objective: float, slope: float
) -> None:
    log_prob = vector(math.log(ratio)).requires_grad_()
    actual = clipped_surrogate(log_prob, vector(0), vector(advantage), clip=0.2)
    same(actual.detach(), vector(objective))
    same(gradient(actual, log_prob), vector(slope))


def test_at_ratio_1_both_have_the_policy_gradient() -> None:
    """∇ r Â = Â ∇ log π there, so that one epoch of one batch of PPO is A2C's step."""
    log_prob, advantage = draw(0, 2)
    old = log_prob.detach().clone()
    assert torch.equal(gradient(surrogate(log_prob, old, advantage), log_prob), advantage)
    clipped = clipped_surrogate(log_prob, old, advantage, 0.2)
    assert torch.equal(gradient(clipped, log_prob), advantage)


@given(seeds, clips)
def test_clipping_never_raises_the_objective(seed: int, clip: float) -> None:
    sample = draw(seed, 3)
    assert (clipped_surrogate(*sample, clip) <= surrogate(*sample)).all()


@given(seeds, clips)
def test_clipping_removes_the_gradient_only_beyond_the_favoured_side(
    seed: int, clip: float
) -> None:
    log_prob, old, advantage = draw(seed, 3)
    ratio = torch.exp(log_prob - old)
    too_likely = (advantage > 0) & (ratio > 1 + clip)
    too_unlikely = (advantage < 0) & (ratio < 1 - clip)
    expected = gradient(surrogate(log_prob, old, advantage), log_prob)
    expected[too_likely | too_unlikely] = 0
    same(gradient(clipped_surrogate(log_prob, old, advantage, clip), log_prob), expected)


@given(seeds, clips)
def test_the_clip_is_a_penalty_per_sample(seed: int, clip: float) -> None:
    """∇ L^CLIP = ∇ [r Â - β (-log r)], with β = -r Â where the clip has switched off, else 0.

    -log r is one sample's KL(old, new); β is a constant for the gradient.
    """
    log_prob, old, advantage = draw(seed, 3)
    ratio = torch.exp(log_prob - old)
    off = ((ratio - 1) * advantage > 0) & ((ratio - 1).abs() > clip)
    beta = torch.where(off, -ratio * advantage, 0).detach()
    penalised = surrogate(log_prob, old, advantage) - beta * -(log_prob - old)
    clipped = clipped_surrogate(log_prob, old, advantage, clip)
    same(gradient(clipped, log_prob), gradient(penalised, log_prob))


@given(seeds)
def test_a_clip_that_is_never_reached_changes_nothing(seed: int) -> None:
    log_prob, old, advantage = draw(seed, 3)
    same(clipped_surrogate(log_prob, old, advantage, 1e9), surrogate(log_prob, old, advantage))


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 2.0, 2.15, 1.1),  # 2.2 - 2/0.4 x 0.01; 1.1 (2 - 2/0.2 x 0.1)
        (1.2, 2.0, 2.2, 0.0),  # best at 1 + eps
        (1.5, 2.0, 1.75, -4.5),  # beyond it leads back
        (0.8, -2.0, -1.8, 0.0),  # best at 1 - eps
        (0.5, -2.0, -2.25, 1.5),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_quadratic_surrogate_by_hand(
    ratio: float, advantage: float, objective: float, slope: float
) -> None:
    log_prob = vector(math.log(ratio)).requires_grad_()
    actual = quadratic_surrogate(log_prob, vector(0), vector(advantage), clip=0.2)
    same(actual.detach(), vector(objective))
    same(gradient(actual, log_prob), vector(slope))


@given(seeds, clips)
def test_at_ratio_1_the_quadratic_one_has_the_policy_gradient(seed: int, clip: float) -> None:
    log_prob, advantage = draw(seed, 2)
    old = log_prob.detach().clone()
    quadratic = quadratic_surrogate(log_prob, old, advantage, clip)
    assert torch.equal(gradient(quadratic, log_prob), advantage)


@given(seeds)
def test_a_penalty_of_a_wide_clip_changes_nothing(seed: int) -> None:
    log_prob, old, advantage = draw(seed, 3)
    quadratic = quadratic_surrogate(log_prob, old, advantage, 1e15)
    same(quadratic, surrogate(log_prob, old, advantage))


def test_the_gradient_beyond_the_clip_is_0_even_if_the_ratio_overflows() -> None:
    log_prob = torch.tensor([100.0], requires_grad=True)
    clipped = clipped_surrogate(log_prob, torch.zeros(1), torch.ones(1), 0.2)
    assert gradient(clipped, log_prob) == 0


# The critic's errors


def test_squared_error_by_hand() -> None:
    same(squared_error(vector(1, -2), vector(4, -2)), vector(9, 0))


@pytest.mark.parametrize(
    ("delta", "error", "expected"),
    [(1.0, 0.5, 0.125), (1.0, 3.0, 2.5), (1.0, -3.0, 2.5), (2.0, 1.0, 0.5), (2.0, -3.0, 4.0)],
)
def test_huber_error_by_hand(delta: float, error: float, expected: float) -> None:
    same(huber_error(vector(7 + error), vector(7), delta), vector(expected))


@given(seeds, st.floats(0.1, 3))
def test_the_slope_of_huber_is_the_clipped_error(seed: int, delta: float) -> None:
    value, target = draw(seed, 2)
    expected = (value - target).clamp(-delta, delta)
    same(gradient(huber_error(value, target, delta), value), expected)


@given(seeds)
def test_huber_at_1_is_smooth_l1(seed: int) -> None:
    value, target = draw(seed, 2)
    same(huber_error(value, target), smooth_l1_loss(value, target, reduction="none"))


@pytest.mark.parametrize(
    ("value", "target", "error", "slope"),
    [
        (1.1, 3.0, 1.9**2, -3.8),  # moved less than the clip
        (1.5, 3.0, 1.8**2, 0.0),  # moved far towards the target: held at 1.2
        (0.5, 3.0, 2.5**2, -5.0),  # moved away from it: pulled back
        (1.5, 1.1, 0.4**2, 0.8),  # moved past it: pulled back
        (0.5, -3.0, 3.8**2, 0.0),  # held at 0.8
    ],
)
def test_clipped_squared_error_by_hand(
    value: float, target: float, error: float, slope: float
) -> None:
    v = vector(value).requires_grad_()
    actual = clipped_squared_error(v, vector(target), vector(1.0), clip=0.2)
    same(actual.detach(), vector(error))
    same(gradient(actual, v), vector(slope))


@given(seeds, clips)
def test_value_clipping_never_lowers_the_error(seed: int, clip: float) -> None:
    value, target, old = draw(seed, 3)
    assert (clipped_squared_error(value, target, old, clip) >= squared_error(value, target)).all()


@given(seeds)
def test_a_value_clip_that_is_never_reached_changes_nothing(seed: int) -> None:
    value, target, old = draw(seed, 3)
    same(clipped_squared_error(value, target, old, 1e9), squared_error(value, target))


# Gradients


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (surrogate, 3),
        (lambda *x: clipped_surrogate(*x, 0.2), 3),
        (lambda *x: quadratic_surrogate(*x, 0.2), 3),
        (squared_error, 2),
        (lambda *x: huber_error(*x, 0.7), 2),
        (lambda *x: clipped_squared_error(*x, 0.3), 3),
    ],
    ids=["surrogate", "clipped_surrogate", "quadratic", "squared", "huber", "clipped_squared"],
)
def test_gradients(function, arguments: int) -> None:
    assert gradcheck(function, draw(1, arguments))


def test_preferences_by_hand() -> None:
    chosen = torch.tensor([1.0, 0.0, 200.0, -200.0])
    rejected = torch.tensor([0.0, 0.0, 0.0, 0.0])
    expected = torch.tensor([math.log(1 + math.exp(-1)), math.log(2), 0.0, 200.0])
    torch.testing.assert_close(preference_error(chosen, rejected), expected)
