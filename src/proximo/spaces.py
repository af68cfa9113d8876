"""Every observation and action as one row of numbers, however nested its space is.

A row holds the leaves of a Dict or Tuple side by side, a Discrete one as a one-hot, an action mask
last. The library stores and learns from rows alone; actions are nested again for the env.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from proximo.errors import UsageError

if TYPE_CHECKING:
    import torch

Space = gym.Space[Any]
MASK = "action_mask"
"""The key of an observation that says which actions are legal."""
SMALLEST_IMAGE, SMALLEST_GREY = 5, 36
"""Pixels along the shorter side from which bytes are an image: of three axes, and of two axes (a
board, say, is smaller)."""

OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"
ACTIONS = "Discrete, MultiDiscrete, MultiBinary, Box of floats, Dict and Tuple of these"
SIMPLE = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
WIDEST = 2**24
"""Choices of a simple space, at most: each is a column, which takes memory."""
EXACT = 2**53
"""Largest number up to which a float64 holds every whole number."""


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """PyTorch's name for a type of NumPy's."""
    import torch  # here alone: a process that only steps envs does without

    return torch.from_numpy(np.empty(0, dtype)).dtype


@dataclass(frozen=True, eq=False, repr=False)
class EnumKey:
    """A member of an `Enum` as a key of a space from a file: equal to it, with the same hash."""

    enum: str
    name: str

    def __eq__(self, other: object) -> bool:
        if isinstance(other, enum.Enum):
            return (type(other).__name__, other.name) == (self.enum, self.name)
        return isinstance(other, EnumKey) and (other.enum, other.name) == (self.enum, self.name)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"{self.enum}.{self.name}"


def plain_key(key: Any) -> Any:
    """An equal key of Python's own types, or an `EnumKey`; where there is neither, the key."""
    plain = key
    if isinstance(key, np.generic):
        plain = key.item()
    elif isinstance(key, tuple):
        plain = tuple(map(plain_key, key))
    elif isinstance(key, str):
        plain = str.__str__(key)
    elif isinstance(key, int) and not isinstance(key, bool):
        plain = int.__int__(key)
    elif isinstance(key, enum.Enum) and isinstance(key.name, str):
        plain = EnumKey(type(key).__name__, key.name)
    equal = plain == key and key == plain and hash(plain) == hash(key)
    return plain if equal else key


