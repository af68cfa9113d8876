"""Running mean and variance in float64, mergeable in any order (Chan, Golub & LeVeque 1979)."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.types import Moments


def no_moments(shape: tuple[int, ...] = ()) -> Moments:
    """The moments of nothing: normalising with them changes nothing."""
    zero = torch.zeros(shape, dtype=torch.float64)
    return Moments(torch.zeros((), dtype=torch.float64), zero, zero + 1)


def batch_moments(x: Tensor) -> Moments:
    """Moments of x over its first axis. x: [B, *shape] with B >= 1."""
    x = (x.cpu() if x.is_mps else x).double()  # which has no double precision
    number = torch.full((), float(x.shape[0]), dtype=torch.float64, device=x.device)
    return Moments(number, x.mean(0), x.var(0, correction=0))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two samples.

    δ = x̄_b - x̄_a;  x̄ = x̄_a + δ n_b/n;  n var = n_a var_a + n_b var_b + δ² n_a n_b / n
    """
    return b if a.number == 0 else _union(a, b)


def merged(a: Moments | None, x: Tensor) -> Moments:
    """`merge` with the moments of x over its first axis; None: nothing was seen before.

    On the device of x, and without a read on the host.
    """
    b = batch_moments(x)
    return b if a is None else _union(Moments(*(part.to(b.mean.device) for part in a)), b)


def _union(a: Moments, b: Moments) -> Moments:
    number = a.number + b.number
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.number / number)
    squares = a.var * a.number + b.var * b.number
    squares = squares + delta.square() * (a.number * b.number / number)
    return Moments(number, mean, squares / number)
