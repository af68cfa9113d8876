"""Microseconds per gradient step of Proximo: whole updates, over the number of their steps.

So the shuffling of the minibatches and the readings after an update are in the figure.
"""

import argparse
import dataclasses
import time

from settings import report

from proximo import PPO, EnvConfig, RolloutConfig, RunConfig, train

SIZES = (64, 128, 512)
SAMPLES = 8192


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="gradient steps per size")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    figures = {}
    # A rate of 0, so that the policy that is measured is still the one that acted.
    ppo = PPO(learning_rate=0.0, entropy_coef=0.01, epochs=1)

    def measure(state, rollout, metrics):
        batch = ppo.prepare(state, rollout)
        for size in SIZES:
            epochs = max(chosen.steps * size // SAMPLES, 3)
            changes = {"minibatch_size": size, "epochs": epochs, "learning_rate": 2.5e-4}
            algorithm = dataclasses.replace(ppo, **changes)
            algorithm.update(state, batch)
            begin = time.perf_counter()
            env_action = algorithm.update(state, batch)["gradient_steps"]
            figures[f"us_{size}"] = 1e6 * (time.perf_counter() - begin) / env_action
        return True

    train(
        EnvConfig(id="CartPole-v1", num_envs=64, backend="vector"),
        ppo,
        rollout=RolloutConfig(steps=SAMPLES // 64),
        run_config=RunConfig(total_steps=SAMPLES, threads=chosen.threads, seed=1),
        callbacks=[measure],
    )
    report(**figures, timed_steps=chosen.steps)


if __name__ == "__main__":
    main()
