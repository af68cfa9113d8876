"""Every observation and action as one row of numbers, however nested its space is.

What a world shows becomes a row: the leaves of a Dict or Tuple side by side, a Discrete one as a
one-hot, an action mask last. The rest of the library stores, shuffles and learns from rows alone.
What a policy chooses is a row as well, and is nested again for the world.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from proximo.types import UsageError

if TYPE_CHECKING:
    import torch

Space = gym.Space[Any]
MASK = "action_mask"
"""The key of an observation that says which actions are legal."""
SMALLEST_IMAGE = 5
"""Pixels along the shorter side from which bytes with three axes are taken for an image."""

SMALLEST_GREY = 36
"""The same for bytes with two axes: a board, say, is smaller, and no picture."""

OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """PyTorch's name for a type of NumPy's."""
    import torch  # here alone: a process that only steps worlds does without

    return torch.from_numpy(np.empty(0, dtype)).dtype


class Leaf(NamedTuple):
    """One simple space within a row: columns begin to end."""

    path: tuple[str | int, ...]  # the keys that lead to it
    space: Space
    begin: int
    end: int

    @property
    def name(self) -> str:
        return "/".join(map(str, self.path)) or "the observation"

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


def _leaves(space: Space, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, Space]]:
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, space


class Observations:
    """How the observations of a space lie in a row of `shape` and `dtype`.

    A vector and an image stay as they are; everything else is a row of float32. Raises `UsageError`
    for a space that has no numbers, or only some.
    """

    def __init__(self, space: Space) -> None:
        self.space, self.leaves = space, list[Leaf]()
        found = sorted(_leaves(space), key=lambda item: item[0][:1] == (MASK,))  # the masks last
        begin = 0
        for path, inner in found:
            end = begin + _width(path, inner)
            self.leaves.append(Leaf(path, inner, begin, end))
            begin = end
        self.width = begin
        masks = [leaf for leaf in self.leaves if leaf.path[:1] == (MASK,)]
        self.mask_begin = masks[0].begin if masks else begin
        if self.mask_begin == 0:
            raise UsageError(f"the observation space {space} has nothing to see")
        alone = space if isinstance(space, spaces.Box) else None
        image = alone is not None and self.leaves[0].image is not None
        self.plain = alone is not None and (image or len(alone.shape) == 1)
        """Whether an observation is its row already."""
        self.shape = alone.shape if alone is not None and self.plain else (begin,)
        # Only images stay bytes, which the network scales; other bytes are numbers.
        kind = np.float32 if alone is None else alone.dtype
        self.dtype: np.dtype = np.dtype(np.float32 if kind == np.uint8 and not image else kind)

    def write(self, seen: Any, row: np.ndarray) -> None:
        """Lay an observation, or a batch of them, into its row. Raises `UsageError` for a misfit.

        row: [..., *shape]; the leaves of `seen` have the same leading axes.
        """
        lead = row.shape[: row.ndim - len(self.shape)]
        for leaf in self.leaves:
            try:
                part = np.asarray(leaf.of(seen))
            except (KeyError, IndexError, TypeError) as error:
                raise UsageError(
                    f"a world returned an observation without {leaf.name!r}, which its "
                    f"observation_space names: {seen!r}"
                ) from error
            if part.shape != (*lead, *(leaf.space.shape or ())):
                raise UsageError(
                    f"a world returned {leaf.name} of shape {part.shape[len(lead) :]}, but its "
                    f"observation_space says {leaf.space.shape}"
                )
            self._lay(leaf, part, row, lead)

    def _lay(self, leaf: Leaf, part: np.ndarray, row: np.ndarray, lead: tuple[int, ...]) -> None:
        if self.plain:
            row[...] = part
        elif isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete):
            row[..., leaf.begin : leaf.end] = _one_hot(leaf, part, lead)
        else:
            row[..., leaf.begin : leaf.end] = part.reshape(*lead, -1)

    def row(self, seen: Any) -> np.ndarray:
        """An observation as a row of its own."""
        row = np.empty(self.shape, self.dtype)
        self.write(seen, row)
        return row

    def draw(self, drawn: np.random.Generator, count: int) -> list[np.ndarray]:
        """What this space may show, drawn at random: [count, *leaf] for each leaf."""
        parts = []
        for leaf in self.leaves:
            space: Any = leaf.space
            shape = (count, *(space.shape or ()))
            if isinstance(space, spaces.Discrete):
                part = space.start + drawn.integers(space.n, size=shape)
            elif isinstance(space, spaces.MultiDiscrete):
                part = space.start + drawn.integers(space.nvec, size=shape)
            elif isinstance(space, spaces.MultiBinary):
                part = drawn.integers(2, size=shape)
                # One at least: to a network of the user's own, nothing there may be undefined.
                bits = part.reshape(count, -1)
                bits[np.arange(count), drawn.integers(bits.shape[1], size=count)] = 1
            elif leaf.image:
                part = drawn.integers(256, size=shape)
            else:  # of moderate size, for where there are no bounds
                part = np.clip(drawn.standard_normal(shape), space.low, space.high)
            parts.append(part.astype(space.dtype))
        return parts

    def rows(self, parts: list[np.ndarray]) -> np.ndarray:
        """Leaves [count, *leaf] as rows. Returns [count, *shape]."""
        row = np.empty((len(parts[0]), *self.shape), self.dtype)
        for leaf, part in zip(self.leaves, parts, strict=True):
            self._lay(leaf, part, row, (len(row),))
        return row

    def examples(self, count: int) -> np.ndarray:
        """Rows as this space may show them, always the same ones. Returns [count, *shape]."""
        return self.rows(self.draw(np.random.default_rng(0), count))

    def not_finite(self, row: np.ndarray) -> str:
        """What is infinite or no number in a row, the first: as in "sensors/speed[1] = nan"."""
        flat = row.reshape(-1)
        column = int(np.flatnonzero(~np.isfinite(flat))[0])
        leaf = next(leaf for leaf in self.leaves if leaf.begin <= column < leaf.end)
        return f"{leaf.name}[{column - leaf.begin}] = {flat[column]}"

    @property
    def measured(self) -> np.ndarray:
        """[width] bool: the columns that hold measurements, which can be standardised."""
        columns = np.zeros(self.width, bool)
        for leaf in self.leaves:
            if leaf.begin < self.mask_begin and isinstance(leaf.space, spaces.Box):
                columns[leaf.begin : leaf.end] = leaf.image is None
        return columns


def _width(path: tuple[str | int, ...], space: Space) -> int:
    """How many columns a simple space takes."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return int(np.prod(space.shape))
    where = f" at {'/'.join(map(str, path))}" if path else ""
    raise UsageError(
        f"the observation space{where} is {space}: supported are {OBSERVATIONS}. A wrapper such as "
        "gymnasium.wrappers.TransformObservation can make one of these of it"
    )


