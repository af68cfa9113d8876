"""Settings per (algorithm, task), from the files `proximo/presets/NAME.toml`, or the user's own.

Each has the sections of a configuration, and a section [preset] with the envs that it is for, the
source of its settings and, where there is one, its result.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from proximo.errors import UsageError, nearest
from proximo.run.config import Tables, UnimportedAlgorithm, from_tables
from proximo.run.toml import read_tables


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that differ from the defaults, for one algorithm on some tasks."""

    name: str
    envs: tuple[str, ...]  # names or patterns; the first, a name, is what `--preset NAME` runs
    tables: Tables
    source: str
    result: str = ""  # mean of 100 deterministic episodes of the last policy on unseen seeds
    by_name: bool = False  # used only where it is asked for: a system of the teaching literature
    own: bool = False  # a file of the user's

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


def choose_preset(name: str | None, algorithm: str | None, env: str) -> Preset | None:
    """The preset of this name or file, or without one that of the task; of "none" there is none.

    Raises `UsageError` for one of another algorithm.
    """
    if name == "none":
        return None
    preset = find_preset(algorithm or "", env) if name is None else named_preset(name)
    if preset and algorithm not in (None, preset.algorithm):
        raise UsageError(f"the preset {preset.name} is for {preset.algorithm}, not {algorithm}")
    return preset


def named_preset(name: str) -> Preset:
    """The preset of this name or file, or `UsageError` with those that are near."""
    by_name = {preset.name: preset for preset in presets()}
    if name in by_name:
        return by_name[name]
    if name.endswith(".toml"):
        return read_preset(Path(name))
    raise UsageError(
        f"there is no preset {name!r}. {nearest(name, by_name)} A file of your own ends in .toml."
    )


def read_preset(path: Path) -> Preset:
    """A preset of the user's own, such as the best settings of `proximo tune`.

    Raises `UsageError` for a file that is none, and for settings that there are not.
    """
    tables = read_tables(path)
    about = tables.pop("preset", {})
    try:
        check_about(about)
        config = from_tables(tables)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if isinstance(config.algorithm, UnimportedAlgorithm):
        raise UsageError(
            f"{path} names code in its section [algorithm]: take it out of the file, and give it "
            "on the command line"
        )
    tables["algorithm"] = {"name": config.algorithm.name, **tables.get("algorithm", {})}
    envs = tuple(about.get("envs", ()))
    source = about.get("source", "a file of your own")
    return Preset(
        **{**about, "envs": envs, "source": source}, name=str(path), tables=tables, own=True
    )


def check_about(about: Any) -> None:
    """Refuse a section [preset] that is none. Raises `UsageError`."""
    if not isinstance(about, Mapping):
        raise UsageError(f"preset is {about!r:.80}: it must be a section, [preset]")
    for key, value in about.items():
        if key not in _ABOUT:
            raise UsageError(f"there is no setting preset.{key}. {nearest(key, _ABOUT)}")
        kind, words = _ABOUT[key]
        parts = value if isinstance(value, list) else []
        if not isinstance(value, kind) or not all(isinstance(part, str) for part in parts):
            raise UsageError(f"preset.{key} is {value!r:.80}: it must be {words}")


_ABOUT: dict[str, tuple[type, str]] = {
    "envs": (list, "a list of names of envs"),
    "source": (str, "text"),
    "result": (str, "text"),
    "by_name": (bool, "true or false"),
}
