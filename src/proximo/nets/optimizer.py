"""Adam, RMSprop or SGD on flat vectors, in which a network's parameters are views."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_RECORDS = {"adam": ("step", "exp_avg", "exp_avg_sq"), "rmsprop": ("step", "square_avg"), "sgd": ()}


class FlatOptimizer:
    """One flat vector of parameters per learning rate.

    A step on one vector of P numbers costs a few kernels; on the dozen tensors of a small network
    it costs a few dozen, more than the arithmetic. Values, gradients and what the modules see of
    them are unchanged. PyTorch's optimizer is made when it is first needed: that takes a second,
    and the native engine does without.
    """

    betas = (0.9, 0.999)
    alpha = 0.99

    def __init__(self, groups: list[list[nn.Parameter]], kind: str, eps: float) -> None:
        """kind: adam, rmsprop or sgd. eps: added to the denominator of the first two."""
        self.kind, self.eps = kind, eps
        self.flats = [_flatten(group) for group in groups]
        self.rates = [0.0] * len(groups)
        # What PyTorch keeps for each vector, under its names.
        self.records: list[dict[str, Tensor]] = [
            {
                name: torch.zeros((), dtype=torch.float32, device=flat.device)
                if name == "step"
                else torch.zeros_like(flat)
                for name in _RECORDS[kind]
            }
            for flat in self.flats
        ]
        self._torch: torch.optim.Optimizer | None = None

    def step(self) -> None:
        """Move every vector along its gradient, by PyTorch's optimizer."""
        self._torch = self._torch or self._make()
        for flat, group, rate, record in zip(
            self.flats, self._torch.param_groups, self.rates, self.records, strict=True
        ):
            group["lr"] = rate
            self._torch.state[flat] = record
        self._torch.step()

    def _make(self) -> torch.optim.Optimizer:
        groups = [{"params": [flat]} for flat in self.flats]
        if self.kind == "adam":
            return torch.optim.Adam(groups, eps=self.eps, betas=self.betas, fused=True)
        if self.kind == "rmsprop":
            return torch.optim.RMSprop(groups, eps=self.eps, alpha=self.alpha)
        return torch.optim.SGD(groups)


def _flatten(parameters: list[nn.Parameter]) -> nn.Parameter:
    flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
    flat.grad = torch.zeros_like(flat)
    sizes = [p.numel() for p in parameters]
    pieces = zip(
        parameters, torch.split(flat.data, sizes), torch.split(flat.grad, sizes), strict=True
    )
    for parameter, values, gradient in pieces:
        parameter.data = values.view_as(parameter)
        parameter.grad = gradient.view_as(parameter)
    return flat
