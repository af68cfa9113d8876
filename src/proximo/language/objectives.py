"""Objectives of supervised learning: maximum likelihood, and preferences between two answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proximo.functional.losses import preference_error
from proximo.language.config import Sampling
from proximo.language.model import Decoding, LanguageModel
from proximo.language.reward import RewardModel, scores_of
from proximo.language.sequences import Sequences, by_length, per_token
from proximo.types import Metrics

UNMODIFIED_SAMPLING = Decoding(Sampling(), ())
"""Probabilities as the model gives them: temperature 1, nothing cut off."""


def add_text_gradient(
    lm: LanguageModel, texts: Sequences, weight: float, micro_batch: int
) -> Tensor:
    """Add the gradient of L = -1/B Σ log π over the B tokens of the answers; returns L."""
    count, total = texts.num_tokens, torch.zeros((), device=lm.device)
    for part in by_length(texts, texts.numbers, micro_batch):
        loss = -lm.log_prob(texts.select(part), UNMODIFIED_SAMPLING).sum() / count
        torch.autograd.backward(weight * loss)
        total = total + loss.detach()
    return total


class Objective(ABC):
    """What sft and reward models differ in: the answers they read, and the loss."""

    model: LanguageModel | RewardModel
    answers: ClassVar[tuple[int, ...]]
    """Parts of the data that are answers; their sequences come one kind after the other."""

    @abstractmethod
    def add_gradient(self, texts: Sequences, micro_batch: int) -> Metrics:
        """Add the gradient of the mean loss of these sequences; returns what to report."""

    @abstractmethod
    def measure(self, texts: Sequences, micro_batch: int) -> Metrics:
        """Loss or accuracy on held-out sequences."""

    def calibrate(self, texts: Sequences, micro_batch: int) -> None:  # noqa: B027 for rewards
        """Called once at the end, with all training data."""


@dataclass
class Likelihood(Objective):
    """Supervised fine-tuning: maximum likelihood of the answers, given their prompts."""

    model: LanguageModel
    answers = (1,)

    def add_gradient(self, texts: Sequences, micro_batch: int) -> Metrics:
        return {"loss": float(add_text_gradient(self.model, texts, 1.0, micro_batch))}

    def measure(self, texts: Sequences, micro_batch: int) -> Metrics:
        (log_probs,) = per_token(
            texts, micro_batch, lambda part: [self.model.log_prob(part, UNMODIFIED_SAMPLING)]
        )
        return {"held_out_loss": -float(log_probs.double().mean())}


@dataclass
class Preference(Objective):
    """A reward model from pairs: first all preferred answers, then the others."""

    model: RewardModel
    answers = (1, 2)

    def add_gradient(self, texts: Sequences, micro_batch: int) -> Metrics:
        count = len(texts.tokens) // 2
        total = right = torch.zeros((), device=texts.tokens.device)
        for part in torch.split(torch.arange(count), max(1, micro_batch // 2)):
            both = texts.select(torch.cat([part, part + count]))
            chosen, rejected = self.model.raw(both).chunk(2)
            loss = preference_error(chosen, rejected).sum() / count
            torch.autograd.backward(loss)
            total, right = total + loss.detach(), right + (chosen > rejected).sum()
        return {"loss": float(total), "accuracy": float(right) / count}

    def measure(self, texts: Sequences, micro_batch: int) -> Metrics:
        chosen, rejected = scores_of(self.model, texts, micro_batch).chunk(2)
        return {"held_out_accuracy": float((chosen > rejected).double().mean())}

    def calibrate(self, texts: Sequences, micro_batch: int) -> None:
        """Bring the scores to mean 0 and standard deviation 1."""
        model = self.model
        model.mean.zero_()
        model.std.fill_(1.0)
        scores = scores_of(model, texts, micro_batch)
        model.mean.copy_(scores.mean())
        model.std.copy_(scores.std(correction=0).clamp(min=1e-8))
