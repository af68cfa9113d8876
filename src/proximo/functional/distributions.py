"""Distributions over actions, as immutable values built from parameters.

They sample from noise that is handed to them, so that they are pure and a whole rollout's noise is
drawn at once. `parameters` is what defines one, as a single tensor that can be stored and compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from proximo.functional.shapes import same_shape

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
"""Bounds of a Gaussian's log σ: σ from 4.5e-5 to 7.4. Outside lie NaN and a random policy."""

ILLEGAL = -1e9
"""Log p of an illegal action: p is exactly 0, and 0 log p is 0 where 0 times -inf would be NaN."""

SHAPE_MAX = 1e3
"""Bound of a Beta's α and β: a σ of 1% of the range, which only a diverging net passes."""


@dataclass(frozen=True)
class Categorical:
    """One of n actions: p_i = exp(logits_i) / Σ_j exp(logits_j), the sum over the legal ones."""

    log_p: Tensor  # [..., n] normalised log-probabilities; ILLEGAL for an illegal action
    masked: bool = True  # whether there may be illegal actions

    @staticmethod
    def from_logits(logits: Tensor, mask: Tensor | None = None) -> Categorical:
        """mask: bool, of the logits' shape; True is legal. An illegal logit has gradient 0.

        Where nothing is legal, as when a game is over, every log p is ILLEGAL: the entropy, the KL
        and the gradients are 0, and the action drawn means nothing.
        """
        if mask is None:
            return Categorical(torch.log_softmax(logits, -1), masked=False)
        same_shape(logits=logits, mask=mask)
        log_p = torch.log_softmax(logits.masked_fill(~mask, -math.inf), -1)
        return Categorical(log_p.masked_fill(~mask, ILLEGAL))

    @property
    def parameters(self) -> Tensor:
        return self.log_p

    def sample(self, noise: Tensor) -> Tensor:
        """Invert the distribution function: how many of its steps lie at or below u ~ U[0, 1).

        noise: [...]; returns [...] int64. The last step is left out: rounding may leave it under 1.
        """
        steps = self.log_p.exp().cumsum(-1)[..., :-1]
        action = (steps <= noise.unsqueeze(-1)).sum(-1)
        if not self.masked:
            return action
        # Rounding may leave the last legal step under 1, and u above it: back to a legal action.
        illegal = self.log_p < ILLEGAL / 2
        index = torch.arange(illegal.shape[-1], device=illegal.device).expand_as(illegal)
        legal = index.masked_fill(illegal, 0).cummax(-1).values.expand(*action.shape, -1)
        return legal.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def mode(self) -> Tensor:
        return self.log_p.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log p_a in nats. action: [...] int64, or as whole in another type; returns [...]."""
        if action.shape != self.log_p.shape[:-1]:  # `gather` takes fewer rows without a word
            raise ValueError(f"shapes differ: action {action.shape}, log_p {self.log_p.shape}")
        return self.log_p.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """-Σ p log p in nats; returns [...]."""
        return -(self.log_p.exp() * self.log_p).sum(-1)


@dataclass(frozen=True)
class Bernoulli:
    """K independent bits: p(a_k = 1) = 1 / (1 + exp(-l_k))."""

    logits: Tensor  # [..., K]

    @property
    def parameters(self) -> Tensor:
        return self.logits

    @property
    def bits(self) -> Categorical:
        """Each bit as one of two actions, log p [..., K, 2]."""
        log_p = torch.stack([logsigmoid(-self.logits), logsigmoid(self.logits)], -1)
        return Categorical(log_p, masked=False)

    def sample(self, noise: Tensor) -> Tensor:
        """noise: [..., K], uniform on [0, 1); returns [..., K] int64."""
        return self.bits.sample(noise)

    def mode(self) -> Tensor:
        return self.bits.mode()

    def log_prob(self, action: Tensor) -> Tensor:
        """Σ_k log p(a_k) in nats. action: [..., K] int64; returns [...]."""
        same_shape(action=action, logits=self.logits)
        return self.bits.log_prob(action).sum(-1)

    def entropy(self) -> Tensor:
        """-Σ_k [p_k log p_k + (1 - p_k) log(1 - p_k)] in nats; returns [...]."""
        return self.bits.entropy().sum(-1)


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


Z = torch.linspace(-6, 6, 121, dtype=torch.float64)
Z_WEIGHTS = torch.softmax(-Z.square() / 2, 0)
"""The trapezoid rule for E[f(ε)] with ε ~ N(0, 1).

