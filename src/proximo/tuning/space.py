"""The space of a search: settings, and the values that each may take."""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
from gymnasium.spaces import Box

from proximo.errors import UsageError, nearest
from proximo.functional.schedules import Schedule
from proximo.run.config import SECTIONS, Config, Tables, from_tables, to_tables
from proximo.spaces import Actions, Observations

SEARCHED = ("algorithm", "rollout", "env", "net")
"""Sections whose settings can be searched."""
FORMS = ("values", "low", "high", "log", "schedules")
"""Keys of a setting in a file of a space."""
SCHEDULES = ("constant", "linear")
UPDATES = 10
"""Updates that a trial has at least: a rollout that would leave fewer is shortened."""


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """One number of a point of the space, as a sampler sees it."""

    name: str
    kind: Literal["real", "index", "category"]  # an index has an order, a category has none
    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A setting to search: values to choose from, or else a range."""

    name: str
    """As in algorithm.gamma."""
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    """The setting is a whole number."""
    schedules: tuple[str, ...] = ()
    """The number stays (constant) or falls to 0 (linear); none: the setting is no schedule."""

    @property
    def coordinates(self) -> Iterator[Coordinate]:
        ordered = all(_is_number(x) or isinstance(x, tuple) for x in self.values)
        last = len(self.values) - 1
        if self.values:
            kind: Any = "index" if ordered else "category"
            yield Coordinate(name=self.name, kind=kind, low=0, high=last)
        else:
            yield Coordinate(
                name=self.name, kind="real", low=self.low, high=self.high, log=self.log
            )
        if len(self.schedules) > 1:
            last = len(self.schedules) - 1
            yield Coordinate(name=f"{self.name}.schedule", kind="category", low=0, high=last)

    def value(self, point: Mapping[str, float]) -> Any:
        """The setting at a point of the space."""
        found = point[self.name]
        if self.values:
            value = self.values[int(found)]
        else:
            value = round(found) if self.whole else float(f"{found:.3g}")
        kind = self.schedules and self.schedules[int(point.get(f"{self.name}.schedule", 0))]
        return f"linear:{value!r}:0.0" if kind == "linear" and value else value

    def place(self, value: Any) -> dict[str, float] | None:
        """The coordinates nearest to a value; None: it has none. The inverse of `value`."""
        number, kind = _start(value)
        point: dict[str, float] = {}
        if not self.values:
            if not _is_number(number) or (self.log and number <= 0):
                return None
            point[self.name] = min(max(float(number), self.low), self.high)
        elif number in self.values:
            point[self.name] = self.values.index(number)
        else:
            return None
        if len(self.schedules) > 1:
            known = kind if kind in self.schedules else self.schedules[-1]
            # A coefficient of 0 stays 0 by any schedule.
            point[f"{self.name}.schedule"] = self.schedules.index(known if number else "constant")
        return point

    def reaching(self, value: Any) -> Dimension:
        """This dimension, with a value that it lacks."""
        number, _ = _start(value)
        if self.values and number not in self.values:
            values = (*self.values, number)
            return dataclasses.replace(
                self, values=tuple(sorted(values)) if all(map(_is_number, values)) else values
            )
        if self.values or not _is_number(number) or (self.log and number <= 0):
            return self
        low, high = min(self.low, number), max(self.high, number)
        return dataclasses.replace(self, low=low, high=high)


Space = tuple[Dimension, ...]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _start(value: Any) -> tuple[Any, str]:
    """The number with which a coefficient begins, and the kind of its schedule."""
    if isinstance(value, str) and value.partition(":")[0] in ("linear", "cosine"):
        value = Schedule.parse(value)
    return (value.start, value.kind) if isinstance(value, Schedule) else (value, "constant")


def get(config: Config, name: str) -> Any:
    """A setting by its name, as in algorithm.gamma; a critic without a rate has the policy's."""
    section, _, setting = name.partition(".")
    value = getattr(getattr(config, section), setting)
    if value is None and setting == "critic_learning_rate":
        return config.algorithm.learning_rate
    return value


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with these settings, as a file would give them. Raises `UsageError`."""
    tables = to_tables(config)
    for name, value in settings.items():
        section, _, setting = name.partition(".")
        tables[section][setting] = value
    return from_tables(tables)


def configure(base: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration of a trial: `changed`, and sizes that are searched fit each other.

    A rollout leaves at least `UPDATES` updates, and a minibatch is at most a rollout.
    """
    fitting = dict(settings)
    envs = settings.get("env.num_envs", base.env.num_envs)
    steps = settings.get("rollout.steps", base.rollout.steps)
    if "rollout.steps" in fitting:
        steps = fitting["rollout.steps"] = min(
            steps, max(1, base.run.total_steps // (UPDATES * envs))
        )
    if "algorithm.minibatch_size" in fitting and not base.rollout.episodes:
        size = min(fitting["algorithm.minibatch_size"], envs * steps)
        fitting["algorithm.minibatch_size"] = size
    return changed(base, fitting)


def default_space(base: Config, spaces: tuple[gym.Space[Any], gym.Space[Any]]) -> Tables:
    """What is searched for this algorithm and these spaces, without what has no effect."""
    seen, actions = spaces
    images = any(leaf.image for leaf in Observations(seen).leaves)
    continuous = any(isinstance(leaf.space, Box) for leaf in Actions(actions).leaves)
    groups = ["all", *["continuous"] * continuous, *["images"] * images, base.algorithm.name]
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        for section, table in _shipped().get(group, {}).items():
            found.setdefault(section, {}).update(table)
    idle = set(_idle(base))
    known = set(_settings(base))
    return {
        section: {key: form for key, form in table.items() if f"{section}.{key}" in known - idle}
        for section, table in found.items()
    }


@functools.cache
def _shipped() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("spaces.toml").read_text(encoding="utf-8"))


