"""Hidden layers."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "elu": nn.functional.elu}


def initialize(layer: nn.Linear, gain: float) -> nn.Linear:
    """Orthogonal weights with this gain, zero biases (Saxe et al. 2014)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Fully connected layers, each with the activation. [..., inputs] -> [..., hidden[-1]]."""

    def __init__(
        self, inputs: int, hidden: tuple[int, ...], activation: str, orthogonal: bool
    ) -> None:
        super().__init__()
        widths = (inputs, *hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        if orthogonal:
            for layer in self.layers:
                initialize(layer, math.sqrt(2))  # type: ignore[arg-type]
        self.activation = activation
        self._activate = _ACTIVATIONS[activation]

    def linears(self) -> list[nn.Linear]:
        """The layers, from the input upwards."""
        return list(self.layers)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self._activate(layer(x))
        return x
