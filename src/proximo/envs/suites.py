"""Suites of envs written in JAX, by names such as gymnax:CartPole-v1: which there are."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from proximo.errors import UsageError, nearest

VMAS = "vmas"
"""The suite that is written in PyTorch; the others are in JAX."""
SUITES = ("brax", "craftax", "gymnax", "jumanji", "navix", "playground", VMAS, "xminigrid")
"""Each is an extra of Proximo too, which installs it."""


def suite_of(name: str) -> str:
    """The suite that an env's name begins with, as in gymnax:CartPole-v1, or nothing."""
    suite, colon, _ = name.partition(":")
    return suite if colon and suite in SUITES else ""


def load_suite(name: str, module: str) -> Any:
    """A module of the suite of this env. Raises `UsageError` where it is not installed."""
    suite = suite_of(name)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{name} needs the suite {suite}, which cannot be imported ({error}): install it by "
            f"pip install 'proximo[{suite}]'"
        ) from error


def check_known(name: str, known: Iterable[str]) -> None:
    """Raises `UsageError` for an env that its suite does not have, with the nearest names."""
    suite, _, env = name.partition(":")
    known = list(known)
    if env not in known:
        raise UsageError(f"there is no env {env!r} in {suite}. {nearest(env, known)}")
