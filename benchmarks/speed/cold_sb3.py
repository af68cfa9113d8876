"""Train CartPole-v1 with Stable-Baselines3 until its rolling return is 475, and save the policy.

The settings are those of RL Baselines3 Zoo. The rolling return is over 20 episodes, about what our
smoothed return looks back on; its default of 100 would keep it training longer.
"""

import json
import sys
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy


class StopAt475(BaseCallback):
    """Ends the training at the end of a rollout."""

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer]
        self.reached = len(returns) == 20 and sum(returns) / 20 >= 475

    def _on_step(self) -> bool:
        return not getattr(self, "reached", False)


def learn(path: Path, seed: int) -> None:
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=8, seed=seed),
        learning_rate=lambda remaining: remaining * 1e-3,
        clip_range=lambda remaining: remaining * 0.2,
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        ent_coef=0.0,
        stats_window_size=20,
        device="cpu",
        seed=seed,
    )
    model.learn(100_000, callback=StopAt475())
    model.save(path)


def score(path: Path) -> None:
    envs = make_vec_env("CartPole-v1", n_envs=10, seed=1_000_000)
    mean, _ = evaluate_policy(PPO.load(path, device="cpu"), envs, n_eval_episodes=100)
    print(json.dumps({"return_mean": float(mean)}))


if __name__ == "__main__":
    verb, folder, number = sys.argv[1:]
    saved = Path(folder) / "policy.zip"
    learn(saved, int(number)) if verb == "train" else score(saved)
