"""Distributions over actions, as immutable values built from parameters.

They sample from noise that is handed to them, so that they are pure and a whole rollout's noise is
drawn at once. `parameters` is what defines one, as a single tensor that can be stored and compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proximo.functional.shapes import same_shape

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
"""Bounds of a Gaussian's log deviation: 4.5e-5 and 7.4. Outside lie NaN and a random policy."""


@dataclass(frozen=True)
class Categorical:
    """One of n actions: p_i = exp(logits_i) / Σ_j exp(logits_j)."""

    log_p: Tensor  # [..., n] normalised log-probabilities

    @staticmethod
    def from_logits(logits: Tensor) -> Categorical:
        return Categorical(torch.log_softmax(logits, -1))

    @property
    def parameters(self) -> Tensor:
        return self.log_p

    def sample(self, noise: Tensor) -> Tensor:
        """Invert the distribution function: how many of its steps lie at or below u ~ U[0, 1).

        noise: [...]; returns [...] int64. The last step is left out: rounding may leave it under 1.
        """
        steps = self.log_p.exp().cumsum(-1)[..., :-1]
        return (steps <= noise.unsqueeze(-1)).sum(-1)

    def mode(self) -> Tensor:
        return self.log_p.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log p_a in nats. action: [...] int64; returns [...]."""
        if action.shape != self.log_p.shape[:-1]:  # `gather` takes fewer rows without a word
            raise ValueError(f"shapes differ: action {action.shape}, log_p {self.log_p.shape}")
        return self.log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """-Σ p log p in nats; returns [...]."""
        return -(self.log_p.exp() * self.log_p).sum(-1)


@dataclass(frozen=True)
class Gaussian:
    """Independent normal variables: a_d ~ N(μ_d, σ_d²), with log σ clamped to [-10, 2]."""

    mean: Tensor  # [..., A]
    log_std: Tensor  # [..., A] or [A]

    @staticmethod
    def from_parameters(mean: Tensor, log_std: Tensor) -> Gaussian:
        return Gaussian(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))

    @property
    def parameters(self) -> Tensor:
        return torch.cat([self.mean, self.log_std.expand_as(self.mean)], -1)

    def sample(self, noise: Tensor) -> Tensor:
        """μ + σ ε with ε ~ N(0, 1). noise: [..., A]; returns [..., A]."""
        return torch.addcmul(self.mean, self.log_std.exp(), noise)

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """-Σ_d [½ ((a_d - μ_d)/σ_d)² + log σ_d + ½ log 2π] in nats. action: [..., A] -> [...]."""
        same_shape(action=action, mean=self.mean)
        z = (action - self.mean) * (-self.log_std).exp()
        constant = 0.5 * math.log(2 * math.pi) * action.shape[-1]
        return -0.5 * z.square().sum(-1) - self.log_std.sum(-1) - constant

    def entropy(self) -> Tensor:
        """Σ_d [log σ_d + ½ log 2πe] in nats; returns [...]."""
        constant = 0.5 * math.log(2 * math.pi * math.e)
        return (self.log_std + constant).sum(-1).expand(self.mean.shape[:-1])


Distribution = Categorical | Gaussian
