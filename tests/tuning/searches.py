"""Searches whose trials cost nothing: what they score is a function of their settings.

As a program: a search that kills itself, as by kill -9, when so many trials have begun.
"""

import json
import os
import signal
import sys
import time
import tomllib
from pathlib import Path

import numpy as np

from proximo.run.config import from_tables
from proximo.tuning import proposals
from proximo.tuning.config import TuneConfig
from proximo.tuning.proposals import hopeless
from proximo.tuning.result import run_search
from proximo.tuning.search import Progress, plan_search
from proximo.tuning.worker import Outcome


def pretend(job):
    """Scores that are high at a learning rate of 1e-3, with noise of the seed."""
    config = from_tables(tomllib.loads(job.config))
    rate = getattr(config.algorithm.learning_rate, "start", config.algorithm.learning_rate)
    curves = []
    for seed in job.seeds:
        noise = np.random.default_rng([seed, config.rollout.steps]).normal(size=job.evaluations)
        parts = np.arange(1, job.evaluations + 1) / job.evaluations
        curve = -((np.log10(rate) + 3) ** 2) + parts + 0.1 * noise
        curves.append(())
        for score in map(float, curve):
            curves[-1] = (*curves[-1], score)
            if job.earlier and len(curves[-1]) < job.evaluations and hopeless(curves, job.earlier):
                return Outcome(curves=tuple(curves), pruned=True, seconds=1.0)
    return Outcome(curves=tuple(curves), pruned=False, seconds=1.0)


def hasten(setting=setattr):
    """Let a few trials show all: of the random ones, of those that are compared, fewer."""
    setting(proposals, "STARTUP", 3)
    setting(proposals, "COMPARED", 3)


def search_in(folder, *, processes=1, trials=9, settings=(), tables=None, seed=0, **how):
    """A search in CartPole-v1, planned."""
    base = from_tables({"env": {"id": "CartPole-v1"}, "run": {"total_steps": 5000, "seed": seed}})
    config = TuneConfig(**{"seeds": 2, "check_seeds": 2, **how, "trials": trials})
    return plan_search(base, "defaults", settings, tables, config, Path(folder), processes)


def begun(folder):
    """Trials as they were recorded, without their times."""
    lines = (Path(folder) / "trials.jsonl").read_text().splitlines()
    records = sorted((json.loads(line) for line in lines), key=lambda record: record["number"])
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


if __name__ == "__main__":
    place, numbers = sys.argv[1], iter(range(int(sys.argv[2])))

    def work(progress, job):
        if next(numbers, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return pretend(job)

    hasten()
    Progress._work = work
    run_search(search_in(place), 2, print)