@dataclass(frozen=True, eq=False)
class Leaf:
    """One simple space within a row: columns begin to end."""

    path: tuple[Any, ...]  # the keys that lead to it
    space: Space
    begin: int
    end: int

    @cached_property
    def chosen(self) -> bool:
        """There is something to choose, which becomes a one-hot."""
        return bool(sizes(self.space))

    @cached_property
    def _one_hot(self) -> dict[Any, tuple[Any, Any]]:
        """By device (None: NumPy): of each column, whose choice it is, and which thing is meant."""
        counts = sizes(self.space)
        things = [start + np.arange(n) for start, n in zip(starts(self.space), counts, strict=True)]
        return {None: (np.repeat(np.arange(len(counts)), counts), np.concatenate(things))}

    def columns(self, part: Any) -> Any:
        """Columns [..., end - begin] of an array or a tensor [..., *space.shape].

        Choices become a one-hot of bool, which is 0 everywhere for one out of range.
        """
        part = part.reshape(*part.shape[: part.ndim - len(self.space.shape or ())], -1)
        if not self.chosen:
            return part
        device = None if isinstance(part, np.ndarray) else part.device
        if device not in self._one_hot:
            import torch

            choice, thing = map(torch.from_numpy, self._one_hot[None])
            self._one_hot[device] = choice.to(device), thing.to(device)
        choice, thing = self._one_hot[device]
        return part[..., choice] == thing

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys in words, the same for a space that was read from a file."""
        return tuple(str(plain_key(key)) for key in self.path)

    @property
    def name(self) -> str:
        return "/".join(self.keys) or "the observation"

    @property
    def place(self) -> str:
        """Place within a space, for an error text."""
        return f" at {self.name}" if self.path else ""

    @property
    def image(self) -> tuple[int, ...] | None:
        """The shape of an image, or None.

        Bytes with three axes, of which two are large, a stack of these, or a large grey picture.
        """
        space = self.space
        if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
            return None
        shape = space.shape
        if len(shape) == 2:
            return shape if min(shape) >= SMALLEST_GREY else None
        large = len(shape) in (3, 4) and sorted(shape[-3:])[1] >= SMALLEST_IMAGE
        return shape if large else None

    def of(self, nested: Any) -> Any:
        """This leaf of an observation."""
        for key in self.path:
            nested = nested[key]
        return nested


def parts_of(space: Space) -> dict[Any, Space]:
    """The parts of a Dict or a Tuple, by their keys; none of a simple space."""
    if isinstance(space, spaces.Dict):
        return space.spaces
    return dict(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else {}


def _leaves(space: Space, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Space]]:
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        yield path, space
    for key, inner in parts_of(space).items():
        yield from _leaves(inner, (*path, key))


def nest(space: Space, part: Callable[[], Any]) -> Any:
    """A value nested as the space is. part: called for that of each simple space in turn."""
    if isinstance(space, spaces.Dict):
        return {key: nest(inner, part) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(nest(inner, part) for inner in space.spaces)
    return part()


def map_leaves(change: Callable[..., Any], nested: Any, *others: Any) -> Any:
    """A nested observation with each leaf changed; others: nested alike, as further arguments."""
    if isinstance(nested, dict):
        return {key: map_leaves(change, nested[key], *(o[key] for o in others)) for key in nested}
    if isinstance(nested, tuple):
        return tuple(map_leaves(change, *parts) for parts in zip(nested, *others, strict=True))
    return change(nested, *others)


def _masks_last(space: Space) -> list[tuple[Any, Space]]:
    return sorted(_leaves(space), key=lambda item: item[0][:1] == (MASK,))


def sizes(space: Space) -> list[int]:
    """How much there is to choose from in a simple space, choice by choice."""
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.reshape(-1)]
    return [int(space.n)] if isinstance(space, spaces.Discrete) else []


def starts(space: Any) -> list[int]:
    """The number of the first thing to choose, choice by choice."""
    return [int(start) for start in np.broadcast_to(space.start, space.shape).reshape(-1)]


@cache
def native(dtype: Any) -> np.dtype:
    """The type in the byte order of this machine, the only one that PyTorch knows."""
    kind: np.dtype = np.dtype(dtype).newbyteorder("=")
    return kind


def _columns(space: Space) -> int:
    """How many numbers a row needs for what a simple space shows."""
    return sum(sizes(space)) if sizes(space) else int(np.prod(space.shape or ()))


def _check_leaf(what: str, leaf: Leaf) -> None:
    """Refuse a supported simple space whose numbers no row can hold. Raises `UsageError`."""
    space = leaf.space
    where = f"the {what} space{leaf.place} is {space}"
    count, dtype = sum(sizes(space)), np.dtype(space.dtype)
    if count > WIDEST:
        raise UsageError(
            f"{where}: {count:,} things to choose from, each of which is a column of its own. At "
            f"most {WIDEST:,} can be: split the number into digits (MultiDiscrete), or "
            + ("show it as a Box" if what == "observation" else "choose it from a Box of floats")
        )
    if dtype.kind == "f" and dtype.itemsize > 8:
        raise UsageError(f"{where}, of {dtype}, which PyTorch does not have: use float64")
    if count:
        low, high = min(starts(space)), max(map(sum, zip(starts(space), sizes(space), strict=True)))
        held = np.iinfo(dtype)
        if high - 1 > min(held.max, 2**63 - 1) or low < held.min:
            raise UsageError(
                f"{where}, whose last choice is {high - 1}: its {dtype} holds "
                f"{held.min}...{min(held.max, 2**63 - 1)}. Give it a wider dtype, or another start"
            )


def own_copy(space: Space) -> Space:
    """A space whose bounds are its own, with the very keys of the other one."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return deepcopy(space)
    twin = copy(space)
    parts = {key: own_copy(inner) for key, inner in parts_of(space).items()}
    vars(twin)["spaces"] = parts if isinstance(space, spaces.Dict) else tuple(parts.values())
    return twin


