"""π_ref, which the KL is measured to: the model that a run began as, or one that follows it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from proximo.language.adapters import switched_off, twin
from proximo.language.config import KLConfig, Sampling
from proximo.language.data import Sequences
from proximo.language.model import LanguageModel


class Reference:
    """A frozen copy of the model that the run began as."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = copy.deepcopy(lm).requires_grad_(False)
        self.moving: dict[str, Tensor] = {}
        """What changes, by name: the checkpoints hold it."""

    def log_prob(self, sequences: Sequences, sampling: Sampling, stops: Sequence[int]) -> Tensor:
        """Log π_ref(token | what came before) for each of the B tokens of the completions. [B]."""
        return self.lm.log_prob(sequences, sampling, stops)

    def follow(self, lm: LanguageModel) -> None:
        """What is done after each update of `lm`."""


class Bare(Reference):
    """The very model that is trained, with its adapters off: no copy in memory."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.moving = lm, {}

    def log_prob(self, sequences: Sequences, sampling: Sampling, stops: Sequence[int]) -> Tensor:
        with switched_off(self.lm.net):
            return super().log_prob(sequences, sampling, stops)


class Average(Reference):
    """The exponential moving average of the weights, θ_ref <- d θ_ref + (1 - d) θ each update.

    As in WARP (Ramé et al. 2024, arXiv 2406.16768), section 3.1; d is `KLConfig.ema_decay`.
    """

    def __init__(self, lm: LanguageModel, decay: float) -> None:
        self._decay = decay
        self.lm = twin(lm)
        self.moving = {name: p for name, p in self.lm.named_parameters() if p.requires_grad}
        self.lm.requires_grad_(False)

    @torch.no_grad()
    def follow(self, lm: LanguageModel) -> None:
        own = dict(lm.named_parameters())
        for name, mean in self.moving.items():
            mean.lerp_(own[name], 1 - self._decay)


def make_reference(lm: LanguageModel, settings: KLConfig) -> Reference | None:
    """lm: as it stands at the beginning of the run."""
    if settings.reference == "none":
        return None
    if settings.reference == "adapter":
        return Bare(lm)
    if settings.reference == "ema":
        assert settings.ema_decay is not None
        return Average(lm, settings.ema_decay)
    return Reference(lm)
