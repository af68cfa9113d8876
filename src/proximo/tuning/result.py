"""A search from beginning to end, and the public function `tune`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proximo.envs.config import EnvConfig, cores
from proximo.errors import UsageError
from proximo.insight.tables import Table
from proximo.run.config import Config, Tables, algorithm_type, from_tables
from proximo.run.presets import choose_preset
from proximo.run.toml import parse_file
from proximo.tuning import report
from proximo.tuning.config import TuneConfig
from proximo.tuning.proposals import importance
from proximo.tuning.search import DEFAULTS, Progress, Say, Search, plan_search
from proximo.tuning.space import changed
from proximo.tuning.trials import Trial


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """What a search has found; printed, it is the report."""

    best: Config
    """The best settings: `train(best.env, best.algorithm, net=best.net, ...)`."""
    preset: Path
    """Their file, for `proximo train --preset FILE`."""
    folder: Path
    trials: tuple[Trial, ...]
    importance: dict[str, float]
    """Share of each setting in what tells the best trials from the others."""
    fresh: dict[str, tuple[float, ...]]
    """Scores on fresh seeds: of the best trial of the search, the preset and the defaults."""
    tables: tuple[Table, ...]
    legend: tuple[str, ...]

    def __str__(self) -> str:
        return (self.folder / "report.md").read_text(encoding="utf-8")


def run_search(search: Search, processes: int, say: Say) -> TuneResult:
    """Search, or go on with it, and write what it has found.

    say: called with a line as each trial ends. Raises `TrainingError` where none came to its end.
    """
    folder = search.folder
    try:
        folder.open(search.plan)
        done = Progress(search, processes, say)
        done.run()
        folder.write("trials.csv", report.csv_of_trials(search, done))
        preset = folder.write("best.toml", report.preset_text(search, done))
        folder.write("report.md", report.page(search, done))
        best = done.best
        return TuneResult(
            best=search.config(best),
            preset=preset,
            folder=folder.path,
            trials=tuple(done.trials[number] for number in sorted(done.trials)),
            importance=importance(search.space, done.trials.values()),
            fresh={report.name_of(t): tuple(map(float, done.fresh(t))) for t in done.compared},
            tables=tuple(report.tables(search, done)),
            legend=tuple(report.legend(search, done)),
        )
    finally:
        folder.close()


def tune(
    env: str | EnvConfig,
    algorithm: str = "ppo",
    *,
    settings: Mapping[str, Any] | None = None,
    space: Tables | str | Path | None = None,
    preset: str | None = None,
    trials: int = 40,
    seeds: int = 3,
    episodes: int = 20,
    check_seeds: int = 5,
    prune: bool = True,
    total_steps: int | None = None,
    seed: int = 0,
    processes: int | None = None,
    run_dir: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> TuneResult:
    """Search for the settings with which an algorithm learns an env best.

    env: a name, or an `EnvConfig`: each trial runs in a process of its own. algorithm: its name.
    settings: those that are not searched, as {"algorithm.gamma": 0.98}. space: what to search
    besides or instead, as a file or as tables, {"algorithm": {"gamma": [0.9, 0.99]}}. preset: a
    name or a file of settings to begin with; None: the one of the env; "none": the defaults.
    run_dir: a new folder, or that of a search to go on with. say: called with a line as each trial
    ends, as in say=print. The other arguments are the flags of `proximo tune`.

    Raises `UsageError` before any trial for what does not work, and `TrainingError` where no trial
    came to its end.
    """
    if not isinstance(env, str | EnvConfig):
        raise UsageError(
            f"env is {env!r:.80}: trials run in processes of their own, so name it, as in "
            "'CartPole-v1' or 'module:Class'"
        )
    fixed = dict(settings or {})
    if total_steps is not None:
        fixed["run.total_steps"] = total_steps
    name = env if isinstance(env, str) else env.id
    method = algorithm_type(algorithm).name
    chosen = choose_preset(preset, method, name)
    base = from_tables(chosen.tables if chosen else {"algorithm": {"name": method}})
    begin = f"preset {chosen.name}" if chosen else DEFAULTS
    one = replace(base.env, id=name) if isinstance(env, str) else env
    if not isinstance(env, str):
        fixed["env.num_envs"] = env.num_envs
    base = changed(replace(base, env=one), {**fixed, "run.seed": seed})
    how = TuneConfig(
        trials=trials, seeds=seeds, episodes=episodes, check_seeds=check_seeds, prune=prune
    )
    at_once = cores() if processes is None else processes
    if at_once < 1:
        raise UsageError(f"processes is {processes}: give at least 1")
    tables = parse_file(Path(space), "space") if isinstance(space, str | Path) else space
    place = None if run_dir is None else Path(run_dir)
    return run_search(plan_search(base, begin, fixed, tables, how, place, at_once), at_once, say)
