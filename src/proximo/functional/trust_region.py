"""The largest step that a bound on the KL allows: Schulman et al. 2015 (arXiv 1502.05477)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""v -> F v. v: [P]; returns [P]."""


def flat_gradient(
    y: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False, retain: bool = False
) -> Tensor:
    """∇y by all parameters, in one vector [P]; 0 where y does not depend on one."""
    found = torch.autograd.grad(
        y,
        list(parameters),
        create_graph=create_graph,
        retain_graph=retain or create_graph,
        materialize_grads=True,
    )
    return torch.cat([gradient.reshape(-1) for gradient in found])


def fisher_vector_product(kl: Tensor, parameters: Sequence[Tensor], damping: float) -> Product:
    """V -> (F + damping I) v, where F = ∇² KL(π_old, π) at π = π_old is the Fisher matrix.

    Schulman et al. 2015, app. C.1. kl: the mean KL as a function of the parameters, with its graph.
    F v = ∇((∇KL)ᵀ v): the matrix [P, P] is never formed.
    """
    slope = flat_gradient(kl, parameters, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return flat_gradient(slope @ v, parameters, retain=True) + damping * v

    return product


def conjugate_gradient(product: Product, b: Tensor, iterations: int) -> Tensor:
    """X with F x ≈ b, from x = 0 in at most this many steps (Hestenes & Stiefel 1952).

    F must be symmetric and positive definite. b: [P]; returns [P]. Ends early once |F x - b|² is
    1e-10 of |b|².
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction, size = residual.clone(), residual @ residual
    enough = 1e-10 * size
    for _ in range(iterations):
        if size <= enough:
            break
        moved = product(direction)
        stride = size / (direction @ moved)
        x = x + stride * direction
        residual = residual - stride * moved
        before, size = size, residual @ residual
        direction = residual + size / before * direction
    return x


def natural_step(product: Product, gradient: Tensor, max_kl: float, iterations: int) -> Tensor:
    """sqrt(2δ / xᵀ F x) x with F x ≈ g: the steepest step on which, to second order, KL <= δ.

    Schulman et al. 2015, app. C. gradient: [P], of what is to be maximised; δ in nats; returns [P],
    0 where there is nothing to climb. KL = δ where F is the Fisher matrix alone, without damping.
    """
    x = conjugate_gradient(product, gradient, iterations)
    curvature = x @ product(x)
    if curvature <= 0:  # a NaN goes on, for the caller to notice
        return torch.zeros_like(x)
    return torch.sqrt(2 * max_kl / curvature) * x


def line_search(
    measure: Callable[[float], tuple[float, float]], max_kl: float, decay: float, tries: int
) -> float:
    """The largest share of the step, of 1, decay, decay², ..., with a gain above 0 and KL <= δ.

    Schulman et al. 2015, app. C. measure: share -> (gain of the surrogate, exact mean KL). Returns
    0 if none of them will do: then the policy stays.
    """
    for power in range(tries):
        share: float = decay**power
        gain, kl = measure(share)
        if gain > 0 and kl <= max_kl:
            return share
    return 0.0
