"""Language models: the same algorithm, with words for actions.

from proximo.language import fit_reward, ppo, sft

base = sft("tiny", "texts.jsonl", updates=500)
judge = fit_reward(base, "pairs.jsonl", updates=200)
tuned = ppo(base, "prompts.jsonl", judge, updates=100, seed=1)
tuned.generate(["The weather is"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proximo.language.blueprint import load_model, tiny
    from proximo.language.config import (
        Fitting,
        KLConfig,
        ModelConfig,
        PTXConfig,
        Sampling,
        ScoreConfig,
        TrainingConfig,
    )
    from proximo.language.model import LanguageModel
    from proximo.language.reward import RewardModel, load_reward
    from proximo.language.stages import Result, fit_reward, ppo, sft
    from proximo.language.token_ppo import TOKENS, TokenPPO

_HOMES = {
    "Fitting": "config",
    "KLConfig": "config",
    "ModelConfig": "config",
    "PTXConfig": "config",
    "Sampling": "config",
    "ScoreConfig": "config",
    "TrainingConfig": "config",
    "LanguageModel": "model",
    "load_model": "blueprint",
    "tiny": "blueprint",
    "RewardModel": "reward",
    "load_reward": "reward",
    "Result": "stages",
    "fit_reward": "stages",
    "ppo": "stages",
    "sft": "stages",
    "TOKENS": "token_ppo",
    "TokenPPO": "token_ppo",
}
__all__ = [  # spelled out for those who read without running
    "TOKENS",
    "Fitting",
    "KLConfig",
    "LanguageModel",
    "ModelConfig",
    "PTXConfig",
    "Result",
    "RewardModel",
    "Sampling",
    "ScoreConfig",
    "TokenPPO",
    "TrainingConfig",
    "fit_reward",
    "load_model",
    "load_reward",
    "ppo",
    "sft",
    "tiny",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that settings can be listed without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'proximo.language' has no attribute {name!r}")
    return getattr(importlib.import_module(f"proximo.language.{_HOMES[name]}"), name)
