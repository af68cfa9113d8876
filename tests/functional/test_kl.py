"""The estimator of KL(old, new) against the divergence itself."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import Normal, kl_divergence

from proximo.functional.kl import controlled_beta, k2, k3

seeds = st.integers(0, 2**32 - 1)


def log_probabilities(seed: int, actions: int) -> Tensor:
    """[2, actions]: log p of a new and an old policy."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, actions, generator=generator, dtype=torch.float64).log_softmax(-1)


def test_k3_by_hand() -> None:
    """r = 2 gives 1 - log 2 and r = ½ gives -½ + log 2: the ratio is new over old."""
    log_prob = torch.tensor([math.log(0.5), math.log(0.25)], dtype=torch.float64)
    expected = torch.tensor([1 - math.log(2), math.log(2) - 0.5], dtype=torch.float64)
    torch.testing.assert_close(k3(log_prob, log_prob.flip(0)), expected)


@given(seeds, st.sampled_from([torch.float32, torch.float64]), st.floats(1e-12, 50))
def test_k3_is_never_negative(seed: int, dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    new, old = torch.randn(2, 200, generator=generator, dtype=dtype) * scale
    assert (k3(new, old) >= 0).all()


def test_k3_is_0_where_nothing_moved() -> None:
    log_prob = log_probabilities(0, 5)[0]
    assert not k3(log_prob, log_prob).any()


@given(seeds, st.integers(2, 8))
def test_the_expectation_of_k3_is_the_kl(seed: int, actions: int) -> None:
    """Exactly so where all actions can be summed over, weighted by the old policy."""
    new, old = log_probabilities(seed, actions)
    expectation = (old.exp() * k3(new, old)).sum()
    kl = sum(math.exp(o) * (o - n) for n, o in zip(new.tolist(), old.tolist(), strict=True))
    torch.testing.assert_close(expectation, torch.tensor(kl, dtype=torch.float64))


def test_the_mean_of_k3_over_samples_approximates_the_kl() -> None:
    old, new = Normal(0.0, 1.0), Normal(0.2, 0.9)
    sample = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    estimate = k3(new.log_prob(sample), old.log_prob(sample))
    standard_error = estimate.std() / len(sample) ** 0.5
    assert abs(estimate.mean() - kl_divergence(old, new)) < 4 * standard_error
    assert abs(estimate.mean() - kl_divergence(new, old)) > 4 * standard_error


def test_gradients() -> None:
    new, old = log_probabilities(1, 6)
    assert gradcheck(k3, (new.requires_grad_(), old.requires_grad_()))


def test_k2_has_the_gradient_of_the_kl_on_own_samples_and_k3_has_not() -> None:
    logits = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([0.0, 0.4, 0.5], dtype=torch.float64).log_softmax(0)
    new = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((new.exp() * (new - other)).sum(), logits, retain_graph=True)
    own = new.exp().detach()  # every token as often as it would be sampled
    (by_k2,) = torch.autograd.grad((own * k2(new, other)).sum(), logits, retain_graph=True)
    (by_k3,) = torch.autograd.grad((own * k3(other, new)).sum(), logits)
    torch.testing.assert_close(by_k2, exact)
    assert (by_k3 - exact).abs().max() > 0.01


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (3.0, 0.98), (0.0, 0.98)]
)
def test_the_controller_by_hand(kl: float, factor: float) -> None:
    assert controlled_beta(0.5, kl, 6.0, 100, 1000) == pytest.approx(0.5 * factor)


def test_the_controller_keeps_the_sign_however_many_episodes() -> None:
    assert controlled_beta(0.5, 0.0, 6.0, 10**6, 1000) > 0