Its error falls exponentially with the step (Trefethen & Weideman 2014): `SquashedGaussian.entropy`
is off by 4e-7 at most, at σ = 7.4, where the poles of tanh(μ + σ ε) come closest to the real axis.
"""


@dataclass(frozen=True)
class SquashedGaussian(Gaussian):
    """a_d = m_d + h_d tanh u_d with u_d ~ N(μ_d, σ_d²): within m ± h, in the env's units.

    The action that it samples and evaluates is u, so that no a is ever taken back through the tanh;
    its log-density is that of a. The mode is the median, u = μ: p(a) may have two peaks.
    """

    log_half_range: Tensor  # [A] log h

    def log_prob(self, action: Tensor) -> Tensor:
        """Log N(u; μ, σ²) - Σ_d log |da_d/du_d| in nats. action: u [..., A]; returns [...]."""
        return super().log_prob(action) - log_slope(action, self.log_half_range).sum(-1)

    def entropy(self) -> Tensor:
        """H(u) + Σ_d E[log |da_d/du_d|] in nats, the mean by quadrature; returns [...]."""
        u = self.mean.unsqueeze(-1) + self.log_std.exp().unsqueeze(-1) * Z.to(self.mean)
        slope = log_slope(u, self.log_half_range.unsqueeze(-1)) @ Z_WEIGHTS.to(self.mean)
        return super().entropy() + slope.sum(-1)


def log_slope(u: Tensor, log_half_range: Tensor) -> Tensor:
    """Log da/du of a = m + h tanh u: log h + log(1 - tanh² u), also where tanh u rounds to 1.

    As log h + 2 (log 2 - u - softplus(-2 u)). log_half_range: log h; returns the shape of u.
    """
    return log_half_range + 2 * (math.log(2) - u + logsigmoid(2 * u))


GSDE_EPS = 1e-6
"""Variance of gSDE where every feature is 0: a standard deviation of 0.001."""


def gsde_log_std(features: Tensor, log_scale: Tensor) -> Tensor:
    """½ log(Σ_j φ_j² σ_jd² + 1e-6): of the noise θᵀφ(s) with θ_jd ~ N(0, σ_jd²).

    Raffin et al. 2021, eq. 7. The scales σ are clamped as a Gaussian's; log_scale: log σ [F, A].
    features: φ(s) [..., F]; returns log standard deviations [..., A].
    """
    variance = (2 * log_scale.clamp(LOG_STD_MIN, LOG_STD_MAX)).exp()
    return 0.5 * (features.square() @ variance + GSDE_EPS).log()


def gsde_noise(features: Tensor, log_scale: Tensor, theta: Tensor) -> Tensor:
    """ε_d = (Σ_j φ_j σ_jd θ_jd + 0.001 θ_0d) / sqrt(Σ_j φ_j² σ_jd² + 1e-6), with θ ~ N(0, 1).

    In every state ε ~ N(0, 1), from which `Gaussian.sample` makes the action; but as long as θ is
    kept, the same state has the same noise. Unlike in the paper the 1e-6 has noise of its own, so
    that the density holds where features are 0 too.
    features: φ(s) [..., F]; log_scale: log σ [F, A]; theta: [..., (F + 1) A]; returns [..., A].
    """
    scale = log_scale.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()
    own = theta.reshape(*theta.shape[:-1], features.shape[-1] + 1, scale.shape[-1])
    noise: Tensor = (features.unsqueeze(-1) * scale * own[..., 1:, :]).sum(-2)
    noise = noise + math.sqrt(GSDE_EPS) * own[..., 0, :]
    return noise * (-gsde_log_std(features, log_scale)).exp()


@dataclass(frozen=True)
class Beta:
    """a_d = low_d + x_d (high_d - low_d) with x_d ~ Beta(α_d, β_d), p(x) ∝ x^(α-1) (1-x)^(β-1).

    Chou et al. 2017. The action that it samples and evaluates is x; its log-density is that of a.
    The maths is in double: terms of thousands of nats cancel to a few.
    """

    TRIES: ClassVar[int] = 8
    """For a Gamma variable. At least 95.1% succeed, so that all fail once in 3e10 draws."""
    NOISE: ClassVar[int] = 2 * 2 * TRIES
    """Normal numbers for an x: of two Gamma variables, the proposals and what tests them."""
    alpha: Tensor  # [..., A] from 1, so that there is one peak, to SHAPE_MAX
    beta: Tensor  # [..., A]
    log_range: Tensor  # [A] log(high - low)

    @staticmethod
    def from_outputs(alpha: Tensor, beta: Tensor, log_range: Tensor) -> Beta:
        """α, β = 1 + softplus of a network's outputs, up to SHAPE_MAX."""
        alpha, beta = ((1 + softplus(x)).clamp(max=SHAPE_MAX) for x in (alpha, beta))
        return Beta(alpha, beta, log_range)

    @property
    def parameters(self) -> Tensor:
        return torch.cat([self.alpha, self.beta], -1)

    @property
    def log_normaliser(self) -> Tensor:
        """Log B(α, β) = log Γ(α) + log Γ(β) - log Γ(α + β), in double; returns [..., A]."""
        a, b = self.alpha.double(), self.beta.double()
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    def sample(self, noise: Tensor) -> Tensor:
        """G_α / (G_α + G_β) of Gamma variables (Marsaglia & Tsang 2000).

        With d = α - 1/3: G = d v, v = (1 + ε / sqrt(9 d))³, for the first ε ~ N(0, 1) of which log
        Φ(ε') < ε²/2 + d (1 - v + log v), Φ(ε') being uniform; or α, should none pass.
        noise: [..., A * NOISE], each x's as [2 variables, ε or ε', TRIES]; returns x [..., A].
        """
        shape = torch.stack([self.alpha, self.beta], -1).unsqueeze(-1)  # [..., A, 2, 1]
        own = noise.reshape(*noise.shape[:-1], self.alpha.shape[-1], 2, 2, self.TRIES)
        proposal, test = own.unbind(-2)  # [..., A, 2, TRIES]
        d = shape - 1 / 3
        v = (1 + proposal * (9 * d).rsqrt()) ** 3
        # Where v is negative, its logarithm is NaN, which nothing is less than.
        passes = torch.special.log_ndtr(test) < proposal.square() / 2 + d * (1 - v + v.log())
        first = passes.byte().argmax(-1, keepdim=True)
        gamma = torch.where(passes.any(-1, keepdim=True), (d * v).gather(-1, first), shape)
        x = gamma[..., 0, 0] / gamma.sum((-2, -1))
        margin = torch.finfo(x.dtype).eps / 2
        return x.clamp(margin, 1 - margin)  # on a bound the density may be 0

    def mode(self) -> Tensor:
        """The mean, x = α / (α + β): the peak of a nearly flat density could be anywhere."""
        return self.alpha / (self.alpha + self.beta)

    def log_prob(self, action: Tensor) -> Tensor:
        """Σ_d [(α-1) log x + (β-1) log(1-x) - log B(α, β) - log(high - low)] in nats.

        action: x [..., A] within (0, 1); returns [...].
        """
        same_shape(action=action, alpha=self.alpha)
        x = action.double()
        density = (self.alpha - 1) * x.log() + (self.beta - 1) * (-x).log1p() - self.log_normaliser
        return (density - self.log_range).sum(-1).to(self.alpha)

    def entropy(self) -> Tensor:
        """Σ_d [log B - (α-1) ψ(α) - (β-1) ψ(β) + (α+β-2) ψ(α+β) + log(high - low)]: [...]."""
        a, b, psi = self.alpha.double(), self.beta.double(), torch.digamma
        inner = (a - 1) * psi(a) + (b - 1) * psi(b) - (a + b - 2) * psi(a + b)
        return (self.log_normaliser - inner + self.log_range).sum(-1).to(self.alpha)


