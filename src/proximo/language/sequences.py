"""Prompts and completions as tensors: padded, packed into rows, split into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ROW = 16  # width of a packed row at least, in tokens: short sequences share one


class Sequences(NamedTuple):
    """Prompts, padded on the left, and completions, padded on the right.

    The mask alone says what is padding, never a token's id: the padding token may be the end of
    sequence, or any other. In a conversation with an env the completion holds several replies of
    the model, and between them the env's texts, which are read but are not part of the response.
    """

    tokens: Tensor  # [N, P + R] int64
    mask: Tensor  # [N, P + R] bool: False for padding
    response: Tensor  # [N, R] bool: the model's own tokens

    @staticmethod
    def join(
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
        response: Sequence[Sequence[bool]] | None = None,
    ) -> Sequences:
        """Pad lists of ids. response: which ids of each completion are the model's; None: all."""
        before, after = max(map(len, prompts)), max(map(len, completions))
        tokens = np.zeros((len(prompts), before + after), np.int64)
        mask = np.zeros(tokens.shape, bool)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            span = slice(before - len(prompt), before + len(completion))
            tokens[row, span] = [*prompt, *completion]
            mask[row, span] = True
        own = mask[:, before:]
        if response is not None:
            own = np.array([[*row, *[False] * (after - len(row))] for row in response])
        return Sequences(*(torch.from_numpy(x).to(device) for x in (tokens, mask, own)))

    @property
    def positions(self) -> Tensor:
        """[N, P + R] int64: index of each token in its own sequence, padding not counted."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)

    @property
    def lengths(self) -> Tensor:
        """[N] int64: number of the model's own tokens."""
        return self.response.sum(-1)

    @property
    def numbers(self) -> Tensor:
        """[N] int64: 0, 1, 2, ..., on the CPU."""
        return torch.arange(len(self.tokens))

    @property
    def num_tokens(self) -> int:
        """B, the number of the model's own tokens in all."""
        return int(self.response.sum())

    @property
    def actions(self) -> Tensor:
        """[B] int64: the model's own tokens, in order of sequence, then of time."""
        return self.tokens[:, -self.response.shape[-1] :][self.response]

    @property
    def before_actions(self) -> Tensor:
        """[N, P + R] bool: the tokens that the model's own tokens follow."""
        before = torch.zeros_like(self.mask)
        before[:, -self.response.shape[-1] - 1 : -1] = self.response
        return before

    @property
    def reply_index(self) -> Tensor:
        """[B] int64: index of each action in its reply, from 0."""
        begins = self.response.clone()
        begins[:, 1:] &= ~self.response[:, :-1]
        column = torch.arange(begins.shape[-1], device=begins.device)
        return (column - torch.where(begins, column, 0).cummax(-1).values)[self.response]

    @property
    def reply_ends(self) -> Tensor:
        """[N, R] bool: the last token of each reply."""
        ends = self.response.clone()
        ends[:, :-1] &= ~self.response[:, 1:]
        return ends

    @property
    def owner(self) -> Tensor:
        """[B] int64: index of each action's sequence."""
        return self.response.nonzero()[:, 0]

    @property
    def valid(self) -> Tensor:
        """[N, T] bool: which of T steps a sequence has, its own tokens placed side by side."""
        lengths = self.lengths.unsqueeze(-1)
        return torch.arange(int(lengths.max()), device=lengths.device) < lengths

    def by_time(self, x: Tensor) -> Tensor:
        """[B] -> [T, N], 0 in padding: time first, as the advantages want it."""
        valid = self.valid
        laid_out = torch.zeros(valid.shape, dtype=x.dtype, device=x.device)
        return laid_out.masked_scatter(valid, x).t()

    def by_token(self, x: Tensor) -> Tensor:
        """[T, N] -> [B]: the inverse of `by_time`."""
        return x.t()[self.valid]

    def rows_of(self, chosen: Tensor) -> Tensor:
        """Rows of the chosen sequences' actions among all B, in the order of `chosen` [n]. [b]."""
        lengths = self.lengths
        ends, own = lengths.cumsum(0), lengths[chosen]
        # Where each begins, minus where it is put: what to add to 0, 1, 2, ...
        shift = (ends - lengths)[chosen] - (own.cumsum(0) - own)
        return torch.arange(int(own.sum()), device=ends.device) + shift.repeat_interleave(own)

    def select(self, index: Tensor) -> Sequences:
        """The sequences at this index, without the columns that are padding in all of them."""
        mask, response = self.mask[index], self.response[index]
        used = mask.any(0).nonzero().squeeze(-1)
        prompt = mask.shape[-1] - response.shape[-1]
        # At least one column of completions stays, so that no shape has a 0 in it.
        begin, end = int(used[0]), max(int(used[-1]) + 1, prompt + 1)
        cut = slice(begin, end)
        return Sequences(self.tokens[index][:, cut], mask[:, cut], response[:, : end - prompt])


