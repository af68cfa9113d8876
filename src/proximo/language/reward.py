"""Rewards of completions: functions of the user, trained reward models, and their weighted sum."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proximo.errors import TrainingError, UsageError, explained
from proximo.imports import find
from proximo.language.blueprint import read_blueprint
from proximo.language.config import TrainingConfig, read_stage
from proximo.language.envs import finite
from proximo.language.examples import Examples
from proximo.language.model import LanguageModel, zero_head
from proximo.language.records import Completions
from proximo.language.sequences import Sequences, by_length
from proximo.language.state import read_checkpoint
from proximo.language.tokenizer import Tokenizer
from proximo.run.folder import RunFolder

Reward = Callable[..., Sequence[float] | Sequence[Sequence[float]]]
"""Called with lists, by name: prompts, completions, prompt_ids, completion_ids and every column of
the data; it takes those that it names. Returns a number per completion, or one per token."""

GIVEN = ("prompts", "completions", "prompt_ids", "completion_ids")


class RewardModel(nn.Module):
    """A language model's trunk with a linear head on the last token: r = (w·h + b - m)/s.

    m and s bring the scores of the training data to mean 0 and standard deviation 1, so that the
    weight of a KL means the same with every reward model (Ziegler et al. 2019, section 2.1).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__()
        self.lm = lm
        self.head = zero_head(lm.width)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, sequences: Sequences) -> Tensor:
        """Score of each sequence. [N]."""
        return (self.raw(sequences) - self.mean) / self.std

    def raw(self, sequences: Sequences) -> Tensor:
        """w·h + b at the last token of each sequence, padding not counted. [N]."""
        mask = sequences.mask
        last = mask & (sequences.positions == mask.sum(-1, keepdim=True) - 1)
        raw: Tensor = self.head(self.lm.hidden(sequences, last)).squeeze(-1)
        return raw


@torch.no_grad()
def scores_of(model: RewardModel, sequences: Sequences, micro_batch: int) -> Tensor:
    """Scores in micro-batches. [N]."""
    parts = by_length(sequences, sequences.numbers, micro_batch)
    scores = torch.cat([model(sequences.select(part)) for part in parts])
    return scores[torch.cat(parts).argsort()]


def load_reward(run: str | Path) -> RewardModel:
    """The reward model of a finished run of `proximo lm reward`. Raises `UsageError`."""
    folder = RunFolder.open(run)
    saved = read_checkpoint(folder, folder.checkpoint("last"))
    if saved.record.get("stage") != "reward":
        raise UsageError(f"{run} is no run of proximo lm reward")
    if not saved.record["finished"]:
        raise UsageError(f"the run {run} has not finished: go on by proximo lm resume {run}")
    lm = read_blueprint(folder.path / "model").build(0, random=True)
    model = RewardModel(lm.set_up(read_stage(folder.config_file).model, TrainingConfig()))
    saved.load_policy(model)
    model.lm = lm.merged()
    return model.requires_grad_(False)


def find_reward(name: str) -> Reward | RewardModel:
    """The reward model of a run folder, or the function `module:function`. Raises `UsageError`."""
    if Path(name).is_dir():
        return load_reward(name)
    if ":" not in name:
        raise UsageError(f"the reward {name!r} is neither a run folder nor module:function")
    reward: Reward = find(name)
    if not callable(reward):
        raise UsageError(f"the reward {name} is {reward!r}: it must be a function")
    return reward


