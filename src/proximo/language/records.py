"""Records of an update on completions: what was sampled, and what PPO learns from it.

They load without PyTorch, as the settings of `TokenPPO` do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from proximo.types import Batch, Metrics, Row

if TYPE_CHECKING:
    from torch import Tensor

    from proximo.language.sequences import Sequences


@dataclass(frozen=True)
class Completions:
    """N completions as token ids: the update trains on the very ids that were sampled."""

    sequences: Sequences
    log_prob: Tensor  # [B] of each token, by the distribution it was sampled from
    stopped: Tensor  # [M] bool, of each reply: False where it was cut off at max_tokens
    ids: list[list[int]]  # of each completion, its stop token included


class OldPolicy(NamedTuple):
    """The old policy and the reference on the sampled tokens. All [B]."""

    log_prob: Tensor
    value: Tensor
    reference: Tensor  # log-probabilities of the reference, or of the policy if there is none

    @property
    def log_ratio(self) -> Tensor:
        """Log π - log π_ref: k1, whose mean over the policy's own tokens is the KL."""
        return self.log_prob - self.reference


def repetition(ids: Sequence[Sequence[int]]) -> float:
    """Share of the pairs of neighbouring tokens that stood in the same completion before."""
    pairs = [list(pairwise(own)) for own in ids]
    number = sum(map(len, pairs))
    return 1 - sum(len(set(own)) for own in pairs) / number if number else 0.0


@dataclass(frozen=True)
class TokenRollout:
    """N completions, their rewards, and the old policy's evaluation of them."""

    completions: Completions
    prompts: Sequence[int]  # index of the prompt of each completion
    texts: list[tuple[Any, Any]]  # prompt and completion of each; or first text, and all others
    reply_reward: Tensor  # [M] reward of each reply as a whole, in the reward's own units
    token_reward: Tensor  # [N, R] reward of each token
    old: OldPolicy
    readings: Metrics  # of the episodes of text envs

    @property
    def num_tokens(self) -> int:
        """B, the number of the model's own tokens."""
        return len(self.old.log_prob)

    @property
    def score(self) -> Tensor:
        """Sum of the rewards of each completion. [N]."""
        row = self.completions.sequences.reply_ends.cpu().nonzero()[:, 0]
        return self.token_reward.sum(-1).index_add(0, row, self.reply_reward)

    @property
    def log_ratio(self) -> Tensor:
        """Log π - log π_ref of each token, 0 in padding, on the CPU. [N, R]."""
        response = self.completions.sequences.response.cpu()
        ratio = self.token_reward.new_zeros(self.token_reward.shape)
        return ratio.masked_scatter(response, self.old.log_ratio.double().cpu())

    @property
    def kl(self) -> Tensor:
        """Σ log π - log π_ref over the tokens of each completion. [N]."""
        return self.log_ratio.sum(-1)

    def describe(self, *, kl: bool) -> Metrics:
        """Readings of the completions. kl: with that to the reference."""
        completions, score = self.completions, self.score
        distinct = len(set(map(repr, zip(self.prompts, self.texts, strict=True))))
        return {
            "score": float(score.mean()),
            "score_std": float(score.std(correction=0)),
            **({"kl": float(self.kl.mean())} if kl else {}),
            "length": float(completions.sequences.lengths.double().mean()),
            "stopped": float(completions.stopped.double().mean()),
            **self.readings,
            "repetition": repetition(completions.ids),
            "repeated": 1 - distinct / len(self.texts),
            "entropy": -float(completions.log_prob.double().mean()),
        }

    def group_metrics(self, size: int) -> Metrics:
        """Share of the groups of completions of a prompt that all have the same score."""
        if size == 1:
            return {}
        score = self.score.view(-1, size)
        return {"zero_variance_groups": float((score == score[:, :1]).all(-1).double().mean())}

    def samples(self, number: int) -> list[Row]:
        """The first completions: prompt, completion, score and KL of each."""
        columns = zip(self.texts, self.score.tolist(), self.kl.tolist(), strict=True)
        return [
            {"prompt": prompt, "completion": completion, "score": score, "kl": kl}
            for (prompt, completion), score, kl in list(columns)[:number]
        ]


@dataclass(frozen=True, kw_only=True)
class TokenBatch(Batch):
    """A row per token of the completions, in order of sequence, then of time.

    Its `obs` are positions: the text before a token stands in `sequences`. `parameters` are of
    size 0, because distributions over a vocabulary are not stored, and so is `initial_state`.
    """

    reference: Tensor  # [B] log-probabilities of the reference policy
    sequences: Sequences

    def __getitem__(self, index: Tensor | slice) -> TokenBatch:
        """The rows at this index; the sequences stay whole."""
        tensors = {name: x[index] for name, x in vars(self).items() if name != "sequences"}
        return type(self)(sequences=self.sequences, **tensors)

    def select(self, chosen: Tensor) -> TokenBatch:
        """The chosen sequences and their rows. chosen: [n] int64."""
        rows = self[self.sequences.rows_of(chosen)]
        return type(self)(**{**vars(rows), "sequences": self.sequences.select(chosen)})

    def minibatches(self, order: Tensor, bounds: list[int]) -> Iterator[TokenBatch]:
        """Those of an epoch. order: [N] int64, of the sequences."""
        return (self.select(order[begin:end]) for begin, end in pairwise(bounds))

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"batch.{name}": x for name, x in vars(self).items() if name != "sequences"}
        return tensors | {f"sequences.{name}": x for name, x in self.sequences._asdict().items()}
