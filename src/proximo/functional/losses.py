"""Objectives and errors, elementwise; `masked_mean` reduces them."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.functional.masked import group_mean
from proximo.functional.shapes import same_shape


def _ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    # Beyond e^80 float32 overflows, and the gradient of a clipped infinity is NaN instead of 0.
    return (log_prob - old_log_prob).clamp(max=80).exp()


def policy_gradient(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """L^PG = log π(a|s) Â, whose gradient is the policy gradient.

    Schulman et al. 2017 (arXiv 1707.06347), eq. 2; Williams 1992 with the return, or the return
    less a baseline, for Â. All [B]; returns [B], to be maximised.
    """
    same_shape(log_prob=log_prob, advantage=advantage)
    return log_prob * advantage


def surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
    """L^CPI: r Â with r = exp(log π(a|s) - log π_old(a|s)).

    Schulman et al. 2017 (arXiv 1707.06347), eq. 6. All [B]; returns [B], to be maximised.
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    return _ratio(log_prob, old_log_prob) * advantage


def clipped_surrogate(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip: float | Tensor,
    clip_high: float | Tensor | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """L^CLIP: min(r Â, clip(r, 1 - ε, 1 + ε) Â), a lower bound on `surrogate`.

    Schulman et al. 2017, eq. 7. All [B], ε > 0; returns [B], to be maximised. The gradient is that
    of r Â, except 0 where the ratio has already left the interval on the side that Â favours.
    clip_high: an ε of its own for the upper end (Yu et al. 2025, arXiv 2503.14476). dual_clip: for
    Â < 0 no less than c Â, c > 1 (Ye et al. 2020, arXiv 1912.09729, eq. 5).
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    ratio = _ratio(log_prob, old_log_prob)
    high = clip if clip_high is None else clip_high
    within = ratio.clamp(1 - clip, 1 + high)  # type: ignore[arg-type]
    objective = torch.minimum(ratio * advantage, within * advantage)
    if dual_clip is None:
        return objective
    floor = torch.maximum(objective, dual_clip * advantage)
    return torch.where(advantage < 0, floor, objective)


def quadratic_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float | Tensor
) -> Tensor:
    """L^SPO: r Â - |Â|/(2ε) (r - 1)², largest at r = 1 ± ε on the side that Â favours.

    Xie et al. 2024 (arXiv 2401.16025), "Simple Policy Optimization". All [B], ε > 0; returns [B],
    to be maximised. Beyond [1 - ε, 1 + ε] the gradient leads back, where that of
    `clipped_surrogate` is 0; at r = 1 both are the policy gradient.
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    ratio = _ratio(log_prob, old_log_prob)
    return ratio * advantage - advantage.abs() / (2 * clip) * (ratio - 1).square()


def sequence_log_prob(log_prob: Tensor, old_log_prob: Tensor, sequence: Tensor) -> Tensor:
    """Log π_old + log s_i, so that the ratio of each token is that of its whole sequence y_i.

    s_i = exp(1/|y_i| Σ_t log(π/π_old)): GSPO, Zheng et al. 2025 (arXiv 2507.18071). The gradient
    is that of s_i π/sg[π] (its section 4.3, GSPO-token): the same where all tokens of a sequence
    have one advantage, and right where they have not. log_prob, old_log_prob: [B]; sequence: [B]
    int64, which one a token belongs to; returns [B].
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob, sequence=sequence)
    mean = group_mean((log_prob - old_log_prob).detach(), sequence)
    return old_log_prob + mean + (log_prob - log_prob.detach())


def penalized_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, kl: Tensor, beta: float | Tensor
) -> Tensor:
    """L^KLPEN = r Â - β KL(π_old, π), with the KL of the whole distributions in each state.

    Schulman et al. 2017, eq. 8. All [B], kl in nats; returns [B], to be maximised.
    """
    same_shape(log_prob=log_prob, kl=kl)
    return surrogate(log_prob, old_log_prob, advantage) - beta * kl


def preference_error(chosen: Tensor, rejected: Tensor) -> Tensor:
    """L = -log σ(r(chosen) - r(rejected)): minus log p that the better one is preferred.

    Bradley & Terry 1952; Christiano et al. 2017 (arXiv 1706.03741), eq. 1. All [B]; returns [B].
    """
    same_shape(chosen=chosen, rejected=rejected)
    return -torch.nn.functional.logsigmoid(chosen - rejected)


def squared_error(value: Tensor, target: Tensor) -> Tensor:
    """L^VF: (V(s) - V^targ)². Schulman et al. 2017, eq. 9. All [B]; returns [B]."""
    same_shape(value=value, target=target)
    return (value - target).square()


def huber_error(value: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """½ e² where |e| <= δ, else δ (|e| - ½ δ), with e = V(s) - V^targ (Huber 1964).

    At δ = 1 this is the field's "smooth L1". All [B]; returns [B].
    """
    same_shape(value=value, target=target)
    return torch.nn.functional.huber_loss(value, target, reduction="none", delta=delta)


def clipped_squared_error(
    value: Tensor, target: Tensor, old_value: Tensor, clip: float | Tensor
) -> Tensor:
    """max((V - V^targ)², (V_old + clip(V - V_old, -ε, ε) - V^targ)²).

    Not in the paper; from OpenAI's baselines (ppo2). ε has the value's units. All [B]; returns [B].
    """
    same_shape(value=value, target=target, old_value=old_value)
    clipped = old_value + (value - old_value).clamp(-clip, clip)  # type: ignore[arg-type]
    return torch.maximum((value - target).square(), (clipped - target).square())
