"""The policy and its critic: act, evaluate, value."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from proximo.errors import UsageError
from proximo.functional.distributions import Distribution
from proximo.nets.bodies import Encoder, initialize, make_body
from proximo.nets.config import NetConfig
from proximo.nets.custom import Maker, OwnBody
from proximo.nets.heads import CategoricalHead, make_head
from proximo.nets.recurrent import Recurrent
from proximo.nets.values import ValueScale
from proximo.spaces import Actions, Observations, check_masks
from proximo.types import Moments, Segments


class Evaluation(NamedTuple):
    """The policy and the critic on a batch. All [B], except `recurrent_state`."""

    log_prob: Tensor
    entropy: Tensor | None
    value: Tensor  # or [0], where it was left out
    distribution: Distribution
    recurrent_state: Tensor | None = None  # [S, C] after each segment
    value_logits: Tensor | None = None  # [B, K] of a critic with bins


class ActorCritic(nn.Module):
    """π(a|s) and V(s) from rows of numbers, as `proximo.spaces.Observations` lays them out.

    Whatever the policy needs to act is a parameter or buffer of it, running moments of the
    observations included: a policy that is saved is saved whole.
    """

    def __init__(
        self,
        obs_space: gym.Space[Any],
        action_space: gym.Space[Any],
        net: NetConfig,
        *,
        q_critic: bool = False,
        own: Maker | None = None,
    ) -> None:
        """q_critic: the critic estimates Q(s,a), not V(s). own: makes what `net.module` names."""
        super().__init__()
        self.observations = seen = Observations(obs_space)
        self.actions = Actions(action_space)
        self.obs_shape = seen.shape
        actor = make_body(seen, net, own, privileged=net.privileged)
        width = net.recurrent_size if net.recurrent != "none" else actor.outputs
        self.head = make_head(action_space, net, width)
        self.actor = actor
        self.masked, self.own = seen.mask_begin < seen.width, own is not None
        check_masks(seen.masks, action_space)
        self.q_critic = q_critic
        # Q(s,a) is an output per discrete action; any other stands beside the observation.
        self._indexed = q_critic and isinstance(self.head, CategoricalHead)
        extra = self.head.feature_count if q_critic and not self._indexed else 0
        separate = net.trunk != "shared"
        # The critic sees the privileged observations too.
        self.critic = make_body(seen, net.of_critic, own, extra=extra) if separate else None
        value_inputs = (self.critic or self.actor).outputs
        self.actor_recurrent = self.critic_recurrent = None
        if net.recurrent != "none":
            size = (net.recurrent_size, net.orthogonal)
            self.actor_recurrent = Recurrent(net.recurrent, self.actor.outputs, *size)
            if self.critic:
                self.critic_recurrent = Recurrent(net.recurrent, value_inputs, *size)
            value_inputs = net.recurrent_size
        cells = [cell for cell in (self.actor_recurrent, self.critic_recurrent) if cell]
        self.state_size = sum(cell.state_size for cell in cells)
        """C, size of the recurrent state of an env, the actor's part first; 0 without one."""
        self.bptt_steps = net.bptt_steps
        self.logits = nn.Linear(width, self.head.outputs)
        self.value_scale = ValueScale(net)
        outputs = self.head.outputs if self._indexed else max(1, net.value_bins)
        self.baseline = nn.Linear(value_inputs, outputs)
        self._initialize(net)
        self.precision = 1e-5
        """Relative difference of the same numbers from batches of other sizes, at most."""
        self.normalize_obs, self.obs_clip = net.normalize_obs, net.obs_clip
        self.normalize_returns = net.normalize_returns
        if net.normalize_obs and not seen.measured.any():
            raise UsageError(
                f"net.normalize_obs is on, but nothing in {obs_space} is a measurement: turn it off"
            )
        measured = nn.Buffer(torch.from_numpy(seen.measured), persistent=False)
        self.measured: Tensor | None = None if seen.measured.all() else measured
        self.obs_shift = nn.Buffer(torch.zeros(self.obs_shape))
        self.obs_scale = nn.Buffer(torch.ones(self.obs_shape))
        self.return_shift = nn.Buffer(torch.zeros(()))
        self.return_scale = nn.Buffer(torch.ones(()))

    def _initialize(self, net: NetConfig) -> None:
        """The first weights of the layers that put out the policy and the value."""
        if net.orthogonal:
            initialize(self.logits, net.policy_gain)
            initialize(self.baseline, 1.0)
        if net.value_bins:  # as in DreamerV3: the value begins in the middle, whatever is seen
            nn.init.zeros_(self.baseline.weight)
            nn.init.zeros_(self.baseline.bias)
        self.head.initialize(self.logits.bias)

    @property
    def device(self) -> torch.device:
        return self.obs_shift.device

    @property
    def dtype(self) -> torch.dtype:
        return self.baseline.weight.dtype

    def compute_in(self, dtype: str) -> None:
        """Numbers of the layers over images, float32 or bfloat16. Raises `UsageError` for none."""
        encoders = [module for module in self.modules() if isinstance(module, Encoder)]
        if dtype == "bfloat16" and not encoders:
            raise UsageError(
                "run.dtype is bfloat16, which is for Proximo's layers over images, and there are "
                "none: leave it out"
            )
        for encoder in encoders:
            encoder.half_precision = dtype == "bfloat16"
        self.precision = 2**-5 if dtype == "bfloat16" else 1e-5

    def actor_parameters(self) -> list[nn.Parameter]:
        """The parameters behind π; with a shared trunk they include the trunk."""
        return _trainable(self.actor, self.actor_recurrent, self.logits, self.head)

    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters behind V alone."""
        return _trainable(self.critic, self.critic_recurrent, self.baseline)

    def check_own(self, obs: Tensor) -> None:
        """Check that modules of the user's own can learn from these. Raises `UsageError`."""
        bodies = [module for module in self.modules() if isinstance(module, OwnBody)]
        parts = [id(p) for body in bodies for p in body.parameters()]
        if len(set(parts)) < len(parts):
            raise UsageError(
                f"net.module is {bodies[0].name}, which gave actor and critic the same layers: "
                "make new ones each time, or use --net.trunk shared"
            )
        for body in bodies:
            body.check(self.inputs(obs))

    def inputs(self, obs: Tensor) -> Tensor:
        """Observations as the networks take them: standardised if they are, without the mask."""
        if self.normalize_obs:
            x = ((obs - self.obs_shift) * self.obs_scale).clamp(-self.obs_clip, self.obs_clip)
            obs = x if self.measured is None else torch.where(self.measured, x, obs)
        return obs[..., : self.observations.mask_begin] if self.masked else obs

    def as_rows(self, rows: Any) -> Tensor:
        """Rows of observations on its device and in its type; images stay bytes."""
        images = rows.dtype in (np.uint8, torch.uint8)
        return torch.as_tensor(rows, dtype=None if images else self.dtype, device=self.device)

    def stuck(self, obs: np.ndarray) -> np.ndarray:
        """True where the mask allows no action. obs: [..., *obs]; returns [...] bool."""
        if not self.masked:
            return np.zeros(len(obs), bool)
        begins = np.cumsum([0, *self.head.num_logits[:-1]])
        legal = obs[..., self.observations.mask_begin :] > 0.5
        some = np.logical_or.reduceat(legal, begins, -1)
        return np.logical_not(some.all(-1))

    def _value(
        self, features: Tensor, action: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Values in units of the reward, and the logits of their histograms, if there are any."""
        outputs: Tensor = self.baseline(features)
        if self._indexed and action is not None:
            outputs = outputs.gather(-1, action.unsqueeze(-1))
        value = self.value_scale.value(outputs)
        if self.normalize_returns:
            value = self.return_shift + self.return_scale * value
        return value, outputs if self.value_scale.bins else None

    def distribution(self, obs: Tensor, segments: Segments | None = None) -> Distribution:
        """π(·|s). obs: [..., *obs]; of a recurrent policy [B, *obs], in these segments."""
        return self._policy(self._features(obs, segments), obs)

    def draw(self, obs: Tensor, noise: Tensor, segments: Segments | None = None) -> Tensor:
        """An action of π(·|s) per row, from this noise. obs: as for `distribution`."""
        features = self._features(obs, segments)
        return self._policy(features, obs).sample(self.head.effective_noise(noise, features))

    def _features(self, obs: Tensor, segments: Segments | None) -> Tensor:
        features = self.actor(self.inputs(obs))
        return self._recur(self.actor_recurrent, features, segments)[0]

    def _policy(self, features: Tensor, obs: Tensor) -> Distribution:
        legal = self.observations.legal(obs)
        return self.head.distribution(self.logits(features), legal, features)

    def _recur(
        self, cell: Recurrent | None, features: Tensor, segments: Segments | None
    ) -> tuple[Tensor, Tensor | None]:
        """Features behind the recurrent cell and its state after each segment, if there is one."""
        if cell is None:
            return features, None
        assert segments is not None, "a recurrent policy is evaluated by segments"
        first = 0 if cell is self.actor_recurrent else self.state_size - cell.state_size
        own = segments.initial_state[:, first : first + cell.state_size]
        recurred: tuple[Tensor, Tensor] = cell(features, segments._replace(initial_state=own))
        return recurred

    def act(
        self, obs: Tensor, noise: Tensor | None = None, recurrent_state: Tensor | None = None
    ) -> tuple[Tensor, Distribution, Tensor | None]:
        """An action per row, from this noise or, without any, the most likely one.

        obs: [N, *obs]; returns the action [N, *act], its distribution and, of a recurrent policy,
        the state [N, C] after it, in which the critic's part stays. Call it under
        `torch.inference_mode()` or `torch.no_grad()`, entered once and not at every step.
        """
        features = self.actor(self.inputs(obs))
        if self.actor_recurrent:
            assert recurrent_state is not None, "a recurrent policy acts on its state"
            size = self.actor_recurrent.state_size
            features, moved = self.actor_recurrent.step(features, recurrent_state[:, :size])
            rest = recurrent_state[:, size:]
            recurrent_state = torch.cat([moved, rest], -1) if self.critic_recurrent else moved
        distribution = self._policy(features, obs)
        if noise is None:
            return distribution.mode(), distribution, recurrent_state
        noise = self.head.effective_noise(noise, features)
        return distribution.sample(noise), distribution, recurrent_state

    def evaluate(
        self, obs: Tensor, action: Tensor, *, entropy: bool, segments: Segments | None = None
    ) -> Evaluation:
        """Log π(a|s), V(s) or Q(s,a) and, on demand, the entropy. obs: [B, *obs], in `segments`."""
        inputs = self.inputs(obs)
        parts = [self._recur(self.actor_recurrent, self.actor(inputs), segments)]
        if self.critic:
            parts.append(self._critic_features(inputs, action, segments))
        states = [state for _, state in parts if state is not None]
        distribution = self._policy(parts[0][0], obs)
        value, logits = self._value(parts[-1][0], action)
        return Evaluation(
            distribution.log_prob(action),
            distribution.entropy() if entropy else None,
            value,
            distribution,
            torch.cat(states, -1) if states else None,
            logits,
        )

    def _critic_features(
        self, inputs: Tensor, action: Tensor | None, segments: Segments | None
    ) -> tuple[Tensor, Tensor | None]:
        """The critic's own features (of an action too, for Q) and its recurrent states."""
        assert self.critic is not None
        extra: tuple[Tensor, ...] = ()
        if action is not None and self.q_critic and not self._indexed:
            extra = (self.head.features(action),)
        return self._recur(self.critic_recurrent, self.critic(inputs, *extra), segments)

    def value(self, obs: Tensor, segments: Segments | None = None) -> Tensor:
        """V(s), or Q(s,a) of the likeliest a, in units of the reward. obs: [B, *obs] -> [B]."""
        if self.q_critic:
            return self.action_value(obs, self.distribution(obs, segments).mode(), segments)
        return self.judge(obs, segments)[0]

    def judge(self, obs: Tensor, segments: Segments | None = None) -> tuple[Tensor, Tensor | None]:
        """V(s), as `value`, and the logits of its histogram, if there is one: [B] and [B, K]."""
        if self.critic:
            return self._value(self._critic_features(self.inputs(obs), None, segments)[0])
        return self._value(self._features(obs, segments))

    def action_value(self, obs: Tensor, action: Tensor, segments: Segments | None = None) -> Tensor:
        """Q(s,a) in units of the reward. obs: [B, *obs], action: [B, *act]; returns [B]."""
        assert self.q_critic, "this critic is one of states, V(s)"
        features = self._critic_features(self.inputs(obs), action, segments)[0]
        return self._value(features, action)[0]

    @torch.no_grad()
    def set_obs_moments(self, moments: Moments) -> None:
        """Standardise observations by these moments from now on."""
        shift, scale = moments.mean, torch.rsqrt(moments.var + 1e-8)
        if self.measured is not None:
            shift, scale = shift * self.measured, torch.where(self.measured, scale, 1.0)
        self.obs_shift.copy_(shift)
        self.obs_scale.copy_(scale)

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


def _trainable(*modules: nn.Module | None) -> list[nn.Parameter]:
    """Parameters of these modules, without those that the user has frozen."""
    return [p for module in modules if module for p in module.parameters() if p.requires_grad]