def _one_hot(leaf: Leaf, part: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """[..., width]: a 1 for each choice."""
    space: Any = leaf.space
    sizes = np.atleast_1d(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n)
    sizes = sizes.reshape(-1)
    chosen = (part - space.start).reshape(*lead, len(sizes)).astype(np.int64)
    if ((chosen < 0) | (chosen >= sizes)).any():
        raise UsageError(f"a world returned {leaf.name} = {part}, which is not in {space}")
    row = np.zeros((*lead, leaf.end - leaf.begin), np.float32)
    first = np.concatenate([[0], sizes[:-1]]).cumsum()
    np.put_along_axis(row, chosen + first, 1.0, -1)
    return row


class Actions:
    """The simple spaces of an action space, and the way back from a row to the action itself.

    A simple space's action is taken as it is. Of a Dict or Tuple the worlds are given rows of
    float64, a column per number, for `nested` to turn into actions.
    """

    def __init__(self, space: Space) -> None:
        self.space, self.leaves = space, list[Leaf]()
        begin = 0
        for path, inner in _leaves(space):
            end = begin + int(np.prod(inner.shape or ()))
            self.leaves.append(Leaf(path, inner, begin, end))
            begin = end
        self.simple = not isinstance(space, spaces.Dict | spaces.Tuple)
        """Whether what the worlds are given is the action already."""
        self.shape = space.shape if self.simple else (begin,)
        self.dtype = np.dtype(space.dtype if self.simple else np.float64)

    def given(self, row: Any) -> Any:
        """The action, or the batch, that lies in an array, for an env to keep and to change."""
        return row.copy() if self.simple else self.nested(row)

    def nested(self, row: Any) -> Any:
        """The action, or the batch of actions, that lies in a row. row: [..., columns].

        Of an array they are arrays, of a tensor tensors.
        """
        if self.simple:
            return row
        return self._nested(self.space, row, iter(self.leaves))

    def _nested(self, space: Space, row: Any, leaves: Iterator[Leaf]) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._nested(s, row, leaves) for key, s in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self._nested(s, row, leaves) for s in space.spaces)
        leaf = next(leaves)
        shape = (*row.shape[:-1], *(space.shape or ()))
        part, kind = row[..., leaf.begin : leaf.end].reshape(shape), np.dtype(space.dtype)
        if not isinstance(part, np.ndarray):  # a tensor
            return part.to(torch_dtype(kind))
        part = part.astype(kind)
        return part[()] if isinstance(space, spaces.Discrete) else part  # one choice is a number


def choices(space: Space) -> int:
    """How much there is to choose from: the length of a mask."""
    found = 0
    for leaf in Actions(space).leaves:
        if isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete):
            found += _width(leaf.path, leaf.space)
    return found