@dataclass
class RewardSum:
    """Weighted sum of rewards: one finite number per completion or per token of each."""

    rewards: Sequence[Reward | RewardModel]
    weights: Sequence[float]
    examples: InitVar[Examples]

    def __post_init__(self, examples: Examples) -> None:
        """Raises `UsageError` for a function with arguments that do not exist."""
        if not self.rewards:
            raise UsageError(
                "there is no reward: give a function, a run of proximo lm reward, or an env"
            )
        self.weights = list(self.weights) or [1.0] * len(self.rewards)
        if len(self.weights) != len(self.rewards):
            raise UsageError(
                f"there are {len(self.rewards)} rewards and {len(self.weights)} weights: give "
                "one weight for each"
            )
        columns = [name for name in examples.columns if name not in GIVEN]
        self._arguments = [_arguments(reward, columns) for reward in self.rewards]

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse reward models with another vocabulary than the policy's. Raises `UsageError`."""
        for model in self.rewards:
            own = model.lm.tokenizer if isinstance(model, RewardModel) else tokenizer.inner
            if own.get_vocab() != tokenizer.inner.get_vocab():
                raise UsageError(
                    "the reward model has another tokenizer than the policy: fit one on the same "
                    "model"
                )

    def __call__(
        self,
        rows: Sequence[Mapping[str, Any]],
        prompts: Sequence[list[int]],
        completions: Completions,
        texts: Sequence[str],
        micro_batch: int,
        fault: type[Exception] = TrainingError,
    ) -> tuple[Tensor, Tensor]:
        """Score of each completion as a whole [N], and of each token [N, R]. float64."""
        given = {
            "prompts": [row["prompt"] for row in rows],
            "completions": list(texts),
            "prompt_ids": list(prompts),
            "completion_ids": completions.ids,
        }
        score = torch.zeros(len(rows), dtype=torch.float64)
        dense = torch.zeros(completions.sequences.response.shape, dtype=torch.float64)
        terms = zip(self.rewards, self._arguments, self.weights, strict=True)
        for reward, names, weight in terms:
            if isinstance(reward, RewardModel):
                scores = scores_of(reward, completions.sequences, micro_batch)
                score += weight * scores.double().cpu()
                continue
            arguments = {
                name: given[name] if name in given else [row[name] for row in rows]
                for name in names
            }
            with explained("the reward failed", fault):  # with copies, which it may change
                values = list(reward(**copy.deepcopy(arguments)))
            if len(values) != len(rows):
                raise fault(
                    f"the reward returned {len(values)} numbers for {len(rows)} completions"
                )
            for i, value in enumerate(values):
                where = f"for the completion {texts[i]!r} of {rows[i]['prompt']!r}"
                count = len(completions.ids[i])
                numbers, whole = _numbers(value, count, where, fault)
                if whole:
                    score[i] += weight * numbers[0]
                else:
                    dense[i, :count] += weight * torch.tensor(numbers, dtype=torch.float64)
        return score, dense


def shaped(
    score: Tensor, dense: Tensor, log_ratio: Tensor, beta: float, sequences: Sequences
) -> Tensor:
    """Rewards with the KL penalty against the reference model: r_t = dense_t - β log(π / π_ref)_t.

    The score is added in the last token; padding has 0.
    Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, token by token. score: [M], one for each reply,
    of which a conversation with an env has several; the others and the result [N, R], on the CPU.
    """
    reward = torch.where(sequences.response.cpu(), dense - beta * log_ratio, 0)
    reward[sequences.reply_ends.cpu()] += score
    return reward


def _numbers(value: Any, size: int, where: str, fault: type[Exception]) -> tuple[list[float], bool]:
    """The reward of a completion of `size` tokens: one number as a whole, or one per token."""
    whole = not (isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0)
    numbers = finite([value] if whole else value, f"the reward is {value!r} {where}", fault)
    if not whole and len(numbers) != size:
        raise fault(
            f"the reward gives {len(numbers)} numbers {where}, which has {size} tokens: give "
            "one for each, or one in all"
        )
    return numbers, whole


def _arguments(reward: Reward | RewardModel, columns: Sequence[str]) -> list[str]:
    """Names of the arguments that a reward takes; all if it takes any. Raises `UsageError`."""
    if isinstance(reward, RewardModel):
        return []
    if not callable(reward):
        raise UsageError(f"the reward is {reward!r}: it must be a function or a reward model")
    known = [*GIVEN, *columns]
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):
        return known
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return known
    for p in parameters:
        if p.name not in known and p.default is p.empty:
            raise UsageError(
                f"the reward {getattr(reward, '__name__', reward)} wants {p.name!r}, but there "
                f"are: {', '.join(known)} (the columns that every row of the data has)"
            )
    return [p.name for p in parameters if p.name in known]
