"""One run of a comparison: trained, continued or only scored, by the command line's own verbs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from proximo.commands.compared import ComparisonFolder, Failure, Record
from proximo.errors import UsageError
from proximo.insight.comparison import EPISODES, EVALUATIONS, Plan, Run
from proximo.run.children import Children, Ended, run_all
from proximo.run.config import from_tables
from proximo.run.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run that has no score yet, and may not have begun."""

    env: str
    algorithm: str
    seed: int
    folder: Path
    trained: bool = False
    """The run has ended, and its score alone is missing."""
    named: bool
    """The line of the command names the env: consent to import it, where it is code."""

    def finish(self, plan: Plan, children: Children, place: ComparisonFolder) -> Run | Failure:
        """Train it, unless it has ended, from where it stopped; then score its last policy."""
        for line in [self._score_line(plan)] if self.trained else self._lines(plan):
            ended = children.run(*line)
            if ended.code:
                return self._failure(ended, place)
        # An env may print as well.
        said = next(line for line in ended.out.splitlines()[::-1] if line.startswith("{"))
        scores = json.loads(said)
        if not math.isfinite(scores["return_mean"]):
            return self._failure(ended, place, f"the mean return is {scores['return_mean']}")
        folder = RunFolder(self.folder)
        result = folder.read_result()
        return Run(
            env=self.env,
            algorithm=self.algorithm,
            seed=self.seed,
            folder=place.relative(self.folder),
            score=scores["return_mean"],
            evaluation=scores,
            total_steps=folder.read_config().run.total_steps,
            steps=result["steps"],
            steps_to_threshold=None,
            seconds=result["seconds"],
        )

    def _lines(self, plan: Plan) -> list[list[str]]:
        folder = RunFolder(self.folder)
        if folder.path.exists() and not folder.is_vacant():
            train = ["resume", str(self.folder), *self._consent, "--quiet"]
        else:
            train = ["train", self.algorithm, self.env, "--seed", str(self.seed), "--quiet"]
            train += ["--run-dir", str(self.folder), "--run.threads", str(plan.threads)]
            train += _evaluating(self.algorithm, self.env, plan.total_steps)
            if plan.total_steps is not None:
                train += ["--total-steps", str(plan.total_steps)]
        return [train, self._score_line(plan)]

    def _score_line(self, plan: Plan) -> list[str]:
        episodes = ["--episodes", str(plan.episodes), "--json"]
        return ["eval", str(self.folder), *self._consent, *episodes]

    @property
    def _consent(self) -> list[str]:
        """The name of an env that is code, again; never because a run folder holds it."""
        return ["--env", self.env] if ":" in self.env and self.named else []

    def _failure(self, ended: Ended, place: ComparisonFolder, error: str = "") -> Failure:
        return Failure(
            env=self.env,
            algorithm=self.algorithm,
            seed=self.seed,
            folder=place.relative(self.folder),
            verb=ended.words[0],
            code=ended.code,
            error=[error] if error else ended.err.rstrip().splitlines()[-5:],
        )


def _evaluating(algorithm: str, env: str, total_steps: int | None) -> list[str]:
    """Flags of `train` that evaluate the policy along the way."""
    from proximo.run.presets import find_preset

    preset = find_preset(algorithm, env)
    config = from_tables(preset.tables if preset else {"algorithm": {"name": algorithm}})
    steps = config.env.num_envs * config.rollout.steps
    updates = -(-(total_steps or config.run.total_steps) // steps)
    every = ["--run.eval-every", str(max(1, updates // EVALUATIONS))]
    return [*every, "--run.eval-episodes", str(EPISODES)]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A comparison that may lack runs: its record so far, and the trials that complete it."""

    place: ComparisonFolder
    record: Record
    trials: list[Trial]

    def finish(self, processes: int, say: Callable[[Run | Failure], None]) -> list[Failure]:
        """Finish the trials; each run is recorded as it ends. say: called with each outcome.

        Raises `KeyboardInterrupt` with the number of a signal.
        """
        plan, runs, failures = self.record.plan, self.record.runs, list[Failure]()

        def finished(outcome: Run | Failure) -> None:
            if isinstance(outcome, Run):
                runs.append(outcome)
                self.place.write(self.record)
            else:
                failures.append(outcome)
            say(outcome)

        self.place.write(self.record)
        children = Children(plan.threads or 1)
        tasks = [partial(trial.finish, plan, children, self.place) for trial in self.trials]
        run_all(children, tasks, processes, finished)
        # Their order must not depend on which ended first.
        runs.sort(
            key=lambda r: (plan.envs.index(r.env), plan.algorithms.index(r.algorithm), r.seed)
        )
        return sorted(failures, key=lambda failure: (failure.seed, failure.env, failure.algorithm))


def planned(plan: Plan, path: Path) -> Work:
    """Work to train what the plan says in a new folder, or what an earlier one there lacks.

    Raises `UsageError` for a folder of anything else, or of runs that cannot be compared with it.
    """
    place = ComparisonFolder(path)
    record = Record(plan=plan, runs=[])
    if place.record.exists():
        before = place.read()
        plan = _extended(plan, before.plan, place)
        runs = [run for run in before.runs if run.evaluation.get("episodes") == plan.episodes]
        record = replace(before, plan=plan, runs=runs)
    else:
        check_new(path)
    there = {(run.env, run.algorithm, run.seed) for run in record.runs}
    # Seed by seed, so that a machine that is slower for a while is so for all the algorithms.
    trials = [
        Trial(
            env=env,
            algorithm=name,
            seed=seed,
            folder=_run_path(path, plan, env, name, seed),
            named=True,
        )
        for seed in range(1, plan.seeds + 1)
        for env in plan.envs
        for name in plan.algorithms
        if (env, name, seed) not in there
    ]
    return Work(place=place, record=record, trials=trials)


def check_new(path: Path) -> None:
    """Raises `UsageError` for a folder that holds anything."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(
            f"--dir is {path}: it exists, and is no empty folder and no comparison; name a new one"
        )


def _extended(plan: Plan, before: Plan, place: ComparisonFolder) -> Plan:
    """This plan and the one before together. Raises `UsageError` where their runs differ."""
    for flag, new, old in (
        ("ENV", sorted(plan.envs), sorted(before.envs)),
        ("--total-steps", plan.total_steps, before.total_steps),
        ("--threads", plan.threads, before.threads),
    ):
        if new != old:
            raise UsageError(
                f"{flag} is {_shown(new)}, but {_shown(old)} in the comparison in {place.name}: "
                "give the same, or a new --dir"
            )
    return replace(
        plan,
        envs=before.envs,
        algorithms=tuple(dict.fromkeys((*before.algorithms, *plan.algorithms))),
        seeds=max(before.seeds, plan.seeds),
    )


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def _run_path(path: Path, plan: Plan, env: str, name: str, seed: int) -> Path:
    inner = path / as_file_name(env) if len(plan.envs) > 1 else path
    return inner / f"{name}-seed{seed}"


def as_file_name(env: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", env)
