"""Errors that a user can read, and the checks that raise them."""

from __future__ import annotations

import contextlib
import difflib
import dis
import functools
import math
import sys
import traceback
import types
import typing
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import fields
from typing import Any, Literal

import numpy as np

from proximo.bounds import Bound

_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: str, *, keep: str = "\n\t") -> str:
    """Text for a terminal, a log or a figure: characters that control it are written as escapes.

    A file of somebody else's may hold them, to rewrite what stands on the screen: control
    characters, those that turn the direction of writing, those without width. keep: the ones that
    may stay. The same in JSON, which reads the escapes back.
    """
    if text.isprintable():
        return text
    # A wide space is of the category Zs.
    shown = (c in keep or c.isprintable() or unicodedata.category(c) == "Zs" for c in text)
    return "".join(c if ok else _escaped(c) for c, ok in zip(text, shown, strict=True))


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


class UsageError(Exception):
    """The user can mend this: the message gives the value found and the remedy (exit code 2)."""

    def __str__(self) -> str:
        """One line, whatever was found in a file."""
        return printable(super().__str__(), keep="")


class TrainingError(RuntimeError):
    """Training failed after it had started: the run and its last checkpoint stay (exit code 1)."""

    def __str__(self) -> str:
        return printable(super().__str__())


def check_values(section: str, settings: Any, names: Container[str] | None = None) -> None:
    """Refuse values that a setting's type or its bounds do not allow. Raises `UsageError`.

    Numbers must be finite, whole where the field is `int`, and words among the field's choices.
    NumPy's numbers become Python's, lists tuples, and the text of a schedule the schedule, as a
    file and the command line give them. names: of the fields to check; None: all.
    """
    for name, kind, bounds in _settings(settings.__class__):
        if names is not None and name not in names:
            continue
        given = getattr(settings, name)
        try:
            value = _read(_plain(given), kind)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{section}.{name} is {given!r:.80}: {error}") from error
        if value is not given:
            object.__setattr__(settings, name, value)
        if wrong := _wrong(value, kind) or next(filter(None, (b.wrong(value) for b in bounds)), ""):
            shown = repr(value) if isinstance(value, str) else str(value)
            raise UsageError(f"{section}.{name} is {shown:.80}: it must be {wrong}")
        for key, part in value.items() if isinstance(value, dict) else ():
            if not isinstance(part, bool | int | float | str):
                raise UsageError(
                    f"{section}.{name}.{key} is {part!r:.80}: only true, false, numbers and text "
                    "can be stored; give a callable or a class of your own instead"
                )


@functools.lru_cache
def _settings(cls: Any) -> list[tuple[str, Any, list[Bound]]]:
    """Name, type and bounds of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    marked = typing.get_type_hints(cls, include_extras=True)
    bounds = {
        name: [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Bound)]
        for name, hint in marked.items()
    }
    return [(f.name, hints[f.name], bounds[f.name]) for f in fields(cls)]


def _plain(value: Any) -> Any:
    """A value in Python's own types: those of NumPy would be stored under other names."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        parts = tuple(map(_plain, value))
        same = type(value) is tuple and all(a is b for a, b in zip(parts, value, strict=True))
        return value if same else parts
    if isinstance(value, dict) and any(isinstance(x, np.generic) for x in value.values()):
        return {key: _plain(x) for key, x in value.items()}
    return value


def _read(value: Any, kind: Any) -> Any:
    """A whole number as a float, text or a function as a schedule, where a field takes these.

    Raises `ValueError` and `OverflowError`.
    """
    kinds = typing.get_args(kind) or (kind,)
    if type(value) is int and float in kinds and int not in kinds:
        return float(value)
    parsers = [part for part in kinds if hasattr(part, "parse")]
    parsed = isinstance(value, str) or (callable(value) and not isinstance(value, tuple(parsers)))
    return parsers[0].parse(value) if parsers and parsed else value


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _wrong(value: Any, hint: Any) -> str:
    """Description of what a field of this type takes, or "" where it takes the value."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if origin is Literal:
        return "" if value in args else f"one of {', '.join(map(str, args))}"
    if origin in (typing.Union, types.UnionType):
        found = [_wrong(value, option) for option in args]
        return "" if "" in found else " or ".join(word for word in found if word)
    if origin is tuple:
        if not isinstance(value, tuple):
            return f"a list, each {_WORDS[args[0]]}"
        if args[-1] is not ... and len(value) != len(args):
            return f"a list of {len(args)}, each {_WORDS[args[0]]}"
        return next((f"a list, each {word}" for x in value if (word := _wrong(x, args[0]))), "")
    if hint is type(None):
        return "" if value is None else "none"
    if hint in _WORDS:
        kind = int | float if hint is float else hint
        fits = isinstance(value, kind) and (hint is bool or not isinstance(value, bool))
        return "" if fits else _WORDS[hint]
    if isinstance(hint, type):
        return "" if isinstance(value, hint) else f"a {hint.__name__.lower()}"
    return "" if origin is None or isinstance(value, origin) else f"a {origin.__name__}"


def refuse_unused(section: str, settings: Any, names: Iterable[str], why: str) -> None:
    """Settings that would do nothing must have been left as they are. Raises `UsageError`."""
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        if setting.name in names and value != setting.default:
            raise UsageError(
                f"{section}.{setting.name} is {value}, but it does nothing where {why}: leave it "
                f"out, or set it back to {setting.default} where a preset or a file has it"
            )


def check_utf8(name: str) -> None:
    """Refuse a name with bytes that are not UTF-8, which no file of ours can hold."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name!a} is not UTF-8: rename it, or give another name") from error


def explain(error: BaseException) -> str:
    """An exception of the user's code in one line: type, message, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{': '.join(filter(None, (type(error).__name__, str(error))))}{where}"


def faults() -> tuple[type[BaseException], ...]:
    """Exceptions to catch around code of the user: all that it raises, except a Ctrl-C.

    For `except faults() as error:`. `SystemExit`, `GeneratorExit` and a `KeyboardInterrupt` that
    the code raises itself are its faults. A Ctrl-C comes from a signal handler, between two
    instructions, and not from a `raise`.
    """
    error = sys.exception()
    trace = error.__traceback__ if isinstance(error, KeyboardInterrupt) else None
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None:
        return (BaseException,)
    raised = dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return (BaseException,) if raised else ()


@contextlib.contextmanager
def explained(what: str | Callable[[], str], fault: type[Exception] = UsageError) -> Iterator[None]:
    """Turn whatever the user's code raises into a `fault` that says what has failed.

    what: in words, or what says so once it has failed.
    """
    try:
        yield
    except faults() as error:
        if fault is UsageError and isinstance(error, UsageError):
            raise
        told = what if isinstance(what, str) else what()
        raise fault(f"{told}: {explain(error)}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about a mistyped name: the names near it, or all if they are few."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There are: {', '.join(names)}." if len(names) <= 40 else "No known name is near it."
