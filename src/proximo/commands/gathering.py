"""Runs that exist already: of earlier comparisons, and of `proximo train`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proximo.commands.compared import ComparisonFolder, Record
from proximo.commands.trials import Trial, Work, check_new
from proximo.disk import warn
from proximo.errors import UsageError
from proximo.insight.comparison import SCORED, Plan, Run
from proximo.insight.groups import group_runs
from proximo.run.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A run that has ended; its record, if a comparison has scored it."""

    env: str
    algorithm: str
    seed: int
    folder: RunFolder
    run: Run | None = None


def again(path: Path, episodes: int | None) -> Work:
    """Work on an earlier comparison in its own folder: nothing is trained."""
    place = ComparisonFolder(path)
    record = place.read()
    found = [_recorded(place, run) for run in record.runs]
    plan = replace(record.plan, episodes=episodes or record.plan.episodes)
    return _work(place, replace(record, plan=plan), found, [])


def gathered(
    sources: Sequence[Path],
    envs: Collection[str],
    names: Collection[str],
    episodes: int | None,
    path: Path,
) -> Work:
    """Work on the runs in these folders: nothing is trained, and what has no score gets one.

    envs, names: the envs and algorithms to take; none: all. Runs of one algorithm whose settings
    differ are told apart, as in a figure of `proximo plot`. path: the folder of the comparison.
    Raises `UsageError` where there is no run, and for a folder that holds anything.
    """
    check_new(path)
    found, records = list[_Found](), list[Record]()
    for source in sources:
        comparison = ComparisonFolder(source)
        if comparison.record.exists():
            records.append(comparison.read())
            found += [_recorded(comparison, run) for run in records[-1].runs]
        else:
            found += _ended_runs(source)
    found = [f for f in found if not envs or f.env in envs]
    found = [f for f in found if not names or f.algorithm in names]
    if not found:
        which = " of these envs and algorithms" if envs or names else ""
        raise UsageError(f"--from is {' '.join(map(str, sources))}: it holds no ended run{which}")
    found = _labelled(found)
    plan = Plan(
        envs=tuple(dict.fromkeys(f.env for f in found)),
        algorithms=tuple(dict.fromkeys(f.algorithm for f in found)),
        seeds=max(Counter((f.env, f.algorithm) for f in found).values()),
        total_steps=None,
        episodes=episodes or (records[0].plan.episodes if records else SCORED),
        threads=None,
    )
    record = Record(
        plan=plan,
        runs=[],
        thresholds={env: r.thresholds[env] for r in records for env in r.thresholds},
        at_random={env: r.at_random[env] for r in records for env in r.at_random},
        given={env: r.given[env] for r in records for env in r.given},
    )
    return _work(ComparisonFolder(path), record, found, envs)


def _work(
    place: ComparisonFolder, record: Record, found: Sequence[_Found], named: Collection[str]
) -> Work:
    """Runs that have a score already, and trials of the others. named: envs that the line names."""
    runs, trials = list[Run](), list[Trial]()
    for one in found:
        if one.run and one.run.evaluation.get("episodes") == record.plan.episodes:
            folder = place.relative(one.folder.path)
            runs.append(replace(one.run, algorithm=one.algorithm, folder=folder))
        else:
            about: dict[str, Any] = {"env": one.env, "algorithm": one.algorithm, "seed": one.seed}
            about |= {"folder": one.folder.path, "named": one.env in named}
            trials.append(Trial(**about, trained=True))
    return Work(place=place, record=replace(record, runs=runs), trials=trials)


def _recorded(place: ComparisonFolder, run: Run) -> _Found:
    about: dict[str, Any] = {"env": run.env, "algorithm": run.algorithm, "seed": run.seed}
    return _Found(**about, folder=place.run_folder(run), run=run)


def _ended_runs(source: Path) -> Iterator[_Found]:
    """The run folder itself, or those in it; a run that has not ended is left out, and named."""
    if not source.is_dir():
        raise UsageError(f"--from is {source}: there is no such folder")
    itself = [source / "config.toml"]
    for file in itself if itself[0].is_file() else sorted(source.rglob("config.toml")):
        folder = RunFolder.open(file.parent)
        config = folder.read_config()
        if "steps" not in folder.read_result():
            warn(f"the run {file.parent} has not ended: it is left out")
            continue
        name, seed = config.algorithm.name, config.run.seed
        yield _Found(env=config.env.id, algorithm=name, seed=seed, folder=folder)


def _labelled(found: Sequence[_Found]) -> list[_Found]:
    """The runs with names that tell apart different settings of one algorithm in one env.

    A run of which the record alone is left keeps its name.
    """
    labels = dict[int, str]()
    for env in {f.env for f in found}:
        here = [i for i, f in enumerate(found) if f.env == env and f.folder.config_file.is_file()]
        folders = [found[i].folder for i in here]
        groups = group_runs(folders, [folder.read_config() for folder in folders])
        labels |= {here[k]: label for label, members in groups.items() for k in members}
    return [replace(f, algorithm=labels.get(i, f.algorithm)) for i, f in enumerate(found)]
