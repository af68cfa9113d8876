"""A module of the user's own in the place of the hidden layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proximo.errors import UsageError, explained
from proximo.nets.config import NetConfig
from proximo.spaces import MASK, Leaf, Observations, nest, parts_of, plain_key

Maker = Callable[..., Any]
"""Constructor of the module, from the observation space and `net.kwargs`: usually its class."""
EXAMPLES = 4
"""Number of observations, drawn from the space, by which the features are counted."""


class OwnBody(nn.Module):
    """Observations, as the env gives them, to features: f(s), [B, F].

    The module is made with the space of what it is shown, without the action mask and, for the
    policy, without `net.privileged`. It is called with a batch of that: a tensor [B, ...] or,
    where the space is nested, a dict or tuple of them. A Discrete part is a one-hot [B, n], a
    MultiDiscrete one its one-hots side by side, an image its bytes; everything else is floats.

    It acts and learns in evaluation mode, so that what acted is what is judged: dropout does
    nothing, and layers that need the other mode are refused.
    """

    def __init__(
        self, make: Maker, row: Observations, net: NetConfig, *, privileged: tuple[str, ...] = ()
    ) -> None:
        """Raises `UsageError` for a module that is none, or that returns something else."""
        super().__init__()
        self.name = net.module
        self._row = row
        self._leaves = [
            leaf
            for leaf in row.leaves
            if leaf.begin < row.mask_begin and not (leaf.path and leaf.keys[0] in privileged)
        ]
        shown = self._shown = _without(row.space, (MASK, *privileged))
        if isinstance(shown, spaces.Dict):
            shown = spaces.Dict(dict(shown.spaces))  # sorted by Gymnasium
        with explained(f"net.module is {self.name}, which cannot be made"):
            module = make(shown, **net.kwargs)
        if not isinstance(module, nn.Module):
            raise self._fault(f"gave {module!r}: it must give a torch.nn.Module")
        self.module = module
        self._check_layers()
        self.eval()
        self.outputs = self._count()
        """F, the number of features."""

    def train(self, mode: bool = True) -> OwnBody:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, row: Tensor) -> Tensor:
        """row: [..., *obs], of which the mask may have been cut off; returns [..., F]."""
        lead = row.shape[: row.dim() - len(self._row.shape)]
        flat = row.reshape(-1, *row.shape[len(lead) :])
        features: Tensor = self.module(self._nested(flat))
        return features.reshape(*lead, -1)

    def _nested(self, row: Tensor) -> Any:
        """Rows of a batch as the env would give it."""
        leaves = iter(self._leaves)
        return nest(self._shown, lambda: self._part(next(leaves), row))

    def _part(self, leaf: Leaf, row: Tensor) -> Tensor:
        part = row if self._row.plain else row[:, leaf.begin : leaf.end]
        if isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete):
            return part
        kind = torch.uint8 if leaf.image else next(self.parameters()).dtype
        return part.to(kind).reshape(row.shape[0], *(leaf.space.shape or ()))

    def _check_layers(self) -> None:
        if not any(True for _ in self.module.parameters()):
            raise self._fault(
                "has no parameters to learn: layers must be attributes of it, or stand in an "
                "nn.ModuleList or nn.ModuleDict"
            )
        for name, layer in self.module.named_modules():
            if isinstance(layer, _BatchNorm):
                raise self._fault(
                    f"holds {name or 'nothing but'} {type(layer).__name__}: a policy acts on a few "
                    "observations and learns from many, so what it does in one state must not "
                    "depend on the others. Use nn.LayerNorm, or --net.normalize-obs"
                )
            if isinstance(layer, nn.MultiheadAttention | nn.TransformerEncoderLayer):
                # Its fast path, taken only where no gradient is needed, fills what a mask hides
                # with other numbers: what acted would not be what is judged.
                torch.backends.mha.set_fastpath_enabled(False)

    @torch.no_grad()
    def _count(self) -> int:
        examples = torch.from_numpy(self._row.examples(EXAMPLES)).to(torch.get_default_dtype())
        failed = f"failed on {EXAMPLES} observations drawn from {self._row.space}"
        with explained(f"net.module is {self.name}, which {failed}"):
            found = self.module(self._nested(examples))
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != EXAMPLES:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise self._fault(
                f"gave {what} for {EXAMPLES} observations: it must give a tensor ({EXAMPLES}, F), "
                "a row of features for each"
            )
        if not found.shape[1]:
            raise self._fault(f"gave {tuple(found.shape)}, no features: it must give at least one")
        if found.dtype != torch.get_default_dtype():
            raise self._fault(
                f"gave features of {found.dtype}: they must be {torch.get_default_dtype()}"
            )
        return found.shape[1]

    def check(self, obs: Tensor) -> None:
        """Raise `UsageError` for a module that cannot learn from these observations, [N, *obs]."""
        others = torch.from_numpy(self._row.examples(EXAMPLES)).to(obs)
        others = others[..., : obs.shape[-1]]  # without the mask
        with torch.no_grad():
            first, among = self(obs), self(torch.cat([others, obs]))[EXAMPLES:]
        with torch.enable_grad():
            again = self(obs)
        if not torch.isfinite(first).all():
            raise self._fault(
                "gave features that are not finite for the env's first observations: look for a "
                "division by zero, or a softmax over nothing"
            )
        if not _close(again, first):
            raise self._fault(
                "gave other features for the same observations the second time: dropout, noise and "
                "what it remembers must be left out, for what acted must be what is judged"
            )
        if not _close(among, first):
            raise self._fault(
                "gives an observation other features where others stand beside it in the batch: "
                "each row must be computed from itself alone"
            )
        learned = [p for p in self.module.parameters() if p.requires_grad]
        if learned and not again.requires_grad:
            raise self._fault(
                "lets no gradient through to its parameters: look for no_grad, detach or numpy"
            )

    def _fault(self, what: str) -> UsageError:
        return UsageError(f"net.module is {self.name}, which {what}")


def _without(space: gym.Space[Any], hidden: tuple[str, ...]) -> gym.Space[Any]:
    """A space without these first keys, the others in their order."""
    shown = [(key, s) for key, s in parts_of(space).items() if str(plain_key(key)) not in hidden]
    if isinstance(space, spaces.Dict):
        return spaces.Dict(shown)
    return spaces.Tuple(s for _, s in shown) if isinstance(space, spaces.Tuple) else space


def _close(a: Tensor, b: Tensor) -> bool:
    """Equality up to rounding: a different order of sums changes the last digits."""
    scale = float(b.abs().amax()) if b.numel() else 1.0
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, scale))
