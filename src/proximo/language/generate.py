"""Sampling of completions in micro-batches: each token is read once, keys and values are cached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from proximo.errors import TrainingError
from proximo.language.model import Decoding, LanguageModel
from proximo.language.records import Completions, OldPolicy
from proximo.language.sequences import Sequences

COMPACT_AT = 0.75
"""Share of unfinished completions at which the finished ones leave the micro-batch."""


TOLERANCE = 1e-4
"""Gap allowed between the log-probabilities of sampler and update, relative to the largest."""

ROUNDING = 0.05
"""The same in bfloat16, in nats and on average, as single tokens differ more. At the usual clip
range of 0.2, a larger one would decide what is clipped."""


class Replies(NamedTuple):
    """N replies as they were sampled, padded on the right."""

    tokens: Tensor  # [N, max_tokens] int64
    log_prob: Tensor  # [N, max_tokens] of each token, by the distribution it was sampled from
    lengths: Tensor  # [N] int64, the stop token included
    stopped: Tensor  # [N] bool: False where a reply was cut off at max_tokens

    def unpadded(self, x: Tensor) -> list[list[Any]]:
        """The numbers of each reply without those in padding. x: [N, max_tokens]."""
        return [row[:n] for row, n in zip(x.tolist(), self.lengths.tolist(), strict=True)]


def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    generator: torch.Generator,
    micro_batch: int = 64,
) -> Completions:
    """Sample one completion for each prompt.

    One uniform number per token, all drawn first: neither the micro-batches nor the lengths of the
    completions change the samples or the generator's state afterwards.
    """
    noise = torch.rand(len(prompts), decoding.sampling.max_tokens, generator=generator)
    replies = sample(lm, prompts, decoding, noise, micro_batch)
    ids = replies.unpadded(replies.tokens)
    drawn = torch.arange(noise.shape[-1], device=lm.device) < replies.lengths.unsqueeze(-1)
    sequences = Sequences.join(prompts, ids, lm.device)
    return Completions(sequences, replies.log_prob[drawn], replies.stopped, ids)


@torch.no_grad()
def sample(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    noise: Tensor,
    micro_batch: int,
) -> Replies:
    """Sample one reply for each prompt. noise: [N, max_tokens] uniform numbers."""
    numbers = torch.split(noise.to(lm.device), micro_batch)
    begins = range(0, len(prompts), micro_batch)
    with lm.rounding():
        parts = [
            _sample(lm, prompts[begin : begin + micro_batch], decoding, part)
            for begin, part in zip(begins, numbers, strict=True)
        ]
    return Replies(*map(torch.cat, zip(*parts, strict=True)))


def _sample(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], decoding: Decoding, noise: Tensor
) -> Replies:
    """One micro-batch of replies."""
    start = Sequences.join(prompts, [[] for _ in prompts], lm.device)
    read, mask, positions = start.tokens, start.mask, start.positions
    stop_ids = torch.tensor(decoding.stops, dtype=torch.long, device=lm.device)
    tokens = torch.zeros_like(noise, dtype=torch.long)
    log_probs, lengths = torch.zeros_like(noise), torch.zeros_like(tokens[:, 0])
    stopped = torch.zeros_like(lengths, dtype=torch.bool)
    rows = torch.arange(len(prompts), device=lm.device)  # the replies that are still read
    out = lm(read, mask, positions, cache=True)
    for t in range(noise.shape[-1]):
        policy = decoding.distribution(out.logits, torch.full_like(rows, t))
        token = policy.sample(noise[rows, t])
        tokens[rows, t], log_probs[rows, t] = token, policy.log_prob(token)
        over = stopped[rows]
        lengths[rows] += ~over
        over |= torch.isin(token, stop_ids)
        stopped[rows] = over
        left = len(rows) - int(over.sum())
        if not left or t + 1 == noise.shape[-1]:
            break
        cache = out.cache
        token, place = token.unsqueeze(-1), positions[:, -1:] + 1
        if cache is None:  # a model without a cache reads everything again
            token, place = torch.cat([read, token], -1), torch.cat([positions, place], -1)
        read, positions = token, place
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], -1)
        if left <= COMPACT_AT * len(rows) and (cache is None or lm.select):
            kept = (~over).nonzero().squeeze(-1)
            rows, read, positions, mask = rows[kept], read[kept], positions[kept], mask[kept]
            if cache is not None:
                getattr(cache, lm.select)(kept)
        out = lm(read, mask, positions, cache=cache)
    return Replies(tokens, log_probs, lengths, stopped)


def check_drawn(by_sampler: Tensor, old: OldPolicy, dtype: str = "float32") -> float:
    """Largest gap of sampler and update, in nats. Raises `TrainingError` if policies differ."""
    gaps = (by_sampler - old.log_prob).abs()
    gap, limit = float(gaps.max()), TOLERANCE * max(1.0, float(by_sampler.abs().max()))
    found, said = gap, ": "
    if dtype == "bfloat16":
        found, limit = float(gaps.mean()), ROUNDING
        said = " on average: if float32 (run.dtype) does not mend it, "
    if not found <= limit:
        raise TrainingError(
            f"log-probabilities in sampling and in the update differ by {found:.2g} nats{said}this "
            "model's cache, positions or padding do not work as they should"
        )
    return gap
