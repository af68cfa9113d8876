"""Outer steps: by hand, and as SGD with Nesterov's momentum takes them."""

import pytest
import torch

from proximo.functional.outer import outer_step


def test_a_rate_goes_that_share_of_the_way():
    before, after = torch.tensor([1.0, 0.0]), torch.tensor([3.0, -2.0])
    weights, velocity = outer_step(before, after, 1.5, 0.0, None)
    assert weights.tolist() == [4.0, -3.0]
    assert velocity.tolist() == [2.0, -2.0]


def test_momentum_by_hand():
    """G = 2, then 1; m = 2, then 0.5 x 2 + 1; the steps are g + 0.5 m."""
    first, velocity = outer_step(torch.zeros(1), torch.full((1,), 2.0), 1.0, 0.5, None)
    assert float(first) == 3.0
    second, _ = outer_step(first, first + 1, 1.0, 0.5, velocity)
    assert float(second) == 3.0 + 1 + 0.5 * 2


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_it_is_sgd_on_the_outer_gradient(momentum):
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))
    nesterov = {"nesterov": True} if momentum else {}
    sgd = torch.optim.SGD([theirs], lr=0.7, momentum=momentum, **nesterov)
    ours, velocity = theirs.detach().clone(), None
    for _ in range(4):
        change = torch.randn(5, generator=generator, dtype=torch.float64)
        ours, velocity = outer_step(ours, ours + change, 0.7, momentum, velocity)
        theirs.grad = -change
        sgd.step()
        torch.testing.assert_close(ours, theirs.detach())


def test_shapes_must_be_the_same():
    with pytest.raises(ValueError, match="before"):
        outer_step(torch.zeros(2), torch.zeros(3), 1.0, 0.0, None)