def _array(leaf: Leaf, seen: Any) -> np.ndarray:
    return np.asarray(leaf.of(seen))


class Observations:
    """How the observations of a space lie in a row of `shape` and `dtype`.

    A vector and an image stay as they are; everything else is a row of float32. Raises `UsageError`
    for a space that has no numbers, or only some.
    """

    def __init__(self, space: Space) -> None:
        self.space, self.leaves = space, list[Leaf]()
        begin = 0
        for path, inner in _masks_last(space):
            leaf = Leaf(path, inner, begin, begin + _columns(inner))
            if not isinstance(inner, SIMPLE):
                raise UsageError(
                    f"the observation space{leaf.place} is {inner}: supported are {OBSERVATIONS}. "
                    "A wrapper such as gymnasium.wrappers.TransformObservation can make one of "
                    "these of it"
                )
            _check_leaf("observation", leaf)
            self.leaves.append(leaf)
            begin = leaf.end
        self.width = begin
        masks = [leaf for leaf in self.leaves if leaf.path[:1] == (MASK,)]
        self.mask_begin = masks[0].begin if masks else begin
        if self.mask_begin == 0:
            raise UsageError(f"the observation space {space} has nothing to see")
        alone = space if isinstance(space, spaces.Box) else None
        image = alone is not None and self.leaves[0].image is not None
        self.plain = alone is not None and (image or len(alone.shape) == 1)
        """An observation is its row already."""
        self.shape = alone.shape if alone is not None and self.plain else (begin,)
        # Only images stay bytes, which the network scales; other bytes are numbers.
        kind = np.float32 if alone is None else alone.dtype
        self.dtype: np.dtype = native(np.float32 if kind == np.uint8 and not image else kind)

    @property
    def masks(self) -> Space | None:
        """The space of the action masks, or None."""
        return parts_of(self.space)[MASK] if self.mask_begin < self.width else None

    def write(self, seen: Any, row: Any, take: Callable[[Leaf, Any], Any] = _array) -> None:
        """Write an observation, or a batch, to its row [..., *shape]; take: a leaf's part."""
        lead = row.shape[: row.ndim - len(self.shape)]
        for leaf in self.leaves:
            try:
                part = take(leaf, seen)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise UsageError(misfit(leaf, seen)) from error
            if part.shape != (*lead, *(leaf.space.shape or ())):
                raise UsageError(misfit(leaf, seen, tuple(part.shape[len(lead) :])))
            self.lay(leaf, part, row)
            chosen = row[..., leaf.begin : leaf.end] if leaf.chosen else None
            if isinstance(chosen, np.ndarray) and np.count_nonzero(chosen) != part.size:
                text = f"an env returned {leaf.name} = {part}, which is not in {leaf.space}"
                raise UsageError(text)

    def lay(self, leaf: Leaf, part: Any, row: Any) -> None:
        """Write the part of one leaf into its columns: arrays, or tensors."""
        if self.plain:
            row[...] = part
        else:
            row[..., leaf.begin : leaf.end] = leaf.columns(part)

    def row(self, seen: Any) -> np.ndarray:
        """An observation as a row of its own."""
        row = np.empty(self.shape, self.dtype)
        self.write(seen, row)
        return row

    def draw(self, drawn: np.random.Generator, count: int) -> list[np.ndarray]:
        """Random observations of this space: [count, *leaf] for each leaf."""
        parts = []
        for leaf in self.leaves:
            space: Any = leaf.space
            shape = (count, *(space.shape or ()))
            if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
                counts = space.n if isinstance(space, spaces.Discrete) else space.nvec
                part = space.start + drawn.integers(counts, size=shape)
            elif isinstance(space, spaces.MultiBinary):
                part = drawn.integers(2, size=shape)
                # One at least: to a network of the user's own, nothing there may be undefined.
                bits = part.reshape(count, -1)
                bits[np.arange(count), drawn.integers(bits.shape[1], size=count)] = 1
            elif leaf.image:
                part = drawn.integers(256, size=shape)
            else:  # of moderate size, for where there are no bounds
                part = np.clip(drawn.standard_normal(shape), space.low, space.high)
            parts.append(part.astype(native(space.dtype)))
        return parts

    def rows(self, parts: list[np.ndarray]) -> np.ndarray:
        """Leaves [count, *leaf] as rows. Returns [count, *shape]."""
        row = np.empty((len(parts[0]), *self.shape), self.dtype)
        for leaf, part in zip(self.leaves, parts, strict=True):
            self.lay(leaf, part, row)
        return row

    def legal(self, row: Any) -> Any:
        """[..., choices] bool: the legal choices by the mask in a row; None: there is no mask."""
        return row[..., self.mask_begin :] > 0.5 if self.mask_begin < self.width else None

    def examples(self, count: int) -> np.ndarray:
        """Random rows of this space, always the same ones: [count, *shape]."""
        return self.rows(self.draw(np.random.default_rng(0), count))

    def not_finite(self, rows: np.ndarray) -> str:
        """The first number of rows that is not finite, as in "sensors/speed[1] = nan"."""
        flat = rows.reshape(-1)
        place = int(np.flatnonzero(~np.isfinite(flat))[0])
        return f"{self.column_name(place % self.width)} = {flat[place]}"

    def column_name(self, column: int) -> str:
        """Name of a column, as in "sensors/speed[1]"."""
        leaf = next(leaf for leaf in self.leaves if leaf.begin <= column < leaf.end)
        return f"{leaf.name}[{column - leaf.begin}]"

    @property
    def measured(self) -> np.ndarray:
        """[width] bool: the columns that hold measurements, which can be standardised."""
        columns = np.zeros(self.width, bool)
        for leaf in self.leaves:
            if leaf.begin < self.mask_begin and isinstance(leaf.space, spaces.Box):
                columns[leaf.begin : leaf.end] = leaf.image is None
        return columns


