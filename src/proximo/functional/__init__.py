"""The papers: tensors in, tensors out. `from proximo import functional as F`.

A module is loaded when it is first named: the command line reads the settings without PyTorch.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proximo.functional import (
        batches,
        distributions,
        kl,
        losses,
        masked,
        moments,
        outer,
        random,
        returns,
        schedules,
        shapes,
        trust_region,
        values,
    )

__all__ = ["batches", "distributions", "kl", "losses", "masked", "moments", "outer"]
__all__ += ["random", "returns", "schedules", "shapes", "trust_region", "values"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
