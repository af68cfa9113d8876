"""GRU and LSTM over segments of experience, which never cross the end of an episode."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from proximo.types import Segments


class Recurrent(nn.Module):
    """y_t, m_t = cell(x_t, m_{t-1}) with a recurrent (hidden) state m, one row per env.

    A state [.., C] is the hidden state, and for an LSTM the cell state beside it; 0 at the
    beginning of an episode.
    """

    def __init__(self, kind: str, inputs: int, size: int, orthogonal: bool) -> None:
        super().__init__()
        self.size = size
        self.state_size = 2 * size if kind == "lstm" else size
        self.cell = (nn.LSTM if kind == "lstm" else nn.GRU)(inputs, size)
        if orthogonal:
            for name, parameter in self.cell.named_parameters():
                if name.startswith("weight"):
                    nn.init.orthogonal_(parameter)
                else:
                    nn.init.zeros_(parameter)

    def step(self, x: Tensor, recurrent_state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of every env. x: [N, inputs], state: [N, C]; returns [N, size], [N, C]."""
        y, state = self.cell(x.unsqueeze(0), self._state(recurrent_state))
        return y.squeeze(0), self._joined(state)

    def forward(self, x: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """All segments at once, packed by their lengths: no padding, no loop over time.

        x: [B, inputs]; returns [B, size] and the recurrent state after each segment, [S, C].
        """
        lengths = torch.unique_consecutive(segments.segment_id, return_counts=True)[1]
        begins = lengths.cumsum(0) - lengths
        longest_first = lengths.argsort(descending=True, stable=True)
        rank = longest_first.argsort()
        time = torch.arange(len(x), device=x.device) - begins.repeat_interleave(lengths)
        # The fused cell takes the first rows of all segments, then the second ones, and so on.
        order = (time * len(lengths) + rank.repeat_interleave(lengths)).argsort()
        packed = PackedSequence(x[order], torch.bincount(time).cpu())
        state = self._state(segments.initial_state[begins[longest_first]])
        y, state = self.cell(packed, state)
        return y.data[order.argsort()], self._joined(state)[rank]

    def _state(self, recurrent_state: Tensor) -> Tensor | tuple[Tensor, ...]:
        parts = torch.split(recurrent_state.unsqueeze(0), self.size, -1)
        return tuple(part.contiguous() for part in parts) if len(parts) > 1 else parts[0]

    def _joined(self, state: Tensor | tuple[Tensor, ...]) -> Tensor:
        return (state if isinstance(state, Tensor) else torch.cat(state, -1)).squeeze(0)
