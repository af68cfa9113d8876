"""Reductions against NumPy on the rows that count."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from proximo.functional.masked import (
    explained_variance,
    masked_mean,
    masked_var,
    standardize,
    standardize_groups,
)

seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=generator, dtype=torch.float64) + 5


def masked_sample(seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Numbers and a mask with at least two True in it; behind the mask lies NaN."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask.view(-1)[:2] = True
    return normal(seed, *shape).where(mask, torch.nan), mask


masked_samples = st.builds(
    masked_sample, seeds, st.sampled_from([(2,), (7,), (40,), (5, 3), (2, 3, 4)])
)


def same(actual: Tensor, expected: object) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


# Mean and variance


def test_mean_and_variance_by_hand() -> None:
    x = torch.tensor([1.0, 5.0, 100.0])
    mask = torch.tensor([True, True, False])
    assert masked_mean(x, mask) == 3
    assert masked_var(x, mask) == 4
    assert masked_mean(x[:2]) == 3
    assert masked_var(x[:2]) == 4


@given(masked_samples)
def test_mean_and_variance_are_those_of_the_rows_that_count(sample: tuple[Tensor, Tensor]) -> None:
    x, mask = sample
    kept = x[mask].numpy()
    same(masked_mean(x, mask), np.mean(kept))
    same(masked_var(x, mask), np.var(kept))


@pytest.mark.parametrize("reduce", [masked_mean, masked_var, standardize])
def test_no_mask_is_a_mask_of_true(reduce) -> None:
    x = normal(0, 6, 2)
    same(reduce(x), reduce(x, torch.ones_like(x, dtype=torch.bool)))


def test_where_nothing_counts_mean_and_variance_are_0() -> None:
    nothing = torch.zeros(3, dtype=torch.bool)
    assert masked_mean(torch.full((3,), torch.nan), nothing) == 0
    assert masked_var(torch.full((3,), torch.nan), nothing) == 0


# Standardising


def test_standardize_by_hand() -> None:
    x = torch.tensor([1.0, 5.0, 3.0])
    expected = torch.tensor([-2.0, 2.0, 0.0]) / (8 / 3) ** 0.5
    torch.testing.assert_close(standardize(x), expected)


@given(masked_samples)
def test_standardized_rows_have_mean_0_and_population_variance_1(
    sample: tuple[Tensor, Tensor],
) -> None:
    """But for the 1e-8 under the root, which counts where rows lie close together."""
    x, mask = sample
    var = np.var(x[mask].numpy())
    for kept in (standardize(x, mask)[mask], standardize(x[mask])):
        same(kept.mean(), 0)
        same(kept.var(correction=0), var / (var + 1e-8))


@given(seeds, st.floats(0.1, 10), st.floats(-10, 10))
def test_standardizing_forgets_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    x = normal(seed, 20)
    torch.testing.assert_close(standardize(scale * x + shift), standardize(x), rtol=0, atol=1e-5)


def test_a_single_sample_stays_what_it_is() -> None:
    x = torch.tensor([3.7, -1.2])
    first = torch.tensor([True, False])
    assert torch.equal(standardize(x[:1]), x[:1])
    assert torch.equal(standardize(x, first), torch.tensor([3.7, 0]))
    assert torch.equal(standardize(x, ~first), torch.tensor([0, -1.2]))
    assert not standardize(x, first & False).any()


def test_samples_that_are_groups_alone_are_standardized_among_all() -> None:
    x = torch.tensor([1.0, 5.0, 3.0, 9.0])
    assert torch.equal(standardize_groups(x, torch.tensor([0, 1, 2, 3])), standardize(x))
    mixed = standardize_groups(x, torch.tensor([0, 0, 1, 2]))
    torch.testing.assert_close(mixed[:2], torch.tensor([-1.0, 1.0]))
    assert torch.equal(mixed[2:], standardize(x)[2:])
    assert torch.equal(standardize_groups(x[:1], torch.tensor([0])), x[:1])


@pytest.mark.parametrize("by", ["mask", "group"])
def test_equal_samples_become_0(by: str) -> None:
    x = torch.full((3,), 1000.1)
    mask, group = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    y = standardize(x, mask) if by == "mask" else standardize_groups(x, group)
    assert y.abs().max() < 1e-2


def test_equal_samples_without_a_mask_become_0() -> None:
    assert not standardize(torch.full((3,), 1000.1)).any()


@given(seeds, st.integers(1, 6), st.integers(1, 30))
def test_groups_are_standardized_one_by_one(seed: int, groups: int, size: int) -> None:
    x = normal(seed, size)
    group = torch.randint(groups, (size,), generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros_like(x)
    for g in group.unique():
        own = group == g
        expected[own] = standardize(x[own]) if own.sum() > 1 else standardize(x)[own]
    same(standardize_groups(x, group), expected)


# Explained variance


def test_explained_variance_by_hand() -> None:
    target = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(target, target) == 1
    assert explained_variance(torch.zeros(4), target) == 0
    assert explained_variance(target + 7, target) == 1  # a constant error is no variance
    assert explained_variance(-target, target) == -3
    assert explained_variance(target / 2, target) == 0.75


@given(masked_samples, seeds)
def test_explained_variance_is_that_of_numpy(sample: tuple[Tensor, Tensor], seed: int) -> None:
    target, mask = sample
    prediction = normal(seed, *target.shape)
    t, p = target[mask].numpy(), prediction[mask].numpy()
    expected = 1 - np.var(t - p) / np.var(t)
    same(explained_variance(prediction, target, mask), expected)
    same(explained_variance(torch.tensor(p), torch.tensor(t)), expected)


def test_there_is_nothing_to_explain_in_a_constant() -> None:
    assert explained_variance(torch.arange(3.0), torch.full((3,), 2.0)).isnan()


def test_there_is_nothing_to_explain_in_a_constant_whose_mean_is_rounded() -> None:
    assert explained_variance(torch.arange(3.0), torch.full((3,), 1000.1)).isnan()


# Gradients


def test_gradients() -> None:
    x, y = normal(0, 6).requires_grad_(), normal(1, 6).requires_grad_()
    mask = torch.tensor([True, True, False, True, False, True])
    group = torch.tensor([0, 1, 0, 2, 0, 1])
    for reduce in (masked_mean, masked_var, standardize):
        assert gradcheck(reduce, (x,))
        assert gradcheck(lambda x, reduce=reduce: reduce(x, mask), (x,))
    assert gradcheck(lambda x: standardize_groups(x, group), (x,))
    assert gradcheck(lambda x, y: explained_variance(x, y, mask), (x, y))


def gradient_beside_nan(reduce) -> Tensor:
    x = torch.tensor([1.0, 2.0, torch.nan], requires_grad=True)
    reduce(x, torch.tensor([True, True, False])).backward()
    assert x.grad is not None
    return x.grad


def test_nan_behind_the_mask_stays_out_of_the_gradient_of_the_mean() -> None:
    assert gradient_beside_nan(masked_mean).tolist() == [0.5, 0.5, 0]


def test_nan_behind_the_mask_stays_out_of_the_gradient_of_the_variance() -> None:
    assert gradient_beside_nan(masked_var).tolist() == [-0.5, 0.5, 0]
