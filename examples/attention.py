"""A custom network: attention over a set with a variable number of things.

proximo train ppo examples.attention:Nearest --net examples.attention:Attention
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

THINGS, COLOURS, STEPS = 8, 4, 8


class Nearest(gym.Env[dict[str, np.ndarray], int]):
    """Up to 8 coloured things lie around, in no order; the answer is the colour of the nearest one.

    Each right answer earns 1. An episode has 8 questions: the best score is 8, guessing earns 2.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "there": spaces.MultiBinary(THINGS),
                "place": spaces.Box(-1, 1, (THINGS, 2), np.float32),
                "colour": spaces.MultiDiscrete([COLOURS] * THINGS),
            }
        )
        self.action_space = spaces.Discrete(COLOURS)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.asked = 0
        return self.ask(), {}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        reward = float(action == self.answer)
        self.asked += 1
        return self.ask(), reward, self.asked == STEPS, False, {}

    def ask(self) -> dict[str, np.ndarray]:
        count = self.np_random.integers(1, THINGS + 1)
        there = self.np_random.permutation(np.arange(THINGS) < count)
        place = self.np_random.uniform(-1, 1, (THINGS, 2)).astype(np.float32)
        colour = self.np_random.integers(COLOURS, size=THINGS)
        distance = np.where(there, np.linalg.norm(place, axis=1), np.inf)
        self.answer = int(colour[distance.argmin()])
        return {"there": there.astype(np.int8), "place": place, "colour": colour}


class Attention(nn.Module):
    """softmax(q·K/√d) V over the things that are present, in any order."""

    def __init__(self, space: spaces.Dict, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        things, axes = space["place"].shape
        colours = int(space["colour"].nvec[0])
        self.things, self.heads = things, heads
        self.embed = nn.Sequential(
            nn.Linear(axes + colours, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.query = nn.Parameter(torch.randn(heads, width // heads))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, seen: dict[str, Tensor]) -> Tensor:
        """place: [B, 8, 2], colour: [B, 8 * 4], there: [B, 8]; returns [B, width]."""
        batch = seen["place"].shape[0]  # `len` would fix it in an exported policy
        colour = seen["colour"].reshape(batch, self.things, -1)  # one-hot
        x = self.embed(torch.cat([seen["place"], colour], -1))
        key, value = (
            layer(x).reshape(batch, self.things, self.heads, -1) for layer in (self.key, self.value)
        )
        score = (key * self.query).sum(-1) / math.sqrt(key.shape[-1])  # [B, 8, heads]
        absent = seen["there"].unsqueeze(-1) == 0
        weight = torch.softmax(score.masked_fill(absent, -1e9), 1)
        return (weight.unsqueeze(-1) * value).sum(1).reshape(batch, -1)
