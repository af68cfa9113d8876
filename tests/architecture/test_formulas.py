"""docs/formulas.md stays true: every name exists, every equation stands in a docstring."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import proximo.functional

PAGE = Path(__file__).parents[2] / "docs" / "formulas.md"
NAMES = re.findall(r"`(proximo\.[\w.]+)`", PAGE.read_text(encoding="utf-8"))


def find(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists_and_says_its_equation(name):
    docstring = inspect.getdoc(find(name))
    assert docstring
    assert re.search(r"[=Σ²/]|min\(|x̄|Algorithm", docstring), (
        f"{name}: no equation in {docstring!r}"
    )


def test_every_function_of_functional_that_computes_something_is_listed():
    quiet = {
        "same_shape",
        "no_moments",
        "batch_moments",
        "as_schedule",
        "standardize_groups",
        "alone",
        "merged",
        *("begins", "ages", "segments", "consecutive", "minibatches"),
        "flat_gradient",
    }
    for module in pkgutil.iter_modules(proximo.functional.__path__, "proximo.functional."):
        for name, function in inspect.getmembers(importlib.import_module(module.name)):
            own = inspect.isfunction(function) and function.__module__ == module.name
            if own and not name.startswith("_") and name not in quiet:
                assert f"{module.name}.{name}" in NAMES


def test_functions_of_functional_are_short():
    for module in pkgutil.iter_modules(proximo.functional.__path__, "proximo.functional."):
        for name, function in inspect.getmembers(importlib.import_module(module.name)):
            if inspect.isfunction(function) and function.__module__ == module.name:
                body = inspect.getsource(function).replace(function.__doc__ or "", "")
                assert len(body.splitlines()) <= 25, name