def misfit(leaf: Leaf, seen: Any, shape: tuple[int, ...] | None = None) -> str:
    """Error text for an observation without this leaf (shape: None), or in another shape."""
    if isinstance(seen, tuple) and not (leaf.path and type(leaf.path[0]) is int):
        parts = ", ".join(type(part).__name__ for part in seen)
        return (
            f"an env returned a tuple ({parts}) as its observation, where its observation_space "
            f"has {leaf.space} for {leaf.name}: give the observation alone. reset returns "
            "(observation, info), and step (observation, reward, terminated, truncated, info)"
        )
    if shape is not None:
        return (
            f"an env returned {leaf.name} of shape {shape}, but its observation_space says "
            f"{leaf.space.shape}"
        )
    if leaf.path:
        return (
            f"an env returned an observation without {leaf.name!r}, which its "
            f"observation_space names: {seen!r}"
        )
    return (
        f"an env returned an observation of {type(seen).__name__} that is no array of numbers of "
        f"one shape, but its observation_space says {leaf.space}: {seen!r}"
    )


def strangers(space: Space, seen: Any, where: str = "") -> list[str]:
    """The keys of an observation that its space lacks: they are not looked at."""
    unknown = list[str]()
    if isinstance(space, spaces.Dict) and isinstance(seen, dict):
        for key, part in seen.items():
            name = f"{where}{plain_key(key)}"
            inner = space.spaces.get(key)
            unknown += [name] if inner is None else strangers(inner, part, f"{name}/")
    elif isinstance(space, spaces.Tuple) and isinstance(seen, tuple):
        for index, (inner, part) in enumerate(zip(space.spaces, seen, strict=False)):
            unknown += strangers(inner, part, f"{where}{index}/")
    return unknown


