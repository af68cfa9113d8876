"""Steps per second of EnvPool's envs alone: random actions in a bare loop, nothing learns.

What is left of this figure while training is the share of the time that learning does not take.
"""

import argparse
import time

from settings import WORKS, pin, report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    pin(chosen.threads)
    import envpool
    import numpy as np

    work = WORKS[chosen.work]
    envs = envpool.make_gymnasium(
        work.env, num_envs=work.num_envs, num_threads=chosen.threads, seed=1
    )
    space = envs.action_space
    draws = np.random.default_rng(1)
    shape = (100, work.num_envs, *space.shape)
    actions = draws.uniform(space.low, space.high, shape).astype(space.dtype)
    envs.reset()
    rounds = max(chosen.steps // work.num_envs, 100)
    for number in range(rounds):
        if number == rounds // 10:
            begin = time.perf_counter()
        envs.step(actions[number % len(actions)])
    seconds = time.perf_counter() - begin
    steps = (rounds - rounds // 10) * work.num_envs
    report(steps_per_second=steps / seconds, timed_steps=steps, timed_seconds=seconds)


if __name__ == "__main__":
    main()
