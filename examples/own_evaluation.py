"""An evaluation of your own: a policy counts for what it scores where it did not train.

proximo train ppo CartPole-v1 --callback examples.own_evaluation:Gravities --run.eval-every 10
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym

from proximo import Callback, TrainState
from proximo.evaluation import evaluate_policy


@dataclass
class Gravities(Callback):
    """Mean return of CartPole under each gravity, in m/s²: the Moon's, the Earth's, Jupiter's.

    The worst of them is the run's `evaluation`, by which `run.keep_best` can choose a policy.
    """

    gravities: tuple[float, ...] = (1.6, 9.8, 24.8)
    episodes: int = 5
    seed: int = 1_000_000

    def evaluate(self, state: TrainState) -> dict[str, float]:
        scores = {}
        for gravity in self.gravities:
            env = gym.make("CartPole-v1")
            env.unwrapped.gravity = gravity
            played = evaluate_policy(state.policy, env, episodes=self.episodes, seed=self.seed)
            scores[f"return_at_gravity_{gravity}"] = played.mean
        return {**scores, "evaluation": min(scores.values())}
