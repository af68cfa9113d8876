"""Distributions against torch.distributions, and sampling against the definition of a CDF."""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributions
from torch.autograd import gradcheck

from proximo.functional.distributions import LOG_STD_MAX, LOG_STD_MIN, Categorical, Gaussian

ALMOST_ONE = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()
"""The largest number that a uniform draw in float32 can be."""

seeds = st.integers(0, 2**32 - 1)
batch_shapes = pytest.mark.parametrize("shape", [(), (5,), (4, 3)], ids=str)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def of_probabilities(*p: float) -> Categorical:
    return Categorical.from_logits(torch.tensor(p).log())


# Categorical


def test_categorical_by_hand() -> None:
    d = Categorical.from_logits(torch.tensor([0.0, math.log(3)], dtype=torch.float64))
    p = torch.tensor([0.25, 0.75], dtype=torch.float64)
    same(d.parameters, p.log())
    same(d.log_prob(torch.tensor(1)), p[1].log())
    same(d.entropy(), torch.tensor(math.log(4) - 0.75 * math.log(3), dtype=torch.float64))
    assert d.mode() == 1


@batch_shapes
def test_categorical_is_that_of_torch(shape: tuple[int, ...]) -> None:
    logits = 3 * normal(0, *shape, 6)
    action = torch.randint(6, shape, generator=torch.Generator().manual_seed(1))
    d, oracle = Categorical.from_logits(logits), distributions.Categorical(logits=logits)
    same(d.log_prob(action), oracle.log_prob(action))
    same(d.entropy(), oracle.entropy())
    assert torch.equal(d.mode(), oracle.mode)


@given(seeds, st.floats(-1e3, 1e3))
def test_only_differences_of_logits_count(seed: int, shift: float) -> None:
    logits = normal(seed, 3, 5)
    same(Categorical.from_logits(logits + shift).log_p, Categorical.from_logits(logits).log_p)


def test_the_entropy_is_largest_for_equal_actions_and_0_for_a_certain_one() -> None:
    logits = torch.tensor([[0.0, 0, 0, 0], [1000, 0, 0, 0]], dtype=torch.float64)
    expected = torch.tensor([math.log(4), 0], dtype=torch.float64)
    same(Categorical.from_logits(logits).entropy(), expected)


@pytest.mark.parametrize(
    ("noise", "action"),
    [(0, 0), (0.19, 0), (0.21, 1), (0.49, 1), (0.51, 2), (0.99, 2), (ALMOST_ONE, 2)],
)
def test_sampling_by_hand(noise: float, action: int) -> None:
    assert of_probabilities(0.2, 0.3, 0.5).sample(torch.tensor(noise)) == action


