"""Settings <-> TOML: dataclasses with typed fields, and the values that TOML can write."""

from __future__ import annotations

import dataclasses
import functools
import json
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proximo.disk import read, warn
from proximo.errors import UsageError, nearest

RENAMED_SETTINGS = {
    "env.worlds": "env.num_envs",  # names of schema 1
    "net.memory": "net.recurrent",  # names of schema 1
    "net.memory_size": "net.recurrent_size",  # names of schema 1
    "net.memory_steps": "net.bptt_steps",  # names of schema 1
    "net.critic_only": "net.privileged",  # names of schema 1
    "net.deviation": "net.std",  # names of schema 1
    "score.world": "score.env",  # names of schema 1
}
"""Settings by their names in files of schema 1, which are read by today's names."""
LONGEST_FILE = 2**16  # bytes of a configuration; TOML can take a time that grows by the square


def parse_file(path: Path, what: str) -> dict[str, Any]:
    """What a TOML file of this kind holds. Raises `UsageError`."""
    try:
        return tomllib.loads(read(path, LONGEST_FILE).decode())
    except OSError as error:
        raise UsageError(f"the {what} {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the {what} {path} is not TOML: {error}") from error


def read_tables(path: Path) -> dict[str, Any]:
    """What the file of a configuration holds. Raises `UsageError`."""
    tables = parse_file(path, "configuration")
    if not tables:
        raise UsageError(
            f"the configuration {path} is empty, so nothing says what was trained: bring back a "
            "copy of it, or begin a new run"
        )
    sections = {name: table for name, table in tables.items() if isinstance(table, dict)}
    names = [f"{name}.{key}" for name, table in sections.items() for key in table]
    if old := [f"{n} is now {RENAMED_SETTINGS[n]}" for n in names if n in RENAMED_SETTINGS]:
        _warn_once(f"{path} has names of an earlier version: {', '.join(old)}")
    return tables


_warn_once = functools.cache(warn)


def toml_value(value: Any) -> str:
    """A setting's value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_value(k)} = {toml_value(x)}" for k, x in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    text = "none" if value is None else value if isinstance(value, int) else str(value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def read_section(name: str, cls: type, table: Mapping[str, Any]) -> Any:
    """One table -> an instance of its dataclass. Raises `UsageError` that names the setting."""
    hints = _hints(cls)
    fields = [f.name for f in dataclasses.fields(cls) if f.init]
    values = {}
    for key, value in table.items():
        setting = key
        if key not in fields:
            setting = RENAMED_SETTINGS.get(f"{name}.{key}", key).rpartition(".")[2]
        if setting not in fields or (setting != key and setting in table):
            raise UsageError(f"there is no setting {name}.{key}. {nearest(setting, fields)}")
        off = value == "none" and type(None) in typing.get_args(hints[setting])
        values[setting] = None if off else value
    return cls(**values)
