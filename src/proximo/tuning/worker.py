"""A process that trains: a trial with each of its seeds, or a run on fresh seeds.

It reads its job from stdin and prints its outcome, both as JSON: it opens no file of the search,
and imports only the code that the process that began it was told to.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from proximo.agent import Agent, evaluate
from proximo.envs.layers import close_all
from proximo.envs.make import make_env
from proximo.errors import TrainingError, UsageError
from proximo.evaluation import evaluate_policy, step_limit
from proximo.loop import resume, train
from proximo.run.callbacks import Callback
from proximo.run.config import Config, from_tables
from proximo.run.folder import RunFolder
from proximo.tuning.proposals import hopeless
from proximo.tuning.trials import Curves
from proximo.types import Row


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train, and how to score it."""

    config: str
    """As TOML."""
    seeds: tuple[int, ...]
    episodes: int
    """Episodes of an evaluation."""
    evaluation_seed: int
    """Seed of the first of them."""
    evaluations: int = 1
    """Evaluations of a run, about evenly apart; the last is of the last policy."""
    earlier: tuple[Curves, ...] = ()
    """Of the trials that this one is compared with, to be pruned; none: it is not."""
    folder: str = ""
    """Run folder to keep the run in, or to go on in."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended."""

    curves: tuple[tuple[float, ...], ...]
    pruned: bool
    seconds: float
    error: str = ""


class Evaluations(Callback):
    """Deterministic episodes after each part of a run, which end it where `stop` says so."""

    recorded = False

    def __init__(self, job: Job, config: Config, stop: Callable[[list[float]], bool]) -> None:
        self.curve, self.stopped = list[float](), False
        self._job, self._config, self._stop = job, config, stop
        self._parent = os.getppid()
        self._env: Any = None

    def __call__(self, state: Any, rollout: Any, row: Row) -> bool | None:
        if os.getppid() != self._parent:  # killed: nobody waits for this run any more
            raise SystemExit(1)
        job, total = self._job, self._config.run.total_steps
        before = len(self.curve)
        while (len(self.curve) + 1) * total <= state.steps * job.evaluations:
            if len(self.curve) + 1 == job.evaluations:  # of the last policy, when it is there
                break
            again = len(self.curve) > before  # one update was longer than a part
            self.curve.append(self.curve[-1] if again else self._play(state.policy))
        self.stopped = len(self.curve) > before and self._stop(self.curve)
        return self.stopped

    def _play(self, policy: Any) -> float:
        env, run = self._config.env, self._config.run
        self._env = self._env or make_env(env)
        limit = step_limit(env, run.eval_max_episode_steps)
        scores = evaluate_policy(
            policy,
            self._env,
            episodes=self._job.episodes,
            seed=self._job.evaluation_seed,
            limit=limit,
        )
        return finite(scores.mean)

    def close(self) -> None:
        close_all([self._env] if self._env else [])


def finite(score: float) -> float:
    """Raises `TrainingError` for a score that cannot be compared."""
    if not math.isfinite(score):
        raise TrainingError(f"the mean return of an evaluation is {score}")
    return score


def work(job: Job) -> Outcome:
    """Train with each seed in turn, until the trial is pruned; score every last policy."""
    begin = time.perf_counter()
    curves = list[tuple[float, ...]]()

    def stop(curve: list[float]) -> bool:
        return bool(job.earlier) and hopeless([*curves, curve], job.earlier)

    for seed in job.seeds:
        config = from_tables(tomllib.loads(job.config))
        config = replace(config, run=replace(config.run, seed=seed))
        watching = Evaluations(job, config, stop)
        agent = _train(config, job.folder, watching)
        curve = watching.curve
        if not watching.stopped:  # a run that has ended early keeps its score
            curve = curve + [_score(agent, job)] * (job.evaluations - len(curve))
        curves.append(tuple(curve))
        last = len(curves) == len(job.seeds)
        if watching.stopped or (not last and stop(curve)):
            return Outcome(curves=tuple(curves), pruned=True, seconds=time.perf_counter() - begin)
    return Outcome(curves=tuple(curves), pruned=False, seconds=time.perf_counter() - begin)


def _train(config: Config, folder: str, watching: Evaluations) -> Agent:
    env, net = config.env, config.net
    if folder and RunFolder(folder).config_file.exists() and not RunFolder(folder).is_vacant():
        return resume(
            folder,
            env=env.id if ":" in env.id else None,
            wrappers=env.wrappers,
            net=net.module or None,
            callbacks=[watching],
            progress=False,
        )
    return train(
        env,
        config.algorithm,
        rollout=config.rollout,
        net=net,
        run_config=config.run,
        run_dir=folder or None,
        callbacks=[watching],
        progress=False,
    )


def _score(agent: Agent, job: Job) -> float:
    env = agent.config.env
    return finite(evaluate(agent, env, episodes=job.episodes, seed=job.evaluation_seed).mean)


def main() -> int:
    """Do the job on stdin. The process that began this one ends it; Ctrl-C is meant for that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    record = json.loads(sys.stdin.read())
    earlier = tuple(record.pop("earlier"))
    try:
        outcome = work(Job(**record, earlier=earlier))
    except (UsageError, TrainingError) as error:
        outcome = Outcome(curves=(), pruned=False, seconds=0.0, error=str(error))
    sys.stdout.write(f"\n{json.dumps(asdict(outcome))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