@given(seeds, st.integers(1, 6))
def test_sampling_inverts_the_distribution_function(seed: int, actions: int) -> None:
    """F(a - 1) <= u < F(a), with F summed in Python."""
    logits = normal(seed, actions)
    noise = torch.rand(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sample = Categorical.from_logits(logits.expand(20, -1)).sample(noise)
    p = [math.exp(x) for x in logits.tolist()]
    for u, a in zip(noise.tolist(), sample.tolist(), strict=True):
        assert sum(p[:a]) / sum(p) <= u < sum(p[: a + 1]) / sum(p)


@given(seeds, st.integers(1, 40), st.floats(0, 30))
def test_no_noise_draws_an_action_out_of_range(seed: int, actions: int, scale: float) -> None:
    d = Categorical.from_logits((scale * normal(seed, 64, actions)).float())
    for noise in (0.0, 0.5, ALMOST_ONE):
        action = d.sample(torch.full((64,), noise))
        assert action.dtype == torch.int64
        assert action.shape == (64,)
        assert 0 <= action.min() <= action.max() < actions


@pytest.mark.parametrize(
    ("p", "noise", "action"), [((0, 0.5, 0.5), 0.0, 1), ((0.5, 0, 0.5), 0.5, 2)]
)
def test_an_impossible_action_is_passed_over(
    p: tuple[float, ...], noise: float, action: int
) -> None:
    assert of_probabilities(*p).sample(torch.tensor(noise)) == action


def test_actions_are_drawn_as_often_as_they_are_likely() -> None:
    draws, p = 20_000, torch.tensor([0.05, 0.15, 0.3, 0.5])
    noise = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    sample = of_probabilities(*p.tolist()).sample(noise[:, None])
    seen = torch.bincount(sample.flatten(), minlength=4)
    chi_square = ((seen - draws * p).square() / (draws * p)).sum()
    assert chi_square < 16.3  # 99.9% quantile for three degrees of freedom


def test_categorical_refuses_actions_of_another_batch() -> None:
    d = Categorical.from_logits(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="action"):
        d.log_prob(torch.zeros(2, dtype=torch.int64))


# Gaussian


def test_gaussian_by_hand() -> None:
    mean = torch.tensor([1.0, -1.0], dtype=torch.float64)
    log_std = torch.tensor([0.0, math.log(2)], dtype=torch.float64)
    d = Gaussian.from_parameters(mean, log_std)
    two = torch.tensor(2.0, dtype=torch.float64)
    same(d.sample(torch.tensor([0.5, 0.5], dtype=torch.float64)), mean + mean.new([0.5, 1.0]))
    same(d.log_prob(mean + mean.new([1.0, 4.0])), -(0.5 + 2) - (2 * torch.pi * two).log())
    same(d.entropy(), (2 * torch.pi * math.e * two).log())
    assert torch.equal(d.mode(), mean)
    assert torch.equal(d.parameters, torch.cat([mean, log_std]))


@batch_shapes
@pytest.mark.parametrize("per_state", [False, True], ids=["free_std", "std_per_state"])
def test_gaussian_is_that_of_torch(shape: tuple[int, ...], per_state: bool) -> None:
    mean, action = normal(0, *shape, 3), normal(1, *shape, 3)
    log_std = normal(2, *shape, 3) if per_state else normal(2, 3)
    d = Gaussian.from_parameters(mean, log_std)
    oracle = distributions.Independent(distributions.Normal(mean, log_std.exp()), 1)
    same(d.log_prob(action), oracle.log_prob(action))
    same(d.entropy(), oracle.entropy())
    same(d.parameters, torch.cat([mean, log_std.expand_as(mean)], -1))
    assert torch.equal(d.mode(), oracle.mode)


def test_samples_have_the_mean_and_the_deviation() -> None:
    d = Gaussian.from_parameters(torch.tensor([3.0, -1.0]), torch.tensor([-1.0, 0.5]))
    noise = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0))
    std, mean = torch.std_mean(d.sample(noise), 0)
    torch.testing.assert_close(mean, d.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(std, d.log_std.exp(), atol=0, rtol=0.02)


def test_the_log_deviation_is_clamped() -> None:
    log_std = torch.tensor([-1e9, LOG_STD_MIN, 0.5, LOG_STD_MAX, 1e9], requires_grad=True)
    clamped = Gaussian.from_parameters(torch.zeros(5), log_std).log_std
    assert clamped.tolist() == [-10, -10, 0.5, 2, 2]
    clamped.sum().backward()
    assert log_std.grad is not None
    assert log_std.grad.tolist() == [0, 1, 1, 1, 0]


@given(seeds)
def test_the_mode_is_the_most_likely_action(seed: int) -> None:
    gaussian = Gaussian.from_parameters(normal(seed, 3), normal(seed + 1, 3))
    assert gaussian.log_prob(gaussian.mode()) >= gaussian.log_prob(normal(seed + 2, 3))
    categorical = Categorical.from_logits(normal(seed, 4))
    assert categorical.log_prob(categorical.mode()) == categorical.log_p.max()


# Both


def test_distributions_are_values() -> None:
    for d in (of_probabilities(0.5, 0.5), Gaussian(torch.zeros(2), torch.zeros(2))):
        with pytest.raises(FrozenInstanceError):
            d.log_p = torch.zeros(2)


def test_gradients_of_categorical() -> None:
    logits, action = normal(0, 4, 3).requires_grad_(), torch.tensor([0, 1, 2, 1])
    assert gradcheck(lambda x: Categorical.from_logits(x).log_prob(action), (logits,))
    assert gradcheck(lambda x: Categorical.from_logits(x).entropy(), (logits,))


def test_gradients_of_gaussian() -> None:
    mean, action = normal(0, 4, 3).requires_grad_(), normal(1, 4, 3).requires_grad_()
    log_std = normal(2, 3).requires_grad_()
    build = Gaussian.from_parameters
    assert gradcheck(lambda m, s, a: build(m, s).log_prob(a), (mean, log_std, action))
    assert gradcheck(lambda m, s, e: build(m, s).sample(e), (mean, log_std, action))
    assert gradcheck(lambda s: build(mean, s).entropy(), (log_std,))
