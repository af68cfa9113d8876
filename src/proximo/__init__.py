"""Proximo: Proximal Policy Optimization for control, from the paper to a policy that acts.

from proximo import PPO, train, load

agent = train("CartPole-v1", PPO(clip=0.2), total_steps=100_000, seed=1)
agent.act(obs)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proximo.agent import Agent, load
    from proximo.algorithms.a2c import A2C
    from proximo.algorithms.ppo import PPO
    from proximo.algorithms.ppo_penalty import PPOPenalty
    from proximo.algorithms.q_actor_critic import QActorCritic
    from proximo.algorithms.reinforce import Reinforce
    from proximo.algorithms.trpo import TRPO
    from proximo.envs.config import EnvConfig
    from proximo.errors import TrainingError, UsageError
    from proximo.functional.schedules import Schedule
    from proximo.loop import train
    from proximo.nets.config import NetConfig
    from proximo.run.config import RolloutConfig, RunConfig

__version__ = "0.1.0"

_HOMES = {
    "Agent": "agent",
    "load": "agent",
    "A2C": "algorithms.a2c",
    "PPO": "algorithms.ppo",
    "PPOPenalty": "algorithms.ppo_penalty",
    "QActorCritic": "algorithms.q_actor_critic",
    "Reinforce": "algorithms.reinforce",
    "TRPO": "algorithms.trpo",
    "EnvConfig": "envs.config",
    "Schedule": "functional.schedules",
    "train": "loop",
    "NetConfig": "nets.config",
    "RolloutConfig": "run.config",
    "RunConfig": "run.config",
    "TrainingError": "errors",
    "UsageError": "errors",
}
__all__ = [  # spelled out for those who read without running
    "A2C",
    "PPO",
    "TRPO",
    "Agent",
    "EnvConfig",
    "NetConfig",
    "PPOPenalty",
    "QActorCritic",
    "Reinforce",
    "RolloutConfig",
    "RunConfig",
    "Schedule",
    "TrainingError",
    "UsageError",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import proximo` alone does not load PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'proximo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"proximo.{_HOMES[name]}"), name)
