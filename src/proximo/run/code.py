"""User code in a configuration: `module:Name`, and of an instance also {its settings}.

A text is turned into code only after the user has named it: see `named_again`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import re
import tomllib
import types
from collections.abc import Callable, Iterable
from typing import Any

from proximo.errors import UsageError, check_values
from proximo.functional.schedules import Schedule
from proximo.imports import find, leads_to, name_of
from proximo.run.toml import read_section, toml_value

Code = str | type | Callable[..., Any]  # user code, or its name
_NAME = r"(?!(?:constant|linear|cosine):)[A-Za-z_][\w.]*:[A-Za-z_<][\w.<>]*"
_TEXT = re.compile(rf"({_NAME})(\{{.*\}})?", re.DOTALL)


def is_code(value: Any) -> bool:
    """A setting's value names code, as no schedule in text form does."""
    return isinstance(value, str) and _TEXT.fullmatch(value) is not None


def describe(code: Any) -> str:
    """The text by which `remade` makes it again. Raises `UsageError` for what cannot be named."""
    if isinstance(code, Schedule) and code.function:
        code = code.function
    is_name = isinstance(code, type | types.FunctionType | types.BuiltinFunctionType)
    subject = code if is_name else type(code)
    name = name_of(subject)
    if not leads_to(name, subject):
        raise UsageError(
            f"{name} is not a name that leads to it again, as that of a lambda or of what is "
            "defined within a function: define it in a module"
        )
    if is_name or not (settings := _settings(code)):
        return name
    return name + _table(settings)


def _settings(code: Any) -> dict[str, Any]:
    """The fields of a dataclass instance. Raises `UsageError` for arguments that are not stored."""
    cls, name = type(code), name_of(type(code))
    if not dataclasses.is_dataclass(cls):
        own = cls.__init__ is not object.__init__
        if own and len(inspect.signature(cls.__init__).parameters) > 1:
            raise UsageError(
                f"{name} takes arguments, which a run folder cannot store: make it a dataclass, "
                "whose fields are its settings"
            )
        return {}
    values = {f: getattr(code, f.name) for f in dataclasses.fields(cls) if f.init}
    endless = (math.inf, -math.inf)  # which no setting can be, but a default may
    settings = {f.name: x for f, x in values.items() if x != f.default or x not in endless}
    again = None
    with contextlib.suppress(TypeError, ValueError, UsageError):
        again = make(cls, name, _table(settings))
    for key, value in settings.items():
        if getattr(again, key, None) != value:
            raise UsageError(
                f"{name}: its field {key} is {value!r:.80}, which a run folder cannot store: "
                "numbers, text, true, false, none and tuples of them can, of the type in its class"
            )
    return settings


def _table(settings: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key} = {toml_value(x)}" for key, x in settings.items()) + "}"


def make(code: Any, name: str, settings: str) -> Any:
    """An instance of a class with these settings, or the function. Raises `UsageError`."""
    if not isinstance(code, type):
        return code
    try:
        table = tomllib.loads(f"x = {settings}")["x"] if settings else {}
        if not dataclasses.is_dataclass(code):
            return code()
        made = read_section(name, code, table)
        check_values(name, made, table)
        return made
    except (TypeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"{name}{settings}: {error}: write module:Class{{setting = value}}"
        ) from error


def name_in(text: str) -> str:
    """The name in a text of `describe`, without settings. Raises `UsageError`."""
    match = _TEXT.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r:.80} names no code: write module:Name")
    return match[1]


def name_of_given(code: Any) -> str:
    """The name of code that a user has given: a name, a class or function, or an instance."""
    if isinstance(code, str):
        return name_in(code)
    return name_of(code if hasattr(code, "__qualname__") else type(code))


def named_again(recorded: str, given: Iterable[Any]) -> Any:
    """The given code that a file has recorded by this text, perhaps of another module, or None."""
    names = [(name_of_given(code), code) for code in given]
    name = name_in(recorded)
    same = [code for called, code in names if called == name]
    moved = [c for called, c in names if called.partition(":")[2] == name.partition(":")[2]]
    return next(iter([*same, *moved]), None)


def remade(code: Any, recorded: str = "") -> tuple[str, Any]:
    """Text of the user's code, and what it makes with the recorded settings."""
    if not isinstance(code, str | type):
        return "", code
    name = name_of_given(code)
    settings = code[len(name) :] if isinstance(code, str) else ""
    settings = settings or (recorded and recorded[len(name_in(recorded)) :])
    return name + settings, make(find(name) if isinstance(code, str) else code, name, settings)


def sayable(name: str) -> str:
    """A name of code as one can say it again: a program's own file has another name for others."""
    return "module:Class" if name.startswith("__main__:") or "<locals>" in name else name