def flat_mask(mask: Any, space: Space, where: str = MASK) -> np.ndarray:
    """A mask as one row, in the order of the action space: [choices] int8.

    mask: 0 and 1 for each choice, one after the other; or nested as the action space is, as far as
    there is something to choose. Raises `UsageError` for what does not fit, by its name.
    """
    inner: dict[Any, Space] = {}
    if isinstance(space, spaces.Dict) and isinstance(mask, dict):
        inner = space.spaces
    elif isinstance(space, spaces.Tuple) and _in_parts(mask) and len(mask) == len(space.spaces):
        inner = dict(enumerate(space.spaces))
    if not inner:
        try:
            row = _flat(mask)
        except (TypeError, ValueError):
            row = np.empty(0, np.int8)
        if len(row) != choices(space):
            raise UsageError(
                f"a world's {where} is {mask!r}: give 0 or 1 for each of the {choices(space)} "
                f"choices of {space}, one after the other"
            )
        return row
    chosen = {key: part for key, part in inner.items() if choices(part)}
    if isinstance(mask, dict) and not chosen.keys() <= mask.keys():
        lacking = next(key for key in chosen if key not in mask)
        raise UsageError(
            f"a world's {where} has no key {lacking!r}, of which there is something to choose: it "
            f"has {', '.join(map(str, mask)) or 'none'}"
        )
    return np.concatenate([flat_mask(mask[k], s, f"{where}/{k}") for k, s in chosen.items()])


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


def check_masks(masks: Space, space: Space, where: str = MASK) -> None:
    """That masks of this space lie as the choices of the action space `space` do.

    Raises `UsageError` for another number of them, or for keys in another order.
    """
    if isinstance(space, spaces.Dict) and isinstance(masks, spaces.Dict):
        chosen = {key: part for key, part in space.spaces.items() if choices(part)}
        if list(masks.spaces) != list(chosen):
            raise UsageError(
                f"the {where} has the keys {', '.join(masks.spaces)}, but what there is to choose "
                f"has {', '.join(chosen)}: give the same keys in the same order (Gymnasium sorts "
                "those of a dict, but not those of an OrderedDict)"
            )
        for key, part in chosen.items():
            check_masks(masks.spaces[key], part, f"{where}/{key}")
        return
    if isinstance(space, spaces.Tuple) and isinstance(masks, spaces.Tuple):
        parts = [part for part in space.spaces if choices(part)]
        if len(parts) == len(masks.spaces):
            for k, (own, part) in enumerate(zip(masks.spaces, parts, strict=True)):
                check_masks(own, part, f"{where}/{k}")
            return
    entries = sum(_width(path, inner) for path, inner in _leaves(masks))
    if entries != choices(space):
        raise UsageError(
            f"the {where} has {entries} entries, but {space} has {choices(space)} things to choose "
            "from: it needs one entry for each"
        )


def space_record(space: Space) -> dict[str, Any]:
    """A supported space as JSON can hold it."""
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        starts = np.broadcast_to(space.start, space.nvec.shape)
        return {"kind": "MultiDiscrete", "n": space.nvec.tolist(), "start": starts.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Dict):
        parts = [[key, space_record(inner)] for key, inner in space.spaces.items()]
        return {"kind": "Dict", "parts": parts}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "parts": [space_record(inner) for inner in space.spaces]}
    assert isinstance(space, spaces.Box)
    return {
        "kind": "Box",
        "dtype": str(space.dtype),
        # As text: JSON has no infinity.
        "low": [repr(float(x)) for x in space.low.reshape(-1)],
        "high": [repr(float(x)) for x in space.high.reshape(-1)],
        "shape": list(space.shape),
    }


def recorded_space(record: dict[str, Any], most: int = 2**62) -> Space:
    """The space of such a record; most: columns that it can have.

    Raises `ValueError`, `TypeError`, `KeyError` and the like for what `space_record` has not made.
    """
    with np.errstate(all="ignore"):  # numbers too large for their type
        space = _recorded(record)
    columns = sum(_width(path, inner) for path, inner in _leaves(space))
    if not 0 < columns <= most or space_record(space) != record:
        raise ValueError(f"{record!r:.80} is no space of {most} columns at most")
    return space


def _recorded(record: dict[str, Any]) -> Space:
    if record["kind"] == "Discrete":
        return spaces.Discrete(record["n"], start=record["start"])
    if record["kind"] == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(record["n"]), start=np.array(record["start"]))
    if record["kind"] == "MultiBinary":
        shape = record["shape"]
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if record["kind"] == "Dict":
        return spaces.Dict({key: _recorded(inner) for key, inner in record["parts"]})
    if record["kind"] == "Tuple":
        return spaces.Tuple(_recorded(inner) for inner in record["parts"])
    dtype = np.dtype(record["dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"{dtype} is no type of numbers")
    low, high = (
        np.array([float(x) for x in record[side]], dtype).reshape(record["shape"])
        for side in ("low", "high")
    )
    return spaces.Box(low, high, dtype=dtype.type)