class Actions:
    """The simple spaces of an action space, and the way back from a row to the action itself.

    A simple space's action is taken as it is. Of a Dict or Tuple the envs are given rows of
    float64, a column per number, for `nested` to turn into actions.
    """

    def __init__(self, space: Space) -> None:
        self.space, self.leaves = space, list[Leaf]()
        self.single = not isinstance(space, spaces.Dict | spaces.Tuple)
        """The action space is a simple one."""
        self.simple = self.single and (space.shape != () or isinstance(space, spaces.Discrete))
        """A row is the action itself."""
        begin = 0
        for path, inner in _leaves(space):
            leaf = Leaf(path, inner, begin, begin + int(np.prod(inner.shape or ())))
            self._check(leaf)
            self.leaves.append(leaf)
            begin = leaf.end
        if not self.leaves:
            raise UsageError(f"the action space {space} is empty: supported are {ACTIONS}")
        self.shape = space.shape if self.single else (begin,)
        self.dtype = native(space.dtype if self.single else np.float64)

    def _check(self, leaf: Leaf) -> None:
        """Raises `UsageError` for a simple space in which a policy cannot act."""
        space = leaf.space
        floats = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
        if not floats and (isinstance(space, spaces.Box) or not isinstance(space, SIMPLE)):
            raise UsageError(f"the action space{leaf.place} is {space}: supported are {ACTIONS}")
        if leaf.begin == leaf.end:
            raise UsageError(
                f"the action space{leaf.place} is {space}, which has no numbers: leave it out, or "
                "give it a shape without 0"
            )
        _check_leaf("action", leaf)
        furthest = max((abs(x) for x in starts(space)), default=0) if sizes(space) else 0
        if not self.single and furthest > EXACT - WIDEST:
            raise UsageError(
                f"the action space{leaf.place} is {space}: in a Dict or Tuple choices are counted "
                f"up to {EXACT:,}. Let it start at 0, and add the rest in the env"
            )

    @property
    def without_room(self) -> list[Leaf]:
        """The simple spaces that hold a number, or a choice, of which only one value is allowed."""
        return [leaf for leaf in self.leaves if _fixed(leaf.space).any()]

    def given(self, row: Any) -> Any:
        """The action, or the batch, that lies in an array, for an env to keep and to change."""
        return self.nested(row.copy())

    def nested(self, row: Any) -> Any:
        """The action, or the batch of actions, that lies in a row, an array or a tensor."""
        if self.single:  # arrays without axes become numbers as soon as they are taken from a batch
            return np.asarray(row) if isinstance(row, np.generic) and not self.simple else row
        return nest(self.space, map(partial(self._part, row), self.leaves).__next__)

    @staticmethod
    def _part(row: Any, leaf: Leaf) -> Any:
        space = leaf.space
        shape = (*row.shape[:-1], *(space.shape or ()))
        part, kind = row[..., leaf.begin : leaf.end].reshape(shape), native(space.dtype)
        if not isinstance(part, np.ndarray):  # a tensor
            return part.to(torch_dtype(kind))
        part = part.astype(kind)
        return part[()] if isinstance(space, spaces.Discrete) else part  # one choice is a number


def _fixed(space: Any) -> np.ndarray:
    """Numbers of a simple space of which only one value is allowed: bool."""
    if isinstance(space, spaces.Box):
        return np.equal(space.low, space.high).reshape(-1)
    return np.equal(sizes(space) or [2], 1)


def choices(space: Space) -> int:
    """How much there is to choose from: the length of a mask."""
    return sum(sum(sizes(inner)) for _, inner in _leaves(space))


def flat_mask(mask: Any, space: Space, where: str = MASK) -> np.ndarray:
    """A mask as one row, in the order of the action space: [choices] int8.

    mask: 0 and 1 for each choice, one after the other, or nested as the action space is. Raises
    `UsageError` for what does not fit, by its name.
    """
    parts = _choice_parts(space)
    alike = isinstance(space, spaces.Dict) and isinstance(mask, dict)
    if isinstance(space, spaces.Tuple) and _in_parts(mask):
        alike = len(mask) == len(space.spaces)
    if not (alike and parts):
        try:
            row = _flat(mask)
        except (TypeError, ValueError):
            row = np.empty(0, np.int8)
        if len(row) != choices(space):
            raise UsageError(
                f"an env's {where} is {mask!r}: give 0 or 1 for each of the {choices(space)} "
                f"choices of {space}, one after the other"
            )
        return row
    if isinstance(mask, dict) and not parts.keys() <= mask.keys():
        lacking = next(key for key in parts if key not in mask)
        raise UsageError(
            f"an env's {where} has no key {lacking!r}, of which there is something to choose: it "
            f"has {', '.join(map(str, mask)) or 'none'}"
        )
    return np.concatenate([flat_mask(mask[k], s, f"{where}/{k}") for k, s in parts.items()])


