"""Callbacks of the user's own: by the names that a run records, and their states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from proximo.errors import UsageError
from proximo.run.callbacks import Callback
from proximo.run.code import describe, named_again, remade
from proximo.run.config import Config
from proximo.types import Extra

AnyCallback = Callback | Callable[[Any, Any, Any], bool | None]
"""A callback, or a plain function as one."""
PREFIX = "callbacks."  # beginning of the names of callbacks' tensors in a checkpoint


def check_callbacks(callbacks: object) -> None:
    """Refuse what is no list of callbacks. Raises `UsageError`."""
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        found = "a function" if callable(callbacks) else repr(callbacks)
        raise UsageError(f"callbacks is {found}: give a list of them, [function]")
    for index, callback in enumerate(callbacks):
        if not (callable(callback) or isinstance(callback, str)):
            raise UsageError(f"callbacks[{index}] is {callback!r}: give a function")


def with_callbacks(
    config: Config, given: Iterable[Any], *, again: bool, kept: bool
) -> tuple[Config, list[Any]]:
    """The configuration that records the callbacks of a run, and the callbacks.

    given: callbacks, functions, classes or names; further ones come behind those recorded. again:
    the recorded ones are of a file, and were named again among the given: see `consent`. kept: the
    run has a folder. Raises `UsageError` for what it cannot name.
    """
    rest = list(given)
    pairs = list[tuple[Any, str]]()
    for text in config.run.callbacks:
        code = named_again(text, rest) if again else text
        rest = [other for other in rest if other is not code]
        pairs.append((code, text))
    texts, made = list[str](), list[Any]()
    for index, (code, recorded) in enumerate([*pairs, *((code, "") for code in rest)]):
        text, callback = remade(code, recorded)
        try:
            if not text and kept and isinstance(callback, Callback):
                text = describe(callback)
        except UsageError as error:
            raise UsageError(
                f"callbacks[{index}]: {error}, or train without a run folder (leave run_dir out)"
            ) from error
        made.append(callback)
        texts += filter(None, [text or recorded])
    run = dataclasses.replace(config.run, callbacks=tuple(texts))
    return dataclasses.replace(config, run=run), made


def pack(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of a tree called `name`; its tensors go to `tensors`. Raises `UsageError`."""
    if isinstance(tree, Tensor):
        key = f"{PREFIX}{len(tensors)}"
        tensors[key] = tree
        return {"tensor": key}
    if isinstance(tree, Mapping):
        if not all(isinstance(key, str | int) for key in tree):
            raise UsageError(f"{name} has a key that is neither text nor a whole number")
        return {"dict": [[key, pack(x, f"{name}.{key}", tensors)] for key, x in tree.items()]}
    if isinstance(tree, list | tuple):
        parts = [pack(x, f"{name}[{i}]", tensors) for i, x in enumerate(tree)]
        return {"list" if isinstance(tree, list) else "tuple": parts}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise UsageError(
        f"{name} is {tree!r:.80}, which no checkpoint can hold: give dicts and lists of tensors, "
        "numbers, text, true, false and None"
    )


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`. Raises `LookupError`, `TypeError` or `ValueError` for other JSON."""
    if not isinstance(tree, dict):
        return tree
    ((kind, inner),) = tree.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: unpack(x, tensors) for key, x in inner}
    return {"list": list, "tuple": tuple}[kind](unpack(x, tensors) for x in inner)


def pack_callbacks(callbacks: Iterable[Callback]) -> Extra:
    """The states of those callbacks that have one, for a checkpoint. Raises `UsageError`."""
    tensors, states = dict[str, Tensor](), dict[str, Any]()
    for name, callback in _named(callbacks):
        if state := callback.state_dict():
            states[name] = pack(state, f"the state_dict of {name.partition('#')[0]}", tensors)
    return tensors, {"callbacks": states} if states else {}


def restore_callbacks(
    callbacks: Iterable[Callback], tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    """Give each callback the state that a checkpoint holds of it. Raises `UsageError`."""
    states = record.get("callbacks", {})
    for name, callback in _named(callbacks):
        if name not in states:
            continue
        try:
            callback.load_state_dict(unpack(states[name], tensors))
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"the state of the callback {name.partition('#')[0]} in the checkpoint does not "
                f"fit: {type(error).__name__}: {error}"
            ) from error


def _named(callbacks: Iterable[Callback]) -> Iterable[tuple[str, Callback]]:
    """Each with the name of its class, and a number where there are several of it."""
    counts = dict[str, int]()
    for callback in callbacks:
        name = type(callback).__qualname__
        counts[name] = counts.get(name, 0) + 1
        yield f"{name}#{counts[name]}", callback