def _settings(base: Config) -> list[str]:
    """Names of the settings that the algorithm has, of sections that can be searched."""
    kinds = {"algorithm": type(base.algorithm), **SECTIONS}
    names = [f"{s}.{f.name}" for s in SEARCHED for f in dataclasses.fields(kinds[s])]
    unused = [f"algorithm.{name}" for name in base.algorithm.unused_settings]
    return [name for name in names if name not in (*unused, "env.id")]


def _idle(base: Config) -> Iterator[str]:
    """Settings of the shipped spaces that would do nothing here."""
    algorithm, net = base.algorithm, base.net
    yield "rollout.steps" if base.rollout.episodes else "rollout.episodes"
    if algorithm.minibatches != "shuffled":
        yield from ("algorithm.minibatch_size", "algorithm.epochs")
    if algorithm.separate_optimizers:  # the critic has a loss and layers of its own
        yield from ("algorithm.value_coef", "net.trunk")
    if not algorithm.critic:
        yield from ("algorithm.value_coef", "algorithm.critic_learning_rate")
        yield "net.normalize_returns"
    if algorithm.critic_learning_rate is None and not algorithm.separate_optimizers:
        yield "algorithm.critic_learning_rate"
    elif not algorithm.separate_optimizers:
        yield "net.trunk"
    if net.module:
        yield from ("net.hidden", "net.activation", "net.trunk")
    if net.action == "beta":
        yield "net.log_std"
    if net.privileged:
        yield "net.trunk"


def read_space(base: Config, found: Tables, *, strict: bool) -> tuple[Space, dict[str, Any]]:
    """The dimensions of tables, and the settings that they fix at one value.

    strict: the tables are the user's, and what does not fit is refused; else it is left out.
    Raises `UsageError`.
    """
    dimensions, single = list[Dimension](), dict[str, Any]()
    known = _settings(base)
    for section, table in found.items():
        if section not in SEARCHED or not isinstance(table, Mapping):
            near = nearest(section, SEARCHED)
            raise UsageError(f"a space has no section {section!r}. {near}")
        for key, form in table.items():
            name = f"{section}.{key}"
            if name not in known:
                what = f"{base.algorithm.name} has no setting {name} to search"
                raise UsageError(f"{what}. {nearest(name, known)}")
            if not isinstance(form, list | tuple | Mapping):
                single[name] = get(changed(base, {name: form}), name)
            elif dimension := _dimension(base, name, form, strict=strict):
                dimensions.append(dimension)
    return tuple(dimensions), single


def _dimension(base: Config, name: str, form: Any, *, strict: bool) -> Dimension | None:
    """A setting of a space. Raises `UsageError`."""
    form = dict(form) if isinstance(form, Mapping) else {"values": form}
    for key in form:
        if key not in FORMS:
            raise UsageError(f"{name} has {key!r}. {nearest(key, FORMS)}")
    schedules = tuple(form.get("schedules", ()))
    if wrong := [kind for kind in schedules if kind not in SCHEDULES]:
        raise UsageError(f"{name} has the schedule {wrong[0]!r}: there are constant and linear")
    if "values" in form:
        values = [_checked(base, name, value, strict=strict) for value in form["values"]]
        several = tuple(dict.fromkeys(value for value in values if value is not _REFUSED))
        if strict and not several:
            raise UsageError(f"{name} has no values: give a list, or low and high")
        if len(several) + len(schedules) < 2:
            return None
        ordered = tuple(sorted(several)) if all(map(_is_number, several)) else several
        return Dimension(name=name, values=ordered, schedules=schedules)
    low, high, log = form.get("low"), form.get("high"), form.get("log", False)
    numbers = _is_number(low) and _is_number(high) and math.isfinite(low) and math.isfinite(high)
    if not numbers or low >= high or not isinstance(log, bool) or (log and low <= 0):
        raise UsageError(
            f"{name} is {form}: give a list of values, or low below high (above 0 with log = true)"
        )
    ends = [_checked(base, name, end, strict=strict) for end in (low, high)]
    if not all(map(_is_number, ends)):
        return None
    whole = all(isinstance(end, int) for end in ends)
    return Dimension(name=name, low=low, high=high, log=log, whole=whole, schedules=schedules)


_REFUSED = object()


def _checked(base: Config, name: str, value: Any, *, strict: bool) -> Any:
    """The value as the configuration holds it. Raises `UsageError` for one that it refuses."""
    try:
        return get(changed(base, {name: value}), name)
    except UsageError:
        if strict:
            raise
        return _REFUSED