@dataclass(frozen=True)
class Joint:
    """Independent parts side by side in one row: log p(a) = Σ_i log p_i(a_i).

    The row of actions is int64 if all parts are discrete; else it has the type of the others, in
    which whole numbers are exact.
    """

    parts: tuple[Distribution, ...]
    action_widths: tuple[int, ...]  # columns of each part's action; 1 for a Categorical
    noise_widths: tuple[int, ...]  # columns of each part's noise

    @property
    def parameters(self) -> Tensor:
        return torch.cat([part.parameters for part in self.parts], -1)

    def sample(self, noise: Tensor) -> Tensor:
        """noise: [..., Σ noise_widths]; returns [..., Σ action_widths]."""
        return self._row(part.sample(own) for part, own in self._split(noise, self.noise_widths))

    def mode(self) -> Tensor:
        return self._row(part.mode() for part in self.parts)

    def log_prob(self, action: Tensor) -> Tensor:
        """Σ_i log p_i(a_i) in nats. action: [..., Σ action_widths]; returns [...]."""
        pairs = self._split(action, self.action_widths)
        return torch.stack([part.log_prob(own) for part, own in pairs]).sum(0)

    def entropy(self) -> Tensor:
        """Σ_i H_i in nats; returns [...]."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    def _split(self, row: Tensor, widths: tuple[int, ...]) -> Iterator[tuple[Distribution, Tensor]]:
        for part, own in zip(self.parts, torch.split(row, list(widths), -1), strict=True):
            yield part, own.squeeze(-1) if isinstance(part, Categorical) else own

    def _row(self, actions: Iterable[Tensor]) -> Tensor:
        pairs = zip(self.parts, actions, strict=True)
        return torch.cat(
            [own.unsqueeze(-1) if isinstance(part, Categorical) else own for part, own in pairs], -1
        )


Distribution = Categorical | Bernoulli | Gaussian | Beta | Joint
