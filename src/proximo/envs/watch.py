"""Observations, rewards and flags of an env against what its spaces say."""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from proximo.envs.layers import title
from proximo.errors import UsageError
from proximo.spaces import MASK, Actions, Leaf, Observations, misfit, sizes, starts, strangers

SEED = 3_000_000
"""Seed of the first episode; training and evaluations begin elsewhere."""
EXACT = 2**24
"""Largest number up to which a float32 holds every whole number."""
FINITE = "it must be finite. Look for a division by zero or an overflow in the env"
"""End of an error text."""
SMALLEST_SIDE, MOST_CHANNELS = 8, 16
"""Pixels along a side, and channels, of three axes of floats that are taken for an image."""


class Checked(NamedTuple):
    """Findings about an env that can be trained in."""

    notes: list[str]
    steps: int = 0
    episodes: int = 0  # that ended
    within: bool = True  # whether all observations lay within their bounds
    replayable: bool = False  # whether the same seed and actions gave the same again


@contextlib.contextmanager
def refusing(env: Any) -> Iterator[None]:
    """Let a `UsageError` say which env it is about."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{title(env)} cannot be trained in: {error}") from error


class Clock:
    """Steps and seconds that are left."""

    def __init__(self, seconds: float, steps: int) -> None:
        self._begin = time.monotonic()
        self._until, self.left, self.taken = self._begin + seconds, steps, 0

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begin

    @property
    def over(self) -> bool:
        return self.left <= 0 or time.monotonic() > self._until

    def step(self) -> bool:
        """Count one more step, if there is room for it: there always is for the first."""
        if self.taken and self.over:
            return False
        self.left, self.taken = self.left - 1, self.taken + 1
        return True


class Bounds:
    """Bounds of a row of observations, column by column."""

    def __init__(self, observations: Observations) -> None:
        self._observations = observations
        low, high = np.zeros(observations.width), np.ones(observations.width)
        for leaf in observations.leaves:
            if isinstance(leaf.space, spaces.Box):
                low[leaf.begin : leaf.end] = leaf.space.low.reshape(-1)
                high[leaf.begin : leaf.end] = leaf.space.high.reshape(-1)
        self._ends = low, high
        # Rounding leads nowhere outside.
        with np.errstate(over="ignore"):  # some bounds are the largest number that there is
            slack = [1e-5 * np.abs(end).clip(1, 1e300) for end in (low, high)]
            self.low, self.high = low - slack[0], high + slack[1]

    @property
    def endless(self) -> bool:
        """Nothing can lie outside: there are no bounds, or bytes that may have every value."""
        leaves = self._observations.leaves
        boxes = [leaf.space for leaf in leaves if isinstance(leaf.space, spaces.Box)]
        return all(
            (box.dtype == np.uint8 and (box.low == 0).all() and (box.high == 255).all())
            or not (box.bounded_below | box.bounded_above).any()
            for box in boxes
        )

    def outside(self, rows: np.ndarray) -> str:
        """Note on the number that is farthest out; empty if all are within. rows: [..., *obs]."""
        flat = rows.reshape(-1, len(self.low)).astype(np.float64)
        beyond = np.maximum(self.low - flat, flat - self.high)
        if not (beyond > 0).any():
            return ""
        row, column = np.unravel_index(beyond.argmax(), beyond.shape)
        low, high = (end[column] for end in self._ends)
        return (
            f"{self._observations.column_name(int(column))} was {flat[row, column]:g}, outside the "
            f"bounds {low:g} and {high:g} of its observation_space: it is learned from as it is; "
            "wider bounds, or a scaled observation, would say what is meant"
        )


class Watch:
    """Checks of observations, rewards and flags. lead: leading axes of batches."""

    def __init__(self, observations: Observations, lead: tuple[int, ...] = ()) -> None:
        self.observations, self.lead = observations, lead
        self.bounds = Bounds(observations)
        self.notes: dict[str, str] = {}  # by their subject: one for each
        self.within = True

    def look(self, seen: Any, where: str) -> np.ndarray:
        """Check an observation; returns it as a row."""
        shape, kind = (*self.lead, *self.observations.shape), self.observations.dtype
        row = np.empty(shape, np.float64 if kind.kind == "f" else kind)
        if unknown := strangers(self.observations.space, seen):
            self.notes.setdefault(
                "strangers",
                f"the observation holds {', '.join(unknown)} at {where}, which its "
                "observation_space lacks: nobody looks at that. Add it to the space, or leave it "
                "out",
            )
        for leaf in self.observations.leaves:
            self._leaf(leaf, seen, where)
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                self.observations.write(seen, row)
        except UsageError as error:
            raise UsageError(f"{error} (at {where})") from error
        if not np.isfinite(row).all():
            what = self.observations.not_finite(row)
            raise UsageError(f"it gave {what} at {where}: {FINITE}")
        if outside := self.bounds.outside(row):
            self.within = False
            self.notes.setdefault("bounds", f"at {where}, {outside}")
        return row

    def _leaf(self, leaf: Leaf, seen: Any, where: str) -> None:
        try:
            part = np.asarray(on_host(leaf.of(seen)))
        except (KeyError, IndexError, TypeError, ValueError):
            return  # `Observations.write` says what is missing
        name, space = leaf.name, leaf.space
        if part.dtype.kind not in "biuf":
            if isinstance(leaf.of(seen), tuple):
                raise UsageError(f"{misfit(leaf, seen, part.shape)} (at {where})")
            raise UsageError(
                f"{name} is {short(part)} at {where}, of type {part.dtype}: give numbers, as "
                f"{space} says"
            )
        if not part.size or not np.isfinite(part).all():
            return
        whole = space.dtype is not None and np.dtype(space.dtype).kind != "f"
        if whole and part.dtype.kind == "f" and (part != np.floor(part)).any():
            raise UsageError(
                f"{name} is {short(part)} at {where}, but {space} holds whole numbers, so that "
                "its fractions would be lost: give the space a dtype of float32"
            )
        if isinstance(space, spaces.Box) and space.dtype.kind in "iu":
            held = np.iinfo(space.dtype)
            if not held.min <= part.min() <= part.max() <= held.max:
                raise UsageError(
                    f"{name} is {short(part)} at {where}, which the {space.dtype} of its "
                    f"observation_space cannot hold: bring it to {held.min}...{held.max}"
                )
        if isinstance(space, spaces.MultiBinary) and not np.isin(part, (0, 1)).all():
            self.notes.setdefault(name, f"{name} is {short(part)} at {where}: bits are 0 and 1")
        if _pictures(space):
            self.notes.setdefault(
                f"image {name}",
                f"{name} has the shape of an image, {space.shape}, but is {space.dtype}: it goes "
                f"through layers of numbers, {np.prod(space.shape or ()):,} of them. As bytes, "
                "Box(0, 255, dtype=np.uint8), it would go through convolutions",
            )
        largest = np.abs(part.astype(np.float64)).max()
        if largest > np.finfo(np.float32).max:
            raise UsageError(
                f"{name} holds {largest:g} at {where}, more than single precision can (3.4e38): "
                "scale it"
            )
        if largest > EXACT and (part.astype(np.float32) != part).any():
            gap = np.spacing(np.float32(largest))
            self.notes.setdefault(
                name,
                f"{name} holds {largest:.10g} at {where}, where single precision moves in steps of "
                f"{gap:g}: subtract what is constant, or scale it",
            )

    def reward(self, reward: Any, where: str) -> np.ndarray:
        """Check a reward; returns a copy of it."""
        numbers = np.array(on_host(reward))  # a copy: the env may use its own again
        if numbers.shape != self.lead or numbers.dtype.kind not in "biuf":
            what = f"numbers of shape {self.lead}" if self.lead else "one number"
            raise UsageError(f"its reward must be {what}, but it is {reward!r} at {where}")
        with np.errstate(over="ignore"):
            finite = np.isfinite(numbers.astype(np.float32)).all()
        if not finite:
            raise UsageError(f"it gave the reward {short(numbers)} at {where}: {FINITE}")
        return numbers

    def flag(self, name: str, flag: Any, where: str) -> np.ndarray:
        """Check `terminated` or `truncated`."""
        flags = np.asarray(on_host(flag))
        if flags.shape == self.lead and flags.dtype == bool:
            return flags
        if not self.lead and isinstance(flag, int | np.integer) and flag in (0, 1):
            self.notes.setdefault(name, f"{name} is {flag!r} at {where}: give True or False")
            return np.asarray(bool(flag))
        what = f"bools of shape {self.lead}" if self.lead else "True or False"
        shown = f"{flags.dtype} of shape {flags.shape}" if self.lead else repr(flag)
        raise UsageError(f"its {name} is {shown} at {where}: step must return {what}")

    def parts(self, answer: Any, where: str) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, Any]:
        """Check the return value of a step: (observation, reward, both flags, info)."""
        if text := misanswer(answer):
            raise UsageError(f"its {text}")
        obs, reward, *flags, info = answer
        if not isinstance(info, dict) and self.lead:
            raise UsageError(infos_of(info))
        if not isinstance(info, dict):
            text = f"info is {info!r} at {where}: give a dict, {{}} if empty"
            self.notes.setdefault("info", text)
        paid = self.reward(reward, where)
        pairs = zip(("terminated", "truncated"), flags, strict=True)
        terminated, truncated = (self.flag(name, flag, where) for name, flag in pairs)
        return obs, paid, terminated, truncated, info


class Sampler:
    """Random actions, always the same ones."""

    def __init__(self, actions: Actions) -> None:
        self._actions, self._drawn = actions, np.random.default_rng(SEED)
        self._spaces = [copy.deepcopy(leaf.space) for leaf in actions.leaves]
        for number, space in enumerate(self._spaces):
            space.seed(SEED + number)

    def draw(self, legal: np.ndarray | None, where: str) -> Any:
        """One action, as a row. legal: [choices] bool; None: every choice. Raises `UsageError`."""
        actions = self._actions
        row = np.empty(actions.leaves[-1].end, actions.dtype)
        begin = 0
        space: Any
        for leaf, space in zip(actions.leaves, self._spaces, strict=True):
            if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
                row[leaf.begin : leaf.end] = space.sample().reshape(-1)
                continue
            columns = range(leaf.begin, leaf.end)
            for column, size, start in zip(columns, sizes(space), starts(space), strict=True):
                allowed = np.arange(size)
                if legal is not None:
                    allowed = np.flatnonzero(legal[begin : begin + size])
                begin += size
                if not len(allowed):
                    shown = short(np.asarray(legal, int))
                    raise UsageError(
                        f"its {MASK}, {shown}, allows no action for {where}: one must be legal "
                        "until the episode has ended, and there is one entry for each choice of "
                        f"{actions.space}"
                    )
                row[column] = start + int(self._drawn.choice(allowed))
        if legal is not None and begin != len(legal):
            raise UsageError(
                f"its {MASK} has {len(legal)} entries, but {actions.space} has {begin} things to "
                "choose from: it needs one entry for each"
            )
        return row.reshape(actions.shape or ())[()] if actions.single else row


def _pictures(space: gym.Space[Any]) -> bool:
    """An image that is not of bytes: three axes, the first or the last of which are channels."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 3 or space.dtype == np.uint8:
        return False
    channels, side = sorted(space.shape)[:2]
    outer = min(space.shape[0], space.shape[-1])
    return channels <= MOST_CHANNELS and channels == outer and side >= SMALLEST_SIDE


