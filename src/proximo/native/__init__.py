"""The libraries of C++ beside this file: where they are, and how they are loaded."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ENGINE = FOLDER / "engine.so"
ENGINE_VERSION = 12
"""Version of its interface; a library of another one is not used."""


NOT_BUILT = "it was not built when Proximo was installed (no C++ compiler)"


def load(path: Path, function: str, version: int) -> tuple[Any, str]:
    """A library, or None and why not. function: the one that returns its version."""
    if not path.is_file():
        return None, NOT_BUILT
    try:
        library = ctypes.CDLL(str(path))
        found = getattr(library, function)()
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded: {error}"
    if found != version:
        return None, f"{path} is of version {found}, not {version}: install Proximo again"
    return library, ""


@cache
def discounted_sum() -> Any:
    """The engine's `functional.returns.discounted_sum`, in place, or None.

    Its arguments: addresses of y and decay, [T, N] of float32, then T and N.
    """
    library, _ = load(ENGINE, "proximo_version", ENGINE_VERSION)
    if library is None:
        return None
    function = library.proximo_discounted_sum
    function.restype, function.argtypes = None, [*[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2]
    return function
