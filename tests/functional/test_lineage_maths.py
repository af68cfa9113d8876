"""What the algorithms before PPO need: numbers by hand, PyTorch's own, and gradient checks."""

import math

import gymnasium as gym
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from proximo import NetConfig
from proximo.functional.distributions import Categorical, Gaussian
from proximo.functional.kl import adapted_beta, adapted_rate, kl_divergence
from proximo.functional.losses import (
    clipped_surrogate,
    penalized_surrogate,
    policy_gradient,
    surrogate,
)
from proximo.functional.trust_region import conjugate_gradient, flat_gradient
from proximo.nets.actor_critic import ActorCritic

seeds = st.integers(0, 2**32 - 1)


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_the_policy_gradient_by_hand():
    log_prob = vector(math.log(0.5), math.log(0.25)).requires_grad_()
    objective = policy_gradient(log_prob, vector(2, -1))
    torch.testing.assert_close(objective, vector(2 * math.log(0.5), -math.log(0.25)))
    (gradient,) = torch.autograd.grad(objective.sum(), log_prob)
    assert gradient.tolist() == [2, -1]
    with pytest.raises(ValueError, match="shapes differ"):
        policy_gradient(log_prob, vector(1))


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [
        (1.25, 2.0, 2.5, 2.5),  # within 1 + 0.3
        (1.5, 2.0, 2.6, 0.0),  # beyond it
        (0.85, -2.0, -1.7, -1.7),  # within 1 - 0.2
        (0.7, -2.0, -1.6, 0.0),  # beyond it
        (2.5, -2.0, -5.0, -5.0),  # on the wrong side, up to three times A
        (4.0, -2.0, -6.0, 0.0),  # beyond that
        (4.0, 2.0, 2.6, 0.0),  # three times A does not matter where A > 0
    ],
)
def test_two_clips_by_hand(ratio, advantage, objective, slope):
    log_prob = vector(math.log(ratio)).requires_grad_()
    found = clipped_surrogate(log_prob, vector(0), vector(advantage), 0.2, 0.3, 3.0)
    assert found.item() == pytest.approx(objective)
    assert torch.autograd.grad(found.sum(), log_prob)[0].item() == pytest.approx(slope)


@given(seeds)
def test_one_clip_twice_is_one_clip(seed):
    log_prob, old, advantage = normal(seed, 3, 16)
    once = clipped_surrogate(log_prob, old, advantage, 0.2)
    assert torch.equal(clipped_surrogate(log_prob, old, advantage, 0.2, 0.2), once)
    assert torch.equal(clipped_surrogate(log_prob, old, advantage, 0.2, None, 1e9), once)


def test_the_penalty_by_hand():
    log_prob, old = vector(math.log(0.6)), vector(math.log(0.3))
    found = penalized_surrogate(log_prob, old, vector(5), vector(0.25), 2.0)
    assert found.item() == pytest.approx(2 * 5 - 2 * 0.25)
    assert penalized_surrogate(log_prob, old, vector(5), vector(0.25), 0.0) == surrogate(
        log_prob, old, vector(5)
    )


def test_the_kl_by_hand():
    old = Categorical(vector(0.5, 0.5).log())
    new = Categorical(vector(0.9, 0.1).log())
    assert kl_divergence(old, new).item() == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    )
    still, moved = (Gaussian(vector(mean), vector(0.0)) for mean in (0.0, 0.1))
    assert kl_divergence(still, moved).item() == pytest.approx(0.005)
    narrow = [Gaussian(vector(mean), vector(math.log(0.1))) for mean in (0.0, 0.1)]
    assert kl_divergence(*narrow).item() == pytest.approx(0.5)
    with pytest.raises(TypeError, match="Categorical and a Gaussian"):
        kl_divergence(old, still)


