"""Reductions. Padding, reset steps and tokens are one thing: rows whose mask is False."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.functional.shapes import same_shape

EPS = 1e-8


def masked_mean(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of x over the True entries of mask: Σ m x / Σ m (0 where none is True).

    x, mask: any one shape. Returns a scalar. The product uses `where`, so a NaN behind the mask
    does not leak through.
    """
    if mask is None:
        return x.mean()
    same_shape(x=x, mask=mask)
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def centred(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """X - x̄, and 0 behind the mask.

    The mean is taken off twice: the first time it is rounded, and equal numbers must come out as 0.
    """
    for _ in range(2):
        x = x - masked_mean(x, mask)
        x = x if mask is None else torch.where(mask, x, 0)
    return x


def masked_var(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Population variance, Σ m (x - x̄)² / Σ m. Scalar."""
    return masked_mean(centred(x, mask).square(), mask)


def standardize(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """(x - x̄) / sqrt(var + 1e-8), with population moments. One sample alone stays what it is.

    Its difference to its own mean is 0, whatever it is: as an advantage it would teach nothing.
    """
    if mask is None:
        if x.numel() == 1:
            return x
        var, mean = torch.var_mean(x, correction=0)
        return (x - mean) * torch.rsqrt(var + EPS)
    standard = centred(x, mask) * torch.rsqrt(masked_var(x, mask) + EPS)
    return torch.where(mask.sum() > 1, standard, torch.where(mask, x, 0))


def group_mean(x: Tensor, group: Tensor, groups: int | None = None) -> Tensor:
    """Σ x / |g| over the members of each group g, at every one of them.

    x: [B]; group: [B] int64 with values in 0..G-1; groups: G or more, where it is known without a
    look at the numbers; returns [B].
    """
    same_shape(x=x, group=group)
    count = _sizes(group, groups).to(x.dtype).clamp(min=1)
    return (torch.zeros_like(count).index_add_(0, group, x) / count)[group]


def standardize_groups(x: Tensor, group: Tensor, groups: int | None = None) -> Tensor:
    """`standardize` within each group; a sample that is a group alone, among all samples.

    x: [B]; group: [B] int64 with values in 0..G-1; groups: as for `group_mean`.
    """
    centre = x
    for _ in range(2):  # as in `centred`
        centre = centre - group_mean(centre, group, groups)
    standard = centre * torch.rsqrt(group_mean(centre.square(), group, groups) + EPS)
    return torch.where(alone(group, groups), standardize(x), standard)


def alone(group: Tensor, groups: int | None = None) -> Tensor:
    """[B] bool: the samples that are the only one of their group. group, groups: as above."""
    return (_sizes(group, groups) == 1)[group]


def _sizes(group: Tensor, groups: int | None) -> Tensor:
    """Members of each group. [G] int64."""
    if groups is None:
        return torch.bincount(group)
    # The size of the result of `bincount` would be read on the host.
    return group.new_zeros(groups).index_add_(0, group, torch.ones_like(group))


def explained_variance(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - Var(target - prediction) / Var(target): 1 is perfect, 0 no better than a constant.

    NaN when the target does not vary at all: there is then nothing to explain.
    """
    same_shape(prediction=prediction, target=target)
    variance = masked_var(target, mask)
    explained = 1 - masked_var(target - prediction, mask) / variance
    return torch.where(variance > 0, explained, torch.nan)
