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
from typing import Any

from proximo.disk import warn

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_HEAD = re.compile(r"^(WARN|WARNING): ")
_NUMBER = re.compile(r"\d[\d.e+-]*")
_shown: set[str] = set()


def _print(text: str) -> None:
    warn(f"warning: {text}")


def show_once(text: str, show: Callable[[str], None] = _print) -> None:
    """Show a warning, unless one was shown that differs in its numbers alone."""
    key = _NUMBER.sub("#", text)
    if key not in _shown:
        _shown.add(key)
        show(text)


def install(show: Callable[[str], None] = _print) -> MetaPathFinder:
    """Give each new warning of this process to `show`, as one line with its source."""

    def show_python(
        message: Any, category: Any, filename: str, lineno: int, *_: Any, **__: Any
    ) -> None:
        show_once(_one_line(str(message), filename, lineno), show)

    warnings.showwarning = show_python
    hook = _MujocoHook(lambda text: show_once(_one_line(text, "mujoco", 0), show))
    sys.meta_path.insert(0, hook)
    return hook


@contextlib.contextmanager
def shown_once() -> Iterator[None]:
    """Within it warnings are printed once, in one line."""
    before = warnings.showwarning
    hook = install()
    try:
        yield
    finally:
        _shown.clear()
        warnings.showwarning = before
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(hook)


def show_mujoco_once(mujoco: ModuleType) -> None:
    """Show each of MuJoCo's warnings once, unless another handler has been set."""
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(lambda text: show_once(_one_line(text, "mujoco", 0)))


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
