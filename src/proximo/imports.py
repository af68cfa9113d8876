"""Code of the user's own, by its name: module:Attribute, from the current folder or installed.

Naming it imports it, so a name that stands in a file alone is never handed to this room: the user
says it again (`commands.arguments.allow_code`, `agent.load`).
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from proximo.errors import UsageError, explain, faults, nearest


def import_module(name: str) -> ModuleType:
    """The module in `module:Attribute`. Raises `UsageError` with whatever it raised."""
    module_name = name.partition(":")[0]
    if module_name.endswith(".py") or "/" in module_name:
        raise UsageError(
            f"{name}: {module_name!r} is the path of a file: name the module as in import, "
            "package.module:Class, from the folder in which it lies"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module_name)
    except faults() as error:  # whatever the user's module raises
        raise UsageError(
            f"{name}: importing the module {module_name!r} failed: {explain(error)}"
        ) from error


def find(name: str) -> Any:
    """What `module:Attribute` names, or Outer.Inner of it. Raises `UsageError`."""
    found: Any = import_module(name)
    place, _, attribute = name.partition(":")
    for part in attribute.split("."):
        if not part.isidentifier() or not hasattr(found, part):
            public = [other for other in dir(found) if not other.startswith("_")]
            raise UsageError(f"{place} has no {part!r}. {nearest(part, public)}")
        found, place = getattr(found, part), f"{place}.{part}"
    return found


def name_of(code: Any) -> str:
    """Name by which `find` finds it, where `leads_to` holds."""
    return f"{code.__module__}:{getattr(code, '__qualname__', f'<{type(code).__name__}>')}"


def leads_to(name: str, code: Any) -> bool:
    """The name finds this very code."""
    try:
        return bool(find(name) is code)
    except UsageError:
        return False
