"""Processor seconds of training Pendulum at RLtools' own settings, and the policy's score.

4 x 1024 steps, 2 epochs of minibatches of 256, two layers of 64 with ReLU, gamma 0.9, a standard
deviation of 2 at the beginning, standardised observations, 300,000 steps. The time is that of
`train` with a run folder, metrics and checkpoints, without imports; the score is of 100 greedy
episodes afterwards.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

from settings import pin, report

from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, RunConfig, evaluate, train


def learn(total_steps: int, backend: str, threads: int, seed: int, run_dir: Path | None = None):
    return train(
        EnvConfig(id="Pendulum-v1", num_envs=4, backend=backend),
        PPO(epochs=2, minibatch_size=256, learning_rate=1e-3, gamma=0.9, max_grad_norm=None),
        rollout=RolloutConfig(steps=1024),
        net=NetConfig(activation="relu", log_std=math.log(2), normalize_obs=True),
        run_config=RunConfig(total_steps=total_steps, threads=threads, seed=seed),
        run_dir=run_dir,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    pin(chosen.threads)
    learn(4096, chosen.backend, chosen.threads, 0)  # imports, and code that is made once
    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time()
        run = Path(folder) / "run"
        agent = learn(chosen.steps, chosen.backend, chosen.threads, chosen.seed, run)
        spent = time.process_time() - before
    scores = evaluate(agent, episodes=100)
    report(cpu_seconds=spent, final_return=scores.mean)


if __name__ == "__main__":
    main()
