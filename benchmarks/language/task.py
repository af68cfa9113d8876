"""What a task of `frontier.py` consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proximo.language import ModelConfig, Result, Sampling, SupervisedConfig

Row = dict[str, str]


@dataclass(frozen=True)
class Task:
    """Texts, and the hidden score of a completion."""

    model: ModelConfig
    sampling: Sampling
    texts: Callable[[int], tuple[list[Row], list[str]]]
    """Of a seed: texts to learn from, and prompts to be completed."""
    pairs: Callable[[int, list[str], Result | None], list[Row]]
    """Of a seed, its prompts and the fine-tuned model: pairs of which one is preferred."""
    worth: Callable[[str], int]
    """The hidden score."""
    fitting: tuple[int, int]
    """Updates of fine-tuning and of the reward model."""
    updates: int
    """Of PPO."""
    algorithm: dict[str, Any]
    """PPO's settings besides `TOKEN_PPO`."""
    rate: SupervisedConfig = field(
        default_factory=lambda: SupervisedConfig(learning_rate=1e-3, held_out=0.1)
    )
