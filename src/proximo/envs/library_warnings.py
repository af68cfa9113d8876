"""Warnings of other libraries, each shown once and in one line: Python's, and MuJoCo's from C."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TextIO

from proximo.disk import warn

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_HEAD = re.compile(r"^(WARN|WARNING): ")
_NUMBER = re.compile(r"\d[\d.e+-]*")
_shown: set[str] = set()


def show_once(text: str) -> None:
    """Print a warning, unless one was printed that differs in its numbers alone."""
    key = _NUMBER.sub("#", text)
    if key not in _shown:
        _shown.add(key)
        warn(f"warning: {text}")


@contextlib.contextmanager
def caught(show: Callable[[str], None] = show_once) -> Iterator[None]:
    """Within it every warning goes to `show`, as one line with its source."""

    def show_python(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        show(_one_line(str(message), filename, lineno))

    before, warnings.showwarning = warnings.showwarning, show_python
    hook = _MujocoHook(lambda text: show(_one_line(text, "mujoco", 0)))
    sys.meta_path.insert(0, hook)
    _shown.clear()
    try:
        yield
    finally:
        warnings.showwarning = before
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(hook)


def _one_line(text: str, file: str, line: int) -> str:
    path = Path(file)
    source = f"{path.name}:{line}" if line else file
    if "site-packages" in path.parts:
        source = path.parts[path.parts.index("site-packages") + 1]
    return f"{_HEAD.sub('', ' '.join(_COLOR.sub('', text).split()))} ({source})"


class _MujocoHook(MetaPathFinder):
    """Sets MuJoCo's handler of warnings, which come from C, as soon as it is imported."""

    def __init__(self, handler: Callable[[str], None]) -> None:
        self._handler = handler

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != "mujoco":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def load_and_set(module: ModuleType) -> None:
                load(module)
                module.set_mju_user_warning(self._handler)

            setattr(spec.loader, "exec_module", load_and_set)  # noqa: B010 of this import alone
        return spec
