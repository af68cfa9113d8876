"""What the verbs share: reading arguments, printing, and when user code may be imported."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import shlex
import shutil
import sys
import tomllib
import typing
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import tyro

from proximo.bounds import Bound
from proximo.commands.mistyped import message
from proximo.disk import warn
from proximo.errors import UsageError, printable
from proximo.functional.schedules import Schedule, as_schedule
from proximo.run.code import build, is_code
from proximo.run.config import Config
from proximo.run.consent import Named, allow

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.vector import VectorEnv

T = TypeVar("T")

_POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]
REGISTRY = tyro.constructors.ConstructorRegistry()


@REGISTRY.primitive_rule
def _one_word(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Schedules as text (linear:3e-4:0), and `none` where a setting can be off."""
    options = set(typing.get_args(info.type)) or {info.type}
    numbers = options & {Schedule, float, int}
    if not numbers or options - numbers - {type(None)} or options == {float}:
        return None
    off = type(None) in options
    number: Any = Schedule if Schedule in options else float if float in options else int

    def read(words: list[str]) -> Any:
        if off and words[0].lower() == "none":
            return None
        if number is int and "e" in words[0].lower() and float(words[0]).is_integer():
            return int(float(words[0]))  # 1e6 is a number of steps
        if number is not Schedule:
            return number(words[0])
        if is_code(words[0]):
            return as_schedule(build(words[0]))
        schedule = Schedule.parse(words[0])
        return schedule.start if schedule.kind == "constant" else schedule

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar={Schedule: "NUMBER|SCHEDULE", float: "FLOAT", int: "INT"}[number]
        + ("|none" if off else ""),
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, (*options, int)),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )


@REGISTRY.primitive_rule
def _text(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Text, whose defaults in the help may come out of a file."""
    if info.type is not str:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [printable(value, keep="")],
    )


@REGISTRY.primitive_rule
def _whole_numbers(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Several whole numbers, as many as there are, or `none`."""
    if set(typing.get_args(info.type)) != {tuple[int, ...], type(None)}:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="INT ...|none",
        instance_from_str=lambda words: (
            None if [word.lower() for word in words] == ["none"] else tuple(map(int, words))
        ),
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: ["none"] if value is None else list(map(str, value)),
    )


@REGISTRY.primitive_rule
def _pairs(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Arguments of an env: KEY VALUE KEY VALUE ..., values as TOML would read them, else text."""
    if typing.get_origin(info.type) is not dict:
        return None

    def read(words: list[str]) -> dict[str, Any]:
        if len(words) % 2:
            raise ValueError(f"{words[-1]!r} has no value: write KEY VALUE KEY VALUE ...")
        return {key: _value(word) for key, word in zip(words[::2], words[1::2], strict=True)}

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="KEY VALUE ...",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda pairs: [
            printable(str(part), keep="") for pair in pairs.items() for part in pair
        ],
    )


def _value(word: str) -> bool | int | float | str:
    try:
        value = tomllib.loads(f"value = {word.lower() if word in ('True', 'False') else word}")
    except tomllib.TOMLDecodeError:
        return word
    found = value.get("value")
    return found if isinstance(found, bool | int | float | str) else word


def parse(command: type[T], verb: str, arguments: list[str], default: T | None = None) -> T:
    """Arguments -> the verb's dataclass. Exits with code 2 and a message if they do not fit.

    Raises `UsageError` for words that the verb does not take, with those that are meant.
    """
    _show_bounds(command)
    # Help in one column: beside each other, its boxes are hard to read.
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(100, shutil.get_terminal_size().columns))
    try:
        with REGISTRY:
            kwargs: dict[str, Any] = {} if default is None else {"default": default}
            parsed, unknown = tyro.cli(
                command,
                prog=f"proximo {verb}",
                description=inspect.cleandoc(command.__doc__ or ""),
                args=arguments,
                return_unknown_args=True,
                **kwargs,
            )
            if unknown:
                raise UsageError(message(verb, arguments, unknown, _flags(command)))
    finally:
        del os.environ["COLUMNS"]
        if width is not None:
            os.environ["COLUMNS"] = width
    fits: T = parsed
    return fits


def _show_bounds(command: type[Any]) -> None:
    """Let the help of every setting give its bounds before its default."""
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        kind, *marks = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
        if dataclasses.is_dataclass(kind):
            _show_bounds(kind)  # type: ignore[arg-type]
        if marks and isinstance(marks[-1], Bound):
            shown = tyro.conf.arg(help_behavior_hint=f"({marks[-1]}; default: {{}})".format)
            command.__annotations__[name] = Annotated[hint, shown]


def _flags(command: type[Any], prefix: str = "") -> set[str]:
    """Every flag of a command, without its dashes."""
    found = set()
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        kind, *marks = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
        if typing.get_origin(hint) is typing.ClassVar or _POSITIONAL in marks:
            continue
        if dataclasses.is_dataclass(kind):
            found |= _flags(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
            continue
        called = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
        found.add(f"{prefix}{called}".replace("_", "-"))
        if kind is bool:
            found.add(f"{prefix}no-{called}".replace("_", "-"))
    return found


def show(text: str, file: TextIO | None = None) -> None:
    """Print what may hold text out of a file: the one way from a command to the terminal."""
    print(printable(text), file=file, flush=True)


def say(text: str) -> None:
    """Print a line. Where its reader has gone, or the disk is full, the rest is not printed."""
    try:
        show(text)
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 it stays open


@contextlib.contextmanager
def closing(env: gym.Env[Any, Any] | VectorEnv) -> Iterator[None]:
    """Close it in the end; a failure of that is said, and spoils nothing."""
    from proximo.envs.layers import close_all

    well = False
    try:
        yield
        well = True
    finally:
        for text in close_all([env]):
            if well:
                warn(text)


FLAGS = {
    "env": "--env",
    "wrappers": "--wrappers",
    "net": "--net",
    "algorithm": "--algorithm",
    "schedules": "--schedule",
    "callbacks": "--callback",
}
"""How the code of a run is named again: argument -> flag."""
FLAGS_OF_TRAIN = {**FLAGS, "wrappers": "--env.wrappers", "net": "--net.module"} | {
    "callbacks": "--run.callbacks"
}


def allow_code(
    config: Config, named: Named, parts: Sequence[str], verb: str, arguments: list[str]
) -> Config:
    """The configuration, if its code may be imported: that needs the user's word.

    Code that a file names, as module:Class, must be named again by its flag. parts: which code is
    needed. Raises `UsageError` with the line to type.
    """
    flags = FLAGS_OF_TRAIN if verb == "train" else FLAGS
    begin = shlex.join(["proximo", verb, *arguments])

    def line(names: dict[str, list[str]]) -> str:
        words = (shlex.join([flags[argument], *n]) for argument, n in names.items())
        return " ".join([begin, *words])

    return allow(config, named, parts, line, flags)
