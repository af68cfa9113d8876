"""Groups of runs that differ in their seeds alone, and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from proximo.functional.schedules import Schedule
from proximo.run.config import Config, RunConfig, to_tables, to_toml
from proximo.run.folder import RunFolder

LENGTH = "run.total_steps"
MOST_IN_A_LABEL = 3
"""Settings by which a label tells runs of one algorithm apart."""


def group_runs(folders: Sequence[RunFolder], configs: Sequence[Config]) -> dict[str, list[int]]:
    """Label -> indices of the runs that have one algorithm and settings.

    Names, lengths and logging of runs make no groups, unless a schedule runs over the length. The
    label names the algorithm, and among several groups of it the settings that differ or, where
    those are many, the first run.
    """
    members: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        scheduled = any(isinstance(value, Schedule) for value in vars(config.algorithm).values())
        run = RunConfig(total_steps=config.run.total_steps) if scheduled else RunConfig()
        members.setdefault(to_toml(replace(config, run=run)), []).append(i)
    groups = list(members.values())
    tables = [_flat(configs[group[0]]) for group in groups]
    labels: dict[str, list[int]] = {}
    for group, settings in zip(groups, tables, strict=True):
        name = settings["algorithm.name"]
        rivals = [other for other in tables if other["algorithm.name"] == name]
        differ = [key for key in settings if any(o[key] != settings[key] for o in rivals)]
        differ = [key for key in differ if key != LENGTH] or differ
        if len(differ) > MOST_IN_A_LABEL:
            name = f"{name}, {folders[group[0]].path.name}"
        elif differ:
            shown = (f"{key.rpartition('.')[2]} {_shown(settings[key])}" for key in differ)
            name = f"{name}, {', '.join(shown)}"
        # Equal labels are still groups apart.
        labels[name if name not in labels else f"{name} ({len(labels) + 1})"] = group
    return labels


def _flat(config: Config) -> dict[str, Any]:
    tables = to_tables(config)
    shown = {f"{name}.{key}": x for name, table in tables.items() for key, x in table.items()}
    return {key: x for key, x in shown.items() if key == LENGTH or not key.startswith("run.")}


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
