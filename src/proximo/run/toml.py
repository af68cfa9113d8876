"""Settings <-> TOML: dataclasses with typed fields, and the values that TOML can write."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proximo.disk import read
from proximo.errors import UsageError, nearest

LONGEST_FILE = 2**16
"""Bytes of a configuration; TOML can take a time that grows by the square."""


def read_tables(path: Path) -> dict[str, Any]:
    """What a TOML file holds. Raises `UsageError`."""
    try:
        tables = tomllib.loads(read(path, LONGEST_FILE).decode())
    except OSError as error:
        raise UsageError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the configuration {path} is not TOML: {error}") from error
    if not tables:
        raise UsageError(
            f"the configuration {path} is empty, so nothing says what was trained: bring back a "
            "copy of it, or begin a new run"
        )
    return tables


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


def read_section(
    name: str, cls: type, table: Mapping[str, Any], renamed: Mapping[str, str] | None = None
) -> Any:
    """One table -> an instance of its dataclass. Raises `UsageError` that names the setting.

    renamed: old name -> new name, both with their section.
    """
    hints = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls) if f.init]
    values = {}
    for old, value in table.items():
        new = (renamed or {}).get(f"{name}.{old}", old).rpartition(".")[2]
        key = old if old in fields else new
        if key not in fields:
            raise UsageError(f"there is no setting {name}.{key}. {nearest(key, fields)}")
        none = value == "none" and type(None) in typing.get_args(hints[key])
        values[key] = None if none else value
    return cls(**values)
