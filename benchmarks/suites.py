"""Learning in one env of each suite: `make suites` writes benchmarks/results/suites.md."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from proximo import evaluate, train

RESULTS = Path(__file__).parent / "results" / "suites.md"
HEAD = """# Suites of envs in JAX

One seed each, the `ppo` defaults but for the number of envs; greedy evaluation of 20 episodes.
Steps/s are those of the whole run, compiling included, on 2 cores of a shared machine (AMD EPYC).

| env | envs | steps | return | asked for | steps/s |
|---|---|---|---|---|---|
"""


class Case(NamedTuple):
    """An env, how long it is trained, and the return that must be reached."""

    env: str
    num_envs: int
    steps: int
    bar: float


CASES = (
    Case("gymnax:CartPole-v1", 16, 100_000, 450),
    Case("navix:Navix-Empty-5x5-v0", 16, 100_000, 0.9),
    Case("xminigrid:MiniGrid-EmptyRandom-5x5", 16, 100_000, 0.9),
    Case("jumanji:Snake-v1", 16, 200_000, 5),
    Case("playground:CartpoleBalance", 16, 100_000, 500),
    Case("brax:inverted_pendulum", 16, 300_000, 800),
    Case("craftax:Craftax-Classic-Symbolic-v1", 16, 100_000, 2),
)


def learn(case: Case) -> tuple[float, float]:
    """Return after training, and steps per second."""
    with tempfile.TemporaryDirectory() as folder:
        run, began = Path(folder) / "run", time.perf_counter()
        train(case.env, total_steps=case.steps, seed=1, num_envs=case.num_envs, run_dir=run)
        speed = case.steps / (time.perf_counter() - began)
        return evaluate(run, episodes=20).mean, speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="envs whose name contains this")
    chosen = parser.parse_args().only
    failed = []
    for case in CASES:
        if chosen not in case.env:
            continue
        last, speed = learn(case)
        line = f"| {case.env} | {case.num_envs} | {case.steps:,} | {last:.2f} |"
        line += f" {case.bar:g} | {speed:,.0f} |"
        print(line, flush=True)
        old = RESULTS.read_text() if RESULTS.exists() else HEAD
        kept = [row for row in old.splitlines() if not row.startswith(f"| {case.env} ")]
        RESULTS.write_text("\n".join([*kept, line]) + "\n")
        if last < case.bar:
            failed.append(case.env)
    if failed:
        raise SystemExit(f"not learned: {', '.join(failed)}")


if __name__ == "__main__":
    main()