def _choice_parts(space: Space) -> dict[Any, Space]:
    """Parts of a Dict or a Tuple, by their keys, in which there is something to choose."""
    return {key: part for key, part in parts_of(space).items() if choices(part)}


def _in_parts(mask: Any) -> bool:
    several = isinstance(mask, list | tuple) or getattr(mask, "dtype", None) == np.dtype(object)
    return several and any(
        isinstance(part, dict | list | tuple) or np.ndim(part) > 0 for part in mask
    )


def _flat(mask: Any) -> np.ndarray:
    """The masks of several choices, one after the other."""
    if _in_parts(mask):
        return np.concatenate([_flat(part) for part in mask])
    return np.asarray(mask, np.int8).reshape(-1)


def check_masks(masks: Space | None, space: Space, where: str = MASK) -> None:
    """Raises `UsageError` for masks of another number or order than the action space's choices."""
    if masks is None:
        return
    parts, inner = _choice_parts(space), parts_of(masks)
    tuples = isinstance(space, spaces.Tuple) and isinstance(masks, spaces.Tuple)
    if isinstance(space, spaces.Dict) and isinstance(masks, spaces.Dict):
        if list(inner) != list(parts):
            raise UsageError(
                f"the {where} has the keys {', '.join(map(str, inner))}, but what there is to "
                f"choose has {', '.join(map(str, parts))}: give the same keys in the same order "
                "(Gymnasium sorts those of a dict, but not those of an OrderedDict)"
            )
    elif not (tuples and len(parts) == len(inner)):
        entries = sum(_columns(leaf) for _, leaf in _leaves(masks))
        if entries != choices(space):
            raise UsageError(
                f"the {where} has {entries} entries, but {space} has {choices(space)} things to "
                "choose from: it needs one entry for each"
            )
        return
    for (key, mask), part in zip(inner.items(), parts.values(), strict=True):
        check_masks(mask, part, f"{where}/{key}")


def space_record(space: Space) -> dict[str, Any]:
    """A supported space as JSON. Raises `UsageError` for a key that a file cannot hold."""
    if isinstance(space, spaces.Dict):
        if len({plain_key(key) for key in space.spaces}) < len(space.spaces):
            raise UsageError(
                f"the keys of {space} cannot be told apart by their names, as a file has to: "
                "rename one"
            )
        parts = [[_key_record(key), space_record(inner)] for key, inner in space.spaces.items()]
        return {"kind": "Dict", "parts": parts}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "parts": [space_record(inner) for inner in space.spaces]}
    if isinstance(space, spaces.MultiBinary):
        record = {"kind": "MultiBinary", "shape": list(space.shape)}
        # MultiBinary(3) and MultiBinary([3]) are of one shape, and not equal.
        return record | ({"n": list(space.n)} if space.n == space.shape[:1] != () else {})
    dtype = str(space.dtype)
    typed = {"dtype": dtype} if dtype != "int64" else {}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), **typed}
    if isinstance(space, spaces.MultiDiscrete):
        n, start = space.nvec.tolist(), space.start.tolist()
        return {"kind": "MultiDiscrete", "n": n, "start": start, **typed}
    assert isinstance(space, spaces.Box)
    return {
        "kind": "Box",
        "dtype": dtype,
        "low": _in_words(space.low, space.bounded_below, "-inf"),
        "high": _in_words(space.high, space.bounded_above, "inf"),
        "shape": list(space.shape),
    }


def check_columns(saved: tuple[Space, Space], here: tuple[Space, Space]) -> None:
    """Raises `UsageError` for spaces (observation, action) whose rows lie not as `saved`."""
    for what, before, now in zip(("observation", "action"), saved, here, strict=True):
        if _layout(before) != _layout(now):
            raise UsageError(
                f"the {what} space is {now}, but the policy was trained with {before}: its inputs "
                "and outputs would be mistaken for others. Give the same keys in the same order, "
                "and the same shapes"
            )


