"""Learning in envs of each suite: `make suites` writes benchmarks/results/suites.md."""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from proximo import PPO, EnvConfig, RolloutConfig, evaluate, train
from proximo.envs.make import make_env
from proximo.evaluation import evaluate_policy
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.config import NetConfig

RESULTS = Path(__file__).parent / "results" / "suites.md"
HEAD = """# Suites of envs that are tensors

One seed each: a test that the adapters can be learned in, not a score of the algorithm. The
settings are in `benchmarks/suites.py`. Before and after training: mean return of 100 episodes on
unseen seeds, all stepped at once; before it, actions are sampled. Seconds are those of the whole
training, compiling included, on 2 cores that others used too (AMD EPYC): no measure of speed.

| env | envs | steps | before | after | asked for | seconds |
|---|---|---|---|---|---|---|
"""


class Case(NamedTuple):
    """An env, how it is trained, and the return that must be reached."""

    env: str
    num_envs: int
    steps: int
    bar: float
    kwargs: dict[str, Any] = {}  # noqa: RUF012 nobody changes it
    algorithm: dict[str, Any] = {}  # noqa: RUF012
    rollout: int = 2048
    deterministic: bool = True

    @property
    def name(self) -> str:
        return " ".join([self.env, *(f"{key}={value}" for key, value in self.kwargs.items())])


LARGER = {"minibatch_size": 512}
EXPLORING = {**LARGER, "entropy_coef": 0.01}


def grid(env: str, steps: int) -> Case:
    """A grid: sampled actions, as the likeliest may turn for ever where nothing else changes."""
    return Case(env, 64, steps, 0.9, algorithm=EXPLORING, rollout=32, deterministic=False)


CASES = (
    Case("gymnax:CartPole-v1", 16, 100_000, 450, rollout=128),
    grid("navix:Navix-Empty-5x5-v0", 100_000),
    grid("navix:Navix-DoorKey-5x5-v0", 500_000),
    grid("xminigrid:MiniGrid-EmptyRandom-5x5", 300_000),
    Case(
        "jumanji:Snake-v1",
        *(64, 400_000, 12),
        kwargs={"num_rows": 6, "num_cols": 6},
        algorithm={**EXPLORING, "gamma": 0.97},
        rollout=32,
    ),
    Case("playground:CartpoleBalance", 64, 300_000, 800, algorithm=LARGER, rollout=32),
    Case("brax:inverted_pendulum", 16, 300_000, 800),
    Case("vmas:balance", 64, 300_000, 10, algorithm=LARGER, rollout=32),
    Case("vmas:navigation", 64, 300_000, 2, algorithm=LARGER, rollout=32),
)


def learn(case: Case) -> tuple[float, float, float]:
    """Returns before and after training, and the seconds that it took."""
    env = EnvConfig(id=case.env, num_envs=case.num_envs, kwargs=case.kwargs)
    one = make_env(env)
    policy = ActorCritic(one.observation_space, one.action_space, NetConfig())
    before = evaluate_policy(policy, one, episodes=100, seed=0, deterministic=False).mean
    began = time.perf_counter()
    how = {"total_steps": case.steps, "seed": 1, "rollout": RolloutConfig(steps=case.rollout)}
    agent = train(env, PPO(**case.algorithm), progress=False, **how)
    seconds = time.perf_counter() - began
    return before, evaluate(agent, deterministic=case.deterministic).mean, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="envs whose name contains this")
    chosen = parser.parse_args().only
    warnings.filterwarnings("ignore", module="(?!proximo)")  # the suites warn of themselves
    failed = []
    for case in CASES:
        if chosen not in case.name:
            continue
        before, after, seconds = learn(case)
        line = f"| {case.name} | {case.num_envs} | {case.steps:,} | {before:.2f} | {after:.2f} |"
        line += f" {case.bar:g} | {seconds:,.0f} |"
        print(line, flush=True)
        old = RESULTS.read_text().splitlines() if RESULTS.exists() else []
        rows = [row for row in old if row.startswith("| ") and ":" in row.split()[1]]
        rows = [row for row in rows if not row.startswith(f"| {case.name} |")]
        names = [each.name for each in CASES]
        rows = sorted([*rows, line], key=lambda row: names.index(row.split(" |")[0][2:]))
        RESULTS.write_text(HEAD + "\n".join(rows) + "\n")
        if after < case.bar:
            failed.append(case.name)
    if failed:
        raise SystemExit(f"not learned: {', '.join(failed)}")


if __name__ == "__main__":
    main()
