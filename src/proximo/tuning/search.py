"""A search for settings: trials in processes, then the best of them on fresh seeds."""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from proximo.errors import TrainingError, UsageError
from proximo.run.children import Children, Ended
from proximo.run.config import (
    ALGORITHMS,
    EVALUATION_SEED,
    Config,
    Tables,
    UnimportedAlgorithm,
    algorithm_name,
    from_tables,
    to_toml,
)
from proximo.run.control import make_session
from proximo.run.folder import free
from proximo.tuning.config import TuneConfig
from proximo.tuning.proposals import optuna, propose
from proximo.tuning.space import Space, changed, configure, default_space, get, read_space
from proximo.tuning.trials import Checked, Trial, TuneFolder
from proximo.tuning.worker import Job, Outcome

TUNING_SEED = 3_000_000
"""Seed of the first episode of a trial's evaluations, far from those of `eval` and training."""
FRESH = 1_000
"""Distance from the training seeds of the trials to those on which the best are checked."""
CHECKED = 100
"""Episodes of the score on fresh seeds, as of `proximo eval`."""
WINDOW = 4
"""Trials at least that may run at a time: a proposal knows those before them. Part of the plan, so
that the search is the same for any number of processes."""
FOUND = "search"
"""Origin of the settings that the sampler has proposed."""
DEFAULTS = "defaults"
"""Name of the defaults of the algorithm, as a place to begin."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, how, and where the results go."""

    base: Config
    """Settings that are not searched: of the preset or the defaults, and those that were given."""
    begin: str
    """Name of these settings: preset NAME, config FILE or defaults."""
    fixed: tuple[str, ...]
    """Settings that were given, and so are not searched."""
    space: Space
    how: TuneConfig
    window: int
    folder: TuneFolder

    @cached_property
    def baselines(self) -> dict[str, Config]:
        """What the search begins with, and is compared with at the end: origin -> settings."""
        known = {self.begin: self.base}
        return known if DEFAULTS in known else known | {DEFAULTS: defaults(self.base, self.fixed)}

    def config(self, trial: Trial) -> Config:
        """Settings of a trial."""
        baseline = self.baselines.get(trial.origin)
        return baseline if baseline else configure(self.base, trial.settings)

    @property
    def plan(self) -> dict[str, Any]:
        """What must be the same where a search goes on."""
        baselines = {origin: to_toml(config) for origin, config in self.baselines.items()}
        space = {d.name: {k: x for k, x in asdict(d).items() if k != "name"} for d in self.space}
        return {"settings": baselines, "space": space, **asdict(self.how), "window": self.window}

    def trial(self, number: int, earlier: Iterable[Trial], begun: Iterable[Trial]) -> Trial:
        """The trial of this number. earlier: those whose scores it may know."""
        if number < len(self.baselines):
            origin, config = list(self.baselines.items())[number]
            settings = {dimension.name: get(config, dimension.name) for dimension in self.space}
            return Trial(number=number, origin=origin, settings=_storable(settings))
        seed = int(np.random.SeedSequence([self.base.run.seed, number]).generate_state(1)[0])
        settings = propose(self.space, earlier, begun, seed)
        return Trial(number=number, origin=FOUND, settings=_storable(settings))

    def job(self, trial: Trial, earlier: Iterable[Trial]) -> Job:
        known = tuple(t.curves for t in earlier if t.state == "complete") if self.how.prune else ()
        seed = self.base.run.seed
        return Job(
            config=to_toml(self.config(trial)),
            seeds=tuple(range(seed + 1, seed + 1 + self.how.seeds)),
            episodes=self.how.episodes,
            evaluation_seed=TUNING_SEED,
            evaluations=self.how.evaluations,
            earlier=known,
        )

    def check_jobs(self, trial: Trial) -> Iterator[tuple[int, Job]]:
        """Runs with the settings of a trial on fresh seeds, by their seeds."""
        first = self.base.run.seed + 1 + FRESH
        for seed in range(first, first + self.how.check_seeds):
            place = self.folder.path / "check" / f"trial-{trial.number}-seed{seed}"
            yield (
                seed,
                Job(
                    config=to_toml(self.config(trial)),
                    seeds=(seed,),
                    episodes=CHECKED,
                    evaluation_seed=EVALUATION_SEED,
                    folder=str(place),
                ),
            )


