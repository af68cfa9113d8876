"""Advantages among the completions of one prompt, and the ratio of a whole sequence."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from proximo.functional.losses import clipped_surrogate, sequence_log_prob
from proximo.functional.masked import group_mean
from proximo.functional.returns import group_relative, leave_one_out

RETURNS = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]], dtype=torch.float64)


def test_leave_one_out_by_hand():
    expected = torch.tensor([[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(leave_one_out(RETURNS), expected)


def test_group_relative_by_hand():
    deviation = (14 / 3) ** 0.5  # of 1, 2, 6, whose mean is 3
    expected = torch.tensor([[-2, -1, 3], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(group_relative(RETURNS, scale=False), expected)
    torch.testing.assert_close(group_relative(RETURNS), expected / deviation)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_each_group_has_mean_0_and_deviation_1(seed, k):
    generator = torch.Generator().manual_seed(seed)
    steps = 0.1 + torch.rand(4, k, generator=generator, dtype=torch.float64)
    returns = steps.cumsum(-1)  # apart, beside the 1e-8 that keeps equal ones from dividing by 0
    found = group_relative(returns)
    torch.testing.assert_close(found.mean(-1), torch.zeros(4).double(), atol=1e-9, rtol=0)
    assert found.std(-1, correction=0).tolist() == pytest.approx([1] * 4, abs=1e-5)
    plain = group_relative(returns, scale=False)
    torch.testing.assert_close(leave_one_out(returns), plain * k / (k - 1))


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.3])
def test_a_group_of_equal_returns_teaches_nothing(value):
    assert not group_relative(torch.full((2, 7), value)).any()


@pytest.mark.parametrize("k", [2, 3])
def test_without_bias_and_with_it_on_a_bandit(k):
    """The mean over all outcomes: RLOO's is ∇E[r], and Dr. GRPO's falls short by (k-1)/k."""
    worth = torch.tensor([1.0, -0.5, 3.0], dtype=torch.float64)
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    (truth,) = torch.autograd.grad(logits.softmax(-1) @ worth, logits)
    found = {"rloo": torch.zeros(3).double(), "dr-grpo": torch.zeros(3).double()}
    for actions in itertools.product(range(3), repeat=k):
        log_p = logits.log_softmax(-1)[list(actions)]
        returns = worth[list(actions)]
        for name, advantage in (
            ("rloo", leave_one_out(returns)),
            ("dr-grpo", group_relative(returns, scale=False)),
        ):
            (g,) = torch.autograd.grad((advantage * log_p).mean(), logits, retain_graph=True)
            found[name] += log_p.sum().exp().detach() * g
    torch.testing.assert_close(found["rloo"], truth)
    torch.testing.assert_close(found["dr-grpo"], truth * (k - 1) / k)


def test_group_means():
    found = group_mean(torch.tensor([1.0, 5.0, 3.0, 8.0]), torch.tensor([0, 2, 0, 2]))
    assert found.tolist() == [2.0, 6.5, 2.0, 6.5]


SEQUENCE = torch.tensor([0, 0, 0, 1, 1])
OLD = torch.tensor([-1.0, -2.0, -0.5, -1.5, -3.0], dtype=torch.float64)
NEW = torch.tensor([-0.7, -2.3, -0.2, -1.6, -3.5], dtype=torch.float64)


def test_the_ratio_of_a_sequence_by_hand():
    found = (sequence_log_prob(NEW, OLD, SEQUENCE) - OLD).exp()
    expected = torch.tensor([0.1, 0.1, 0.1, -0.3, -0.3], dtype=torch.float64).exp()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{}, {"clip_high": 0.05}, {"dual_clip": 1.1}])
def test_one_advantage_per_sequence_gives_gspo_as_it_is_written(options):
    """J = 1/G Σ_i min(s_i A_i, clip(s_i) A_i), s_i differentiated as the mean that it is."""
    for advantages in ([1.0, -2.0], [-1.0, 0.5], [2.0, 3.0]):
        new = NEW.clone().requires_grad_()
        advantage = torch.tensor(advantages, dtype=torch.float64)
        log_s = torch.stack([(new - OLD)[i == SEQUENCE].mean() for i in range(2)])
        clip = {"clip": 0.2, **options}
        written = clipped_surrogate(log_s, torch.zeros_like(log_s), advantage, **clip).mean()
        log_prob = sequence_log_prob(new, OLD, SEQUENCE)
        each = clipped_surrogate(log_prob, OLD, advantage[SEQUENCE], **clip)
        composed = torch.stack([each[i == SEQUENCE].mean() for i in range(2)]).mean()
        torch.testing.assert_close(composed, written)
        gradients = [torch.autograd.grad(x, new, retain_graph=True)[0] for x in (composed, written)]
        torch.testing.assert_close(*gradients)


def test_each_token_keeps_its_own_gradient():
    """GSPO-token: s_i ∇log π_t, so that tokens with other advantages are told apart."""
    new = NEW.clone().requires_grad_()
    ratio = (sequence_log_prob(new, OLD, SEQUENCE) - OLD).exp()
    (found,) = torch.autograd.grad(ratio[1], new)
    expected = torch.zeros(5, dtype=torch.float64)
    expected[1] = torch.tensor(0.1, dtype=torch.float64).exp()
    torch.testing.assert_close(found, expected)


def test_gradients_of_groups():
    x = RETURNS[:1].clone().requires_grad_()
    assert gradcheck(leave_one_out, x)
    assert gradcheck(group_relative, x)
