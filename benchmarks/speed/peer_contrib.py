"""Steps per second of sb3-contrib's RecurrentPPO or MaskablePPO, or of PPO on Atari's pixels."""

import argparse

import ale_py
import gymnasium as gym
import torch
from masked import Walk
from peer_sb3 import MarkUpdates
from sb3_contrib import MaskablePPO, RecurrentPPO
from settings import WORKS, Marks, Work
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack


def make(work: Work, seed: int = 1):
    """The algorithm with its envs."""
    shared = {
        "learning_rate": work.learning_rate,
        "n_steps": work.steps,
        "batch_size": work.minibatch,
        "n_epochs": work.epochs,
        "gamma": work.gamma,
        "gae_lambda": work.lam,
        "ent_coef": work.entropy,
        "clip_range": work.clip,
        "device": "cpu",
        "seed": seed,
    }
    if work.pixels:
        gym.register_envs(ale_py)
        # Its wrapper repeats actions itself, so the env must not; sticky ones as in v5.
        kwargs = {"frameskip": 1, "repeat_action_probability": 0.25}
        envs = make_atari_env(work.env, work.num_envs, seed=seed, env_kwargs=kwargs)
        return PPO("CnnPolicy", VecFrameStack(envs, 4), **shared)
    if work.masked:
        return MaskablePPO("MlpPolicy", make_vec_env(Walk, work.num_envs, seed=seed), **shared)
    envs = make_vec_env(work.env, work.num_envs, seed=seed)
    net = {"lstm_hidden_size": work.recurrent_size}
    return RecurrentPPO("MlpLstmPolicy", envs, policy_kwargs=net, **shared)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    work = WORKS[chosen.work]
    torch.set_num_threads(chosen.threads)
    marks = Marks()
    make(work).learn(work.whole_updates(chosen.steps), callback=MarkUpdates(marks))
    marks.report()


if __name__ == "__main__":
    main()
