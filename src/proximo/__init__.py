"""Proximo: Proximal Policy Optimization for control, from the paper to a policy that acts.

from proximo import PPO, train, load

agent = train("CartPole-v1", PPO(clip=0.2), total_steps=100_000, seed=1)
agent.act(obs)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proximo import functional
    from proximo.agent import Agent, evaluate, load
    from proximo.algorithms.a2c import A2C
    from proximo.algorithms.base import OnPolicy
    from proximo.algorithms.ppo import PPO
    from proximo.algorithms.ppo_penalty import PPOPenalty
    from proximo.algorithms.q_actor_critic import QActorCritic
    from proximo.algorithms.reinforce import Reinforce
    from proximo.algorithms.trpo import TRPO
    from proximo.envs.config import EnvConfig
    from proximo.errors import TrainingError, UsageError
    from proximo.functional.schedules import Schedule
    from proximo.loop import resume, train
    from proximo.nets.config import NetConfig
    from proximo.run.callbacks import Callback
    from proximo.run.config import RolloutConfig, RunConfig
    from proximo.run.metrics import read_metrics
    from proximo.run.tracker import Tracker
    from proximo.run.trackers import MLflow, TensorBoard, Trackio, WandB
    from proximo.state import TrainState
    from proximo.tuning.result import TuneResult, tune
    from proximo.types import Batch, Rollout

__version__ = "0.1.0"

_PUBLIC = {
    "agent": ("Agent", "evaluate", "load"),
    "algorithms.a2c": ("A2C",),
    "algorithms.base": ("OnPolicy",),
    "algorithms.ppo": ("PPO",),
    "algorithms.ppo_penalty": ("PPOPenalty",),
    "algorithms.q_actor_critic": ("QActorCritic",),
    "algorithms.reinforce": ("Reinforce",),
    "algorithms.trpo": ("TRPO",),
    "envs.config": ("EnvConfig",),
    "errors": ("TrainingError", "UsageError"),
    "functional.schedules": ("Schedule",),
    "loop": ("resume", "train"),
    "nets.config": ("NetConfig",),
    "run.callbacks": ("Callback",),
    "run.config": ("RolloutConfig", "RunConfig"),
    "run.metrics": ("read_metrics",),
    "run.tracker": ("Tracker",),
    "run.trackers": ("MLflow", "TensorBoard", "Trackio", "WandB"),
    "state": ("TrainState",),
    "tuning.result": ("TuneResult", "tune"),
    "types": ("Batch", "Rollout"),
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}
# Spelled out, for those who read without running.
__all__ = ["A2C", "PPO", "TRPO", "OnPolicy", "PPOPenalty", "QActorCritic", "Reinforce", "Schedule"]
__all__ += ["Callback", "EnvConfig", "NetConfig", "RolloutConfig", "RunConfig", "functional"]
__all__ += ["Agent", "Batch", "Rollout", "TrainState", "TrainingError", "TuneResult"]
__all__ += ["UsageError"]
__all__ += ["MLflow", "TensorBoard", "Tracker", "Trackio", "WandB"]
__all__ += ["evaluate", "load", "read_metrics", "resume", "train", "tune"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import proximo` alone does not load PyTorch."""
    if name == "functional":
        return importlib.import_module("proximo.functional")
    if name not in _HOMES:
        raise AttributeError(f"module 'proximo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"proximo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
