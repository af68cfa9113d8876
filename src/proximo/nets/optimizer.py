"""Adam, RMSprop or SGD on flat vectors, in which a network's parameters are views."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_RECORDS = {"adam": ("step", "exp_avg", "exp_avg_sq"), "rmsprop": ("step", "square_avg"), "sgd": ()}


class FlatOptimizer:
    """One flat vector of parameters per learning rate.

    A step on one vector launches a few kernels; on the dozen tensors of a small network it
    launches dozens, which take longer than the arithmetic. Values, gradients and the modules' views
    of them are unchanged. PyTorch's optimizer is made at the first step, since importing it takes
    a second and the native engine does not need it.
    """

    alpha = 0.99

    def __init__(
        self, groups: list[list[nn.Parameter]], kind: str, eps: float, betas: tuple[float, float]
    ) -> None:
        """kind: adam, rmsprop or sgd. eps: added to the denominator of the first two."""
        self.kind, self.eps, self.betas = kind, eps, betas
        self.flats = [_flatten(group) for group in groups]
        self.gradients = [flat.grad for flat in self.flats if flat.grad is not None]
        self._views = [[(parameter, parameter.grad) for parameter in group] for group in groups]
        self.rates: list[float | Tensor] = [0.0] * len(groups)
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
        self._torch: list[torch.optim.Optimizer] = []

    def zero_grad(self, *which: int) -> None:
        """Zero the gradients of every vector, or of these; the parameters' are views of them again.

        Another optimizer's `zero_grad`, a callback's, has removed those: then no gradient arrives.
        """
        for index in which or range(len(self.flats)):
            self.gradients[index].zero_()
            for parameter, gradient in self._views[index]:
                parameter.grad = gradient

    def step(self, *which: int) -> None:
        """Move every vector, or these, along its gradient, by PyTorch's optimizer."""
        self._torch = self._torch or [self._make(flat) for flat in self.flats]
        for index in which or range(len(self.flats)):
            optimizer = self._torch[index]
            optimizer.param_groups[0]["lr"] = self.rates[index]
            optimizer.state[self.flats[index]] = self.records[index]
            optimizer.step()

    def reset(self, *, moments: bool) -> None:
        """Begin to count Adam's steps anew, t = 0; with `moments`, forget its gradients too."""
        for record in self.records:
            for name, tensor in record.items():
                if moments or name == "step":
                    tensor.zero_()

    def weights(self) -> Tensor:
        """All parameters, copied. [P]."""
        return torch.cat([flat.detach().reshape(-1) for flat in self.flats])

    @torch.no_grad()
    def set_weights(self, weights: Tensor) -> None:
        """Put these parameters, [P], in the place of its own: modules and engines see them."""
        sizes = [flat.numel() for flat in self.flats]
        for flat, own in zip(self.flats, torch.split(weights, sizes), strict=True):
            flat.copy_(own)

    def tensors(self) -> dict[str, Tensor]:
        """Running moments of the gradients and step counts, by their names in a checkpoint."""
        return {
            f"optimizer.{index}.{name}": tensor
            for index, record in enumerate(self.records)
            for name, tensor in record.items()
        }

    def _make(self, flat: nn.Parameter) -> torch.optim.Optimizer:
        on_gpu = flat.is_cuda  # where a step may be recorded, with its rate in a tensor
        if self.kind == "adam":
            return torch.optim.Adam(
                [flat], eps=self.eps, betas=self.betas, fused=True, capturable=on_gpu
            )
        if self.kind == "rmsprop":
            return torch.optim.RMSprop([flat], eps=self.eps, alpha=self.alpha, capturable=on_gpu)
        return torch.optim.SGD([flat], fused=True if on_gpu else None)


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


def clip_gradient(gradients: list[Tensor], max_norm: float | None) -> Tensor:
    """G <- g min(1, max_norm/|g|), over all vectors. Returns |g| before, on the device."""
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    norm: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if max_norm is not None:
        scale = max_norm / norm.clamp(min=max_norm)
        for gradient in gradients:
            gradient.mul_(scale)
    return norm
