"""One guard against silent broadcasting, used where the maths happens."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor


def same_shape(**tensors: Tensor) -> None:
    """Raise `ValueError` that names every tensor, unless all have one shape.

    A [B] against a [B, 1] broadcasts to [B, B] without a word; this is the field's signature bug.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(one != other for one, other in pairwise(shapes.values())):
        raise ValueError("shapes differ: " + ", ".join(f"{n} {s}" for n, s in shapes.items()))
