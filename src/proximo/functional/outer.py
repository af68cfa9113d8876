"""Outer steps: what becomes of the weights after all gradient steps of an update."""

from __future__ import annotations

from torch import Tensor

from proximo.functional.shapes import same_shape


def outer_step(
    before: Tensor, after: Tensor, rate: float, momentum: float, velocity: Tensor | None
) -> tuple[Tensor, Tensor]:
    """θ = θ_old + σ (g + μ m), with g = θ_updated - θ_old and m = μ m_old + g; returns θ and m.

    Tan et al. 2024 (arXiv 2411.00666), outer-PPO: an update of PPO estimates an outer gradient g,
    which plain PPO follows with σ = 1 and μ = 0. Nesterov's momentum as in SGD of PyTorch. All [P];
    velocity: m_old, None for 0.
    """
    same_shape(before=before, after=after)
    step = after - before
    moved = step if velocity is None else momentum * velocity + step
    return before + rate * (step + momentum * moved), moved
