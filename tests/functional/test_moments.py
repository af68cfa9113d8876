"""Running moments against NumPy on everything that was seen, put together."""

from functools import reduce

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from proximo.functional.moments import Moments, batch_moments, merge, no_moments

SHAPE = (3,)


def sample(seed: int, size: int) -> Tensor:
    """Rows whose centre and spread depend on the seed, so that merging has something to do."""
    generator = torch.Generator().manual_seed(seed)
    centre, spread = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.randn(size, *SHAPE, generator=generator, dtype=torch.float64)
    return 5 * centre + spread * noise


samples = st.builds(sample, st.integers(0, 2**32 - 1), st.integers(1, 12))


def same(a: Moments, b: Moments) -> None:
    for actual, expected in zip(a, b, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def moments_by_numpy(parts: list[Tensor]) -> Moments:
    union = np.concatenate([part.numpy() for part in parts])
    return Moments(
        torch.tensor(float(len(union)), dtype=torch.float64),
        torch.as_tensor(union.mean(0)),
        torch.as_tensor(union.var(0)),
    )


def test_moments_by_hand() -> None:
    moments = batch_moments(torch.tensor([[1.0, 10.0], [3.0, 10.0]]))
    assert moments.number == 2
    assert moments.mean.tolist() == [2, 10]
    assert moments.var.tolist() == [1, 0]
    both = merge(moments, batch_moments(torch.tensor([[5.0, 13.0]])))
    assert both.number == 3
    assert both.mean.tolist() == [3, 11]
    torch.testing.assert_close(both.var, torch.tensor([8 / 3, 2], dtype=torch.float64))


def test_one_row_has_variance_0() -> None:
    assert batch_moments(torch.tensor([4.0])).var == 0


def test_everything_is_float64() -> None:
    of_float32 = batch_moments(torch.ones(2, *SHAPE, dtype=torch.float32))
    for moments in (no_moments(SHAPE), of_float32, merge(no_moments(SHAPE), of_float32)):
        assert {x.dtype for x in moments} == {torch.float64}


def test_normalising_with_nothing_changes_nothing() -> None:
    nothing = no_moments(SHAPE)
    assert nothing.number == 0
    assert nothing.mean.tolist() == [0, 0, 0]
    assert nothing.var.tolist() == [1, 1, 1]
    assert no_moments().var.shape == ()


@given(samples)
def test_a_batch_has_the_moments_of_numpy(x: Tensor) -> None:
    same(batch_moments(x), moments_by_numpy([x]))


@given(st.lists(samples, min_size=1, max_size=6))
def test_merging_gives_the_moments_of_the_union(parts: list[Tensor]) -> None:
    same(reduce(merge, map(batch_moments, parts), no_moments(SHAPE)), moments_by_numpy(parts))


@given(samples, samples)
def test_merging_is_commutative(a: Tensor, b: Tensor) -> None:
    a, b = batch_moments(a), batch_moments(b)
    same(merge(a, b), merge(b, a))


@given(samples, samples, samples)
def test_merging_is_associative(a: Tensor, b: Tensor, c: Tensor) -> None:
    a, b, c = batch_moments(a), batch_moments(b), batch_moments(c)
    same(merge(merge(a, b), c), merge(a, merge(b, c)))


@given(samples)
def test_nothing_is_neutral_on_either_side(x: Tensor) -> None:
    moments = batch_moments(x)
    for merged in (merge(moments, no_moments(SHAPE)), merge(no_moments(SHAPE), moments)):
        for actual, expected in zip(merged, moments, strict=True):
            assert torch.equal(actual, expected)


def test_nothing_and_nothing_is_nothing() -> None:
    same(merge(no_moments(SHAPE), no_moments(SHAPE)), no_moments(SHAPE))


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    """The sum of squares minus the square of the sum would leave nothing of it in float64."""
    parts = [1e9 + sample(seed, 50) for seed in range(20)]
    var = reduce(merge, map(batch_moments, parts)).var
    torch.testing.assert_close(var, moments_by_numpy(parts).var, rtol=1e-6, atol=0)


def test_gradients() -> None:
    a, b = sample(0, 4).requires_grad_(), sample(1, 3).requires_grad_()
    assert gradcheck(lambda a, b: merge(batch_moments(a), batch_moments(b))[1:], (a, b))