class Packed(NamedTuple):
    """Sequences placed one after another in rows, so that few of the tokens read are padding."""

    tokens: Tensor  # [M, W] int64
    positions: Tensor  # [M, W] int64: index of each token in its own sequence
    owner: Tensor  # [M, W] int64: index of the token's sequence, or -1 for padding
    wanted: Tensor  # [B] int64: places of the wanted tokens among the M x W

    def mask(self, dtype: torch.dtype) -> Tensor:
        """[M, 1, W, W], added to attention's scores: -inf except for the sequence's own past."""
        # Numbers, because each layer would make and keep its own copy of a boolean mask.
        own = (self.owner.unsqueeze(-1) == self.owner.unsqueeze(-2)).tril().unsqueeze(1)
        return torch.zeros_like(own, dtype=dtype).masked_fill_(~own, -torch.inf)


def pack(sequences: Sequences, wanted: Tensor, *, share: bool) -> Packed:
    """Place in rows all tokens that must be read to predict what follows the `wanted` ones.

    wanted: [N, P + R] bool, answered in order of sequence, then of time; tokens after the last
    wanted one are left out. share: sequences may share a row.
    """
    needed = sequences.mask & (wanted.flip(-1).cumsum(-1).flip(-1) > 0)
    lengths = needed.sum(-1).tolist()
    width = max(lengths)
    rows, columns = list(range(len(lengths))), [0] * len(lengths)
    if share:
        width = max(width, ROW)
        rows, columns = _first_fit(lengths, width)
    begin = torch.tensor([row * width + column for row, column in zip(rows, columns, strict=True)])
    place = begin.to(needed.device).unsqueeze(-1) + sequences.positions
    into = place[needed]
    positions = torch.zeros(max(rows) + 1, width, dtype=torch.int64, device=needed.device)
    tokens, owner = positions.clone(), positions - 1
    positions.view(-1)[into] = sequences.positions[needed]
    tokens.view(-1)[into] = sequences.tokens[needed]
    owner.view(-1)[into] = needed.nonzero()[:, 0]
    return Packed(tokens, positions, owner, place[wanted])


def _first_fit(lengths: list[int], width: int) -> tuple[list[int], list[int]]:
    """Row and column of each sequence: the longest first, in the first row with room for it."""
    rows, columns = [0] * len(lengths), [0] * len(lengths)
    used: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, full in enumerate(used) if full + lengths[i] <= width), len(used))
        if row == len(used):
            used.append(0)
        rows[i], columns[i] = row, used[row]
        used[row] += lengths[i]
    return rows, columns


def by_length(sequences: Sequences, chosen: Tensor, limit: int) -> list[Tensor]:
    """Split the chosen sequences into micro-batches of at most `limit`, of similar lengths.

    The longest in a part has at most twice the tokens of its shortest, or `ROW` tokens: a long
    sequence then neither pads the others nor makes their rows as wide as itself. chosen: [n].
    """
    lengths, order = sequences.mask[chosen].sum(-1).cpu().sort(stable=True)
    begins, longest = [0], 0
    for i, length in enumerate(lengths.tolist()):
        if i - begins[-1] == limit or length > longest > 0:
            begins.append(i)
            longest = 0
        longest = longest or max(ROW, 2 * length)
    return list(torch.tensor_split(chosen[order.to(chosen.device)], begins[1:]))


def per_token(
    sequences: Sequences, limit: int, compute: Callable[[Sequences], Sequence[Tensor]]
) -> list[Tensor]:
    """Tensors [B] from a `compute` that returns them as [b] for each micro-batch."""
    parts = by_length(sequences, sequences.numbers, limit)
    rows = torch.cat([sequences.rows_of(part) for part in parts])
    computed = zip(*(compute(sequences.select(part)) for part in parts), strict=True)
    back = rows.argsort()
    return [torch.cat(pieces)[back] for pieces in computed]
