"""Rows of a rollout: their episodes, their segments for truncated BPTT, and their minibatches."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.types import Layout


def ages(boundary: Tensor) -> Tensor:
    """Steps since a row's episode began in this rollout. boundary: [T, N] bool; returns int64."""
    begins = torch.ones_like(boundary)
    begins[1:] = boundary[:-1]
    time = torch.arange(len(begins), device=begins.device).unsqueeze(-1).expand(begins.shape)
    return time - torch.where(begins, time, 0).cummax(0).values


def segments(age: Tensor, length: int | None = None) -> Tensor:
    """The number of each row's episode, counted env after env. age: [T, N] of `ages`.

    length: number the segments of at most this many steps instead, into which episodes are cut.
    """
    begins = age == 0 if length is None else age % length == 0
    steps, envs = age.shape
    return begins.t().reshape(-1).cumsum(0).view(envs, steps).t() - 1


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
        drawn = [torch.randperm(len(episode), generator=generator) for _ in range(epochs)]
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