def on_host(value: Any) -> Any:
    """A NumPy array in place of a tensor of PyTorch; anything else as it is."""
    torch = sys.modules.get("torch")  # there are no tensors where it was never imported
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    if value.requires_grad:
        raise UsageError(
            f"it gave {value!r:.80}, a tensor that needs a gradient: give x.detach(), as nothing "
            "is learned through the env"
        )
    return np.asarray(value.cpu())


def short(value: Any) -> str:
    """A value in one line that is not too long."""
    with np.printoptions(threshold=8, edgeitems=3, precision=4):
        text = " ".join(str(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def misanswer(answer: Any) -> str:
    """Error text for the return value of a step that has not its five parts; empty if it has."""
    if isinstance(answer, tuple) and len(answer) == 5:
        return ""
    what = f"{len(answer)} things" if isinstance(answer, tuple) else repr(type(answer))
    if isinstance(answer, tuple) and len(answer) == 4:
        what += (
            ", as Gym's did before 0.26: give done as terminated, or as truncated where a time "
            "limit ended the episode"
        )
    parts = "(observation, reward, terminated, truncated, info)"
    return f"step must return {parts}, but returned {what}"


def infos_of(info: Any) -> str:
    """Error text for an info of a vector env that is no dict."""
    return (
        f"its info is a {type(info).__name__}, as the wrapper DictInfoToList makes it: a vector "
        "env must give a dict, in which final_obs stands. Leave that wrapper out"
    )
