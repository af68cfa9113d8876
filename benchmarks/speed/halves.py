"""Double buffering of worker envs: rollouts with all envs at once and with two halves, by turns.

An env is a Gymnasium id, or a number: envs that sleep so many milliseconds in each step, which show
the overlap even where the cores are few or busy.

python benchmarks/speed/halves.py 1 HalfCheetah-v5 --envs 64 --processes 16 --hidden 64
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np

from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, RunConfig
from proximo.collect import collect
from proximo.envs import workers
from proximo.run.config import Config
from proximo.run.control import make_session


class Sleeping(gym.Env):
    """Sleeps in each step; episodes of 1,000 steps."""

    observation_space = gym.spaces.Box(-1, 1, (17,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (6,), np.float32)

    def __init__(self, milliseconds=1.0):
        self.seconds, self.time = milliseconds / 1000, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(17, np.float32), {}

    def step(self, action):
        time.sleep(self.seconds)
        self.time += 1
        return np.full(17, self.time / 1000, np.float32), 0.0, self.time == 1000, False, {}


def measure(env, hidden, steps, repeats):
    """Microseconds of a step of all envs as (wall, processor): at once, and in halves."""
    config = Config(
        env=env,
        algorithm=PPO(),
        rollout=RolloutConfig(steps=steps),
        net=NetConfig(hidden=(hidden, hidden)),
        run=RunConfig(total_steps=10**9, seed=1, engine="native"),
    )
    found = ([], [])
    with make_session(config) as session:
        envs = session.task.envs
        ways = ((slice(0, envs.count),), envs.groups)
        for repeat in range(repeats + 1):
            for halves in (0, 1) if repeat % 2 else (1, 0):
                envs.groups = ways[halves]
                wall, processor = time.perf_counter(), processor_seconds(envs)
                collect(envs, session.state, env, steps=steps)
                took = time.perf_counter() - wall, processor_seconds(envs) - processor
                if repeat:  # the first ones warm up
                    found[halves].append([1e6 * seconds / steps for seconds in took])
    return [[statistics.median(column) for column in zip(*rows, strict=True)] for rows in found]


def processor_seconds(envs):
    """Of the trainer and its processes."""
    total = time.process_time()
    for process in envs._processes.values():
        words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("env", nargs="+")
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    workers.SPLIT = 2  # measures also what the rule leaves alone
    sys.path.insert(0, str(Path(__file__).parent))  # for the processes
    many = {"num_envs": given.envs, "processes": given.processes, "backend": "workers"}
    for name in given.env:
        sleeps = name.replace(".", "").isdigit()
        kwargs = {"milliseconds": float(name)} if sleeps else {}
        env = EnvConfig(
            id="halves:Sleeping" if sleeps else name, kwargs=kwargs, check=False, **many
        )
        once, halves = measure(env, given.hidden, given.steps, given.repeats)
        print(
            f"{name}, {given.envs} envs, {given.processes} processes, {given.hidden} units: "
            f"{once[0]:.0f} us a step at once, {halves[0]:.0f} in halves: {once[0] / halves[0]:.2f}"
            f"x; processor {once[1]:.0f}, {halves[1]:.0f}; load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
