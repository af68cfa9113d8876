"""Rows of a rollout: their episodes, their segments for truncated BPTT, and their minibatches."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.functional.random import permutation
from proximo.types import Layout


def begins(boundary: Tensor) -> Tensor:
    """Whether a row is the first of its episode in this rollout. boundary: [T, N] bool."""
    return torch.cat([torch.ones_like(boundary[:1]), boundary[:-1]])


def ages(boundary: Tensor) -> Tensor:
    """Steps since a row's episode began in this rollout. boundary: [T, N] bool; returns int64."""
    first = begins(boundary)
    time = torch.arange(len(first), device=first.device).unsqueeze(-1).expand(first.shape)
    return time - torch.where(first, time, 0).cummax(0).values


def segments(first: Tensor) -> Tensor:
    """Number of each row's episode, or of the segment into which it is cut, counted from 0.

    first: [B] bool, whether one begins with this row; returns [B] int64.
    """
    return first.cumsum(0) - 1


def consecutive(number: Tensor) -> Tensor:
    """Runs of equal numbers, renumbered 0, 1, 2, ... number: [B] int64; returns [B] int64."""
    counted: Tensor = torch.unique_consecutive(number, return_inverse=True)[1]
    return counted


def minibatches(
    kind: str,
    size: int,
    epochs: int,
    generator: torch.Generator,
    *,
    episode: Tensor,
    segment: Tensor | None,
    join_single: bool,
) -> Layout:
    """The minibatches of an update: in a new random order every epoch, or whole episodes in turn.

    kind: shuffled, episodes or whole. Segments [B], if given, stay whole. The last shuffled
    minibatch may be smaller; join_single: one of a single sample joins another.
    """
    orders, edges = torch.arange(len(episode)).expand(epochs, -1), [[0, len(episode)]]
    if kind == "episodes":
        edges = [[0, *torch.bincount(episode).cumsum(0).tolist()]]
    elif kind == "shuffled" and segment is not None:
        lengths = torch.bincount(segment).cpu()
        whole = [_whole_segments(lengths, size, generator) for _ in range(epochs)]
        orders, edges = torch.stack([order for order, _ in whole]), [ends for _, ends in whole]
    elif kind == "shuffled":
        drawn = [permutation(len(episode), generator, episode.device) for _ in range(epochs)]
        orders, edges = torch.stack(drawn), [[*range(0, len(episode), size), len(episode)]]
    before = sum(map(len, edges))
    if join_single:
        edges = [_without_single(bounds) for bounds in edges]
    return Layout(orders, edges * (epochs // len(edges)), before - sum(map(len, edges)))


def _without_single(bounds: list[int]) -> list[int]:
    """Minibatches of one sample join the next, and the last one the one before it."""
    kept = bounds[:1]
    for end in bounds[1:]:
        if end - kept[-1] > 1:
            kept.append(end)
    if len(kept) == 1:
        return bounds[:1] + bounds[-1:]
    return [*kept[:-1], bounds[-1]]


def _whole_segments(
    lengths: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, list[int]]:
    """Whole segments, in a random order, in minibatches of about this size."""
    drawn = torch.randperm(len(lengths), generator=generator)
    shuffled = lengths[drawn]
    ends = shuffled.cumsum(0)
    count = int(ends[-1])
    # Where each begins, less where it is put: what to add to 0, 1, 2, ...
    shift = (lengths.cumsum(0) - lengths)[drawn] - (ends - shuffled)
    order = torch.arange(count) + shift.repeat_interleave(shuffled)
    # A minibatch ends with the segment that is nearest to a multiple of the size.
    goals = size * torch.arange(1, -(-count // size))
    after = torch.searchsorted(ends, goals)
    before = (after - 1).clamp(min=0)
    nearer = torch.where(goals - ends[before] < ends[after] - goals, before, after)
    return order, sorted({0, *ends[nearer].tolist(), count})
