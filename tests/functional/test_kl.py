"""The estimator of KL(old, new) against the divergence itself."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import Normal, kl_divergence

from proximo.functional.kl import k3

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
