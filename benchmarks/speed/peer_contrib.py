"""Steps per second of sb3-contrib's RecurrentPPO or MaskablePPO at one setting."""

import argparse

import torch
from masked import Walk
from peer_sb3 import MarkUpdates
from sb3_contrib import MaskablePPO, RecurrentPPO
from settings import WORKS, Marks
from stable_baselines3.common.env_util import make_vec_env


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    work = WORKS[chosen.work]
    torch.set_num_threads(chosen.threads)
    shared = {
        "learning_rate": work.learning_rate,
        "n_steps": work.steps,
        "batch_size": work.minibatch,
        "n_epochs": work.epochs,
        "gamma": work.gamma,
        "gae_lambda": work.lam,
        "ent_coef": work.entropy,
        "device": "cpu",
        "seed": 1,
    }
    if work.masked:
        model = MaskablePPO("MlpPolicy", make_vec_env(Walk, work.worlds, seed=1), **shared)
    else:
        worlds = make_vec_env(work.env, work.worlds, seed=1)
        net = {"lstm_hidden_size": work.memory_size}
        model = RecurrentPPO("MlpLstmPolicy", worlds, policy_kwargs=net, **shared)
    marks = Marks()
    model.learn(work.whole_updates(chosen.steps), callback=MarkUpdates(marks))
    marks.report()


if __name__ == "__main__":
    main()
