"""Code that a configuration of a file names: it is imported only when the user names it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from proximo.envs.suites import suite_of
from proximo.errors import UsageError
from proximo.run.code import Code, name_in, name_of_given, named_again, sayable
from proximo.run.config import Config, UnimportedAlgorithm, algorithm_name, with_code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """Code of a run that the user has named again, or given."""

    env: Any = None
    wrappers: tuple[str, ...] = ()
    net: Code | None = None
    algorithm: Code | None = None
    schedules: tuple[Code, ...] = ()
    callbacks: tuple[Any, ...] = ()


WHAT = {
    "env": "env",
    "wrappers": "env",
    "net": "network",
    "algorithm": "algorithm",
    "schedules": "schedule",
    "callbacks": "callback",
}
"""Argument -> what it names."""

Line = Callable[[dict[str, list[str]]], str]
"""What the user has to type, for arguments and the names to give them."""


def allow(
    config: Config,
    named: Named,
    parts: Iterable[str],
    line: Line,
    flags: Mapping[str, str] | None = None,
) -> Config:
    """The configuration with its code as the user has named it again. Raises `UsageError`.

    parts: arguments whose code is needed. line: what to type. flags: names of the arguments.
    """
    env, algorithm, module = config.env, config.algorithm, config.net.module
    if "env" in parts and not env.id and named.env is None:
        again = line({"env": ["module:Class"]})
        raise UsageError(f"this run's env was made by a program: name it, as in {again}")
    own = algorithm.own if isinstance(algorithm, UnimportedAlgorithm) else ""
    known = own or named.algorithm in (type(algorithm), algorithm_name(algorithm))
    for argument, there in (("net", module), ("algorithm", known)):
        if (given := getattr(named, argument)) is not None and not there:
            raise UsageError(
                f"{(flags or {}).get(argument, argument)} is {name_of_given(given)}, but this "
                f"run's {WHAT[argument]} is Proximo's: leave it out"
            )
    stored = unnamed(config, named)
    if missing := {name: stored[name] for name in parts if stored[name]}:
        raise UsageError(words(missing, line))
    if named.net is not None:
        module = name_of_given(named.net)
    config = dataclasses.replace(
        config,
        env=dataclasses.replace(
            env,
            id=named.env if isinstance(named.env, str) else env.id,
            wrappers=tuple(named.wrappers) or env.wrappers,
        ),
        net=dataclasses.replace(config.net, module=module),
    )
    return with_code(config, named.algorithm if own else None, named.schedules)


def unnamed(config: Config, named: Named) -> dict[str, list[str]]:
    """Code of a run that the user has not named again: argument -> its names."""
    env, algorithm, module = config.env, config.algorithm, config.net.module
    own = algorithm.own if isinstance(algorithm, UnimportedAlgorithm) else ""
    return {
        "env": [env.id] if ":" in env.id and not suite_of(env.id) and named.env is None else [],
        "wrappers": [] if named.wrappers else list(env.wrappers),
        "net": [module] if module and named.net is None else [],
        "algorithm": [own] if own and named.algorithm is None else [],
        "schedules": _missing(getattr(algorithm, "schedules", ()), named.schedules),
        "callbacks": _missing(config.run.callbacks, named.callbacks),
    }


def python_line(call: str) -> Line:
    """The line to type in Python. call: the call so far, without its last parenthesis."""

    def line(names: dict[str, list[str]]) -> str:
        plural = ("wrappers", "schedules", "callbacks", "reward")
        given = (f"{a}={n if a in plural else n[0]!r}" for a, n in names.items())
        return f"{call}, {', '.join(given)})"

    return line


def _missing(recorded: Iterable[str], given: Iterable[Any]) -> list[str]:
    return [name_in(text) for text in recorded if named_again(text, given) is None]


def words(missing: dict[str, list[str]], line: Line) -> str:
    """The error for code that was not named again. missing: argument -> names."""
    groups = dict[str, list[str]]()
    for argument, names in missing.items():
        code = [name for name in names if ":" in name]
        groups.setdefault(WHAT.get(argument, argument), []).extend(code)
    said = [f"{what}, {' and '.join(names)}" for what, names in groups.items()]
    be, it = ("is", "it") if len(said) == 1 else ("are", "them")
    again = {argument: [sayable(name) for name in names] for argument, names in missing.items()}
    return (
        f"this run's {', and its '.join(said)}, {be} code: importing {it} needs your word. "
        f"If you trust {it}, type: {line(again)}"
    )
