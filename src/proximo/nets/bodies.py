"""Hidden layers: MLPs, convolutions over images, and encoders of nested observations."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from proximo.errors import UsageError
from proximo.nets.config import NetConfig
from proximo.nets.custom import Maker, OwnBody
from proximo.spaces import MASK, Leaf, Observations

_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "elu": nn.functional.elu}


def initialize(layer: nn.Linear | nn.Conv2d, gain: float) -> nn.Module:
    """Orthogonal weights with this gain, zero biases (Saxe et al. 2014)."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Fully connected layers, each with the activation. [..., inputs] -> [..., outputs]."""

    def __init__(
        self,
        inputs: int,
        hidden: tuple[int, ...],
        activation: str,
        orthogonal: bool,
        norm: str = "none",
    ) -> None:
        """norm: none, or layer: y = g (x - mean)/std + b of the outputs x of each layer."""
        super().__init__()
        widths = (inputs, *hidden)
        self.outputs = widths[-1]
        self.linears = tuple(nn.Linear(a, b) for a, b in pairwise(widths))
        """The layers, from the input upwards."""
        self.layers = nn.ModuleList(self.linears)
        if orthogonal:
            for layer in self.linears:
                initialize(layer, math.sqrt(2))
        self.norms = nn.ModuleList(map(nn.LayerNorm, hidden if norm == "layer" else ()))
        self.activation = activation
        self._activate = _ACTIVATIONS[activation]

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """x: [..., inputs], of which the last ones may be given separately, as `extra`."""
        if extra is not None:
            x = torch.cat([x, extra], -1)
        if self.norms:
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = self._activate(norm(layer(x)))
            return x
        for layer in self.layers:
            x = self._activate(layer(x))
        return x


def _mlp(inputs: int, net: NetConfig) -> MLP:
    return MLP(inputs, net.hidden, net.activation, net.orthogonal, net.norm)


NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel and stride of Mnih et al. 2015, for images of at least 36 pixels a side."""
SMALL = ((16, 3, 1), (32, 3, 1))
"""Channels, kernel and stride for smaller images, with a border of zeros."""


IMPALA = (16, 32, 32)
"""Channels of the stages of Espeholt et al. 2018, each of which halves the sides."""


def _convolution(
    channels: int, width: int, kernel: int, stride: int, border: int, net: NetConfig
) -> nn.Module:
    layer = nn.Conv2d(channels, width, kernel, stride, border)
    if net.orthogonal:
        initialize(layer, math.sqrt(2))
    # One group: mean and standard deviation over all cells and channels, as of a layer.
    return nn.Sequential(layer, nn.GroupNorm(1, width)) if net.norm == "layer" else layer


class ResidualStage(nn.Module):
    """A stage of the IMPALA network: a convolution, a maximum pool, and two residual blocks.

    Espeholt et al. 2018 (arXiv 1802.01561), figure 3. [B, C, H, W] -> [B, width, H/2, W/2].
    """

    def __init__(self, channels: int, width: int, net: NetConfig) -> None:
        super().__init__()
        inputs = (channels, width, width, width, width)
        self.layers = nn.ModuleList(_convolution(c, width, 3, 1, 1, net) for c in inputs)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.layers
        x = nn.functional.max_pool2d(first(x), 3, 2, 1)
        for one, other in zip(rest[::2], rest[1::2], strict=True):
            x = x + other(torch.relu(one(torch.relu(x))))
        return x


class Pixels(nn.Module):
    """Convolutions over an image of bytes. [..., *shape] -> [..., outputs].

    Its channels come first or last, or it has none; those of a stack of images all count. They
    stand extra two equal axes or, where it is not square, are the shorter of the outer two.
    """

    def __init__(self, shape: tuple[int, ...], net: NetConfig) -> None:
        super().__init__()
        self.shape = shape
        one = (1, *shape) if len(shape) == 2 else shape[-3:]
        first, middle, last = one
        square = (first == middle) != (middle == last)
        self.last = first == middle if square else last < first
        channels, high, wide = (last, first, middle) if self.last else one
        channels *= shape[0] if len(shape) == 4 else 1
        kind = net.cnn if net.cnn != "auto" else "nature" if min(high, wide) >= 36 else "small"
        if kind == "nature" and min(high, wide) < 36:
            raise UsageError(
                f"net.cnn is nature, which needs 36 pixels a side, but an image has {high} x "
                f"{wide}: use small or impala"
            )
        # With their channels together the large ones take two thirds of the time.
        self._layout = torch.contiguous_format if kind == "small" else torch.channels_last
        self._residual = kind == "impala"
        self._average = net.cnn_pool == "average"
        self.layers = nn.ModuleList()
        if self._residual:
            for width in IMPALA:
                self.layers.append(ResidualStage(channels, width, net))
                channels, high, wide = width, (high + 1) // 2, (wide + 1) // 2
        else:
            border = int(kind == "small")
            for width, kernel, stride in SMALL if border else NATURE:
                self.layers.append(_convolution(channels, width, kernel, stride, border, net))
                channels = width
                high, wide = ((n + 2 * border - kernel) // stride + 1 for n in (high, wide))
        self.outputs = channels * (1 if self._average else high * wide)

    def forward(self, image: Tensor) -> Tensor:
        lead = image.shape[: image.dim() - len(self.shape)]
        x = image.reshape(-1, *self.shape)
        if self.last:
            x = x.movedim(-1, -3)
        x = x.reshape(x.shape[0], -1, *x.shape[-2:])
        x = x.contiguous(memory_format=self._layout)  # while they are bytes
        x = x.to(next(self.parameters()).dtype) / 255
        for layer in self.layers:
            x = layer(x) if self._residual else torch.relu(layer(x))
        if self._residual:
            x = torch.relu(x)
        if self._average:
            x = x.mean((-2, -1))
        return x.reshape(*lead, self.outputs)


class Encoder(nn.Module):
    """An MLP over the numbers of an observation and the features of its images."""

    def __init__(self, row: Observations, leaves: list[Leaf], net: NetConfig, extra: int) -> None:
        super().__init__()
        self._alone = row.leaves[0].image if row.plain else None
        self._images = [(leaf.begin, leaf.end, leaf.image) for leaf in leaves if leaf.image]
        images = [Pixels(shape, net) for *_, shape in self._images]
        self.images = nn.ModuleList(images)
        numbers = [i for leaf in leaves if not leaf.image for i in range(leaf.begin, leaf.end)]
        self.columns = nn.Buffer(torch.tensor(numbers), persistent=False)
        width = len(numbers) + sum(image.outputs for image in images) + extra
        self.mlp = _mlp(width, net)
        self.outputs = self.mlp.outputs
        self.half_precision = False
        """Compute in bfloat16 (`torch.autocast`), with weights and outputs in single precision."""

    def forward(self, row: Tensor, extra: Tensor | None = None) -> Tensor:
        if not self.half_precision:
            return self._features(row, extra)
        with torch.autocast(row.device.type, torch.bfloat16):
            return self._features(row, extra).float()

    def _features(self, row: Tensor, extra: Tensor | None) -> Tensor:
        parts = [row[..., self.columns]] if len(self.columns) else []
        for image, (begin, end, shape) in zip(self.images, self._images, strict=True):
            alone = row if self._alone else row[..., begin:end].reshape(*row.shape[:-1], *shape)
            parts.append(image(alone))
        hidden: Tensor = self.mlp(torch.cat(parts, -1), extra)
        return hidden


class ActionCritic(nn.Module):
    """Q critic of actions: hidden layers over the user's own module and an action."""

    def __init__(self, own: OwnBody, net: NetConfig, extra: int) -> None:
        super().__init__()
        self.own = own
        self.mlp = _mlp(own.outputs + extra, net)
        self.outputs = self.mlp.outputs

    def forward(self, row: Tensor, extra: Tensor) -> Tensor:
        hidden: Tensor = self.mlp(self.own(row), extra)
        return hidden


def make_body(
    row: Observations,
    net: NetConfig,
    own: Maker | None,
    *,
    privileged: tuple[str, ...] = (),
    extra: int = 0,
) -> MLP | Encoder | OwnBody | ActionCritic:
    """Hidden layers for such observations, without those keys, and with extra inputs."""
    first = {leaf.keys[0] for leaf in row.leaves if leaf.path}
    for key in privileged:
        if key not in first:
            raise UsageError(
                f"net.privileged names {key!r}, but the observations have: "
                f"{', '.join(sorted(first)) or 'no keys'}"
            )
        if key == MASK:
            raise UsageError(
                f"net.privileged names {key!r}, which is never shown to the networks: leave it out"
            )
    seen = [leaf for leaf in row.leaves if leaf.begin < row.mask_begin]
    shown = [leaf for leaf in seen if not leaf.path or leaf.keys[0] not in privileged]
    if not shown:
        raise UsageError(f"net.privileged is {privileged}: that leaves the policy nothing to see")
    if own:
        body = OwnBody(own, row, net, privileged=privileged)
        return ActionCritic(body, net, extra) if extra else body
    if len(shown) == len(seen) and not any(leaf.image for leaf in seen):
        return _mlp(row.mask_begin + extra, net)
    return Encoder(row, shown, net, extra)
