"""Advantages against their definitions, which are loops over the time of one env."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from proximo import native
from proximo.functional.returns import discounted_sum, gae, n_step, td_error


class Env(NamedTuple):
    """What returns are made of. All [T, N]."""

    reward: Tensor
    value: Tensor
    next_value: Tensor
    terminated: Tensor
    boundary: Tensor

    def delta(self, gamma: float) -> Tensor:
        return td_error(self.reward, self.value, self.next_value, self.terminated, gamma)


def random_env(seed: int, steps: int, num_envs: int) -> Env:
    """Episodes that end at random, by termination or by time limit.

    Inside an episode the successor's value is the next row's; where one ends, and in the last
    row, it is the value of a state that no row shows.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, num_envs)
    reward, value, hidden = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.rand(2, *shape, generator=generator) < 0.2
    boundary = terminated | truncated
    following = torch.cat([value[1:], hidden[-1:]])
    return Env(reward, value, torch.where(boundary, hidden, following), terminated, boundary)


random_envs = st.builds(
    random_env, st.integers(0, 2**32 - 1), steps=st.integers(1, 9), num_envs=st.integers(1, 3)
)
fractions = st.floats(0, 1)


# The oracles. None of them knows a recursion: each looks forward from every step anew.


def n_step_by_definition(env: Env, gamma: float, n: int) -> Tensor:
    """r_t + γ r_{t+1} + … + γ^n V(s_{t+n}) - V(s_t), ending early where the episode does."""
    reward, value, next_value, terminated, boundary = (x.t().tolist() for x in env)
    steps, num_envs = env.reward.shape
    advantage = torch.zeros_like(env.reward)
    for i in range(num_envs):
        for t in range(steps):
            total, discount = -value[i][t], 1.0
            for s in range(t, min(t + n, steps)):
                total += discount * reward[i][s]
                discount *= gamma
                if boundary[i][s]:
                    break
            bootstrap = 0.0 if terminated[i][s] else next_value[i][s]
            advantage[t, i] = total + discount * bootstrap
    return advantage


def gae_by_double_loop(env: Env, gamma: float, lam: float) -> Tensor:
    """Â_t = Σ_l (γλ)^l δ_{t+l} until the episode ends. O(T²)."""
    reward, value, next_value, terminated, boundary = (x.t().tolist() for x in env)
    steps, num_envs = env.reward.shape
    advantage = torch.zeros_like(env.reward)
    for i in range(num_envs):
        for t in range(steps):
            total = 0.0
            for s in range(t, steps):
                bootstrap = 0.0 if terminated[i][s] else gamma * next_value[i][s]
                total += (gamma * lam) ** (s - t) * (reward[i][s] + bootstrap - value[i][s])
                if boundary[i][s]:
                    break
            advantage[t, i] = total
    return advantage


def gae_as_mixture(env: Env, gamma: float, lam: float) -> Tensor:
    """(1 - λ)(Â¹ + λ Â² + λ² Â³ + …): GAE as it was first defined (2016, eq. 16).

    After the last row Âⁿ no longer changes with n, so the rest of the series has weight λ^(T-1).
    """
    steps = env.reward.shape[0]
    mixture = lam ** (steps - 1) * n_step_by_definition(env, gamma, steps)
    for n in range(1, steps):
        mixture += (1 - lam) * lam ** (n - 1) * n_step_by_definition(env, gamma, n)
    return mixture


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def flags(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.bool)[:, None]


# By hand


def test_discounted_sum_by_hand() -> None:
    same(discounted_sum(column(1, 2, 3), column(0.5, 0.1, 0.9)), column(2.15, 2.3, 3))


def test_td_error_by_hand() -> None:
    delta = td_error(column(1, 1), column(4, 4), column(10, 10), flags(0, 1), 0.5)
    same(delta, column(1 + 5 - 4, 1 - 4))


@pytest.mark.parametrize(
    ("middle", "next_value", "advantage"),
    [
        ("goes on", 6, (-0.5 + 0.25 * 0.25, 0 + 0.25 * 1, 1)),
        ("truncated", 10, (-0.5 + 0.25 * 2, 2, 1)),
        ("terminated", 10, (-0.5 + 0.25 * -3, -3, 1)),
    ],
)
def test_gae_by_hand(middle: str, next_value: float, advantage: tuple[float, ...]) -> None:
    env = Env(
        reward=column(1, 2, 3),
        value=column(4, 5, 6),
        next_value=column(5, next_value, 8),
        terminated=flags(0, middle == "terminated", 0),
        boundary=flags(0, middle != "goes on", 0),
    )
    same(gae(env.delta(0.5), env.boundary, 0.5, 0.5), column(*advantage))


@pytest.mark.parametrize(
    ("n", "ends", "advantage"),
    [
        (1, 0, (1, 2, 4)),
        (2, 0, (1 + 0.5 * 2, 2 + 0.5 * 4, 4)),
        (3, 0, (1 + 0.5 * 2 + 0.25 * 4, 4, 4)),
        (9, 0, (3, 4, 4)),
        (3, 1, (1 + 0.5 * 2, 2, 4)),
    ],
)
def test_n_step_by_hand(n: int, ends: int, advantage: tuple[float, ...]) -> None:
    same(n_step(column(1, 2, 4), flags(0, ends, 0), 0.5, n), column(*advantage))


# Against the definitions


@given(random_envs, st.integers(0, 2**32 - 1))
def test_discounted_sum_is_a_sum_of_products(env: Env, seed: int) -> None:
    x = env.reward
    decay = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    expected = torch.stack(
        [
            sum((x[s] * decay[t:s].prod(0) for s in range(t, len(x))), torch.zeros_like(x[0]))
            for t in range(len(x))
        ]
    )
    same(discounted_sum(x, decay), expected)