@given(seeds)
def test_the_kl_is_pytorchs_and_that_of_its_samples(seed):
    logits, other = normal(seed, 2, 5, 4)
    old, new = Categorical.from_logits(logits), Categorical.from_logits(other)
    theirs = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=d.log_p) for d in (old, new))
    )
    torch.testing.assert_close(kl_divergence(old, new), theirs)
    assert (kl_divergence(old, new) >= 0).all()
    assert torch.equal(kl_divergence(old, old), torch.zeros(5, dtype=torch.float64))
    mean, shifted, log_std, wider = normal(seed, 4, 5, 3)
    old, new = Gaussian(mean, log_std), Gaussian(shifted, wider)
    theirs = torch.distributions.kl_divergence(
        *(torch.distributions.Normal(d.mean, d.log_std.exp()) for d in (old, new))
    ).sum(-1)
    torch.testing.assert_close(kl_divergence(old, new), theirs)
    torch.testing.assert_close(
        kl_divergence(old, old), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_the_gradient_of_the_kl():
    logits, other = normal(3, 2, 4, 3)
    assert gradcheck(
        lambda z: kl_divergence(Categorical.from_logits(other), Categorical.from_logits(z)),
        logits.requires_grad_(),
    )
    mean, log_std, shifted, wider = normal(4, 4, 4, 2)
    assert gradcheck(
        lambda m, s: kl_divergence(Gaussian(shifted, wider), Gaussian(m, s)),
        (mean.requires_grad_(), log_std.requires_grad_()),
    )


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.0, 0.5), (0.0066, 0.5), (0.0067, 1), (0.01, 1), (0.0149, 1), (0.0151, 2), (9.0, 2)],
)
def test_beta_by_the_papers_rule(kl, factor):
    assert adapted_beta(3.0, kl, 0.01) == 3.0 * factor


def test_beta_and_the_rate_stay_within_bounds():
    beta = scale = 1.0
    for _ in range(100):
        beta, scale = adapted_beta(beta, 0.0, 0.01), adapted_rate(scale, 0.0, 0.01)
    assert (beta, scale) == (1e-6, 10.0)
    for _ in range(100):
        beta, scale = adapted_beta(beta, 1.0, 0.01), adapted_rate(scale, 1.0, 0.01)
    assert (beta, scale) == (1e6, 0.01)


@pytest.mark.parametrize(
    ("kl", "scale"), [(0.004, 3.0), (0.006, 2.0), (0.02, 2.0), (0.021, 2 / 1.5)]
)
def test_the_rate_by_its_rule(kl, scale):
    assert adapted_rate(2.0, kl, 0.01) == pytest.approx(scale)


@given(seeds, st.integers(1, 12))
def test_conjugate_gradient_solves_in_as_many_steps_as_there_are_unknowns(seed, size):
    root, b = normal(seed, size, size), normal(seed + 1, size)
    matrix = root @ root.T / size + torch.eye(size, dtype=torch.float64)
    found = conjugate_gradient(lambda v: matrix @ v, b, size)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b), rtol=1e-3, atol=1e-4)


def test_a_parameter_that_does_not_matter_has_gradient_0():
    x, y = vector(2.0).requires_grad_(), vector(1.0, 2.0).requires_grad_()
    assert flat_gradient((3 * x).sum(), [y, x]).tolist() == [0, 0, 3]


def box(low, high, size):
    return gym.spaces.Box(low, high, (size,))


def test_a_bounded_mean_and_a_deviation_from_the_state_by_hand():
    net = NetConfig(mean="tanh", std="softplus")
    head = ActorCritic(box(-1, 1, 3), box(-2, 4, 2), net).head
    outputs = torch.tensor([[0.5, -1.0, 0.3, -2.0]])
    found = head.distribution(outputs, None, outputs)
    mean = 1 + 3 * torch.tanh(outputs[:, :2])
    std = torch.nn.functional.softplus(outputs[:, 2:])
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.log_std.exp(), std)
    again = head.restore(found.parameters)
    assert torch.equal(again.mean, found.mean)
    assert torch.equal(again.log_std, found.log_std)


def test_a_deviation_from_the_state_begins_where_a_free_one_does():
    for orthogonal in (True, False):
        net = NetConfig(std="softplus", log_std=-1.0, orthogonal=orthogonal)
        policy = ActorCritic(box(-1, 1, 3), box(-1, 1, 2), net)
        log_std = policy.distribution(torch.zeros(1, 3)).log_std
        torch.testing.assert_close(log_std, torch.full((1, 2), -1.0), rtol=0, atol=0.25)


@pytest.mark.parametrize("raw", [-1e4, -120.0, -50.0, 0.0, 50.0, 1e4])
def test_no_deviation_makes_a_gradient_nan(raw):
    net = NetConfig(std="softplus")
    head = ActorCritic(box(-1, 1, 3), box(-1, 1, 1), net).head
    outputs = torch.tensor([[0.5, raw]], requires_grad=True)
    distribution = head.distribution(outputs, None, outputs)
    assert -10 <= distribution.log_std.item() <= 2
    distribution.log_prob(torch.tensor([[0.5]])).sum().backward()
    assert torch.isfinite(outputs.grad).all()
