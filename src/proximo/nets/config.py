"""The `net` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from proximo.bounds import above, at_least, between
from proximo.errors import UsageError, check_values, refuse_unused

_NO_CNN = ("no observation is an image", "net.module stands for the hidden layers")


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """The policy and value networks."""

    module: str = ""
    """Hidden layers of your own, module:Class, imported like an env of your own. They replace
    `hidden` and `activation`."""
    kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Arguments for the module's constructor, as KEY VALUE pairs."""
    hidden: Annotated[tuple[int, ...], at_least(1)] = (64, 64)
    """Widths of the hidden layers. Without any, the policy is linear."""
    critic_hidden: Annotated[tuple[int, ...] | None, at_least(1)] = None
    """Widths of the critic's hidden layers (separate trunks only); none: those of the policy."""
    activation: Literal["tanh", "relu", "elu"] = "tanh"
    """Nonlinearity after every hidden layer."""
    norm: Literal["none", "layer"] = "none"
    """Normalisation of every hidden layer before its nonlinearity, in actor and critic: none, or
    layer normalisation (Ba et al. 2016); of convolutions over all cells and channels."""
    cnn: Literal["auto", "nature", "small", "impala"] = "auto"
    """Convolutions over images: nature (Mnih et al. 2015; auto from 36 pixels a side), small (two
    layers; auto below), or impala, with residual blocks (Espeholt et al. 2018)."""
    cnn_pool: Literal["flatten", "average"] = "flatten"
    """End of the convolutions: flatten, every cell a feature; or average, the mean over all cells
    of each channel, with far fewer weights behind it (Trumpp et al. 2025)."""
    trunk: Literal["separate", "shared"] = "separate"
    """Hidden layers of actor and critic: separate, or one trunk that both share."""
    orthogonal: bool = True
    """Orthogonal initial weights, gains sqrt(2), `policy_gain` and 1; else PyTorch's default."""
    policy_gain: Annotated[float, above(0)] = 0.01
    """Gain of the last policy layer: small, so that the first policy hardly depends on states."""
    log_std: Annotated[float, between(-10, 2)] = 0.0
    """Initial log standard deviation of Gaussian actions (log sigma; 0 is sigma 1)."""
    std: Literal["free", "softplus", "gsde"] = "free"
    """Standard deviation of Gaussian actions: free parameters, the same in every state; or from
    the state, softplus of outputs of the network; or gSDE, noise that depends on the state."""
    gsde_steps: Annotated[int, at_least(1)] = 8
    """Steps for which gSDE keeps its noise; every rollout and played episode begins with new."""
    mean: Literal["linear", "tanh"] = "linear"
    """Mean of Gaussian actions: an output of the network, or its tanh, scaled to the bounds."""
    recurrent: Literal["none", "gru", "lstm"] = "none"
    """Recurrent layer after the hidden layers: none, a GRU or an LSTM."""
    recurrent_size: Annotated[int, at_least(1)] = 64
    """Width of the recurrent layer."""
    bptt_steps: Annotated[int, at_least(1)] = 16
    """Steps of truncated backpropagation through time: a longer episode is cut into segments, each
    of which begins with the recurrent state that the last one left."""
    action: Literal["clip", "squash", "beta"] = "clip"
    """Actions of a Box: Gaussian and clipped at the bounds, Gaussian through a tanh, or Beta."""
    privileged: tuple[str, ...] = ()
    """Keys of a Dict observation that only the critic sees (privileged, asymmetric critic)."""
    normalize_obs: bool = False
    """Standardise observations by their running mean and std, which belong to the policy."""
    obs_clip: Annotated[float, above(0)] = 10.0
    """Standardised observations are clipped at this many standard deviations."""
    normalize_returns: bool = False
    """Standardise the returns that the critic learns. Values are shown in units of the reward."""
    value_symlog: bool = False
    """The critic learns symlog(x) = sign(x) log(1 + |x|) of its targets (DreamerV3, Hafner et al.
    2023), for returns of any size. Values are shown in units of the reward."""
    value_bins: Annotated[int, at_least(0)] = 0
    """Bins of a histogram that the critic learns by cross-entropy, its mean being the value
    (HL-Gauss, Farebrother et al. 2024); 0: the critic learns a number."""
    value_range: tuple[float, float] = (-10.0, 10.0)
    """Centres of the first and the last bin, in what the critic learns: returns, or their symlog
    (10: returns up to 22,025). Targets beyond count as these."""
    value_sigma: Annotated[float, between(0, 100)] = 0.75
    """Standard deviation of the Gaussian that spreads a target over bins, in widths of a bin; 0:
    the two nearest bins share it (two-hot)."""

    def __post_init__(self) -> None:
        check_values("net", self)
        if self.module and ":" not in self.module:
            raise UsageError(f"net.module is {self.module!r}: write module:Class")
        if self.kwargs and not self.module:
            raise UsageError(
                f"net.kwargs is {self.kwargs}, but there is no net.module to be made with them"
            )
        if self.mean == "tanh" and self.action != "clip":
            raise UsageError(
                f"net.mean is tanh and net.action {self.action}: both bring actions within bounds, "
                "so use one of them"
            )
        if self.std == "gsde" and self.action == "beta":
            raise UsageError(
                "net.std is gsde, but net.action is beta, which has no std: use clip or squash"
            )
        if self.value_bins == 1:
            raise UsageError("net.value_bins is 1: a histogram has at least 2 bins, or 0 for none")
        if not self.value_range[0] < self.value_range[1]:
            raise UsageError(
                f"net.value_range is {self.value_range}: the first number must be the lower one"
            )
        for name in ("value_symlog", "value_bins"):
            if self.normalize_returns and (value := getattr(self, name)):
                raise UsageError(
                    f"net.normalize_returns is on and net.{name} is {value}: each has a scale of "
                    "its own for what the critic learns, so use one of them"
                )
        if self.privileged and self.trunk == "shared":
            raise UsageError(
                f"net.privileged is {self.privileged}, but net.trunk is shared: what only the "
                "critic sees needs layers of its own, --net.trunk separate"
            )

    def check_used(
        self, *, continuous: bool, images: bool, q_of_numbers: bool, critic: bool
    ) -> None:
        """Refuse settings that would do nothing in a new run. Raises `UsageError`.

        continuous: some actions are a Box. images: some observations are images. q_of_numbers: the
        critic takes actions beside the features. critic: a critic is learned.
        """
        of_critic = ("critic_hidden", "normalize_returns", "value_symlog", "value_bins")
        box = ("action", "mean", "std", "log_std", "gsde_steps")
        unused = [
            (not continuous, box, "no action is a Box"),
            (self.action == "beta", ("std", "log_std"), "net.action is beta"),
            (self.std != "gsde", ("gsde_steps",), f"net.std is {self.std}"),
            (self.recurrent == "none", ("recurrent_size", "bptt_steps"), "net.recurrent is none"),
            (not self.normalize_obs, ("obs_clip",), "net.normalize_obs is off"),
            (not self.orthogonal, ("policy_gain",), "net.orthogonal is off"),
            (self.trunk == "shared", ("critic_hidden",), "net.trunk is shared"),
            (not critic, of_critic, "algorithm.critic is off"),
            (not self.value_bins, ("value_range", "value_sigma"), "net.value_bins is 0"),
            (not (self.hidden or self.critic_hidden), ("activation",), "net.hidden is empty"),
            (not images or bool(self.module), ("cnn", "cnn_pool"), _NO_CNN[bool(self.module)]),
            (not (self.hidden or self.critic_hidden or images), ("norm",), "there is no layer"),
        ]
        if not (self.hidden or self.module or images or self.recurrent != "none"):
            unused.append((True, ("trunk",), "there is no layer to share"))
        if self.module:
            layers = ("critic_hidden", "hidden", "activation", "norm")
            used = layers if q_of_numbers else ()
            unused.append((not used, layers, "net.module stands for the hidden layers"))
        for without, names, why in unused:
            if without:
                refuse_unused("net", self, names, why)

    @property
    def of_critic(self) -> NetConfig:
        """Settings of the critic: these, with its own widths for the hidden layers."""
        return self if self.critic_hidden is None else replace(self, hidden=self.critic_hidden)
