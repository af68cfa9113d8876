"""Extras of Proximo that register envs, and the preparation of these envs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from proximo.errors import UsageError, nearest

ARCADE = "ALE/"
"""Prefix of the names of the Arcade Learning Environment."""
GRIDS = ("MiniGrid-", "BabyAI-")
PARALLEL = ("atari/", "butterfly/", "classic/", "sisl/")
"""Prefixes of the names of PettingZoo's parallel envs."""
SUITE = "dm_control/"
MISSION = "mission"


class Family(NamedTuple):
    """Envs whose names begin alike."""

    prefixes: tuple[str, ...]
    packages: tuple[str, ...]  # importing the last one registers them
    extra: str  # of Proximo, which installs it


FAMILIES = (
    Family((ARCADE,), ("ale_py",), "atari"),
    Family(GRIDS, ("minigrid",), "minigrid"),
    Family((SUITE,), ("dm_control", "shimmy"), "dm-control"),
    Family(PARALLEL, ("pettingzoo",), "pettingzoo"),
)


def is_registered(name: str) -> bool:
    """Gymnasium knows this name, once the package of its family is imported, or `UsageError`."""
    for family in FAMILIES:
        if name.startswith(family.prefixes) and name not in gym.registry:
            try:
                for package in family.packages:
                    importlib.import_module(package)
            except ImportError as error:
                raise UsageError(
                    f"{name} needs a package that cannot be imported ({error}): install it by "
                    f"pip install 'proximo[{family.extra}]'"
                ) from error
    return name in gym.registry


def parallel_maker(name: str) -> Callable[..., Any] | None:
    """Maker of PettingZoo's parallel env of this name, or None. Raises `UsageError`."""
    if not name.startswith(PARALLEL) or is_registered(name):
        return None
    import pettingzoo

    if name in pettingzoo.aec_registry.keys() - pettingzoo.parallel_registry.keys():
        raise UsageError(
            f"{name} is a turn-based (AEC) env of PettingZoo: agents must act at once. A Gymnasium "
            "env in which one of them acts, and the others are part of it, can be trained in"
        )
    if name not in pettingzoo.parallel_registry:
        known = nearest(name, pettingzoo.parallel_registry)
        raise UsageError(f"there is no parallel env {name!r} in PettingZoo. {known}")
    return partial(pettingzoo.make, "parallel", name)


def prepared(env: gym.Env[Any, Any], name: str, *, wrapped: bool) -> gym.Env[Any, Any]:
    """A single env with the preparation that is standard for its name.

    MiniGrid: without the mission, a text, and with each cell as its categories (object, colour,
    state); these stay an image where the user has wrapped it. dm_control: a replay runs as fast as
    the env (Shimmy 2.0 says another speed).
    """
    if name.startswith(SUITE):
        env.metadata = {**env.metadata, "render_fps": round(1 / env.get_wrapper_attr("dt"))}
    shown = env.observation_space
    if not name.startswith(GRIDS) or not isinstance(shown, spaces.Dict):
        return env
    kept = {key: space for key, space in shown.spaces.items() if key != MISSION}
    if not wrapped:
        from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

        # A door's state is of 3 kinds; in the cell of the agent stands its direction, of 4.
        kinds = (len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX) + 1)
        rows, columns, _ = kept["image"].shape or ()
        kept["image"] = spaces.MultiDiscrete(np.broadcast_to(kinds, (rows, columns, 3)))
    return gym.wrappers.TransformObservation(
        env, lambda seen: {k: part for k, part in seen.items() if k != MISSION}, spaces.Dict(kept)
    )