def _storable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them; a schedule by its text."""
    plain = (type(None), bool, int, float, str, tuple)
    return {name: x if isinstance(x, plain) else str(x) for name, x in settings.items()}


def defaults(base: Config, fixed: Iterable[str]) -> Config:
    """The defaults of the algorithm, with the settings that were given, in the same env."""
    plain = from_tables({"algorithm": {"name": base.algorithm.name}, "env": {"id": base.env.id}})
    given = {name: get(base, name) for name in fixed if not name.startswith("run.")}
    return replace(changed(plain, given), run=base.run)


def plan_search(
    base: Config,
    begin: str,
    fixed: Iterable[str],
    tables: Tables | None,
    how: TuneConfig,
    run_dir: Path | None,
    processes: int,
) -> Search:
    """The search; whatever would fail in every trial fails here. Raises `UsageError`.

    begin: name of the base. tables: of a space of the user's own, before that of the algorithm.
    """
    optuna()
    _refuse(base)
    base = replace(base, run=replace(base.run, threads=base.run.threads or 1))
    with make_session(base) as session:
        task: Any = session.task
        spaces = task.spaces
    tables, fixed = tables or {}, tuple(fixed)
    _, single = read_space(base, tables, strict=True)
    base, fixed = changed(base, single), tuple(dict.fromkeys((*fixed, *single)))
    own, _ = read_space(base, tables, strict=True)
    shipped, _ = read_space(base, default_space(base, spaces), strict=False)
    plain = [base] if begin == DEFAULTS else [base, defaults(base, fixed)]
    space = {d.name: d for d in (*shipped, *own) if d.name not in fixed}
    for config in plain:
        space = {name: d.reaching(get(config, name)) for name, d in space.items()}
    if not space:
        raise UsageError("every setting is fixed: leave one to search, or use proximo train")
    folder = TuneFolder(run_dir or free(Path("runs") / f"tune-{_as_file_name(base)}"))
    return Search(
        base=base,
        begin=begin,
        fixed=fixed,
        space=tuple(space.values()),
        how=how,
        window=folder.window(max(WINDOW, processes)),
        folder=folder,
    )


def _as_file_name(config: Config) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{config.env.id}-{config.algorithm.name}")


def _refuse(base: Config) -> None:
    """Code that a worker cannot import, and settings of a single run. Raises `UsageError`."""
    if isinstance(from_tables(tomllib.loads(to_toml(base))).algorithm, UnimportedAlgorithm):
        raise UsageError(
            f"the algorithm {algorithm_name(base.algorithm)}, or a schedule of it, is code: a "
            f"search takes Proximo's own, {', '.join(ALGORITHMS)}"
        )
    plain = type(base.run)()
    for name in ("callbacks", "log", "eval_every", "save_every", "keep_best", "profile"):
        if getattr(base.run, name) != getattr(plain, name):
            raise UsageError(f"run.{name} is of a single run: leave it out of a search")


class Progress:
    """A search that runs: its trials so far, and the processes that train."""

    def __init__(self, search: Search, processes: int, say: Say) -> None:
        self._search, self._say = search, say
        self.children = Children(search.base.run.threads)
        self._at_once = max(1, min(processes, search.window))
        self.trials = {trial.number: trial for trial in search.folder.trials()}
        self.checked = {(part.number, part.seed): part for part in search.folder.checked()}

    @property
    def best(self) -> Trial:
        """The complete trial with the highest score. Raises `TrainingError` if there is none."""
        complete = [t for t in self._ordered() if t.state == "complete"]
        if not complete:
            errors = [trial.error for trial in self._ordered() if trial.error]
            raise TrainingError(f"no trial came to its end: {[*errors, 'all were pruned'][0]}")
        return max(complete, key=lambda trial: trial.score or 0.0)

    def _ordered(self) -> list[Trial]:
        return [self.trials[number] for number in sorted(self.trials)]

    def run(self) -> None:
        """Train the trials that lack, then the best and the baselines on fresh seeds."""
        with ThreadPoolExecutor(self._at_once) as pool:
            try:
                self._search_all(pool)
                self._check_best(pool)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.children.end()
                raise

    def _search_all(self, pool: ThreadPoolExecutor) -> None:
        """Each trial when those are there that it may know, so many at a time."""
        search, running = self._search, dict[Future[Outcome], Trial]()
        begun = dict(self.trials)
        number = 0
        while number < search.how.trials or running:
            while number < search.how.trials and len(running) < self._at_once:
                known = range(max(0, number - search.window + 1))
                if not all(earlier in self.trials for earlier in known):
                    break
                if number not in begun:
                    earlier = [self.trials[n] for n in known]
                    begun[number] = search.trial(
                        number, earlier, [begun[n] for n in range(len(known), number)]
                    )
                    job = search.job(begun[number], earlier)
                    running[pool.submit(self._work, job)] = begun[number]
                number += 1
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                self._end(running.pop(future), future.result())

    def _end(self, trial: Trial, outcome: Outcome) -> None:
        """Record a trial, and say it."""
        state: Any = "failed" if outcome.error else "pruned" if outcome.pruned else "complete"
        ended = replace(
            trial, state=state, curves=outcome.curves, seconds=outcome.seconds, error=outcome.error
        )
        if state == "complete":
            ended = replace(ended, score=float(np.mean(ended.scores)))
        self.trials[trial.number] = ended
        self._search.folder.add(ended)
        origin = "" if trial.origin == FOUND else f" ({trial.origin})"
        what = f"trial {trial.number}{origin}: "
        if state == "complete":
            self._say(f"{what}score {ended.score:.2f} in {ended.seconds:.1f} s{self._standing()}")
        elif state == "pruned":
            of = f"{ended.curves[-1][-1]:.2f} with seed {len(ended.curves)} of {self._seeds}"
            self._say(f"{what}pruned at {of} after {ended.seconds:.1f} s")
        else:
            self._say(f"{what}failed: {outcome.error}")

    @property
    def _seeds(self) -> int:
        return self._search.how.seeds

    def _standing(self) -> str:
        best = self.best
        return f"; best so far: trial {best.number}, {best.score:.2f}"

    def _check_best(self, pool: ThreadPoolExecutor) -> None:
        """Train the best and the baselines on fresh seeds."""
        search = self._search
        todo = {
            pool.submit(self._work, job): (trial.number, seed)
            for trial in self.compared
            for seed, job in search.check_jobs(trial)
            if (trial.number, seed) not in self.checked
        }
        if todo:
            self._say(f"on {search.how.check_seeds} fresh seeds: {len(todo)} runs")
        while todo:
            for future in wait(todo, return_when=FIRST_COMPLETED).done:
                number, seed = todo.pop(future)
                outcome = future.result()
                if outcome.error:
                    self._say(f"trial {number} on seed {seed} failed: {outcome.error}")
                    continue
                part = Checked(number=number, seed=seed, score=outcome.curves[0][-1])
                self.checked[number, seed] = part
                search.folder.add(part)

    @property
    def compared(self) -> list[Trial]:
        """The best trial that the search has found, and the baselines, which were trials too."""
        complete = [t for t in self._ordered() if t.state == "complete" and t.origin == FOUND]
        found = [max(complete, key=lambda trial: trial.score or 0.0)] if complete else []
        return [*found, *(trial for trial in self._ordered() if trial.origin != FOUND)]

    def fresh(self, trial: Trial) -> np.ndarray:
        """Scores of the runs with these settings on fresh seeds."""
        seeds = [seed for seed, _ in self._search.check_jobs(trial)]
        keys = [(trial.number, seed) for seed in seeds]
        return np.array([self.checked[key].score for key in keys if key in self.checked])

    def _work(self, job: Job) -> Outcome:
        """Do a job in a process of its own."""
        begin = time.perf_counter()
        ended = self.children.run(module="proximo.tuning.worker", given=json.dumps(asdict(job)))
        if found := _outcome(ended):
            return found
        last = next(iter(ended.err.rstrip().splitlines()[::-1]), "it said nothing")
        error = f"its process ended with exit code {ended.code}: {last}"
        return Outcome(curves=(), pruned=False, seconds=time.perf_counter() - begin, error=error)


def _outcome(ended: Ended) -> Outcome | None:
    """What a worker has printed last, if it came to its end."""
    said = ended.out.rstrip().splitlines()[-1:] if not ended.code else []
    if not said or not said[0].startswith("{"):
        return None
    record = json.loads(said[0])
    return Outcome(**{**record, "curves": tuple(map(tuple, record["curves"]))})
