"""Settings <-> TOML: dataclasses with typed fields, and the values that TOML can write."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from proximo.disk import read
from proximo.errors import UsageError, nearest
from proximo.functional.schedules import Schedule

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
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_value(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    text = str(value)  # a Schedule, or a string
    escaped = "".join(
        f"\\u{ord(c):04x}" if c in '"\\' or ord(c) < 32 or ord(c) == 127 else c for c in text
    )
    return f'"{escaped}"'


def read_section(
    name: str, cls: type, table: Mapping[str, Any], renamed: Mapping[str, str] | None = None
) -> Any:
    """One table -> an instance of its dataclass. Raises `UsageError` that names the setting.

    renamed: old name -> new name, both with their section.
    """
    hints = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)]
    values = {}
    for old, value in table.items():
        key = old
        if old not in fields:
            key = (renamed or {}).get(f"{name}.{old}", old).rpartition(".")[2]
        if key not in fields:
            raise UsageError(f"there is no setting {name}.{key}. {nearest(key, fields)}")
        try:
            values[key] = convert(value, hints[key])
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UsageError(f"{name}.{key} is {value!r:.80}: {error}") from error
    return cls(**values)


def convert(value: Any, hint: Any) -> Any:
    """A TOML value as the type a field wants; ValueError says what it wants."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or (value == "none" and type(None) in args):
            return None
        for option in sorted(args, key=lambda a: a is Schedule):
            try:
                return convert(value, option)
            except ValueError as error:
                last = error
        raise last
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"it must be one of {', '.join(map(str, args))}")
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return origin(convert(v, args[0]) for v in value)
    if origin is dict and isinstance(value, dict):
        return {str(k): convert(v, args[1]) for k, v in value.items()}
    if hint is Schedule and isinstance(value, str | Schedule):
        return value if isinstance(value, Schedule) else Schedule.parse(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    if hint is Any:
        return value
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise ValueError(f"it must be {kinds.get(hint, f'a {hint}')}")