@given(random_envs, fractions, fractions)
def test_gae_is_the_discounted_sum_of_td_errors(env: Env, gamma: float, lam: float) -> None:
    actual = gae(env.delta(gamma), env.boundary, gamma, lam)
    same(actual, gae_by_double_loop(env, gamma, lam))


@given(random_envs, fractions, fractions)
def test_gae_is_the_mixture_of_all_n_steps(env: Env, gamma: float, lam: float) -> None:
    actual = gae(env.delta(gamma), env.boundary, gamma, lam)
    same(actual, gae_as_mixture(env, gamma, lam))


@given(random_envs, fractions, st.integers(1, 12))
def test_n_step_is_the_n_step_return_minus_the_value(env: Env, gamma: float, n: int) -> None:
    actual = n_step(env.delta(gamma), env.boundary, gamma, n)
    same(actual, n_step_by_definition(env, gamma, n))


# Their ends


@given(random_envs, fractions)
def test_gae_at_lambda_0_is_the_td_error(env: Env, gamma: float) -> None:
    delta = env.delta(gamma)
    assert torch.equal(gae(delta, env.boundary, gamma, 0.0), delta)


@given(random_envs, fractions)
def test_gae_at_lambda_1_is_the_monte_carlo_return_minus_the_value(env: Env, gamma: float) -> None:
    whole_episode = n_step_by_definition(env, gamma, len(env.reward))
    same(gae(env.delta(gamma), env.boundary, gamma, 1.0), whole_episode)


@given(random_envs, fractions)
def test_n_step_at_1_is_the_td_error(env: Env, gamma: float) -> None:
    delta = env.delta(gamma)
    assert torch.equal(n_step(delta, env.boundary, gamma, 1), delta)


@given(random_envs, fractions, st.integers(0, 5))
def test_n_step_beyond_the_rollout_is_gae_at_lambda_1(env: Env, gamma: float, beyond: int) -> None:
    delta = env.delta(gamma)
    n = len(delta) + beyond
    same(n_step(delta, env.boundary, gamma, n), gae(delta, env.boundary, gamma, 1.0))


# Episodes and envs are separate


@pytest.mark.parametrize(
    "estimate",
    [lambda d, b: gae(d, b, 0.9, 0.8), lambda d, b: n_step(d, b, 0.9, 4)],
    ids=["gae", "n_step"],
)
class TestSeparation:
    def test_nothing_reaches_back_over_a_boundary(self, estimate) -> None:
        env = random_env(0, steps=8, num_envs=2)
        env.boundary[3] = True
        before = env.delta(0.9)
        after = before.clone()
        after[4:] += 1e6
        changed = estimate(after, env.boundary) != estimate(before, env.boundary)
        assert not changed[:4].any()
        assert changed[4:].all()

    def test_envs_do_not_mix(self, estimate) -> None:
        env = random_env(1, steps=8, num_envs=3)
        delta = env.delta(0.9)
        for i in range(3):
            alone = estimate(delta[:, i : i + 1], env.boundary[:, i : i + 1])
            same(estimate(delta, env.boundary)[:, i : i + 1], alone)


def test_the_value_behind_a_termination_is_never_used() -> None:
    delta = td_error(column(1), column(2), column(torch.nan), flags(1), 0.9)
    same(delta, column(-1))


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_a_time_limit_leaves_an_endless_task_endless(lam: float) -> None:
    """Reward 1 for ever is worth 1/(1 - γ) in every state, wherever a time limit cuts."""
    gamma, ones = 0.98, torch.ones(8, 2, dtype=torch.float64)
    value = ones / (1 - gamma)
    boundary = torch.arange(8)[:, None].expand(8, 2) % 4 == 3
    delta = td_error(ones, value, value, torch.zeros_like(boundary), gamma)
    same(gae(delta, boundary, gamma, lam), 0 * ones)


def test_gae_of_equal_errors_is_a_geometric_series() -> None:
    gamma, lam, steps = 0.99, 0.95, 50
    left = torch.arange(steps, 0, -1, dtype=torch.float64)[:, None]
    expected = (1 - (gamma * lam) ** left) / (1 - gamma * lam)
    never = torch.zeros(steps, 1, dtype=torch.bool)
    same(gae(torch.ones_like(left), never, gamma, lam), expected)


# Gradients


def test_gradients() -> None:
    env = random_env(2, steps=4, num_envs=2)
    reward, value, next_value = (x.requires_grad_() for x in env[:3])
    boundary = env.boundary
    assert gradcheck(lambda *x: td_error(*x, env.terminated, 0.9), (reward, value, next_value))
    assert gradcheck(discounted_sum, (reward, value))
    assert gradcheck(lambda delta: gae(delta, boundary, 0.9, 0.8), (reward,))
    assert gradcheck(lambda delta: n_step(delta, boundary, 0.9, 3), (reward,))


@pytest.mark.skipif(native.discounted_sum() is None, reason="there is no native engine")
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (37, 5), (128, 4), (300, 1), (64, 33)])
def test_the_native_sum_has_the_bits_of_torch(shape, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    decay = 0.95 * torch.rand(shape, generator=generator)
    before = x.clone(), decay.clone()
    found = discounted_sum(x, decay), discounted_sum(x.t().contiguous().t(), decay)
    assert torch.equal(x, before[0])
    assert torch.equal(decay, before[1])
    monkeypatch.setattr(native, "discounted_sum", lambda: None)
    expected = discounted_sum(x, decay)
    assert all(torch.equal(sums, expected) for sums in found)
