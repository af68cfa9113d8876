"""Settings per (algorithm, task), from the files `proximo/presets/NAME.toml`.

Each has the sections of a configuration, and a section [preset] with the envs that it is for, the
source of its settings and, where there is one, its result.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from proximo.errors import UsageError, nearest
from proximo.run.config import Tables


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that differ from the defaults, for one algorithm on some tasks."""

    name: str
    envs: tuple[str, ...]  # names or patterns; the first, a name, is what `--preset NAME` runs
    tables: Tables
    source: str
    result: str = ""  # mean of 100 deterministic episodes of the last policy on unseen seeds
    by_name: bool = False  # used only where it is asked for: a system of the teaching literature

    @property
    def algorithm(self) -> str:
        """Name of the algorithm that the settings are of."""
        return str(self.tables["algorithm"]["name"])

    def measured(self, env: str) -> bool:
        """There is a result in this env, not only in another one of `envs`."""
        return env in self.result.split()


@functools.cache
def _read(path: Path) -> Preset:
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    about = tables.pop("preset")
    return Preset(**{**about, "envs": tuple(about["envs"])}, name=path.stem, tables=tables)


@functools.cache
def _files() -> tuple[Path, ...]:
    return tuple(sorted((Path(__file__).parents[1] / "presets").glob("*.toml")))


@functools.cache
def presets() -> tuple[Preset, ...]:
    """All presets, by their names."""
    return tuple(map(_read, _files()))


@functools.cache
def presets_about(env: str) -> tuple[Preset, ...]:
    """Those whose file names this env: few of them are read."""
    found = (path for path in _files() if env in path.read_text(encoding="utf-8"))
    return tuple(map(_read, found))


def find_preset(algorithm: str, env: str) -> Preset | None:
    """The preset for a task, if there is one."""
    own = (p for p in presets() if p.algorithm == algorithm and not p.by_name)
    return next((p for p in own if any(fnmatchcase(env, name) for name in p.envs)), None)


def named_preset(name: str) -> Preset:
    """The preset of this name, or `UsageError` with those that are near."""
    by_name = {preset.name: preset for preset in presets()}
    if name not in by_name:
        raise UsageError(f"there is no preset {name!r}. {nearest(name, by_name)}")
    return by_name[name]
