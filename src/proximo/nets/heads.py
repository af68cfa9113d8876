"""From the outputs of a network to a distribution over actions: a head for every action space."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from proximo.errors import UsageError
from proximo.functional.distributions import (
    LOG_STD_MIN,
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Gaussian,
    Joint,
    SquashedGaussian,
    gsde_log_std,
    gsde_noise,
)
from proximo.nets.config import NetConfig
from proximo.spaces import Actions, Leaf, native, sizes, starts, torch_dtype

SATURATED = 2.65
"""Size of a number whose tanh is within 1% of a bound, where its slope is below 1%."""


class Choice(NamedTuple):
    """Distribution of one number of an action that is one of n."""

    probabilities: Tensor  # [..., n]
    start: int
    """The first of the n, as the env counts."""


class Interval(NamedTuple):
    """Distribution of one number of an action that lies on a line, in the env's units."""

    ends: Tensor  # [3, ...] one standard deviation below the mean, the mean, one above it
    low: float
    high: float


class Head(nn.Module, ABC):
    """Distribution over one action space: its sizes, its noise, and the env's form of an action."""

    outputs: int  # of the network per state
    parameter_count: int  # P, of a distribution
    num_logits: tuple[int, ...] = ()  # of each categorical choice: the columns of an action mask
    noise_shape: tuple[int, ...]  # of the noise from which one action is drawn
    resample_every: int = 1  # steps after which all noise is drawn anew (gSDE keeps some of it)
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype = torch.float32  # of the policy; floats have the network's own type
    taken_shape: tuple[int, ...]
    taken_dtype: np.dtype  # of the env's action

    @abstractmethod
    def distribution(self, outputs: Tensor, legal: Tensor | None, features: Tensor) -> Distribution:
        """The distributions for outputs made of features [..., F], among the legal choices."""

    @abstractmethod
    def restore(self, parameters: Tensor) -> Distribution:
        """The distributions that have these `parameters`."""

    def noise(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """Noise for this many actions, time first, uniform. Returns [*shape, *noise_shape]."""
        size = (*shape, *self.noise_shape)
        return torch.rand(size, generator=generator, device=generator.device)

    def continue_noise(self, noise: Tensor, first: Tensor) -> None:
        """Replace the first noise, for as long as it stays the same, by noise drawn earlier.

        noise: [T, ...] of `noise`, changed in place; first: [1, ...].
        """
        noise[: self.resample_every] = first

    def cut_off(self, action: Tensor) -> Tensor | None:
        """[...] True for actions outside their bounds, which are clipped; None: there are none."""
        return None

    def saturated(self, action: Tensor) -> Tensor | None:
        """Share of the numbers of actions [B, *act] that are as good as at a bound, or beyond it.

        None: this head cannot get there by its noise.
        """
        return None

    def effective_noise(self, noise: Tensor, features: Tensor) -> Tensor:
        """The noise to sample with, from that of `noise`. features: [..., F]."""
        return noise

    @property
    def effective_noise_width(self) -> int:
        """Its number of columns."""
        return math.prod(self.noise_shape)

    @abstractmethod
    def marginals(self, distribution: Any) -> list[Choice | Interval]:
        """The distribution of each number of the env's action, in their order."""

    @abstractmethod
    def env_action(self, action: Tensor) -> Tensor:
        """The action as the env takes it, where the action lies. action: [..., *act]."""

    def to_env(self, action: Tensor) -> np.ndarray:
        """The action for an env that takes NumPy arrays. action: [..., *act]."""
        array: np.ndarray = self.env_action(action.cpu()).numpy()
        return array

    def initialize(self, bias: Tensor) -> None:
        """Adapt the initial biases of the last layer. bias: [outputs]."""

    @property
    def feature_count(self) -> int:
        """Number of columns of `features`."""
        action = torch.zeros(1, *self.action_shape, dtype=self.action_dtype, device="cpu")
        return self.features(action).shape[-1]

    def features(self, action: Tensor) -> Tensor:
        """An action as input of a Q critic. action: [..., *act]; returns [..., feature_count]."""
        return action


class CategoricalHead(Head):
    """Logits of one of n actions."""

    action_dtype = torch.int64

    def __init__(self, space: spaces.Discrete) -> None:
        super().__init__()
        self.outputs = self.parameter_count = int(space.n)
        self.num_logits = (self.outputs,)
        self.noise_shape = self.action_shape = self.taken_shape = ()
        self.taken_dtype = native(space.dtype)
        self.start = int(space.start)
        self._kind = torch_dtype(self.taken_dtype)

    def distribution(self, outputs: Tensor, legal: Tensor | None, features: Tensor) -> Categorical:
        return Categorical.from_logits(outputs, legal)

    def restore(self, parameters: Tensor) -> Categorical:
        return Categorical(parameters)

    def features(self, action: Tensor) -> Tensor:
        return nn.functional.one_hot(action, self.outputs)

    def marginals(self, distribution: Categorical) -> list[Choice | Interval]:
        return [Choice(distribution.log_p.exp(), self.start)]

    def env_action(self, action: Tensor) -> Tensor:
        """Counted from the start of its space, in its type."""
        return (action + self.start if self.start else action).to(self._kind)


class BernoulliHead(Head):
    """Logits of bits, each on or off by itself."""

    action_dtype = torch.int64

    def __init__(self, space: spaces.MultiBinary) -> None:
        super().__init__()
        self.outputs = self.parameter_count = int(np.prod(space.shape))
        self.noise_shape = self.action_shape = (self.outputs,)
        self.taken_shape, self.taken_dtype = space.shape, native(space.dtype)

    def distribution(self, outputs: Tensor, legal: Tensor | None, features: Tensor) -> Bernoulli:
        return Bernoulli(outputs)

    def restore(self, parameters: Tensor) -> Bernoulli:
        return Bernoulli(parameters)

    def marginals(self, distribution: Bernoulli) -> list[Choice | Interval]:
        return [Choice(p, 0) for p in distribution.bits.log_p.exp().unbind(-2)]

    def env_action(self, action: Tensor) -> Tensor:
        bits = action.to(torch_dtype(self.taken_dtype))
        return bits.reshape(*action.shape[:-1], *self.taken_shape)


class BoxHead(Head):
    """Head of a Box: its bounds, and actions in its shape and type."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        self.size = int(np.prod(space.shape))
        self.parameter_count = 2 * self.size
        self.action_shape = (self.size,)
        self.taken_shape, self.taken_dtype = space.shape, native(space.dtype)
        self.low, self.high = (b.astype(self.taken_dtype) for b in (space.low, space.high))
        # No buffers: those are cast with the network, and not every device has double precision.
        self._ends = torch.from_numpy(self.low), torch.from_numpy(self.high)
        # Halved first: the width of a Box may be more than its type holds.
        low, high = (torch.from_numpy(b.reshape(-1)).double() for b in (self.low, self.high))
        self.middle = nn.Buffer((low / 2 + high / 2).float(), persistent=False)
        self.half_range = nn.Buffer((high / 2 - low / 2).float(), persistent=False)

    def noise(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """Normal numbers. Returns [*shape, *noise_shape]."""
        size = (*shape, *self.noise_shape)
        return torch.randn(size, generator=generator, device=generator.device)

    def ends(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both bounds, in the shape and type of the space."""
        if self._ends[0].device != device:
            self._ends = self._ends[0].to(device), self._ends[1].to(device)
        return self._ends

    def within(self, numbers: Tensor) -> Tensor:
        """Numbers clipped to the bounds, in the type of the space. numbers: [..., *shape]."""
        return numbers.clamp(*self.ends(numbers.device)).to(torch_dtype(self.taken_dtype))

    def shaped(self, action: Tensor) -> Tensor:
        """[..., A] -> [..., *shape]."""
        return action.reshape(*action.shape[:-1], *self.taken_shape)

    @abstractmethod
    def spread(self, distribution: Any) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the policy's action, [..., A] each."""

    def marginals(self, distribution: Any) -> list[Choice | Interval]:
        """Within the bounds, and through the tanh of a policy that has one."""
        mean, std = self.spread(distribution)
        ends = self.env_action(torch.stack([mean - std, mean, mean + std]))
        columns = ends.reshape(3, *mean.shape).cpu().double().unbind(-1)
        bounds = zip(self.low.reshape(-1).tolist(), self.high.reshape(-1).tolist(), strict=True)
        return [Interval(x, *bound) for x, bound in zip(columns, bounds, strict=True)]


class GaussianHead(BoxHead):
    """Mean from the network; log σ is a free parameter that does not depend on the state.

    Or a mean within bounds, m + h tanh x, with their middle m and half range h; or σ from the
    state, softplus y. x and y are outputs of the network.
    """

    def __init__(self, space: spaces.Box, net: NetConfig) -> None:
        super().__init__(space)
        self.free, self.bounded = net.std == "free", net.mean == "tanh"
        self.outputs = self.size if self.free else 2 * self.size
        self.noise_shape = (self.size,)
        self.first_log_std = float(net.log_std)
        if self.free:
            self.log_std = nn.Parameter(torch.full((self.size,), self.first_log_std))
        self.squash = net.action == "squash"

    @torch.no_grad()
    def initialize(self, bias: Tensor) -> None:
        """Start a σ that is an output of the network at exp(log_std), like a free one."""
        if not self.free:  # with gSDE there is no such output
            bias[self.size :] = math.log(math.expm1(math.exp(self.first_log_std)))

    def distribution(self, outputs: Tensor, legal: Tensor | None, features: Tensor) -> Distribution:
        mean = self._mean(outputs)
        if self.free:
            return self._make(Gaussian.from_parameters(mean, self.log_std))
        # Bounded before the logarithm, whose slope at 0 would make the gradient NaN.
        std = nn.functional.softplus(outputs[..., self.size :]).clamp(min=math.exp(LOG_STD_MIN))
        return self._make(Gaussian.from_parameters(mean, std.log()))

    def _mean(self, outputs: Tensor) -> Tensor:
        mean = outputs[..., : self.size]
        return self.middle + self.half_range * torch.tanh(mean) if self.bounded else mean

    def _make(self, gaussian: Gaussian) -> Distribution:
        if not self.squash:
            return gaussian
        return SquashedGaussian(gaussian.mean, gaussian.log_std, self.half_range.log())

    def restore(self, parameters: Tensor) -> Distribution:
        return self._make(Gaussian(parameters[..., : self.size], parameters[..., self.size :]))

    def cut_off(self, action: Tensor) -> Tensor | None:
        if self.squash:
            return None
        low, high = (end.reshape(-1) for end in self.ends(action.device))
        return ((action < low) | (action > high)).any(-1)

    def spread(self, distribution: Gaussian) -> tuple[Tensor, Tensor]:
        return distribution.mean, distribution.log_std.exp().expand_as(distribution.mean)

    def saturated(self, action: Tensor) -> Tensor | None:
        if self.squash:
            return (action.abs() > SATURATED).double().mean()
        low, high = (end.reshape(-1) for end in self.ends(action.device))
        return ((action < low) | (action > high)).double().mean()

    def env_action(self, action: Tensor) -> Tensor:
        """In the env's shape, type and bounds, through a tanh if the policy says so."""
        numbers = self.shaped(action)
        if self.squash:
            low, high = self.ends(action.device)
            numbers = low + (torch.tanh(numbers) + 1) / 2 * (high - low)
        return self.within(numbers)


class GSDEHead(GaussianHead):
    """Noise that is a function of the state for some steps: a = μ(s) + θᵀφ(s), θ ~ N(0, σ²).

    Generalized state-dependent exploration, Raffin et al. 2021 (arXiv 2005.05719). φ is what the
    last layer is given; it learns through the mean alone, as in the paper's code.
    """

    def __init__(self, space: spaces.Box, net: NetConfig, features: int) -> None:
        super().__init__(space, net)
        self.outputs = self.size
        # With features of size 1, σ begins at exp(log_std).
        first = self.first_log_std - 0.5 * math.log(features)
        self.log_scale = nn.Parameter(torch.full((features, self.size), first))
        self.noise_shape = ((features + 1) * self.size,)
        self.resample_every = net.gsde_steps

    def distribution(self, outputs: Tensor, legal: Tensor | None, features: Tensor) -> Distribution:
        log_std = gsde_log_std(features.detach(), self.log_scale)
        return self._make(Gaussian.from_parameters(self._mean(outputs), log_std))

    def noise(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """A θ for every `resample_every` steps, in each env its own, repeated."""
        count = -(-shape[0] // self.resample_every)
        theta = super().noise(generator, (count, *shape[1:]))
        return theta.repeat_interleave(self.resample_every, 0)[: shape[0]]

    def effective_noise(self, noise: Tensor, features: Tensor) -> Tensor:
        return gsde_noise(features, self.log_scale, noise)

    @property
    def effective_noise_width(self) -> int:
        return self.size


class BetaHead(BoxHead):
    """Both shapes of a Beta distribution over the bounds, per dimension (Chou et al. 2017)."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space)
        self.outputs = 2 * self.size
        self.noise_shape = (Beta.NOISE * self.size,)

    def distribution(self, outputs: Tensor, legal: Tensor | None, features: Tensor) -> Beta:
        alpha, beta = outputs.chunk(2, -1)
        return Beta.from_outputs(alpha, beta, (2 * self.half_range).log())

    def restore(self, parameters: Tensor) -> Beta:
        alpha, beta = parameters.chunk(2, -1)
        return Beta(alpha, beta, (2 * self.half_range).log())

    def spread(self, distribution: Beta) -> tuple[Tensor, Tensor]:
        mean, total = distribution.mode(), distribution.alpha + distribution.beta
        return mean, (mean * (1 - mean) / (total + 1)).sqrt()

    def env_action(self, action: Tensor) -> Tensor:
        low, high = self.ends(action.device)
        return self.within(low + self.shaped(action) * (high - low))


class JointHead(Head):
    """Heads side by side, independent given the state: one row of outputs, actions and noise."""

    def __init__(self, parts: list[Head], taken_shape: tuple[int, ...], dtype: np.dtype) -> None:
        super().__init__()
        self.parts, self.heads = nn.ModuleList(parts), tuple(parts)
        self.outputs = sum(part.outputs for part in parts)
        self.parameter_count = sum(part.parameter_count for part in parts)
        self.num_logits = tuple(n for part in parts for n in part.num_logits)
        self._actions = [math.prod(part.action_shape) for part in parts]
        self._noises = [math.prod(part.noise_shape) for part in parts]
        self._drawn = [part.effective_noise_width for part in parts]
        self.resample_every = max(part.resample_every for part in parts)
        self.action_shape, self.noise_shape = (sum(self._actions),), (sum(self._noises),)
        self.taken_shape, self.taken_dtype = taken_shape, dtype
        if all(part.action_dtype is torch.int64 for part in parts):
            self.action_dtype = torch.int64

    def _split(self, row: Tensor, widths: list[int]) -> Iterator[tuple[Head, Tensor]]:
        """The heads with their columns of a row."""
        return zip(self.heads, torch.split(row, widths, -1), strict=True)

    def _own(self, action: Tensor) -> Iterator[tuple[Head, Tensor]]:
        """The heads with their parts of an action, each in its own shape and type."""
        for head, part in self._split(action, self._actions):
            kind = torch.int64 if head.action_dtype is torch.int64 else part.dtype
            yield head, part.reshape(*action.shape[:-1], *head.action_shape).to(kind)

    def features(self, action: Tensor) -> Tensor:
        kind = torch.get_default_dtype() if action.dtype is torch.int64 else action.dtype
        return torch.cat([head.features(part).to(kind) for head, part in self._own(action)], -1)

    def _joint(self, parts: list[Distribution]) -> Joint:
        return Joint(tuple(parts), tuple(self._actions), tuple(self._drawn))

    def distribution(self, outputs: Tensor, legal: Tensor | None, features: Tensor) -> Joint:
        masks: list[Tensor | None] = [None] * len(self.heads)
        if legal is not None:
            among = self._split(legal, [sum(head.num_logits) for head in self.heads])
            masks = [mask if head.num_logits else None for head, mask in among]
        own = self._split(outputs, [head.outputs for head in self.heads])
        pairs = zip(own, masks, strict=True)
        return self._joint([head.distribution(x, mask, features) for (head, x), mask in pairs])

    def restore(self, parameters: Tensor) -> Joint:
        own = self._split(parameters, [head.parameter_count for head in self.heads])
        return self._joint([head.restore(part) for head, part in own])

    def noise(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        parts = [head.noise(generator, shape).reshape(*shape, -1) for head in self.heads]
        return torch.cat(parts, -1)

    def continue_noise(self, noise: Tensor, first: Tensor) -> None:
        """Continue the noise of each part, which may resample at its own intervals."""
        others = torch.split(first, self._noises, -1)
        for (head, part), other in zip(self._split(noise, self._noises), others, strict=True):
            head.continue_noise(part, other)

    def effective_noise(self, noise: Tensor, features: Tensor) -> Tensor:
        if self._drawn == self._noises:
            return noise
        own = self._split(noise, self._noises)
        return torch.cat([head.effective_noise(part, features) for head, part in own], -1)

    @property
    def effective_noise_width(self) -> int:
        return sum(self._drawn)

    def cut_off(self, action: Tensor) -> Tensor | None:
        found = [head.cut_off(part) for head, part in self._own(action)]
        clipped = [x for x in found if x is not None]
        return torch.stack(clipped).any(0) if clipped else None

    def marginals(self, distribution: Joint) -> list[Choice | Interval]:
        pairs = zip(self.heads, distribution.parts, strict=True)
        return [marginal for head, part in pairs for marginal in head.marginals(part)]

    def saturated(self, action: Tensor) -> Tensor | None:
        found = [head.saturated(part) for head, part in self._own(action)]
        shares = [x for x in found if x is not None]
        return torch.stack(shares).max() if shares else None

    def env_action(self, action: Tensor) -> Tensor:
        lead, kind = action.shape[:-1], torch_dtype(self.taken_dtype)
        own = self._own(action)
        parts = [head.env_action(part).reshape(*lead, -1).to(kind) for head, part in own]
        return torch.cat(parts, -1).reshape(*lead, *self.taken_shape)

    @torch.no_grad()
    def initialize(self, bias: Tensor) -> None:
        for head, own in self._split(bias, [head.outputs for head in self.heads]):
            head.initialize(own)


def make_head(space: gym.Space[Any], net: NetConfig, features: int) -> Head:
    """The head for an action space, on so many features. Raises `UsageError` for other spaces."""
    actions = Actions(space)
    heads = [_simple(leaf, net, features) for leaf in actions.leaves]
    if actions.single:
        return heads[0]
    return JointHead(heads, actions.shape or (), actions.dtype)


def _simple(leaf: Leaf, net: NetConfig, features: int) -> Head:
    space: Any = leaf.space
    if isinstance(space, spaces.Discrete):
        return CategoricalHead(space)
    if isinstance(space, spaces.MultiDiscrete):
        parts: list[Head] = [
            CategoricalHead(spaces.Discrete(n, start=start))
            for n, start in zip(sizes(space), starts(space), strict=True)
        ]
        return JointHead(parts, space.nvec.shape, native(space.dtype))
    if isinstance(space, spaces.MultiBinary):
        return BernoulliHead(space)
    lack = _lack(space)
    for name, value in (("action", net.action), ("mean", net.mean)):
        if value in ("squash", "beta", "tanh") and lack:
            raise UsageError(
                f"net.{name} is {value}, but the action space{leaf.place}, {space}, has {lack}: "
                f"use {'clip' if name == 'action' else 'linear'}"
            )
    if net.std == "gsde":
        return GSDEHead(space, net, features)
    return BetaHead(space) if net.action == "beta" else GaussianHead(space, net)


def _lack(space: spaces.Box) -> str:
    """Reason why a policy cannot act within the bounds of a Box, or an empty text."""
    if not space.is_bounded():
        return "no bounds"
    with np.errstate(over="ignore"):
        width = (space.high - space.low).astype(np.float32)  # as the network computes with it
    if not np.isfinite(width).all():
        return "bounds further apart than its type or float32 can hold"
    return "" if (width > 0).all() else "no room within its bounds"
