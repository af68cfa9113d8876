"""Reference models π_ref for the KL penalty (in `reward.shaped` or in the engine's loss)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from proximo.language.adapters import adapters_disabled, copy_trainable
from proximo.language.config import KLConfig
from proximo.language.model import Decoding, LanguageModel
from proximo.language.sequences import Sequences


class FrozenReference:
    """A model of its own that does not change: a frozen copy of the initial one."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.moving: dict[str, Tensor] = {}  # changes in training: checkpoints hold it

    def log_prob(self, sequences: Sequences, decoding: Decoding) -> Tensor:
        """Log π_ref(token | tokens before) of each action. [B]."""
        return self.lm.log_prob(sequences, decoding)

    def follow(self, lm: LanguageModel) -> None:
        """Called with the trained model after each update."""


class AdapterOffReference(FrozenReference):
    """The trained model itself with its adapters off: no copy in memory."""

    def log_prob(self, sequences: Sequences, decoding: Decoding) -> Tensor:
        with adapters_disabled(self.lm.net):
            return super().log_prob(sequences, decoding)


class EMAReference(FrozenReference):
    """Exponential moving average of the weights: θ_ref <- d θ_ref + (1 - d) θ after each update.

    As in WARP (Ramé et al. 2024, arXiv 2406.16768), section 3.1; d is `KLConfig.ema_decay`.
    """

    def __init__(self, lm: LanguageModel, decay: float) -> None:
        super().__init__(copy_trainable(lm))
        self._decay = decay
        self.moving = {name: p for name, p in self.lm.named_parameters() if p.requires_grad}
        self.lm.requires_grad_(False)

    @torch.no_grad()
    def follow(self, lm: LanguageModel) -> None:
        weights = dict(lm.named_parameters())
        for name, mean in self.moving.items():
            mean.lerp_(weights[name], 1 - self._decay)


def make_reference(lm: LanguageModel, settings: KLConfig) -> FrozenReference | None:
    """The reference that the settings name. lm: as it stands at the start of the run."""
    if settings.reference == "none":
        return None
    if settings.reference == "adapter":
        return AdapterOffReference(lm)
    if settings.reference == "ema":
        assert settings.ema_decay is not None
        return EMAReference(lm, settings.ema_decay)
    return FrozenReference(copy.deepcopy(lm).requires_grad_(False))
