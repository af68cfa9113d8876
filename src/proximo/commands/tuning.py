"""`proximo tune`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated

from proximo.commands.arguments import check_least, optional, show
from proximo.commands.training import Settings, settle
from proximo.envs.config import cores
from proximo.run.config import ALGORITHMS, ALIASES, OF_LANGUAGE, OFF_POLICY, task_name
from proximo.run.presets import Preset
from proximo.tuning.config import TuneConfig

KNOWN = {*ALGORITHMS, *ALIASES, *OFF_POLICY, *OF_LANGUAGE}
"""First words that name an algorithm, if one that cannot be tuned."""


@dataclass(frozen=True, kw_only=True)
class Tune(Settings, TuneConfig):
    """Search for the settings with which an algorithm (ppo, unless named) learns ENV best.

    Optuna proposes settings (TPE), each trial trains with several seeds, and hopeless trials are
    pruned. The first trials are the preset of ENV, if there is one, and the defaults. Settings that
    are given as flags stay as they are. At the end the best settings are trained on fresh seeds
    beside the preset and the defaults. DIR keeps the trials, a report, and best.toml for
    `proximo train --preset`. The same line with --run-dir DIR goes on after a stop or a kill, and
    with more --trials adds some.
    """

    space: Annotated[Path | None, optional("FILE")] = None
    """TOML file of what to search besides or instead (docs/tuning.md)."""
    processes: Annotated[int | None, optional("N")] = None
    """Trials at a time, each with one thread; by default as many as there are cores."""
    run_dir: Annotated[Path | None, optional("DIR")] = None
    """A new folder, or that of a search to go on with; by default runs/tune-ENV-ALGORITHM."""


def main(arguments: list[str]) -> int:
    line, config, preset, typed = settle(Tune, "tune", _with_algorithm(arguments))
    check_least(line, processes=1)

    from proximo.commands.comparing import print_tables
    from proximo.run.children import raise_on_signals
    from proximo.run.toml import parse_file
    from proximo.tuning.result import run_search
    from proximo.tuning.search import plan_search

    how = TuneConfig(**{field.name: getattr(line, field.name) for field in fields(TuneConfig)})
    processes = line.processes or cores()
    tables = parse_file(line.space, "space") if line.space else None
    begin = _beginning(line, preset)
    search = plan_search(config, begin, _settings(typed), tables, how, line.run_dir, processes)
    raise_on_signals()
    folder = search.folder.name
    show(f"{task_name(config)}: {how.trials} trials from {begin}, in {folder}; searched:")
    names = sorted(dimension.name.split(".", 1) for dimension in search.space)
    for section, pairs in groupby(names, itemgetter(0)):
        show(f"  {section}: {', '.join(name for _, name in pairs)}")
    try:
        result = run_search(search, processes, show)
    except KeyboardInterrupt as stop:
        again = f"the same line with --run-dir {folder} goes on"
        show(f"stopped; the trials so far are in {folder}: {again}", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    print_tables(result.tables, result.legend)
    method, env = config.algorithm.name, config.env.id
    show(f"report and trials in {folder}; train with the best settings by:")
    show(f"  proximo train {method} {env} --preset {Path(folder) / 'best.toml'}")
    return 0


def _with_algorithm(arguments: list[str]) -> list[str]:
    """The line with PPO before an env that stands alone."""
    alone = arguments and all(word.startswith("-") for word in arguments[1:2])
    if alone and not arguments[0].startswith("-") and arguments[0].lower() not in KNOWN:
        return ["ppo", *arguments]
    return arguments


def _beginning(line: Tune, preset: Preset | None) -> str:
    if line.config:
        return f"config {line.config}"
    return f"preset {preset.name}" if preset else "defaults"


def _settings(typed: Iterable[str]) -> list[str]:
    """Names of the settings among typed flags; that of algorithm.no-critic is algorithm.critic."""
    pairs = (flag.split(".", 1) for flag in typed if "." in flag)
    names = [f"{section}.{name.removeprefix('no-').replace('-', '_')}" for section, name in pairs]
    return [name for name in names if name != "env.id"]