def _layout(space: Space) -> list[tuple[Any, ...]]:
    """Meaning of each column of a row, without its bounds and type."""
    return [(path, sizes(inner) or inner.shape) for path, inner in _masks_last(space)]


def _key_record(key: Any) -> Any:
    plain = plain_key(key)
    if isinstance(plain, tuple):
        return [_key_record(part) for part in plain]
    if isinstance(plain, EnumKey):
        return {"enum": plain.enum, "name": plain.name}
    is_nan = isinstance(plain, float) and np.isnan(plain)  # which is not found again
    if plain is None or (type(plain) in (bool, int, float, str) and not is_nan):
        return plain
    raise UsageError(
        f"a space has the key {key!r}, of type {type(key).__name__}, which neither a run folder "
        "nor another process can hold: use text, a number, a member of an Enum, or a tuple of "
        "these"
    )


def _in_words(numbers: np.ndarray, bounded: np.ndarray, endless: str) -> list[str]:
    """Bounds as text: JSON has no infinity, and a float not every whole number."""
    pairs = zip(numbers.reshape(-1).tolist(), bounded.reshape(-1).tolist(), strict=True)
    return [(repr(float(x)) if float(x) == x else str(x)) if is_ else endless for x, is_ in pairs]


def recorded_space(record: dict[str, Any], most: int = 2**62) -> Space:
    """The space of such a record; most: columns that it can have.

    Raises `ValueError`, `TypeError`, `KeyError` and the like for what `space_record` has not made.
    """
    with np.errstate(all="ignore"):  # numbers too large for their type
        space = _recorded(record)
    columns = sum(_columns(inner) for _, inner in _leaves(space))
    if not 0 < columns <= most or space_record(space) != record:
        raise ValueError(f"{record!r:.80} is no space of {most} columns at most")
    return space


def _recorded(record: dict[str, Any]) -> Space:
    kind = record["kind"]
    if kind == "Dict":  # of pairs, whose order is kept
        return spaces.Dict([(_recorded_key(k), _recorded(inner)) for k, inner in record["parts"]])
    if kind == "Tuple":
        return spaces.Tuple(_recorded(inner) for inner in record["parts"])
    if kind == "MultiBinary":
        shape = record["shape"]
        return spaces.MultiBinary(shape[0] if len(shape) == 1 and "n" not in record else shape)
    dtype = np.dtype(record.get("dtype", "int64"))
    if kind == "Discrete":
        return spaces.Discrete(record["n"], start=record["start"], dtype=dtype)
    if kind == "MultiDiscrete":
        n, start = (np.array(record[name], dtype) for name in ("n", "start"))
        return spaces.MultiDiscrete(n, start=start, dtype=dtype)
    if dtype.kind not in "biuf":
        raise ValueError(f"{dtype} is no type of numbers")
    low, high = (
        np.array([_number(x, dtype) for x in record[side]], dtype).reshape(record["shape"])
        for side in ("low", "high")
    )
    space = spaces.Box(low, high, dtype=dtype)
    if dtype.kind != "f":  # whose bounds are numbers even where there are none
        for side, name in (("low", "bounded_below"), ("high", "bounded_above")):
            bounded = np.array([x.strip("-") != "inf" for x in record[side]], bool)
            setattr(space, name, bounded.reshape(record["shape"]))
    return space


def _recorded_key(key: Any) -> Any:
    if isinstance(key, list):
        return tuple(map(_recorded_key, key))
    return EnumKey(key["enum"], key["name"]) if isinstance(key, dict) else key


def _number(text: str, dtype: np.dtype) -> float:
    """A bound as it was before `_in_words`."""
    if dtype.kind == "f":
        return float(text)
    if text.strip("-") == "inf":
        held = np.iinfo(dtype)
        return held.min if text == "-inf" else held.max
    return int(text) if text.strip("-").isdigit() else int(float(text))
