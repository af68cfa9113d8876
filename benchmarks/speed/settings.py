"""The settings that every library runs with, and how a script reports what it measured.

Standard library only: each peer imports this in an environment of its own.
"""

import json
import os
import resource
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """One PPO setting; every library is given these very numbers."""

    env: str
    num_envs: int
    steps: int  # in each env per update
    epochs: int
    minibatch: int
    learning_rate: float = 3e-4
    anneal: bool = False  # the learning rate falls to 0 in a straight line
    gamma: float = 0.99
    lam: float = 0.95
    entropy: float = 0.0
    value_clip: float | None = None  # None: plain squared error
    normalize: bool = False  # running moments of observations and of returns
    backend: str = "auto"  # ours only: how the envs are stepped
    recurrent_size: int = 0  # of an LSTM each for actor and critic
    bptt_steps: int = 16  # ours only: through which it is trained; the peer's are the rollout's
    masked: bool = False
    pixels: bool = False
    clip: float = 0.2

    @property
    def samples(self) -> int:
        return self.num_envs * self.steps

    def whole_updates(self, steps: int, least: int = 3) -> int:
        """Steps rounded to whole updates: at least three, as the first is not timed."""
        return max(round(steps / self.samples), least) * self.samples


CARTPOLE = {
    "env": "CartPole-v1",
    "entropy": 0.01,
    "value_clip": 0.2,
}

WORKS = {
    # CleanRL's defaults.
    "cartpole": Work(
        num_envs=4,
        steps=128,
        epochs=4,
        minibatch=128,
        learning_rate=2.5e-4,
        anneal=True,
        **CARTPOLE,
    ),
    # A larger rate, as the minibatches are; rejax keeps it constant, having no other.
    "cartpole64": Work(
        num_envs=64,
        steps=128,
        epochs=4,
        minibatch=256,
        learning_rate=3e-3,
        anneal=True,
        **CARTPOLE,
    ),
    "halfcheetah": Work("HalfCheetah-v5", 1, 2048, 10, 64, normalize=True),
    "pendulum": Work("Pendulum-v1", 4, 1024, 10, 64, learning_rate=1e-3, gamma=0.9),
    "lunarlander": Work("LunarLander-v3", 16, 1024, 4, 64, gamma=0.999, lam=0.98, entropy=0.01),
    # sb3-contrib's defaults, but for the envs.
    "memory": Work("CartPole-v1", 8, 128, 10, 128, recurrent_size=256),
    "memory-whole": Work("CartPole-v1", 8, 128, 10, 128, recurrent_size=256, bptt_steps=128),
    "memory64": Work("CartPole-v1", 8, 128, 10, 128, recurrent_size=64),
    "memory64-whole": Work("CartPole-v1", 8, 128, 10, 128, recurrent_size=64, bptt_steps=128),
    "masks": Work("masked:Walk", 8, 128, 10, 64, masked=True),
    # RL Baselines3 Zoo's for Atari, without their schedules: sticky actions, rewards of -1, 0, 1.
    "pong": Work(
        "ALE/Pong-v5",
        *(8, 128, 4, 256),
        learning_rate=2.5e-4,
        entropy=0.01,
        pixels=True,
        clip=0.1,
        backend="auto",
    ),
    "halfcheetah64": Work("HalfCheetah-v5", 64, 32, 10, 64, normalize=True),
    "halfcheetah-envpool": Work(
        "HalfCheetah-v5", 64, 32, 10, 64, normalize=True, backend="envpool"
    ),
}


def pin(threads: int) -> None:
    """Keep this process to so many cores: XLA has no other reliable way to say how many."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Marks:
    """Steps done and the time at the end of every update; the first tenth is warm-up."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float]] = []

    def add(self, steps: int) -> None:
        self.marks.append((steps, time.perf_counter()))

    def report(self, **more: object) -> None:
        first, last = self.marks[len(self.marks) // 10], self.marks[-1]
        steps, seconds = last[0] - first[0], last[1] - first[1]
        report(
            steps_per_second=steps / seconds,
            timed_steps=steps,
            timed_seconds=seconds,
            **more,
        )


def report(**figures: object) -> None:
    """Print the line of JSON that the driver reads, with the peak memory of what has run."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(who).ru_maxrss for who in whose)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(json.dumps({**figures, "peak_mib": peak / unit}), flush=True)
