"""Drawing completions: many at once, each token read once, keys and values kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proximo.language.config import Sampling
from proximo.language.data import Sequences
from proximo.language.model import LanguageModel, distribution

Drawn = list[tuple[int, float]]
"""The tokens of one completion, each with its log-probability."""
LEFT = 0.75
"""Completions that have stopped are no longer read once this share of them is left."""


@dataclass(frozen=True)
class Completions:
    """N completions, as token ids: those that were drawn are those that are trained on."""

    sequences: Sequences
    log_prob: Tensor  # [B] of each token, by the distribution that it was drawn from
    stopped: Tensor  # [M] bool, of each reply: False where it was cut off at its longest

    def ids(self) -> list[list[int]]:
        """Token ids of each completion, its stop tokens included."""
        response = self.sequences.response
        tokens = self.sequences.tokens[:, -response.shape[-1] :]
        return [row[real].tolist() for row, real in zip(tokens, response, strict=True)]


@torch.no_grad()
def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stops: Sequence[int],
    generator: torch.Generator,
    micro_batch: int = 64,
) -> Completions:
    """Draw one completion for each prompt.

    One uniform number per token, all drawn first: neither the micro-batches nor the lengths of the
    completions change what is drawn, or where the generator stands afterwards.
    """
    noise = torch.rand(len(prompts), sampling.max_tokens, generator=generator)
    tokens, stopped = draw(lm, prompts, sampling, stops, noise, micro_batch)
    completions = [[token for token, _ in row] for row in tokens]
    log_prob = torch.tensor([lp for row in tokens for _, lp in row], device=lm.device)
    return Completions(Sequences.join(prompts, completions, lm.device), log_prob, stopped)


@torch.no_grad()
def draw(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stops: Sequence[int],
    noise: Tensor,
    micro_batch: int,
) -> tuple[list[Drawn], Tensor]:
    """(token, log p) of each completion, and whether it stopped. noise: [N, max_tokens]."""
    numbers = torch.split(noise.to(lm.device), micro_batch)
    begins = range(0, len(prompts), micro_batch)
    with lm.rounding():
        parts = [
            _draw(lm, prompts[begin : begin + micro_batch], sampling, stops, own)
            for begin, own in zip(begins, numbers, strict=True)
        ]
    return [row for part, _ in parts for row in part], torch.cat([ended for _, ended in parts])


def _draw(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stops: Sequence[int],
    noise: Tensor,
) -> tuple[list[Drawn], Tensor]:
    """A micro-batch of them."""
    start = Sequences.join(prompts, [[] for _ in prompts], lm.device)
    read, mask, positions = start.tokens, start.mask, start.positions
    stop_ids = torch.tensor(stops, dtype=torch.long, device=lm.device)
    tokens = torch.zeros_like(noise, dtype=torch.long)
    log_probs, lengths = torch.zeros_like(noise), torch.zeros_like(tokens[:, 0])
    stopped = torch.zeros_like(lengths, dtype=torch.bool)
    rows = torch.arange(len(prompts), device=lm.device)  # those that are read on
    out = lm(read, mask, positions, cache=True)
    for t in range(sampling.max_tokens):
        choice = distribution(out.logits, sampling, stops, torch.full_like(rows, t))
        token = choice.sample(noise[rows, t])
        tokens[rows, t], log_probs[rows, t] = token, choice.log_prob(token)
        over = stopped[rows]
        lengths[rows] += ~over
        over |= torch.isin(token, stop_ids)
        stopped[rows] = over
        left = len(rows) - int(over.sum())
        if not left or t + 1 == sampling.max_tokens:
            break
        cache = out.cache
        token, place = token.unsqueeze(-1), positions[:, -1:] + 1
        if cache is None:  # a model that keeps nothing reads everything again
            token, place = torch.cat([read, token], -1), torch.cat([positions, place], -1)
        read, positions = token, place
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], -1)
        if left <= LEFT * len(rows) and (cache is None or lm.select):
            kept = (~over).nonzero().squeeze(-1)
            rows, read, positions, mask = rows[kept], read[kept], positions[kept], mask[kept]
            if cache is not None:
                getattr(cache, lm.select)(kept)
        out = lm(read, mask, positions, cache=cache)
    found = zip(tokens.tolist(), log_probs.tolist(), lengths.tolist(), strict=True)
    drawn = [list(zip(ids, lps, strict=True))[:count] for ids, lps, count in found]
    return drawn, stopped
