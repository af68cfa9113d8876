"""What the outputs of a critic stand for: a number, its symlog, or a histogram of either."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from proximo import functional as F
from proximo.nets.config import NetConfig


class ValueScale(nn.Module):
    """From outputs of a critic to values, and from value targets to what the outputs learn."""

    def __init__(self, net: NetConfig) -> None:
        super().__init__()
        self.symlog, self.bins = net.value_symlog, net.value_bins
        # NumPy's: on the meta device PyTorch's own would import a library of symbols.
        centres = torch.from_numpy(np.linspace(*net.value_range, max(1, self.bins)))
        self.centres = nn.Buffer(centres.to(torch.get_default_dtype()), persistent=False)
        """[K] of the bins."""
        low, high = net.value_range
        self._sigma = net.value_sigma * (high - low) / max(1, self.bins - 1)

    @property
    def plain(self) -> bool:
        """An output is a value."""
        return not (self.symlog or self.bins)

    def value(self, outputs: Tensor) -> Tensor:
        """Values of outputs, [..., K], or of [..., 1] without bins; returns [...]."""
        value = F.values.histogram_mean(outputs, self.centres) if self.bins else outputs.squeeze(-1)
        return F.values.symexp(value) if self.symlog else value

    def learned(self, value: Tensor) -> Tensor:
        """Values as a critic of numbers puts them out, or as the bins count them."""
        return F.values.symlog(value) if self.symlog else value

    def error(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the histograms with those of the value targets. [B, K], [B] -> [B]."""
        spread = F.values.histogram(self.learned(target), self.centres, self._sigma)
        return F.values.histogram_error(outputs, spread)

    def outside(self, target: Tensor) -> Tensor:
        """True where a value target lies beyond the bins, which count it as the outermost."""
        learned = self.learned(target)
        return (learned < self.centres[0]) | (learned > self.centres[-1])
