"""The policy and its critic: act, evaluate, value; a head for every action space."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from proximo.functional.distributions import LOG_STD_MIN, Categorical, Distribution, Gaussian
from proximo.nets.bodies import MLP, initialize
from proximo.nets.config import NetConfig
from proximo.types import Moments, UsageError

SUPPORTED_ACTIONS = "Discrete and Box"
SUPPORTED_OBSERVATIONS = "Box of numbers with one axis"


class Evaluation(NamedTuple):
    """What the update needs to know of a batch. All [B]."""

    log_prob: Tensor
    entropy: Tensor | None
    value: Tensor
    distribution: Distribution


class CategoricalHead(nn.Module):
    """Logits of one of n actions."""

    def __init__(self, space: gym.spaces.Discrete) -> None:
        super().__init__()
        self.outputs = self.parameter_count = int(space.n)
        self.action_shape: tuple[int, ...] = ()
        self.taken_shape, self.taken_dtype = (), np.dtype(np.int64)
        self.start = int(space.start)

    def initialize(self, layer: nn.Linear) -> None:
        """What the last layer, whose weights are drawn already, needs besides: nothing."""

    def distribution(self, outputs: Tensor) -> Categorical:
        return Categorical.from_logits(outputs)

    def restore(self, parameters: Tensor) -> Categorical:
        """The distributions that have these `parameters`."""
        return Categorical(parameters)

    def noise(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """One uniform number per draw."""
        return torch.rand(shape, generator=generator)

    def to_env(self, action: Tensor) -> np.ndarray:
        """The action as the world takes it: counted from the start of its space."""
        numbers = action.cpu().numpy()
        shifted: np.ndarray = numbers + self.start if self.start else numbers
        return shifted


class GaussianHead(nn.Module):
    """Mean from the network; log deviation free, a parameter that does not depend on the state.

    Or a mean within bounds, m + h tanh x, with their middle m and half width h; or a deviation from
    the state, softplus y. x and y are outputs of the network.
    """

    def __init__(self, space: gym.spaces.Box, net: NetConfig) -> None:
        super().__init__()
        self.size = int(np.prod(space.shape))
        self.free, self.bounded = net.deviation == "free", net.mean == "tanh"
        self.outputs = self.size if self.free else 2 * self.size
        self.parameter_count = 2 * self.size
        self.action_shape: tuple[int, ...] = (self.size,)
        self.taken_shape, self.taken_dtype = space.shape, np.dtype(space.dtype)
        self.first_log_std = float(net.log_std)
        if self.free:
            self.log_std = nn.Parameter(torch.full((self.size,), self.first_log_std))
        self.low, self.high = space.low, space.high
        self.squash = net.action == "squash"
        for name, value in (("action", net.action), ("mean", net.mean)):
            if value in ("squash", "tanh") and not space.is_bounded():
                raise UsageError(
                    f"net.{name} is {value}, but {space} has no bounds: "
                    f"use {'clip' if name == 'action' else 'linear'}"
                )
        if self.bounded:
            low, high = (torch.from_numpy(b.reshape(-1)).double() for b in (space.low, space.high))
            self.register_buffer("middle", ((low + high) / 2).float(), persistent=False)
            self.register_buffer("reach", ((high - low) / 2).float(), persistent=False)
            self.middle: Tensor
            self.reach: Tensor

    @torch.no_grad()
    def initialize(self, layer: nn.Linear) -> None:
        """Let a deviation from the state begin at exp(log_std), as a free one does."""
        if not self.free:
            layer.bias[self.size :] = math.log(math.expm1(math.exp(self.first_log_std)))

    def distribution(self, outputs: Tensor) -> Gaussian:
        mean = outputs[..., : self.size]
        if self.bounded:
            mean = self.middle + self.reach * torch.tanh(mean)
        if self.free:
            return Gaussian.from_parameters(mean, self.log_std)
        # Bounded before the logarithm, whose slope at 0 would make the gradient NaN.
        std = nn.functional.softplus(outputs[..., self.size :]).clamp(min=math.exp(LOG_STD_MIN))
        return Gaussian.from_parameters(mean, std.log())

    def restore(self, parameters: Tensor) -> Gaussian:
        """The distributions that have these `parameters`."""
        return Gaussian(parameters[..., : self.size], parameters[..., self.size :])

    def noise(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """One normal number per dimension of the action."""
        return torch.randn((*shape, self.size), generator=generator)

    def to_env(self, action: Tensor) -> np.ndarray:
        """The action as the world takes it: in its shape, type and bounds."""
        low, high = self.low, self.high
        numbers = action.cpu().numpy().reshape(*action.shape[:-1], *low.shape)
        if self.squash:
            numbers = low + (np.tanh(numbers) + 1) / 2 * (high - low)
        within: np.ndarray = np.clip(numbers, low, high).astype(self.taken_dtype)
        return within


def make_head(space: gym.Space[Any], net: NetConfig) -> CategoricalHead | GaussianHead:
    """The head for an action space, or `UsageError` with the spaces that are supported."""
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalHead(space)
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return GaussianHead(space, net)
    raise UsageError(f"the action space is {space}: supported are {SUPPORTED_ACTIONS} (of floats)")


def _check_observations(space: gym.Space[Any]) -> None:
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise UsageError(
            f"the observation space is {space}: supported is {SUPPORTED_OBSERVATIONS}. "
            "gymnasium.wrappers.FlattenObservation makes one of most others"
        )


class ActorCritic(nn.Module):
    """π(a|s) and V(s) from vectors of numbers.

    Whatever the policy needs to act is a parameter or buffer of it, running moments of the
    observations included: a policy that is saved is saved whole.
    """

    def __init__(
        self,
        obs_space: gym.Space[Any],
        action_space: gym.Space[Any],
        net: NetConfig,
        *,
        action_values: bool = False,
    ) -> None:
        """`action_values`: the critic judges actions, Q(s,a), and not states, V(s)."""
        super().__init__()
        _check_observations(obs_space)
        inputs = int(np.prod(obs_space.shape or ()))
        self.obs_shape = tuple(obs_space.shape or ())
        self.head = make_head(action_space, net)
        self.action_values = action_values
        # Q(s,a) is an output per discrete action; a continuous one stands beside the observation.
        self._indexed = action_values and isinstance(self.head, CategoricalHead)
        judged = self.head.size if action_values and isinstance(self.head, GaussianHead) else 0
        self.actor = MLP(inputs, net.hidden, net.activation, net.orthogonal)
        self.critic = (  # None: the trunk is shared
            None
            if net.trunk == "shared"
            else MLP(inputs + judged, net.hidden, net.activation, net.orthogonal)
        )
        self.logits = nn.Linear(net.hidden[-1], self.head.outputs)
        self.baseline = nn.Linear(net.hidden[-1], self.head.outputs if self._indexed else 1)
        if net.orthogonal:
            initialize(self.logits, net.policy_gain)
            initialize(self.baseline, 1.0)
        self.head.initialize(self.logits)
        self.normalize_obs = net.normalize_obs
        self.normalize_returns = net.normalize_returns
        self.obs_clip = net.obs_clip
        self.register_buffer("obs_shift", torch.zeros(self.obs_shape))
        self.register_buffer("obs_scale", torch.ones(self.obs_shape))
        self.register_buffer("return_shift", torch.zeros(()))
        self.register_buffer("return_scale", torch.ones(()))
        self.obs_shift: Tensor
        self.obs_scale: Tensor
        self.return_shift: Tensor
        self.return_scale: Tensor

    @property
    def device(self) -> torch.device:
        return self.obs_shift.device

    @property
    def dtype(self) -> torch.dtype:
        return self.baseline.weight.dtype

    def actor_parameters(self) -> list[nn.Parameter]:
        """The parameters behind π; with a shared trunk they include the trunk."""
        return [*self.actor.parameters(), *self.logits.parameters(), *self.head.parameters()]

    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters behind V alone."""
        own_trunk = list(self.critic.parameters()) if self.critic else []
        return [*own_trunk, *self.baseline.parameters()]

    def inputs(self, obs: Tensor) -> Tensor:
        """Observations as the networks take them: standardised, if they are."""
        if not self.normalize_obs:
            return obs
        return ((obs - self.obs_shift) * self.obs_scale).clamp(-self.obs_clip, self.obs_clip)

    def _value(self, features: Tensor) -> Tensor:
        return self._in_units(self.baseline(features).squeeze(-1))

    def _in_units(self, value: Tensor) -> Tensor:
        return self.return_shift + self.return_scale * value if self.normalize_returns else value

    def distribution(self, obs: Tensor) -> Distribution:
        """π(·|s). obs: [..., *obs]."""
        return self._policy(self.actor(self.inputs(obs)))

    def _policy(self, features: Tensor) -> Distribution:
        return self.head.distribution(self.logits(features))

    def act(self, obs: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Distribution]:
        """An action per row, from this noise or, without any, the most likely one.

        obs: [N, *obs]; returns the action [N, *act] and the distribution that it came from. Call
        it under `torch.inference_mode()` or `torch.no_grad()`, entered once and not at every step.
        """
        distribution = self.distribution(obs)
        return (distribution.mode() if noise is None else distribution.sample(noise)), distribution

    def evaluate(self, obs: Tensor, action: Tensor, *, entropy: bool) -> Evaluation:
        """Log π(a|s), V(s) or Q(s,a), and the entropy of π(·|s) if asked for. obs: [B, *obs]."""
        inputs = self.inputs(obs)
        features = self.actor(inputs)
        distribution = self._policy(features)
        if self.action_values:
            value = self._action_value(inputs, action)
        else:
            value = self._value(self.critic(inputs) if self.critic else features)
        return Evaluation(
            distribution.log_prob(action),
            distribution.entropy() if entropy else None,
            value,
            distribution,
        )

    def value(self, obs: Tensor) -> Tensor:
        """V(s) in units of the reward. obs: [B, *obs]; returns [B].

        With a critic of actions, Q(s,a) of the most likely action.
        """
        if self.action_values:
            return self.action_value(obs, self.distribution(obs).mode())
        return self._value((self.critic or self.actor)(self.inputs(obs)))

    def action_value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q(s,a) in units of the reward. obs: [B, *obs], action: [B, *act]; returns [B]."""
        return self._action_value(self.inputs(obs), action)

    def _action_value(self, inputs: Tensor, action: Tensor) -> Tensor:
        assert self.action_values, "this critic judges states, not actions"
        assert self.critic is not None, "a critic of actions has hidden layers of its own"
        if not self._indexed:
            return self._value(self.critic(torch.cat([inputs, action], -1)))
        values = self.baseline(self.critic(inputs))
        return self._in_units(values.gather(-1, action.unsqueeze(-1)).squeeze(-1))

    @torch.no_grad()
    def set_obs_moments(self, moments: Moments) -> None:
        """Standardise observations by these moments from now on."""
        self.obs_shift.copy_(moments.mean)
        self.obs_scale.copy_(torch.rsqrt(moments.var + 1e-8))

    @torch.no_grad()
    def set_return_moments(self, moments: Moments) -> None:
        """Standardise returns by these moments from now on, every V(s) staying what it was.

        With V = m + s (w·x + b), the new w' = w s/s', b' = (s b + m - m')/s' (van Hasselt et al.
        2016, arXiv 1602.07714, "preserving outputs precisely").
        """
        shift, scale = self.return_shift.clone(), self.return_scale.clone()
        self.return_shift.copy_(moments.mean)
        self.return_scale.copy_((moments.var + 1e-8).sqrt())
        self.baseline.weight.mul_(scale / self.return_scale)
        bias = (scale * self.baseline.bias + shift - self.return_shift) / self.return_scale
        self.baseline.bias.copy_(bias)
