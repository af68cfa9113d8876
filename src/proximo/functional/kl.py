"""KL divergences and their estimators, and coefficients and learning rates that follow the KL."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.functional import distributions as D
from proximo.functional.shapes import same_shape


def kl_divergence(old: D.Distribution, new: D.Distribution) -> Tensor:
    """KL(old, new) = E_old[log p_old - log p_new] in nats, exactly. Returns [...].

    Categorical: Σ p_old (log p_old - log p_new). Gaussian: Σ_d [log σ/σ_old + (σ_old² + (μ_old -
    μ)²)/(2σ²) - ½], and the same for squashed ones, as a tanh loses nothing. Bits, Betas and parts
    of a row: the sum of theirs. Raises `TypeError` for two of different kinds.
    """
    if type(old) is not type(new):
        raise TypeError(f"no KL between a {type(old).__name__} and a {type(new).__name__}")
    if isinstance(old, D.Categorical) and isinstance(new, D.Categorical):
        same_shape(old=old.log_p, new=new.log_p)
        return (old.log_p.exp() * (old.log_p - new.log_p)).sum(-1)
    if isinstance(old, D.Gaussian) and isinstance(new, D.Gaussian):
        same_shape(old=old.mean, new=new.mean)
        precision = (-2 * new.log_std).exp()
        spread = ((2 * old.log_std).exp() + (old.mean - new.mean).square()) * precision
        return (new.log_std - old.log_std + 0.5 * (spread - 1)).sum(-1)
    if isinstance(old, D.Bernoulli) and isinstance(new, D.Bernoulli):
        return kl_divergence(old.bits, new.bits).sum(-1)
    if isinstance(old, D.Beta) and isinstance(new, D.Beta):
        return _beta_divergence(old, new)
    assert isinstance(old, D.Joint)
    assert isinstance(new, D.Joint)
    pairs = zip(old.parts, new.parts, strict=True)
    return torch.stack([kl_divergence(before, after) for before, after in pairs]).sum(0)


def _beta_divergence(old: D.Beta, new: D.Beta) -> Tensor:
    """Σ_d [log B'/B + (α-α') ψ(α) + (β-β') ψ(β) - (α-α'+β-β') ψ(α+β)], ' being the new one's."""
    same_shape(old=old.alpha, new=new.alpha)
    alpha, beta = old.alpha.double(), old.beta.double()
    by_alpha, by_beta = alpha - new.alpha, beta - new.beta
    own = by_alpha * alpha.digamma() + by_beta * beta.digamma()
    own = own - (by_alpha + by_beta) * (alpha + beta).digamma()
    return (new.log_normaliser - old.log_normaliser + own).sum(-1).to(old.alpha)


def k3(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Per-sample estimator of KL(old, new) in nats: (r - 1) - log r with r = p_new / p_old.

    Unbiased under the old policy's samples and never negative (Schulman 2020, "Approximating KL
    divergence", k3). log_prob, old_log_prob: any one shape; returns that shape.
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob)
    log_ratio = log_prob - old_log_prob
    return log_ratio.expm1() - log_ratio


def k2(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Per-sample estimator of KL(old, new) in nats: ½ (log r)² with r = p_new / p_old.

    Schulman 2020, "Approximating KL divergence", k2: biased, never negative. Where the samples are
    the new policy's own, its gradient is log r ∇log p_new, that of KL(new, old) without bias; the
    gradient of k3 is not. log_prob, old_log_prob: any one shape; returns that shape.
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob)
    return 0.5 * (log_prob - old_log_prob).square()


def controlled_beta(beta: float, kl: float, target: float, episodes: int, horizon: float) -> float:
    """The next weight of the KL to a reference: β (1 + clip(d/d_targ - 1, ±0.2) n/H).

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2. kl: d, in nats per episode, the sum over
    its tokens; episodes: n, how many it is the mean of; horizon: H, episodes over which β can move
    by a fifth. n is taken as at most 4 H, so that β cannot reach 0.
    """
    error = max(-0.2, min(0.2, kl / target - 1))
    return beta * (1 + error * min(episodes / horizon, 4.0))


def adapted_beta(beta: float, kl: float, target: float) -> float:
    """The KL penalty's weight for the next update: β/2 if d < d_targ/1.5, 2β if d > 1.5 d_targ.

    Schulman et al. 2017 (arXiv 1707.06347), section 4. kl: d, of the whole batch after the last
    gradient step. Kept within [1e-6, 1e6], so that it can come back.
    """
    if kl < target / 1.5:
        return max(beta / 2, 1e-6)
    return min(beta * 2, 1e6) if kl > target * 1.5 else beta


def adapted_rate(scale: float, kl: float, target: float) -> float:
    """The learning rate's factor for the next update: s/1.5 if d > 2 d_targ, 1.5 s if d < d_targ/2.

    From legged robotics (Rudin et al. 2021, arXiv 2109.11978), once per update. Kept within
    [0.01, 10]: where the policy hardly moves any more, the rate would grow without end.
    """
    if kl > 2 * target:
        return max(scale / 1.5, 0.01)
    return min(scale * 1.5, 10.0) if kl < target / 2 else scale
