"""Advantages. Everything is one recursion, y_t = x_t + decay_t y_{t+1}, run backwards in time."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo import native
from proximo.functional.masked import EPS
from proximo.functional.shapes import same_shape


def discounted_sum(x: Tensor, decay: Tensor) -> Tensor:
    """y_t = x_t + decay_t y_{t+1}, y_T = 0. x, decay: [T, N]; returns [T, N].

    Computed by doubling: after k rounds y_t holds the first 2^k terms of its sum and decay_t the
    factor to the next, so log2 T rounds over whole tensors do the work of T steps.
    """
    same_shape(x=x, decay=decay)
    single = x.dtype is decay.dtype is torch.float32 and x.is_cpu and not x.requires_grad
    if len(x) and single and (scan := native.discounted_sum()):
        # The same to the bit in one call: each of the operations below costs microseconds.
        y, decay = (a.clone(memory_format=torch.contiguous_format) for a in (x, decay))
        scan(y.data_ptr(), decay.data_ptr(), len(y), y[0].numel())
        return y
    y, reach = x, 1
    while reach < len(x):
        y = torch.cat([torch.addcmul(y[:-reach], decay[:-reach], y[reach:]), y[-reach:]])
        decay = torch.cat([decay[:-reach] * decay[reach:], decay[-reach:]])
        reach *= 2
    return y


def td_error(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, gamma: float
) -> Tensor:
    """δ_t = r_t + γ V(s'_t) - V(s_t), without the bootstrap where the episode terminated.

    Schulman et al. 2017, eq. 12. `next_value` is the value of the true successor s'_t (see
    `Engine.next_value`): at a time limit (truncation) the bootstrap is from the state in which the
    episode was cut, never from the first state of the next one. All [T, N]; `terminated` bool.
    """
    same_shape(reward=reward, value=value, next_value=next_value, terminated=terminated)
    return reward + gamma * torch.where(terminated, 0, next_value) - value


def gae(delta: Tensor, boundary: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation: Â_t = Σ_l (γλ)^l δ_{t+l}, cut at the episode's boundary.

    Schulman et al. 2016 (arXiv 1506.02438), eq. 16; 2017, eq. 11. λ = 0 is the TD error, λ = 1
    the Monte-Carlo return minus the value. delta: [T, N]; boundary: [T, N] bool.
    """
    same_shape(delta=delta, boundary=boundary)
    return discounted_sum(delta, gamma * lam * (~boundary).to(delta.dtype))


def n_step(delta: Tensor, boundary: Tensor, gamma: float, n: int) -> Tensor:
    """Â_t = Σ_{l<n} γ^l δ_{t+l}, cut at the boundary: the n-step return minus the value.

    Mnih et al. 2016 (arXiv 1602.01783), section 4. The recursion applied n times to all steps at
    once: after k times it holds the k-step advantage. n = 1 is the TD error.
    """
    same_shape(delta=delta, boundary=boundary)
    decay = gamma * (~boundary).to(delta.dtype)
    advantage = delta
    for _ in range(min(n, delta.shape[0]) - 1):
        following = torch.cat([advantage[1:], torch.zeros_like(advantage[:1])])
        advantage = torch.addcmul(delta, decay, following)
    return advantage


def leave_one_out(returns: Tensor) -> Tensor:
    """Â_i = R_i - 1/(k-1) Σ_{j≠i} R_j: each return less the mean of the others in its group.

    RLOO: Ahmadian et al. 2024 (arXiv 2402.14740); Kool et al. 2019. What an action is compared to
    does not depend on it, so the policy gradient has no bias. returns: [..., k], k >= 2.
    """
    k = returns.shape[-1]
    return returns - (returns.sum(-1, keepdim=True) - returns) / (k - 1)


def group_relative(returns: Tensor, *, scale: bool = True) -> Tensor:
    """Â_i = (R_i - R̄) / σ, with the mean and standard deviation of its group.

    GRPO: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2. Without `scale`, R_i - R̄: Dr. GRPO,
    Liu et al. 2025 (arXiv 2503.20783), (k-1)/k times `leave_one_out`. returns: [..., k].
    """
    for _ in range(2):  # as in `centred`
        returns = returns - returns.mean(-1, keepdim=True)
    if not scale:
        return returns
    return returns * torch.rsqrt(returns.square().mean(-1, keepdim=True) + EPS)
