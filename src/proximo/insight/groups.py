"""Runs that differ in their seeds alone: groups, with the settings that tell them apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from proximo.functional.schedules import Schedule
from proximo.run.code import describe
from proximo.run.config import RunConfig, is_own_schedule, to_tables
from proximo.run.folder import RunFolder

LENGTHS = ("run.total_steps", "run.updates")
"""Lengths of runs, which make groups only where a schedule runs over them."""
OF_A_RUN = {f"run.{field.name}" for field in dataclasses.fields(RunConfig)} | set(LENGTHS)
"""Settings that make no groups: names, lengths and logging."""
MOST_IN_A_LABEL = 3
"""Settings by which a label tells runs of one algorithm apart."""

Settings = dict[str, str]
"""Names as `section.field`, and values as text."""


def settings_of(config: Any) -> Settings:
    """Every setting of a configuration, of control or of a language model, as text."""
    tables = to_tables(config)
    return {
        f"{name}.{key}": _shown(x) for name, table in tables.items() for key, x in table.items()
    }


def group_runs(folders: Sequence[RunFolder], configs: Sequence[Any]) -> dict[str, list[int]]:
    """Label -> indices of the runs that have one algorithm and settings.

    The label names the algorithm, and among several groups of it the settings that differ or,
    where those are many, the first run.
    """
    members: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for i, config in enumerate(configs):
        scheduled = any(isinstance(value, Schedule) for value in vars(config.algorithm).values())
        named = {*OF_A_RUN} - {*LENGTHS} if scheduled else OF_A_RUN
        same = tuple(pair for pair in settings_of(config).items() if pair[0] not in named)
        members.setdefault(same, []).append(i)
    groups = list(members.values())
    tables = [_telling(configs[group[0]]) for group in groups]
    labels: dict[str, list[int]] = {}
    for group, settings in zip(groups, tables, strict=True):
        name = algorithm_of(settings)
        rivals = [other for other in tables if algorithm_of(other) == name]
        differ = [key for key in settings if any(o.get(key) != settings[key] for o in rivals)]
        differ = [key for key in differ if key not in LENGTHS] or differ
        if len(differ) > MOST_IN_A_LABEL:
            name = f"{name}, {folders[group[0]].path.name}"
        elif differ:
            shown = (f"{key.rpartition('.')[2]} {settings[key]}" for key in differ)
            name = f"{name}, {', '.join(shown)}"
        # Equal labels are still groups apart.
        labels[name if name not in labels else f"{name} ({len(labels) + 1})"] = group
    return labels


def algorithm_of(settings: Settings) -> str:
    """Name of the algorithm, or of the stage of a language model that has no other."""
    return settings.get("algorithm.name") or settings["lm.stage"]


def _telling(config: Any) -> Settings:
    return {k: x for k, x in settings_of(config).items() if k not in OF_A_RUN or k in LENGTHS}


def _shown(value: Any) -> str:
    if is_own_schedule(value):
        return describe(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return "none" if value is None else str(value)
