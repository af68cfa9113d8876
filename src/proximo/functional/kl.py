"""How far the new policy has moved from the old one, estimated from the old one's samples."""

from __future__ import annotations

from torch import Tensor

from proximo.functional.shapes import same_shape


def k3(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Per-sample estimator of KL(old, new) in nats: (r - 1) - log r with r = p_new / p_old.

    Unbiased under the old policy's samples and never negative (Schulman 2020, "Approximating KL
    divergence", k3). log_prob, old_log_prob: any one shape; returns that shape.
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob)
    log_ratio = log_prob - old_log_prob
    return log_ratio.expm1() - log_ratio
