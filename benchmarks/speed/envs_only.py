"""Steps per second of the envs alone, random actions in a bare loop: nothing learns.

EnvPool's where the setting says so, else Gymnasium's, one after the other. What is left of this
figure while training is the share of the time that learning does not take.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from settings import WORKS, Work, pin, report


def pooled(work: Work, threads: int) -> tuple[Any, Callable]:
    """The space of one env's actions, and what steps all envs of EnvPool."""
    import envpool

    envs = envpool.make_gymnasium(work.env, num_envs=work.num_envs, num_threads=threads, seed=1)
    envs.reset()
    return envs.action_space, envs.step


def single(work: Work) -> tuple[Any, Callable]:
    """The same of Gymnasium's envs."""
    import gymnasium

    envs = [gymnasium.make(work.env) for _ in range(work.num_envs)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)

    def step(actions):
        for env, action in zip(envs, actions, strict=True):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return envs[0].action_space, step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    pin(chosen.threads)
    import numpy as np

    work = WORKS[chosen.work]
    space, step = pooled(work, chosen.threads) if work.backend == "envpool" else single(work)
    draws = np.random.default_rng(1)
    shape = (100, work.num_envs, *space.shape)
    actions = list(draws.uniform(space.low, space.high, shape).astype(space.dtype))
    rounds = max(chosen.steps // work.num_envs, 100)
    for number in range(rounds):
        if number == rounds // 10:
            begin = time.perf_counter()
        step(actions[number % len(actions)])
    seconds = time.perf_counter() - begin
    steps = (rounds - rounds // 10) * work.num_envs
    report(steps_per_second=steps / seconds, timed_steps=steps, timed_seconds=seconds)


if __name__ == "__main__":
    main()
