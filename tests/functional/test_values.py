"""Symlogs and histograms of values: numbers by hand, a reference, and what they give back."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import grad, gradcheck

from proximo.functional.values import histogram, histogram_error, histogram_mean, symexp, symlog

CENTRES = torch.linspace(-5, 5, 11, dtype=torch.float64)  # bins of width 1
inside = st.floats(-2.0, 2.0)


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def reference(target, centres, sigma):
    """The mass of a Gaussian in each bin, by Python's own error function."""
    width = float(centres[1] - centres[0])

    def below(x):
        return 0.5 * (1 + math.erf((x - target) / (sigma * math.sqrt(2))))

    masses = [below(float(c) + width / 2) - below(float(c) - width / 2) for c in centres]
    return vector(*masses) / sum(masses)


def test_symlog_by_hand():
    torch.testing.assert_close(symlog(vector(0, math.e - 1, 1 - math.e)), vector(0, 1, -1))
    assert float(symexp(vector(10.0))) == pytest.approx(22025.4658)


@given(st.floats(-1e6, 1e6))
def test_symexp_is_the_inverse_of_symlog(x):
    assert float(symexp(symlog(vector(x)))) == pytest.approx(x, rel=1e-12, abs=1e-12)


def test_both_have_slope_1_at_0():
    """There outputs begin: with the slope of |x|, which is 0, nothing would be learned."""
    for function in (symlog, symexp):
        x = vector(0.0, -1.0, 1.0).requires_grad_()
        (slope,) = grad(function(x).sum(), x)
        far = 0.5 if function is symlog else math.e
        torch.testing.assert_close(slope, vector(1.0, far, far))
        assert gradcheck(function, vector(-2.0, 0.5, 3.0).requires_grad_())


def test_two_hot_by_hand():
    found = histogram(vector(0.25, -9.0, 5.0), CENTRES, 0.0)
    assert found[0, 5:7].tolist() == [0.75, 0.25]
    assert found[1, 0] == found[2, 10] == 1.0  # beyond the bins: the outermost
    assert found.sum(-1).tolist() == [1.0, 1.0, 1.0]


@given(st.floats(-7.0, 7.0), st.floats(0.1, 3.0))
def test_hl_gauss_is_the_mass_of_a_gaussian_in_each_bin(target, sigma):
    found = histogram(vector(target), CENTRES, sigma)[0]
    expected = reference(min(max(target, -5.0), 5.0), CENTRES, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@given(inside, st.sampled_from([0.0, 0.75]))
def test_the_mean_of_a_targets_histogram_is_the_target(target, sigma):
    spread = histogram(vector(target), CENTRES, sigma)
    mean = float(histogram_mean(spread.clamp(min=1e-300).log(), CENTRES)[0])
    assert mean == pytest.approx(target, abs=1e-5 if sigma else 1e-12)


def test_the_gradient_of_the_cross_entropy_is_q_minus_p():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 11, generator=generator, dtype=torch.float64).requires_grad_()
    target = histogram(vector(0.3, -4.0, 2.5), CENTRES, 0.75)
    (slope,) = grad(histogram_error(logits, target).sum(), logits)
    torch.testing.assert_close(slope, logits.softmax(-1) - target)
    assert gradcheck(lambda x: histogram_error(x, target), logits)
    with pytest.raises(ValueError, match="logits"):
        histogram_error(logits, target[:, :5])


@pytest.mark.parametrize("sigma", [0.0, 0.75])
def test_the_best_histogram_of_several_targets_has_their_mean(sigma):
    """As the best number for squared errors does: the cross-entropy is least at the mean of p."""
    targets = vector(-1.3, 3.0, 0.2)
    spread = histogram(targets, CENTRES, sigma)
    best = spread.mean(0).clamp(min=1e-300).log().requires_grad_()
    (slope,) = grad(histogram_error(best.expand(3, 11), spread).mean(), best)
    assert slope.abs().max() < 1e-12
    mean = histogram_mean(best.detach(), CENTRES)
    torch.testing.assert_close(mean, targets.mean(), rtol=0, atol=2e-3)
