"""What completions are worth: functions of the user, trained reward models, and their sum."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proximo.errors import TrainingError, UsageError, explain, faults
from proximo.language.config import TrainingConfig, read_stage
from proximo.language.data import Examples, Sequences, by_length
from proximo.language.generate import Completions
from proximo.language.model import LanguageModel, Tokenizer, read_blueprint
from proximo.language.session import read_checkpoint
from proximo.run.folder import RunFolder

Reward = Callable[..., Sequence[float] | Sequence[Sequence[float]]]
"""Called with lists, by name: prompts, completions, prompt_ids, completion_ids and every column of
the data; it takes those that it names. Returns a number per completion, or one per token."""

GIVEN = ("prompts", "completions", "prompt_ids", "completion_ids")


class RewardModel(nn.Module):
    """A language model's trunk with a linear head, read at the last token: r = (w·h + b - m)/s.

    m and s bring the scores of the data it was fitted on to mean 0 and deviation 1, so that the
    weight of a KL means the same beside every one of them (Ziegler et al. 2019, section 2.1).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__()
        self.lm = lm
        self.head = nn.Linear(lm.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, sequences: Sequences) -> Tensor:
        """The score of each sequence. [N]."""
        return (self.raw(sequences) - self.mean) / self.std

    def raw(self, sequences: Sequences) -> Tensor:
        """w·h + b at the actual last token of each sequence, which is what is fitted. [N]."""
        mask = sequences.mask
        last = mask & (sequences.positions == mask.sum(-1, keepdim=True) - 1)
        return self.head(self.lm.hidden(sequences, last)).squeeze(-1)  # type: ignore[no-any-return]


@torch.no_grad()
def scores_of(model: RewardModel, sequences: Sequences, micro_batch: int) -> Tensor:
    """[N], at most `micro_batch` sequences at a time."""
    parts = by_length(sequences, torch.arange(len(sequences.tokens)), micro_batch)
    found = torch.cat([model(sequences.select(part)) for part in parts])
    return found[torch.cat(parts).argsort()]


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
    """A function by module:function, or the reward model of a run. Raises `UsageError`."""
    if Path(name).is_dir():
        return load_reward(name)
    if ":" not in name:
        raise UsageError(f"the reward {name!r} is neither a run folder nor module:function")
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except faults() as error:
        raise UsageError(f"the reward {name} cannot be imported: {explain(error)}") from error
    if not callable(found):
        raise UsageError(f"the reward {name} is {found!r}: it must be a function")
    return found  # type: ignore[no-any-return]


class Judge:
    """The weighted sum of rewards, checked: one finite number per completion or per token."""

    def __init__(
        self,
        rewards: Sequence[Reward | RewardModel],
        weights: Sequence[float],
        examples: Examples,
    ) -> None:
        """Raises `UsageError` for a function that wants what there is not."""
        if not rewards:
            raise UsageError(
                "there is no reward: give a function, a run of proximo lm reward, or an env"
            )
        self._rewards = list(rewards)
        self._weights = list(weights) or [1.0] * len(self._rewards)
        if len(self._weights) != len(self._rewards):
            raise UsageError(
                f"there are {len(self._rewards)} rewards and {len(self._weights)} weights: give "
                "one weight for each"
            )
        columns = [name for name in examples.columns if name not in GIVEN]
        self._wanted = [_wanted(reward, columns) for reward in self._rewards]

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse reward models that read other tokens than the policy writes."""
        for reward in self._rewards:
            if isinstance(reward, RewardModel):
                own = reward.lm.tokenizer.get_vocab()
                if own != tokenizer.inner.get_vocab():
                    raise UsageError(
                        "the reward model has another tokenizer than the policy: fit one on the "
                        "same model"
                    )

    def to(self, device: torch.device) -> None:
        for reward in self._rewards:
            if isinstance(reward, RewardModel):
                reward.to(device)

    def __call__(
        self,
        rows: Sequence[Mapping[str, Any]],
        prompts: Sequence[list[int]],
        drawn: Completions,
        tokenizer: Tokenizer,
        micro_batch: int,
        fault: type[Exception] = TrainingError,
    ) -> tuple[Tensor, Tensor]:
        """What each completion is worth in all [N], and each token by itself [N, R]. float64."""
        ids = drawn.ids()
        given = {
            "prompts": [row["prompt"] for row in rows],
            "completions": [tokenizer.text(own) for own in ids],
            "prompt_ids": list(prompts),
            "completion_ids": ids,
        }
        score = torch.zeros(len(rows), dtype=torch.float64)
        dense = torch.zeros(drawn.sequences.response.shape, dtype=torch.float64)
        for reward, wanted, weight in zip(self._rewards, self._wanted, self._weights, strict=True):
            if isinstance(reward, RewardModel):
                score += weight * scores_of(reward, drawn.sequences, micro_batch).double().cpu()
                continue
            arguments = {
                name: given[name] if name in given else [row[name] for row in rows]
                for name in wanted
            }
            try:  # a reward may use up what is its own
                found = list(reward(**copy.deepcopy(arguments)))
            except faults() as error:
                raise fault(f"the reward failed: {explain(error)}") from error
            if len(found) != len(rows):
                raise fault(f"the reward returned {len(found)} numbers for {len(rows)} completions")
            for i, value in enumerate(found):
                _add(score, dense, i, value, weight, given, fault)
        return score, dense


def _add(
    score: Tensor,
    dense: Tensor,
    i: int,
    value: Any,
    weight: float,
    given: dict[str, list[Any]],
    fault: type[Exception],
) -> None:
    """Take in the reward of completion i: a number, or one per token."""
    where = f"for the completion {given['completions'][i]!r} of {given['prompts'][i]!r}"
    try:
        numbers = [float(x) for x in value] if _has_many(value) else [float(value)]
    except (TypeError, ValueError) as error:
        raise fault(f"the reward is {value!r} {where}: it must be a number") from error
    if not all(map(math.isfinite, numbers)):
        raise fault(f"the reward is {value!r} {where}: it must be finite")
    if not _has_many(value):
        score[i] += weight * numbers[0]
        return
    tokens = len(given["completion_ids"][i])
    if len(numbers) != tokens:
        raise fault(
            f"the reward gives {len(numbers)} numbers {where}, which has {tokens} tokens: give "
            "one for each, or one in all"
        )
    dense[i, :tokens] += weight * torch.tensor(numbers, dtype=torch.float64)


def _has_many(value: Any) -> bool:
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def _wanted(reward: Reward | RewardModel, columns: Sequence[str]) -> list[str]:
    """Which arguments a reward takes; all of them if it takes any name."""
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
