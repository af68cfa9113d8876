"""Envs that hold tensors on one GPU: steps per second, with and without CUDA graphs.

    python benchmarks/speed/gpu.py [--only ROW ...] [--rounds 3] [--seconds 4]
    python benchmarks/speed/gpu.py --device cpu --short     every row once and tiny, on any machine

Every row trains by PPO and reports steps per second from the third update on, the env alone with
random actions, and so the microseconds per step that the rest costs. The whole table takes under 8
minutes: a run ends after --seconds of timed updates. Finished rows are kept in
benchmarks/results/gpu.json, so that a run that was cut off continues; --fresh measures them again.

Writes gpu.json and gpu.md.
"""

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from bench import HERE, RESULTS, commit
from gymnasium.vector import AutoresetMode, VectorEnv

from proximo import PPO, NetConfig, RolloutConfig, RunConfig, train
from proximo.run.callbacks import Callback


class TensorEnv(VectorEnv):
    """Envs whose state lies in tensors that a step writes in place. Resets in the next step."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    sizes: tuple[int, ...]  # of the state

    def __init__(self, num_envs: int, device: str) -> None:
        self.num_envs, self.device = num_envs, torch.device(device)
        self.state = torch.zeros(num_envs, *self.sizes, device=device)
        self.time = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.over = torch.zeros(num_envs, dtype=torch.bool, device=device)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            torch.manual_seed(seed)
        self.begin(torch.ones_like(self.over))
        self.over.zero_()
        return self.observation(), {}

    def begin(self, which: torch.Tensor) -> None:
        first = self.first()
        self.state.copy_(torch.where(which.view(-1, *[1] * len(self.sizes)), first, self.state))
        self.time.masked_fill_(which, 0)

    def step(self, action):
        self.move(action)
        self.time.add_(1)
        self.begin(self.over)
        failed = self.failed() & ~self.over
        truncated = (self.time >= self.limit) & ~self.over & ~failed
        reward = torch.where(self.over, 0.0, self.reward(failed))
        self.over.copy_(failed | truncated)
        return self.observation(), reward, failed, truncated, {}


class CartPole(TensorEnv):
    """CartPole-v1: Gymnasium's equations and limits."""

    sizes, limit = (4,), 500
    single_observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    single_action_space = gym.spaces.Discrete(2)

    def first(self):
        return torch.rand_like(self.state) * 0.1 - 0.05

    def move(self, action):
        x, v, angle, turn = self.state.unbind(-1)
        cos, sin = angle.cos(), angle.sin()
        pushed = ((action * 2 - 1) * 10.0 + 0.05 * turn.square() * sin) / 1.1
        bend = (9.8 * sin - cos * pushed) / (0.5 * (4 / 3 - 0.1 * cos.square() / 1.1))
        pull = pushed - 0.05 * bend * cos / 1.1
        moved = (x + 0.02 * v, v + 0.02 * pull, angle + 0.02 * turn, turn + 0.02 * bend)
        self.state.copy_(torch.stack(moved, -1))

    def failed(self):
        return (self.state[:, 0].abs() > 2.4) | (self.state[:, 2].abs() > 12 * math.pi / 180)

    def reward(self, failed):
        return torch.ones_like(self.state[:, 0])

    def observation(self):
        return self.state


class IsaacCartpole(CartPole):
    """The load of Isaac Lab's Cartpole-Direct: a force, a shaped reward, episodes of 300 steps."""

    limit = 300
    single_action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def move(self, action):
        super().move((action[:, 0] + 1) / 2)

    def reward(self, failed):
        _, v, angle, turn = self.state.unbind(-1)
        shaped = 1 - angle.square() - 0.01 * v.abs() - 0.005 * turn.abs()
        return torch.where(failed, -2.0, shaped)


