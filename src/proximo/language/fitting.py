"""Learning from examples: supervised fine-tuning, and reward models from preferences."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from proximo.errors import TrainingError
from proximo.functional.losses import preference_error
from proximo.functional.schedules import as_schedule
from proximo.language.config import FitConfig, Sampling
from proximo.language.examples import EpochSampler, split
from proximo.language.model import LanguageModel
from proximo.language.reward import RewardModel, scores_of
from proximo.language.sequences import Sequences, by_length, per_token
from proximo.language.session import Learner, mean_of
from proximo.nets.optimizer import FlatOptimizer, clip_gradient
from proximo.types import Metrics

WITHOUT = Sampling()
"""Probabilities as the model gives them: temperature 1."""


def add_text_gradient(
    lm: LanguageModel, texts: Sequences, weight: float, micro_batch: int
) -> Tensor:
    """Add the gradient of L = -1/B Σ log π over the B tokens of the answers; returns L."""
    count, total = int(texts.response.sum()), torch.zeros((), device=lm.device)
    for part in by_length(texts, torch.arange(len(texts.tokens)), micro_batch):
        loss = -lm.log_prob(texts.select(part), WITHOUT, ()).sum() / count
        torch.autograd.backward(weight * loss)
        total = total + loss.detach()
    return total


class Objective(ABC):
    """What sft and reward differ in: which answers they read, and what is made of them."""

    answers: tuple[int, ...]
    """Which parts of the data; their sequences stand one kind after the other."""

    @abstractmethod
    def add_gradient(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        """Add the gradient of the mean error of these sequences; returns what to report."""

    @abstractmethod
    def measure(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        """How well it does on what was held out."""

    def settle(self, module: nn.Module, texts: Sequences, micro_batch: int) -> None:  # noqa: B027 mostly nothing
        """What is done once, at the end, with all that was trained on."""


class Likelihood(Objective):
    """Supervised fine-tuning: maximum likelihood of the answers, given their prompts."""

    answers = (1,)

    def add_gradient(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        lm: LanguageModel = module  # type: ignore[assignment]
        return {"loss": float(add_text_gradient(lm, texts, 1.0, micro_batch))}

    def measure(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        lm: LanguageModel = module  # type: ignore[assignment]
        (found,) = per_token(texts, micro_batch, lambda part: [lm.log_prob(part, WITHOUT, ())])
        return {"held_out_loss": -mean_of(found)}


class Preference(Objective):
    """A reward model from pairs of which one was preferred: first all these, then the others."""

    answers = (1, 2)

    def add_gradient(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        model: RewardModel = module  # type: ignore[assignment]
        count = len(texts.tokens) // 2
        total = right = torch.zeros((), device=texts.tokens.device)
        for part in torch.split(torch.arange(count), max(1, micro_batch // 2)):
            both = texts.select(torch.cat([part, part + count]))
            chosen, rejected = model.raw(both).chunk(2)
            loss = preference_error(chosen, rejected).sum() / count
            torch.autograd.backward(loss)
            total, right = total + loss.detach(), right + (chosen > rejected).sum()
        return {"loss": float(total), "accuracy": float(right) / count}

    def measure(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        chosen, rejected = scores_of(module, texts, micro_batch).chunk(2)  # type: ignore[arg-type]
        return {"held_out_accuracy": mean_of(chosen > rejected)}

    def settle(self, module: nn.Module, texts: Sequences, micro_batch: int) -> None:
        """Bring the scores to mean 0 and deviation 1."""
        model: RewardModel = module  # type: ignore[assignment]
        model.mean.zero_()
        model.std.fill_(1.0)
        scores = scores_of(model, texts, micro_batch)
        model.mean.copy_(scores.mean())
        model.std.copy_(scores.std(correction=0).clamp(min=1e-8))


class Fit(Learner):
    """sft and reward: examples in a new order each epoch, a step of Adam for each minibatch."""

    def __init__(
        self,
        module: nn.Module,
        lm: LanguageModel,
        objective: Objective,
        config: FitConfig,
        parts: Sequence[list[list[int]]],
    ) -> None:
        """module: what is trained, lm or a reward model on it; parts: prompts, then answers."""
        algorithm = config.algorithm
        group = [p for p in module.parameters() if p.requires_grad]
        optimizer = FlatOptimizer([group], "adam", 1e-8, algorithm.adam_betas)
        super().__init__(module, optimizer, config.run)
        self.stage = config.lm.stage
        self.algorithm, self._objective = algorithm, objective
        self._lm, self._parts = lm, parts
        seed = config.run.seed
        self._trained, self._held_out = split(
            len(parts[0]), algorithm.held_out, seed, "algorithm.held_out"
        )
        self._order = EpochSampler(len(self._trained), seed, 1)

    @property
    def lm(self) -> LanguageModel:
        return self._lm

    def update(self) -> Metrics:
        size = self.algorithm.batch_size
        drawn = self._order.draw(self.updates * size, size)
        self.optimizer.zero_grad()
        texts = self._texts([self._trained[i] for i in drawn])
        terms = self._objective.add_gradient(self.module, texts, self.run.micro_batch)
        rate = as_schedule(self.algorithm.learning_rate)(self.progress)
        self.optimizer.rates = [rate]
        norm = float(clip_gradient(self.optimizer.gradients, self.algorithm.max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient became {norm} in update {self.updates + 1}: a smaller learning "
                "rate is the usual remedy"
            )
        self.optimizer.step()
        self.counters["tokens"] += int(texts.response.sum())
        epoch = (self.updates + 1) * size / len(self._trained)
        return {**terms, "grad_norm": norm, "learning_rate": rate, "epoch": epoch}

    @torch.no_grad()
    def finish(self) -> None:
        micro_batch = self.run.micro_batch
        self._objective.settle(self.module, self._texts(self._trained), micro_batch)
        if self._held_out:
            texts = self._texts(self._held_out)
            self.final = self._objective.measure(self.module, texts, micro_batch)

    def _texts(self, examples: Sequence[int]) -> Sequences:
        which = self._objective.answers
        prompts = [self._parts[0][i] for _ in which for i in examples]
        answers = [self._parts[part][i] for part in which for i in examples]
        return Sequences.join(prompts, answers, self._lm.device)
