"""Steps per second of Stable-Baselines3, or of SBX (the same interface on JAX), at one setting."""

import argparse

import torch
from settings import WORKS, Marks, pin
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize


class MarkUpdates(BaseCallback):
    """A rollout starts when the update before it is done, so that is where an update ends."""

    def __init__(self, marks: Marks):
        super().__init__()
        self.marks = marks

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self.marks.add(self.num_timesteps)

    def _on_training_end(self) -> None:
        self.marks.add(self.num_timesteps)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sbx", action="store_true")
    chosen = parser.parse_args()
    work = WORKS[chosen.work]
    if chosen.sbx:
        pin(chosen.threads)
        from sbx import PPO
    else:
        from stable_baselines3 import PPO
    torch.set_num_threads(chosen.threads)
    envs = make_vec_env(work.env, n_envs=work.num_envs, seed=1)
    if work.normalize:
        envs = VecNormalize(envs, gamma=work.gamma)
    rate = work.learning_rate
    model = PPO(
        "MlpPolicy",
        envs,
        learning_rate=(lambda remaining: remaining * rate) if work.anneal else rate,
        n_steps=work.steps,
        batch_size=work.minibatch,
        n_epochs=work.epochs,
        gamma=work.gamma,
        gae_lambda=work.lam,
        ent_coef=work.entropy,
        clip_range_vf=work.value_clip,
        device="cpu",
        seed=1,
    )
    marks = Marks()
    model.learn(work.whole_updates(chosen.steps), callback=MarkUpdates(marks))
    marks.report()


if __name__ == "__main__":
    main()
