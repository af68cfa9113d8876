"""Values as symlogs and as histograms: what a critic can learn in place of the return itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from proximo.functional.shapes import same_shape


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """max(x, 0) and max(-x, 0). At 0 the gradient is the first one's alone, not 0 as that of |x|:

    a critic whose outputs begin at 0 would never leave it.
    """
    return x.clamp(min=0), torch.relu(-x)


def symlog(x: Tensor) -> Tensor:
    """Symmetric logarithm y = sign(x) log(1 + |x|): nearly x around 0.

    Hafner et al. 2023 (arXiv 2301.04104), eq. 9. Any shape.
    """
    above, below = _halves(x)
    return above.log1p() - below.log1p()


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`, y = sign(x) (exp(|x|) - 1). Hafner et al. 2023, eq. 9. Any shape."""
    above, below = _halves(x)
    return above.expm1() - below.expm1()


def histogram(target: Tensor, centres: Tensor, sigma: float) -> Tensor:
    """p_k = (Φ((b_{k+1} - y)/σ) - Φ((b_k - y)/σ)) / Z: the mass of N(y, σ²) in each bin.

    HL-Gauss, Farebrother et al. 2024 (arXiv 2403.03950), section 3.1; b are the edges half-way
    between the centres. sigma 0: two-hot, the two centres around y share it so that their mean is
    y. target: [...], clamped to the outer centres; centres: [K], evenly spaced; sigma in units of
    the target; returns [..., K].
    """
    y = target.clamp(centres[0], centres[-1]).unsqueeze(-1)
    width = centres[1] - centres[0]
    if sigma == 0:
        return (1 - (y - centres).abs() / width).clamp(min=0)
    edges = torch.cat([centres - width / 2, centres[-1:] + width / 2])
    below = torch.erf((edges - y) / (sigma * math.sqrt(2)))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


def histogram_mean(logits: Tensor, centres: Tensor) -> Tensor:
    """V = Σ_k p_k c_k with p = softmax(logits). [..., K], [K]; returns [...]."""
    return logits.softmax(-1) @ centres


def histogram_error(logits: Tensor, target: Tensor) -> Tensor:
    """-Σ_k p_k log q_k, the cross-entropy of a target p and q = softmax(logits). [B, K] -> [B].

    Its gradient by the logits is q - p. Farebrother et al. 2024, eq. 3.
    """
    same_shape(logits=logits, target=target)
    return -(target * logits.log_softmax(-1)).sum(-1)
