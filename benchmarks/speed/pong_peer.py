"""The learning curve of Stable-Baselines3 on Atari's Pong, as lines of JSON."""

import argparse
import json

import torch
from peer_contrib import make
from settings import WORKS
from stable_baselines3.common.callbacks import BaseCallback


class Curve(BaseCallback):
    """After every rollout: steps, and the mean return of the last 100 episodes."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        done = [episode["r"] for episode in self.model.ep_info_buffer]
        mean = sum(done) / len(done) if done else None
        print(json.dumps({"steps": self.num_timesteps, "return_mean": mean}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    make(WORKS["pong"], chosen.seed).learn(chosen.steps, callback=Curve())


if __name__ == "__main__":
    main()
