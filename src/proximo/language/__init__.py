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
        KLConfig,
        ModelConfig,
        PTXConfig,
        Sampling,
        ScoreConfig,
        SupervisedConfig,
        TrainingConfig,
    )
    from proximo.language.model import LanguageModel
    from proximo.language.reward import RewardModel, load_reward
    from proximo.language.stages import Result, fit_reward, ppo, resume, sft
    from proximo.language.token_ppo import TOKEN_PPO, TokenPPO

_PUBLIC = {
    "blueprint": ("load_model", "tiny"),
    "config": (
        *("KLConfig", "ModelConfig", "PTXConfig", "Sampling", "ScoreConfig"),
        *("SupervisedConfig", "TrainingConfig"),
    ),
    "model": ("LanguageModel",),
    "reward": ("RewardModel", "load_reward"),
    "stages": ("Result", "fit_reward", "ppo", "resume", "sft"),
    "token_ppo": ("TOKEN_PPO", "TokenPPO"),
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}
# Spelled out, for those who read without running.
__all__ = ["KLConfig", "ModelConfig", "PTXConfig", "Sampling", "ScoreConfig", "SupervisedConfig"]
__all__ += ["TOKEN_PPO", "LanguageModel", "Result", "RewardModel", "TokenPPO", "TrainingConfig"]
__all__ += ["fit_reward", "load_model", "load_reward", "ppo", "resume", "sft", "tiny"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that settings can be listed without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'proximo.language' has no attribute {name!r}")
    return getattr(importlib.import_module(f"proximo.language.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
