"""Arguments of every verb: flags and their short forms, and printing."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import shutil
import sys
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar, cast

import tyro
from rich.console import Console, RenderableType
from rich.segment import Segment, Segments
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from proximo.bounds import Bound
from proximo.commands.mistyped import message
from proximo.disk import warn
from proximo.errors import UsageError, printable
from proximo.functional.schedules import Schedule, as_schedule
from proximo.run.code import is_code, remade

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.vector import VectorEnv

T = TypeVar("T")

_POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]
REGISTRY = ConstructorRegistry()


def _spec(nargs: Any, metavar: str, read: Any, kinds: Any, shown: Any) -> Any:
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, kinds),
        str_from_instance=shown,
    )


@REGISTRY.primitive_rule
def _number(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Numbers, schedules as text (linear:3e-4:0), and `none` where a setting can be off."""
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
            return as_schedule(remade(words[0])[1])
        schedule = Schedule.parse(words[0])
        return schedule.start if schedule.kind == "constant" else schedule

    metavar = {Schedule: "NUMBER|SCHEDULE", float: "FLOAT", int: "INT"}[number] + "|none" * off
    return _spec(1, metavar, read, (*options, int), lambda x: ["none" if x is None else str(x)])


@REGISTRY.primitive_rule
def _text(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Text, whose defaults in the help may come out of a file."""
    if info.type is not str:
        return None
    return _spec(1, "STR", lambda words: words[0], str, lambda text: [printable(text, keep="")])


@REGISTRY.primitive_rule
def _integers(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Any number of integers, or `none`."""
    if set(typing.get_args(info.type)) != {tuple[int, ...], type(None)}:
        return None

    def read(words: list[str]) -> tuple[int, ...] | None:
        off = [word.lower() for word in words] == ["none"]
        return None if off else tuple(map(int, words))

    def shown(values: tuple[int, ...] | None) -> list[str]:
        return ["none"] if values is None else list(map(str, values))

    return _spec("*", "INT ...|none", read, (tuple, type(None)), shown)


@REGISTRY.primitive_rule
def _pairs(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Keyword arguments: KEY VALUE KEY VALUE ..., values as TOML would read them, else text."""
    if typing.get_origin(info.type) is not dict:
        return None

    def read(words: list[str]) -> dict[str, Any]:
        if len(words) % 2:
            raise ValueError(f"{words[-1]!r} has no value: write KEY VALUE KEY VALUE ...")
        return {key: _value(word) for key, word in zip(words[::2], words[1::2], strict=True)}

    def shown(pairs: dict[str, Any]) -> list[str]:
        return [printable(str(part), keep="") for pair in pairs.items() for part in pair]

    return _spec("*", "KEY VALUE ...", read, dict, shown)


def _value(word: str) -> bool | int | float | str:
    text = word.lower() if word in ("True", "False") else word
    try:
        value = tomllib.loads(f"value = {text}").get("value")
    except tomllib.TOMLDecodeError:
        return word
    return value if isinstance(value, bool | int | float | str) else word


def optional(metavar: str, name: str | None = None) -> Any:
    """Mark of a flag that may be left out: its help shows no default."""
    return tyro.conf.arg(metavar=metavar, name=name, help_behavior_hint="")


SHORT = {
    "algorithm.learning-rate": ("lr",),
    "algorithm.gamma": ("gamma",),
    "algorithm.epochs": ("epochs",),
    "algorithm.minibatch-size": ("minibatch-size",),
    "algorithm.batch-size": ("batch-size",),
    "env.id": ("env",),
    "env.num-envs": ("num-envs",),
    "model.path": ("model",),
    "net.module": ("net",),
    "run.callbacks": ("callback",),
    "run.device": ("device",),
    "run.seed": ("seed",),
    "run.stop-at": ("stop-at",),
    "run.threads": ("threads",),
    "run.total-steps": ("total-steps", "steps"),
    "run.updates": ("updates",),
    "score.reward": ("reward",),
    "score.env": ("env",),
    "total-steps": ("steps",),
}
"""Flag -> its short forms, in every command that has it."""


def parse(command: type[T], verb: str, arguments: list[str], default: T | None = None) -> T:
    """Arguments -> the verb's dataclass. Exits with code 2 and a message if they do not fit.

    Raises `UsageError` for words that the verb does not take, and for two forms of one flag.
    """
    known = flags(command)
    for forms in given(arguments, known).values():
        if len(several := list(dict.fromkeys(forms))) > 1:
            both = " and ".join(f"--{form}" for form in several)
            raise UsageError(f"{both} are forms of one setting: give one of them")
    # Help in one column: beside each other, its boxes are hard to read.
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(100, shutil.get_terminal_size().columns))
    try:
        with REGISTRY, _help_of_flags(command):
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
                raise UsageError(message(verb, arguments, unknown, known))
    finally:
        del os.environ["COLUMNS"]
        if width is not None:
            os.environ["COLUMNS"] = width
    return cast("T", parsed)


def flags(command: type[Any], prefix: str = "") -> dict[str, str]:
    """Every flag of a command and each of its forms, without dashes -> its long form."""
    known: dict[str, str] = {}
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        kind, *marks = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
        if typing.get_origin(hint) is typing.ClassVar or _POSITIONAL in marks:
            continue
        if dataclasses.is_dataclass(kind):
            known |= flags(cast("type", kind), f"{prefix}{name}.")
            continue
        word = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
        for form in (word, f"no-{word}") if kind is bool else (word,):
            flag = f"{prefix}{form}".replace("_", "-")
            known |= dict.fromkeys((flag, *SHORT.get(flag, ())), flag)
    return known


def given(arguments: Iterable[str], known: Mapping[str, str]) -> dict[str, list[str]]:
    """The flags among the arguments: long form -> the forms that were typed, without dashes."""
    typed: dict[str, list[str]] = {}
    for word in arguments:
        form = word[2:].partition("=")[0].replace("_", "-")
        if word.startswith("--") and form in known:
            typed.setdefault(known[form], []).append(form)
    return typed


@contextlib.contextmanager
def _help_of_flags(command: type[Any]) -> Iterator[None]:
    """Within it tyro knows the short forms of the flags, and their help gives their bounds."""
    hints = typing.get_type_hints(command)
    prefixes = {kind: f"{name}." for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    prefixes[command] = ""
    registry, asking = ConstructorRegistry(), False

    @registry.struct_rule
    def with_marks(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asking
        if asking or info.type not in prefixes:
            return None
        asking = True  # tyro, and not this rule again
        spec = ConstructorRegistry.get_struct_spec(info)
        asking = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        fields = []
        for field in spec.fields:
            forms = SHORT.get(f"{prefixes[info.type]}{field.name}".replace("_", "-"), ())
            marks: dict[str, Any] = {"aliases": [f"--{form}" for form in forms] or None}
            for mark in getattr(field.type, "__metadata__", ()):
                if isinstance(mark, Bound):
                    marks["help_behavior_hint"] = f"({mark}; default: {{}})".format
            kind: Any = Annotated[field.type, tyro.conf.arg(**marks)]
            text = field.helptext() if callable(field.helptext) else field.helptext
            paragraph = " ".join((text or "").split())  # its docstring without line breaks
            fields.append(dataclasses.replace(field, type=kind, helptext=paragraph))
        return StructConstructorSpec(instantiate=spec.instantiate, fields=tuple(fields))

    with registry:
        yield


def flag_words(name: str, value: Any) -> list[str]:
    """A setting, such as env.num_envs, as words of a command line, in its short form if any."""
    plain = name.replace("_", "-")
    flag = SHORT.get(plain, (plain,))[0]
    if isinstance(value, bool):
        section, dot, last = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{section}{dot}no-{last}"]
    if isinstance(value, Mapping):
        parts = (part for pair in value.items() for part in pair)
        return [f"--{flag}", *(str(x).lower() if isinstance(x, bool) else str(x) for x in parts)]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{flag}", *("none" if x is None else str(x) for x in values)]


def check_least(command: object, **least: float) -> None:
    """Raise `UsageError` for flags below these numbers."""
    for name, low in least.items():
        value = getattr(command, name)
        if value is not None and value < low:
            raise UsageError(f"--{name.replace('_', '-')} is {value}: give at least {low}")


def show(text: str, file: TextIO | None = None) -> None:
    """Print what may hold text out of a file: the one way from a command to the terminal."""
    print(printable(text), file=file, flush=True)


def present(parts: Iterable[RenderableType]) -> None:
    """Print what rich has laid out. Control characters in it are shown as escapes, as by `show`."""
    console = page()
    for part in parts:
        safe = [
            Segment(printable(segment.text), segment.style)
            for segment in console.render(part)
            if not segment.control
        ]
        for line in Segment.split_lines(safe):
            while line and not line[-1].text.strip():  # what fills a line up
                line.pop()
            if line:
                line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
            console.print(Segments([*line, Segment.line()]), end="", soft_wrap=True)


def page() -> Console:
    """The terminal, or what takes its place, as a page of at most 100 columns."""
    columns = shutil.get_terminal_size((100, 24)).columns
    return Console(width=max(20, min(100, columns)), highlight=False, markup=False, emoji=False)


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

    try:
        yield
    except BaseException:
        close_all([env])
        raise
    for text in close_all([env]):
        warn(text)
