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
    parts = [
        _draw(lm, prompts[begin : begin + micro_batch], sampling, stops, numbers)
        for begin, numbers in zip(
            range(0, len(prompts), micro_batch),
            torch.split(noise.to(lm.device), micro_batch),
            strict=True,
        )
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
    mask, positions = start.mask, start.positions
    stop_ids = torch.tensor(stops, dtype=torch.long, device=lm.device)
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=lm.device)
    tokens, log_probs, alive = [], [], []
    out = lm(start.tokens, mask, positions, 1, cache=True)
    place = positions[:, -1:]
    for t in range(sampling.max_tokens):
        place_in_completion = torch.full_like(stopped, t, dtype=torch.long)
        choice = distribution(out.logits[:, -1], sampling, stops, place_in_completion)
        token = choice.sample(noise[:, t])
        tokens.append(token)
        log_probs.append(choice.log_prob(token))
        alive.append(~stopped)
        stopped = stopped | torch.isin(token, stop_ids)
        if bool(stopped.all()) or t + 1 == sampling.max_tokens:
            break
        place = place + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], -1)
        out = lm(token.unsqueeze(-1), mask, place, 1, cache=out.cache)
    kept = torch.stack(alive, 1).sum(1).tolist()
    rows = zip(
        torch.stack(tokens, 1).tolist(), torch.stack(log_probs, 1).tolist(), kept, strict=True
    )
    drawn = [list(zip(ids, lps, strict=True))[:count] for ids, lps, count in rows]
    return drawn, stopped
