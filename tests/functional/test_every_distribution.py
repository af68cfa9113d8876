"""Every kind of distribution: density, entropy and KL against torch.distributions and integrals."""

import itertools
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributions
from torch.autograd import gradcheck
from torch.distributions import AffineTransform, Independent, TanhTransform

from proximo.functional.distributions import (
    ILLEGAL,
    LOG_STD_MAX,
    LOG_STD_MIN,
    SHAPE_MAX,
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Gaussian,
    Joint,
    SquashedGaussian,
)
from proximo.functional.kl import kl_divergence

DOUBLE = torch.float64
ALMOST_ONE = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()
"""The largest number that a uniform draw in float32 can be."""
LOW, HIGH = torch.tensor([-2.0, 0.5], dtype=DOUBLE), torch.tensor([1.0, 8.5], dtype=DOUBLE)
"""Bounds of two dimensions, and their logarithms as the distributions take them."""
LOG_RANGE, LOG_REACH = (HIGH - LOW).log(), ((HIGH - LOW) / 2).log()
LEGAL = torch.tensor([True, False, True, True, False])

seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(seed: int, *shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def same(actual: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=atol)


def masked(outputs: Tensor) -> Categorical:
    return Categorical.from_logits(outputs, LEGAL.expand_as(outputs))


def squashed(outputs: Tensor) -> SquashedGaussian:
    inner = Gaussian.from_parameters(outputs[..., :2], outputs[..., 2:])
    return SquashedGaussian(inner.mean, inner.log_std, LOG_REACH.to(outputs))


def beta(outputs: Tensor) -> Beta:
    return Beta.from_outputs(outputs[..., :2], outputs[..., 2:], LOG_RANGE.to(outputs))


def joint(outputs: Tensor) -> Joint:
    """A masked choice, a Joint of two bits and a choice, and two numbers."""
    inner = Joint(
        (Bernoulli(outputs[..., 5:7]), Categorical.from_logits(outputs[..., 7:10])), (2, 1), (2, 1)
    )
    return Joint(
        (masked(outputs[..., :5]), inner, squashed(outputs[..., 10:])), (1, 3, 2), (1, 3, 2)
    )


class Kind(NamedTuple):
    outputs: int  # of a network
    build: Callable[[Tensor], Distribution]
    noise: Callable[..., Tensor]  # by seed and shape
    width: tuple[int, ...]  # of the noise


def joint_noise(seed: int, *shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    lead = shape[:-1]
    parts = uniform(seed, *lead, 4, dtype=dtype), normal(seed + 1, *lead, 2, dtype=dtype)
    return torch.cat(parts, -1)


DRAWS = {"uniform": uniform, "normal": normal}
KINDS = {
    "categorical": Kind(5, Categorical.from_logits, DRAWS["uniform"], ()),
    "masked": Kind(5, masked, DRAWS["uniform"], ()),
    "bernoulli": Kind(3, Bernoulli, DRAWS["uniform"], (3,)),
    "squashed": Kind(4, squashed, DRAWS["normal"], (2,)),
    "beta": Kind(4, beta, DRAWS["normal"], (2 * Beta.NOISE,)),
    "joint": Kind(14, joint, joint_noise, (6,)),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


# Masked choices


def test_illegal_actions_are_as_if_they_were_not_there() -> None:
    logits, other = 3 * normal(0, 7, 5), normal(1, 7, 5)
    d, there = masked(logits), Categorical.from_logits(logits[:, LEGAL])
    same(d.log_p[:, LEGAL], there.log_p)
    assert (d.log_p[:, ~LEGAL] == ILLEGAL).all()
    assert (d.log_p[:, ~LEGAL].exp() == 0).all()
    same(d.entropy(), there.entropy())
    few = kl_divergence(Categorical.from_logits(other[:, LEGAL]), there)
    same(kl_divergence(masked(other), d), few)
    assert LEGAL[d.mode()].all()


@given(seeds, st.sampled_from([torch.float32, DOUBLE]))
def test_a_mask_that_allows_everything_changes_no_bit(seed: int, dtype: torch.dtype) -> None:
    logits, noise = 5 * normal(seed, 40, 6, dtype=dtype), uniform(seed, 40, dtype=dtype)
    free = Categorical.from_logits(logits)
    allowed = Categorical.from_logits(logits, torch.ones(40, 6, dtype=torch.bool))
    assert torch.equal(free.log_p, torch.log_softmax(logits, -1))
    assert torch.equal(free.log_p, allowed.log_p)
    for d in (free, allowed, Categorical(free.parameters)):
        assert torch.equal(d.sample(noise), free.sample(noise))


@given(seeds, st.integers(1, 40), st.floats(0, 100), st.sampled_from([torch.float32, DOUBLE]))
def test_no_noise_draws_an_illegal_action(
    seed: int, actions: int, scale: float, dtype: torch.dtype
) -> None:
    legal = uniform(seed, 64, actions) < uniform(seed + 1, 64, 1)
    legal[torch.arange(64), torch.arange(64) % actions] = True
    d = Categorical.from_logits(scale * normal(seed, 64, actions, dtype=dtype), legal)
    last = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
    for noise in (torch.zeros(64, dtype=dtype), uniform(seed, 64, dtype=dtype), last.expand(64)):
        for restored in (d, Categorical(d.parameters), Categorical(d.parameters.float())):
            action = restored.sample(noise.to(restored.log_p))
            assert legal[torch.arange(64), action].all()
            assert legal[torch.arange(64), restored.mode()].all()


def test_steps_that_end_under_1_lead_to_no_illegal_action() -> None:
    """By hand, ½ and ¼ being all that is left; and where rounding truly leaves them under 1."""
    short = Categorical(torch.tensor([ILLEGAL, math.log(0.5), ILLEGAL, math.log(0.25), ILLEGAL]))
    assert short.sample(
        torch.tensor([0, 0.49, 0.51, 0.76, ALMOST_ONE])[:, None]
    ).flatten().tolist() == [1, 1, 3, 3, 3]
    legal = torch.tensor([True] * 9 + [False] * 3).expand(4000, -1)
    d = Categorical.from_logits(normal(0, 4000, 12, dtype=torch.float32), legal)
    noise = torch.full((4000,), ALMOST_ONE)
    counted = (d.log_p.exp().cumsum(-1)[:, :-1] <= noise[:, None]).sum(-1)
    assert (counted > 8).any()
    assert (d.sample(noise) == counted.clamp(max=8)).all()


def test_a_row_where_nothing_is_legal_teaches_nothing() -> None:
    logits = normal(0, 2, 3).requires_grad_()
    legal = torch.tensor([[False] * 3, [True, True, False]])
    d, other = Categorical.from_logits(logits, legal), Categorical.from_logits(-logits, legal)
    action = d.sample(torch.tensor([0.9, 0.9], dtype=DOUBLE))
    assert 0 <= action[0] < 3
    assert d.entropy()[0] == kl_divergence(other, d)[0] == 0
    (d.log_prob(action) + d.entropy() + kl_divergence(other, d)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[~legal] == 0).all()
    assert (logits.grad[0] == 0).all()


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits \(2, 3\), mask \(3,\)"):
        Categorical.from_logits(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))


# Bits


def test_bernoulli_is_that_of_torch() -> None:
    logits = 4 * normal(0, 6, 3)
    d = Bernoulli(logits)
    oracle = Independent(distributions.Bernoulli(logits=logits), 1)
    action = d.sample(uniform(1, 6, 3))
    assert action.dtype == torch.int64
    same(d.log_prob(action), oracle.log_prob(action.double()))
    same(d.entropy(), oracle.entropy())
    assert torch.equal(d.mode(), (logits > 0).long())
    other = Bernoulli(normal(2, 6, 3))
    theirs = Independent(distributions.Bernoulli(logits=other.logits), 1)
    same(kl_divergence(d, other), distributions.kl_divergence(oracle, theirs))


def test_bits_are_on_as_often_as_they_are_likely() -> None:
    p = torch.tensor([0.05, 0.5, 0.9], dtype=DOUBLE)
    on = Bernoulli(p.logit()).bits.log_p[:, 1].exp()
    same(on, p)
    bits = Bernoulli(p.logit().expand(20_000, 3)).sample(uniform(0, 20_000, 3)).double()
    assert ((bits.mean(0) - p).abs() < 4 * (p * (1 - p) / 20_000).sqrt()).all()


def test_bits_that_are_certain_lose_nothing() -> None:
    d = Bernoulli(torch.tensor([40.0, -40, 1e4, -1e4]))
    assert d.log_prob(torch.tensor([1, 0, 1, 0])).item() == pytest.approx(-2 * math.exp(-40))
    assert d.log_prob(torch.tensor([0, 1, 0, 1])) == -20080
    assert d.entropy().item() == pytest.approx(2 * 41 * math.exp(-40))


# Squashed Gaussians


def as_env(d: SquashedGaussian | Beta, action: Tensor) -> Tensor:
    """The env's action, by the definition."""
    share = action if isinstance(d, Beta) else (action.tanh() + 1) / 2
    return LOW + share * (HIGH - LOW)


def test_squashed_is_that_of_torch_in_the_units_of_the_env() -> None:
    outputs = normal(0, 9, 4)
    d = squashed(outputs)
    inner = distributions.Normal(d.mean, d.log_std.exp())
    middle, reach = (LOW + HIGH) / 2, (HIGH - LOW) / 2
    steps = [TanhTransform(cache_size=1), AffineTransform(middle, reach, cache_size=1)]
    oracle = Independent(distributions.TransformedDistribution(inner, steps), 1)
    u = 1.5 * normal(1, 9, 2)
    same(d.log_prob(u), oracle.log_prob(as_env(d, u)), atol=1e-7)  # which takes an atanh
    assert torch.equal(d.mode(), d.mean)
    assert torch.equal(d.parameters, Gaussian(d.mean, d.log_std).parameters)
    assert torch.equal(d.sample(u), Gaussian(d.mean, d.log_std).sample(u))


def test_the_density_of_a_squashed_action_stays_finite_far_out() -> None:
    """Where tanh u has been 1 for long, log(1 - tanh² u) = log 4 - 2 |u|."""
    u = torch.tensor([[-300.0, 90], [50, -40]], dtype=DOUBLE)
    d = SquashedGaussian(u, torch.zeros(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    expected = -math.log(2 * math.pi) - 2 * math.log(4) + 2 * u.abs().sum(-1)
    same(d.log_prob(u), expected)


MEANS = torch.cat([torch.linspace(-20, 20, 81), torch.linspace(-1, 1, 41)]).double()
LOG_STDS = torch.linspace(LOG_STD_MIN, LOG_STD_MAX, 49, dtype=DOUBLE)


def squashed_entropies(dtype: torch.dtype) -> Tensor:
    """[means, log stds] of one dimension of reach 1."""
    mean, log_std = torch.meshgrid(MEANS.to(dtype), LOG_STDS.to(dtype), indexing="ij")
    return SquashedGaussian(mean[..., None], log_std[..., None], mean.new_zeros(1)).entropy()


def reference_entropies() -> Tensor:
    """By four times as many nodes, twice as far out, and log(1 - tanh² u) = -2 log cosh u."""
    z = torch.linspace(-12, 12, 961, dtype=DOUBLE)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    u = MEANS[:, None, None] + LOG_STDS.exp()[:, None] * z
    slope = -2 * (torch.logaddexp(u, -u) - math.log(2))
    return LOG_STDS + 0.5 * math.log(2 * math.pi * math.e) + slope @ weight


def test_the_entropy_of_squashed_actions_is_exact_for_every_mean_and_deviation() -> None:
    expected = reference_entropies()
    assert (squashed_entropies(DOUBLE) - expected).abs().max() < 1e-6
    single = (squashed_entropies(torch.float32) - expected).abs()
    assert (single / expected.abs().clamp(min=1)).max() < 1e-5


def integral(density: Tensor, axis: Tensor) -> Tensor:
    return torch.trapezoid(density, axis, dim=0)


@pytest.mark.parametrize("outputs", [(0.0, 0.0), (1.5, -1.0), (-0.4, 1.0)], ids=str)
def test_the_integrals_of_a_squashed_density(outputs: tuple[float, float]) -> None:
    """Over the env's actions: ∫ p = 1, -∫ p log p is the entropy, ∫ p log p/q the KL."""
    u = torch.linspace(-30, 30, 60_001, dtype=DOUBLE)[:, None]
    rows, reach = torch.tensor([outputs, (0.3, 0.2)], dtype=DOUBLE), LOG_REACH[:1]
    d, other = (SquashedGaussian(m.expand(len(u), 1), s[None], reach) for m, s in rows)
    log_p, log_q = d.log_prob(u), other.log_prob(u)
    width = math.exp(LOG_REACH[0]) / torch.cosh(u).square()  # da of du
    p = log_p.exp() * width[:, 0]
    assert integral(p, u[:, 0]).item() == pytest.approx(1, abs=1e-8)
    same(-integral(p * log_p, u[:, 0]), d.entropy()[0], atol=1e-6)
    same(integral(p * (log_p - log_q), u[:, 0]), kl_divergence(d, other)[0], atol=1e-6)


def test_gradients_of_squashed() -> None:
    mean, log_std = normal(0, 3, 2).requires_grad_(), normal(1, 3, 2).requires_grad_()
    u = (2 * normal(2, 3, 2)).requires_grad_()
    free = normal(3, 2).requires_grad_()
    build = lambda m, s: SquashedGaussian(m, s, LOG_REACH)  # noqa: E731
    assert gradcheck(lambda m, s: build(m, s).entropy(), (mean, log_std))
    assert gradcheck(lambda m, s: build(m, s).entropy(), (mean, free))
    assert gradcheck(lambda m, s, a: build(m, s).log_prob(a), (mean, log_std, u))
    other = squashed(normal(4, 3, 4))
    assert gradcheck(lambda m, s: kl_divergence(other, build(m, s)), (mean, log_std))


# Betas


def test_beta_is_that_of_torch_in_the_units_of_the_env() -> None:
    d, other = beta(3 * normal(0, 9, 4)), beta(normal(1, 9, 4))
    oracle, theirs = (Independent(distributions.Beta(x.alpha, x.beta), 1) for x in (d, other))
    x = uniform(2, 9, 2)
    same(d.log_prob(x), oracle.log_prob(x) - LOG_RANGE.sum())
    same(d.entropy(), oracle.entropy() + LOG_RANGE.sum())
    same(kl_divergence(d, other), distributions.kl_divergence(oracle, theirs))
    same(d.mode(), oracle.mean)
    assert torch.equal(d.parameters, torch.cat([d.alpha, d.beta], -1))


@given(seeds, st.floats(0, 1e3))
def test_single_precision_loses_nothing_to_the_terms_of_a_narrow_beta(
    seed: int, scale: float
) -> None:
    """They are thousands of nats, which cancel to a few."""
    d, other = (beta((scale * normal(s, 20, 4, dtype=torch.float32)).abs()) for s in (seed, 1))
    fine, fine_other = (Beta(x.alpha.double(), x.beta.double(), LOG_RANGE) for x in (d, other))
    x = d.sample(normal(seed, 20, 2 * Beta.NOISE, dtype=torch.float32))
    for ours, exact in [
        (d.log_prob(x), fine.log_prob(x.double())),
        (d.entropy(), fine.entropy()),
        (kl_divergence(d, other), kl_divergence(fine, fine_other)),
    ]:
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, exact.float(), rtol=1e-5, atol=1e-5)


def test_the_shapes_of_a_beta_are_bounded() -> None:
    outputs = torch.tensor([-1e9, -50, 0, 50, 1e9], requires_grad=True)
    d = Beta.from_outputs(outputs, outputs, torch.zeros(5))
    expected = torch.tensor([1, 1, 1 + math.log(2), 51, SHAPE_MAX])
    torch.testing.assert_close(d.alpha, expected)
    torch.testing.assert_close(d.beta, expected)
    flat = Beta(torch.ones(2), torch.ones(2), LOG_RANGE.float())
    same(flat.log_prob(torch.tensor([1e-7, 0.9])), -LOG_RANGE.float().sum())
    same(flat.mode(), torch.full((2,), 0.5))


def test_a_gamma_is_the_first_try_that_passes_or_its_mean() -> None:
    alpha, other = torch.tensor([3.0], dtype=DOUBLE), torch.tensor([2.0], dtype=DOUBLE)
    d = Beta(alpha, other, torch.zeros(1, dtype=DOUBLE))
    noise = torch.full((2, 2, Beta.TRIES), -1e3, dtype=DOUBLE)  # v < 0: no try passes
    same(d.sample(noise.flatten()), alpha / (alpha + other))
    noise[0, :, 3:] = torch.tensor([0.5, -8])[:, None]  # the fourth passes, with Φ near 0
    noise[0, 0, 4:] = 0.7
    gamma = (3 - 1 / 3) * (1 + 0.5 / math.sqrt(9 * (3 - 1 / 3))) ** 3
    same(d.sample(noise.flatten()), gamma / (gamma + other))
    noise[0, 1, :] = 40.0  # Φ = 1: log Φ < 0 fails, as the density is nowhere above the envelope
    same(d.sample(noise.flatten()), alpha / (alpha + other))


@pytest.mark.parametrize(("share", "passes"), [(0.999, True), (1.001, False)])
def test_the_test_of_a_try_is_that_of_marsaglia_and_tsang(share: float, passes: bool) -> None:
    """Φ(ε') against exp(ε²/2 + d (1 - v + log v)), for ε = 2; the try after it passes surely."""
    d, second = 1 - 1 / 3, 1.0
    v = (1 + 2 / math.sqrt(9 * d)) ** 3
    limit = torch.tensor(math.exp(2 + d * (1 - v + math.log(v))), dtype=DOUBLE)
    noise = torch.zeros(2, 2, Beta.TRIES, dtype=DOUBLE)  # ε = 0: v = 1, which always passes
    noise[0, :, 0] = torch.stack(
        [torch.tensor(2.0, dtype=DOUBLE), torch.special.ndtri(share * limit)]
    )
    one = torch.ones(1, dtype=DOUBLE)
    gamma = d * (v if passes else second)
    same(Beta(one, one, 0 * one).sample(noise.flatten()), gamma / (gamma + d) * one)


def test_what_rounds_to_a_bound_is_kept_off_it() -> None:
    """Gamma variables of 1e3 and 7e-10: their share is 1, and is 0 the other way about."""
    noise = torch.zeros(2, 2, Beta.TRIES)
    noise[1, :, 0] = torch.tensor([-0.999 * math.sqrt(6), -8])
    large, small = torch.tensor([SHAPE_MAX]), torch.tensor([1.0])
    high = Beta(large, small, torch.zeros(1))
    assert high.sample(noise.flatten()).item() == ALMOST_ONE
    low = Beta(small, large, torch.zeros(1))
    assert low.sample(noise.flip(0).flatten()).item() == 1 - ALMOST_ONE
    for d, x in [(high, ALMOST_ONE), (low, 1 - ALMOST_ONE)]:
        assert d.log_prob(torch.tensor([x])).isfinite()


@given(seeds, st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(0, 100))
def test_a_beta_stays_inside_its_bounds(seed: int, a: float, b: float, scale: float) -> None:
    one = torch.ones(64, 1)
    d = Beta.from_outputs(a * one, b * one, torch.zeros(1))
    x = d.sample(scale * normal(seed, 64, Beta.NOISE, dtype=torch.float32))
    assert (x > 0).all()
    assert (x < 1).all()
    assert d.log_prob(x).isfinite().all()
    assert d.log_prob(d.mode()).isfinite().all()


def test_gradients_of_beta() -> None:
    outputs, x = normal(0, 3, 4).requires_grad_(), uniform(1, 3, 2)
    other = beta(normal(2, 3, 4))
    assert gradcheck(lambda y: beta(y).log_prob(x), (outputs,))
    assert gradcheck(lambda y: beta(y).entropy(), (outputs,))
    assert gradcheck(lambda y: kl_divergence(other, beta(y)), (outputs,))
    assert gradcheck(lambda y: kl_divergence(beta(y), other), (outputs,))


# Samples of numbers


def kolmogorov_smirnov(sample: Tensor, grid: Tensor, log_density: Tensor) -> float:
    """√n max |F_n - F|, with F integrated from the density. 1.95 is its 99.9% quantile."""
    cumulative = torch.cumulative_trapezoid(log_density.exp(), grid)
    assert cumulative[-1].item() == pytest.approx(1, abs=1e-4)
    ordered = sample.sort().values
    below = torch.searchsorted(grid, ordered).clamp(1, len(grid) - 1)
    share = (ordered - grid[below - 1]) / (grid[below] - grid[below - 1])
    padded = torch.cat([cumulative.new_zeros(1), cumulative])
    expected = padded[below - 1] + share * (padded[below] - padded[below - 1])
    n = len(sample)
    ranks = torch.arange(n + 1, dtype=DOUBLE) / n
    gap = torch.maximum((ranks[1:] - expected).abs(), (ranks[:-1] - expected).abs())
    return math.sqrt(n) * gap.max().item()


SHAPES = [(1.0, 1.0), (1.0, 6.0), (1.3, 1.1), (2.5, 40.0), (300.0, 200.0), (1e3, 1.0), (1e3, 1e3)]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_samples_of_a_beta_follow_its_density(
    shapes: tuple[float, float], dtype: torch.dtype
) -> None:
    n = 20_000
    a, b = (torch.full((1,), s, dtype=dtype) for s in shapes)
    d = Beta(a.expand(n, 1), b.expand(n, 1), torch.zeros(1, dtype=dtype))
    x = d.sample(normal(0, n, Beta.NOISE, dtype=dtype))
    grid = torch.linspace(-17, 17, 100_001, dtype=DOUBLE).sigmoid()  # densest at the bounds
    fine = Beta(*(s.double().expand(len(grid), 1) for s in (a, b)), torch.zeros(1, dtype=DOUBLE))
    density = fine.log_prob(grid[:, None])
    assert kolmogorov_smirnov(x[:, 0].double(), grid, density) < 1.95


@pytest.mark.parametrize("row", [(0.0, 0.0), (1.0, -1.0), (-0.3, 0.5)], ids=str)
def test_samples_of_a_squashed_gaussian_follow_its_density(row: tuple[float, float]) -> None:
    n, (mean, log_std) = 20_000, torch.tensor(row, dtype=DOUBLE)
    reach = LOG_REACH[:1]
    d = SquashedGaussian(mean.expand(n, 1), log_std.expand(1), reach)
    a = math.exp(reach) * d.sample(normal(0, n, 1)).tanh()[:, 0]
    u = torch.linspace(-12, 12, 100_001, dtype=DOUBLE)
    grid = SquashedGaussian(mean.expand(len(u), 1), log_std.expand(1), reach)
    density = grid.log_prob(u[:, None])
    inside = u.abs() < 8  # beyond, neighbours of the grid are the same number
    found = kolmogorov_smirnov(a, math.exp(reach) * u[inside].tanh(), density[inside])
    assert found < 1.95


# Joints


def test_a_joint_is_the_product_of_its_parts() -> None:
    outputs, noise = normal(0, 8, 14), joint_noise(0, 8, 6)
    d = joint(outputs)
    parts = [masked(outputs[:, :5]), Bernoulli(outputs[:, 5:7])]
    parts += [Categorical.from_logits(outputs[:, 7:10]), squashed(outputs[:, 10:])]
    own = [noise[:, 0], noise[:, 1:3], noise[:, 3], noise[:, 4:]]
    actions = [part.sample(u) for part, u in zip(parts, own, strict=True)]
    row = d.sample(noise)
    assert row.dtype == DOUBLE
    assert torch.equal(row, torch.cat([a.reshape(8, -1).double() for a in actions], -1))
    modes = [part.mode().reshape(8, -1).double() for part in parts]
    assert torch.equal(d.mode(), torch.cat(modes, -1))
    same(d.log_prob(row), sum(p.log_prob(a) for p, a in zip(parts, actions, strict=True)))
    same(d.entropy(), sum(part.entropy() for part in parts))
    assert torch.equal(d.parameters, torch.cat([part.parameters for part in parts], -1))


def multi_discrete(outputs: Tensor) -> Joint:
    parts = tuple(map(Categorical.from_logits, outputs.split([2, 3, 4], -1)))
    return Joint(parts, (1, 1, 1), (1, 1, 1))


def test_the_sums_over_all_actions_of_several_choices() -> None:
    """Σ p = 1, -Σ p log p is the entropy, Σ p log p/q the KL."""
    d, other = multi_discrete(normal(0, 9)), multi_discrete(normal(1, 9))
    rows = torch.tensor(list(itertools.product(range(2), range(3), range(4))))
    log_p, log_q = (torch.stack([each.log_prob(row) for row in rows]) for each in (d, other))
    same(log_p.exp().sum(), torch.tensor(1.0, dtype=DOUBLE))
    same(-(log_p.exp() * log_p).sum(), d.entropy())
    same((log_p.exp() * (log_p - log_q)).sum(), kl_divergence(d, other))


def test_the_type_of_a_row() -> None:
    """Whole numbers where there is nothing else; else the numbers' type, which holds them too."""
    assert multi_discrete(torch.zeros(5, 9)).sample(torch.zeros(5, 3)).dtype == torch.int64
    assert multi_discrete(torch.zeros(5, 9)).mode().dtype == torch.int64
    large = Joint(
        (Categorical.from_logits(torch.zeros(2**20 + 1)), Gaussian(torch.zeros(1), torch.zeros(1))),
        (1, 1),
        (1, 1),
    )
    row = large.sample(torch.tensor([ALMOST_ONE, 0.5]))
    assert row.dtype == torch.float32
    assert row[0] == 2**20
    assert large.log_prob(row).isfinite()


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"\[1, 1, 1\]"):
        multi_discrete(torch.zeros(5, 9)).log_prob(torch.zeros(5, 4, dtype=torch.int64))


# All of them


@each_kind
def test_the_averages_of_samples_are_the_entropy_and_the_kl(kind: Kind) -> None:
    n = 20_000
    outputs, others = (0.8 * normal(seed, kind.outputs).expand(n, -1) for seed in (0, 1))
    d, other = kind.build(outputs), kind.build(others)
    action = d.sample(kind.noise(2, n, *kind.width))
    log_p, log_q = d.log_prob(action), other.log_prob(action)
    for seen, expected in [(-log_p, d.entropy()), (log_p - log_q, kl_divergence(d, other))]:
        assert seen.shape == expected.shape == (n,)
        assert (seen.mean() - expected[0]).abs() < 4 * seen.std() / math.sqrt(n)


@each_kind
@given(seed=seeds, scale=st.sampled_from([0.1, 1.0, 10.0, 300.0, 1e4]))
def test_nothing_is_ever_not_a_number(kind: Kind, seed: int, scale: float) -> None:
    """Values and gradients in single precision, for outputs of any size."""
    outputs = (scale * normal(seed, 16, kind.outputs, dtype=torch.float32)).requires_grad_()
    d, old = kind.build(outputs), kind.build(outputs.detach() + 0.1)
    with torch.no_grad():
        action = d.sample(kind.noise(seed, 16, *kind.width, dtype=torch.float32))
    values = torch.stack([d.log_prob(action), d.entropy(), kl_divergence(old, d)])
    assert values.isfinite().all()
    values.sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    if kind.build is masked:
        assert (outputs.grad[:, ~LEGAL] == 0).all()


@each_kind
@given(seed=seeds)
def test_the_kl_is_never_negative_and_0_for_the_same(kind: Kind, seed: int) -> None:
    d, other = (kind.build(2 * normal(s, 10, kind.outputs)) for s in (seed, seed + 1))
    assert (kl_divergence(d, other) > 0).all()
    same(kl_divergence(d, d), torch.zeros(10, dtype=DOUBLE))


@each_kind
def test_the_kl_of_two_kinds_is_refused(kind: Kind) -> None:
    d = kind.build(torch.zeros(kind.outputs))
    for other in KINDS.values():
        against = other.build(torch.zeros(other.outputs))
        if type(d) is not type(against):
            message = f"no KL between a {type(d).__name__} and a {type(against).__name__}"
            with pytest.raises(TypeError, match=message):
                kl_divergence(d, against)


@each_kind
def test_every_distribution_is_a_value(kind: Kind) -> None:
    d = kind.build(torch.zeros(kind.outputs))
    with pytest.raises(FrozenInstanceError):
        setattr(d, fields(d)[0].name, None)


@pytest.mark.parametrize("name", ["bernoulli", "squashed", "beta"])
def test_a_column_of_actions_among_rows_is_refused(name: str) -> None:
    kind = KINDS[name]
    d = kind.build(torch.zeros(3, kind.outputs))
    with pytest.raises(ValueError, match="shapes differ: action"):
        d.log_prob(torch.full((3, 1), 0.5))