class Pixels(TensorEnv):
    """A point that is steered, seen as 4 frames of 84 x 84 bytes."""

    sizes, limit = (2,), 200
    single_observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    single_action_space = gym.spaces.Discrete(5)

    def __init__(self, num_envs, device):
        super().__init__(num_envs, device)
        self.ways = torch.tensor(
            [[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float32, device=device
        )
        self.grid = torch.arange(84, device=device)
        self.frames = torch.zeros(num_envs, 84, 84, 4, dtype=torch.uint8, device=device)

    def first(self):
        return (torch.rand_like(self.state) * 80 + 2).floor()

    def move(self, action):
        self.state.copy_((self.state + 2 * self.ways[action]).clamp(0, 83))

    def failed(self):
        return ((self.state - 42).abs() < 2).all(-1)

    def reward(self, failed):
        return failed.float() - 0.01

    def observation(self):
        here = (self.grid - self.state[:, :1]).abs() < 3
        there = (self.grid - self.state[:, 1:]).abs() < 3
        image = (here[:, :, None] & there[:, None, :]).to(torch.uint8) * 255
        self.frames.copy_(torch.cat([self.frames[..., 1:], image[..., None]], -1))
        return self.frames


@dataclass(frozen=True)
class Load:
    """A row of the table."""

    env: type[TensorEnv]
    num_envs: int
    steps: int
    epochs: int
    minibatches: int
    net: dict
    dtype: str = "float32"
    graphs: bool = True


SMALL = {"hidden": (64, 64)}
IMAGES = {"hidden": (512,), "trunk": "shared", "activation": "relu"}
# As rsl_rl's for Cartpole-Direct: 16 steps, 5 epochs of 4 minibatches, 32-32 ELU, there 4,096 envs.
ISAAC = (IsaacCartpole, 4096, 16, 5, 4, {"hidden": (32, 32), "activation": "elu"})
LOADS = {
    f"{name}, {'graphs' if graphs else 'no graphs'}": Load(*rest, graphs=graphs)
    for name, *rest in (
        ("cartpole 4096", CartPole, 4096, 32, 4, 4, SMALL),
        ("cartpole 16384", CartPole, 16384, 32, 4, 4, SMALL),
        ("cartpole 65536", CartPole, 65536, 32, 4, 4, SMALL),
        ("isaac-cartpole 4096", *ISAAC),
        ("pixels 512, float32", Pixels, 512, 32, 3, 8, IMAGES, "float32"),
        ("pixels 512, bfloat16", Pixels, 512, 32, 3, 8, IMAGES, "bfloat16"),
    )
    for graphs in (True, False)
}


class Timed(Callback):
    """Ends a run once its updates from the third on have taken so long."""

    def __init__(self, seconds: float, device: str) -> None:
        self.seconds, self.device = seconds, device
        self.marks: list[tuple[int, float]] = []

    def __call__(self, state, rollout, row):
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.marks.append((state.steps, time.perf_counter()))
        return len(self.marks) > 3 and self.marks[-1][1] - self.marks[2][1] >= self.seconds

    @property
    def microseconds(self) -> float:
        (first, begin), (last, end) = self.marks[2], self.marks[-1]
        return 1e6 * (end - begin) / (last - first)


def alone(load: Load, num_envs: int, device: str, seconds: float) -> float:
    """Microseconds per step of the env with random actions, operation by operation."""
    envs = load.env(num_envs, device)
    envs.reset(seed=0)
    space, count = envs.single_action_space, 0
    many = (num_envs, *space.shape)
    begin = time.perf_counter()
    while True:
        if isinstance(space, gym.spaces.Discrete):
            envs.step(torch.randint(int(space.n), many, device=device))
        else:
            envs.step(torch.rand(many, device=device) * 2 - 1)
        count += 1
        if count % 16 == 0:
            if device == "cuda":
                torch.cuda.synchronize()
            if (spent := time.perf_counter() - begin) >= seconds:
                return 1e6 * spent / (count * num_envs)
            if count == 16:  # the first ones warm up
                begin, count = time.perf_counter(), 0


def measure(load: Load, device: str, seconds: float, seed: int, *, short: bool) -> dict:
    num_envs = 8 if short else load.num_envs
    steps = 4 if short else load.steps
    timed = Timed(seconds, device)
    said: list[str] = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    agent = train(
        load.env(num_envs, device),
        PPO(
            epochs=load.epochs,
            minibatch_size=num_envs * steps // load.minibatches,
            learning_rate=1e-3,
        ),
        total_steps=2**40,
        rollout=RolloutConfig(steps=steps),
        net=NetConfig(**load.net),
        run_config=RunConfig(
            seed=seed, engine="torch", dtype=load.dtype, cuda_graphs=load.graphs, health=False
        ),
        callbacks=[timed],
        progress=False,
    )
    said = [text for text in agent.result.get("warnings", []) if "CUDA graph" in str(text)]
    env = alone(load, num_envs, device, min(1.0, seconds / 4))
    found = {
        "us_per_step": timed.microseconds,
        "us_per_step_env": env,
        "updates": len(timed.marks),
        "return_mean": agent.result["return_mean"],
        "said": said,
    }
    if device == "cuda":
        found["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def table(record: dict) -> str:
    lines = [
        "| load | steps/s | µs per step | env alone, µs | the rest, µs | peak MiB | runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in record["rows"].items():

        def middle(key: str, runs: list[dict] = runs) -> float:
            return statistics.median(run.get(key, math.nan) for run in runs)

        us, env = middle("us_per_step"), middle("us_per_step_env")
        peak = middle("peak_mib")
        room = "" if math.isnan(peak) else f"{peak:,.0f}"
        lines.append(
            f"| {name} | {1e6 / us:,.0f} | {us:.3f} | {env:.3f} | {us - env:.3f} | {room} "
            f"| {len(runs)} |"
        )
        lines += [f"| | {text} | | | | | |" for text in {x for run in runs for x in run["said"]}]
    notes = f"{record['device']}; torch {record['torch']}; commit {record['commit']}; medians."
    if record["short"]:
        notes = f"**A short run, which only shows that the script works.** {notes}"
    return "\n".join([*lines, "", notes]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=LOADS, default=list(LOADS), metavar="ROW")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="timed seconds of a run")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--short", action="store_true", help="8 envs, 4 steps, one short run each")
    parser.add_argument("--fresh", action="store_true", help="measure finished rows again")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "there is no GPU here: PyTorch finds no CUDA device. --device cpu --short tries it"
        )
    if chosen.device == "cpu" and not chosen.short:
        sys.exit("--device cpu is for trying the script: add --short")
    rounds, seconds = (1, 0.01) if chosen.short else (chosen.rounds, chosen.seconds)
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU"
    record = {
        "device": name,
        "torch": torch.__version__,
        "commit": commit(HERE),
        "short": chosen.short,
        "seconds": seconds,
        "rows": {},
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = chosen.out / ("gpu-short.json" if chosen.short else "gpu.json")
    kept = json.loads(file.read_text()) if file.exists() and not chosen.fresh else {}
    same = ("device", "torch", "commit", "seconds")
    if all(kept.get(key) == record[key] for key in same):
        record["rows"] = kept["rows"]
    begin = time.perf_counter()
    for number in range(rounds):  # round by round, so that the loads alternate
        for label in chosen.only:
            runs = record["rows"].setdefault(label, [])
            if len(runs) > number:
                continue
            runs.append(
                measure(LOADS[label], chosen.device, seconds, number + 1, short=chosen.short)
            )
            us = runs[-1]["us_per_step"]
            print(f"{label} {number + 1}/{rounds}: {1e6 / us:,.0f} steps/s", flush=True)
            file.write_text(json.dumps(record, indent=1) + "\n")
            file.with_suffix(".md").write_text(table(record))
    print(table(record))
    print(f"{(time.perf_counter() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
