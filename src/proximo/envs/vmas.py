"""Envs of VMAS: worlds of several robots, written in PyTorch, N in step.

One policy moves all robots of a world: its observation and its action are dicts with a part for
each of them, and its reward is the mean of theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
import vmas
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from proximo.envs.base import TensorEnv
from proximo.envs.config import EnvConfig
from proximo.envs.tensors import Snapshots
from proximo.errors import UsageError, explained, nearest
from proximo.spaces import Space, map_leaves

LIMIT = 100
"""Steps of an episode, as VMAS has no limit of its own."""


class Place(NamedTuple):
    """Where a tensor, a number, or an object that lies elsewhere too, lies in VMAS."""

    path: str
    held_in: Any  # a list, or a dict such as the attributes of an object
    key: Any
    elsewhere: str = ""  # the path of the object

    @property
    def value(self) -> Any:
        return self.held_in[self.key]

    @property
    def kind(self) -> str:
        """What must be the same for the tensors and numbers of others to be put in."""
        value = self.value
        if isinstance(value, torch.Tensor):
            return f"{self.path} {value.dtype} {tuple(value.shape)}"
        return f"{self.path} {self.elsewhere or type(value).__name__}"


class VmasVectorEnv(Snapshots):
    """N worlds of a scenario, in same-step mode: `final_obs` has a row for every world."""

    def __init__(self, env: EnvConfig) -> None:
        """Raises `UsageError`."""
        name = env.id.partition(":")[2]
        known = [*vmas.scenarios, *vmas.mpe_scenarios]
        if name not in known:
            raise UsageError(f"there is no env {name!r} in vmas. {nearest(name, known)}")
        self.num_envs, self.limit = env.num_envs, env.max_episode_steps or LIMIT
        settings: dict[str, Any] = {"continuous_actions": True, **env.kwargs}
        settings |= {"clamp_actions": settings["continuous_actions"], "dict_spaces": True}
        with explained(f"{env.id} cannot be made with the arguments {env.kwargs}"), _apart():
            self._worlds = vmas.make_env(
                name,
                num_envs=env.num_envs,
                max_steps=self.limit,
                terminated_truncated=True,
                **settings,
            )
        self._streams, self.device = _streams(0), torch.device(self._worlds.device)
        self.single_observation_space = _space(self._worlds.observation_space)
        self.single_action_space = _space(self._worlds.action_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        with _apart():
            self._still()
        *_, self._structure = self._places()
        self._arrays = self.snapshot()

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """All worlds at the beginning of an episode; without a seed the random numbers go on.

        seed: of all of them, or a list with one for the beginning of each.
        """
        if isinstance(seed, list):
            for index, each in enumerate(seed):
                self._streams = _streams(each)
                with self._own_streams():
                    self._worlds.reset_at(index, return_observations=False)
            return _plain(self._seen()), {}
        if seed is not None:
            self._streams = _streams(seed)
        with self._own_streams():
            return _plain(self._worlds.reset()), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        given = {name: x if x.ndim > 1 else x.unsqueeze(-1) for name, x in actions.items()}
        with self._own_streams():
            final, rewards, terminated, truncated, _ = self._worlds.step(given)
            obs = final = _plain(final)
            truncated = truncated & ~terminated
            done = (terminated | truncated).nonzero().squeeze(-1).tolist()
            if done:
                obs = _plain(self._begin(done))
        reward = torch.stack([*rewards.values()]).mean(0)
        return obs, reward, terminated, truncated, {"final_obs": final}

    def begin_at(self, steps: list[int]) -> None:
        self._worlds.steps[:] = torch.tensor(steps)

    def _begin(self, done: list[int]) -> Any:
        """Observations once these worlds are at the beginning of an episode."""
        if len(done) == self.num_envs:
            return self._worlds.reset()
        for index in done:
            self._worlds.reset_at(index, return_observations=False)
        return self._seen()

    def _seen(self) -> Any:
        """Observations of all worlds."""
        return self._worlds.get_from_scenario(
            get_observations=True, get_rewards=False, get_infos=False, get_dones=False
        )[0]

    def _still(self) -> None:
        """A step: scenarios have some of their attributes from the first one on."""
        parts = self._worlds.action_space.spaces.items()
        shapes = {name: (self.num_envs, *(space.shape or (1,))) for name, space in parts}
        self._worlds.step({k: torch.zeros(x, device=self.device) for k, x in shapes.items()})

    def _places(self) -> tuple[list[Place], list[Place], np.ndarray]:
        """All tensors and all numbers that the state consists of; a digest of how they lie."""
        own = type(self._worlds.scenario).__module__
        found = [*_places("", vars(self._worlds), own, {})]
        digest = hashlib.blake2b("\n".join(place.kind for place in found).encode()).digest()
        held = [place for place in found if not place.elsewhere]
        tensors = [place for place in held if isinstance(place.value, torch.Tensor)]
        numbers = [place for place in held if not isinstance(place.value, torch.Tensor)]
        return tensors, numbers, np.frombuffer(digest, np.uint8)

    def snapshot(self) -> tuple[np.ndarray, ...]:
        """Where objects lie as they did not at first: one that `restore` refuses."""
        tensors, numbers, structure = self._places()
        if not np.array_equal(structure, self._structure):
            return tuple(map(np.zeros_like, self._arrays))
        values = [place.value for place in tensors]
        # One tensor may lie in several places, and is changed in all of them at once.
        first = {id(x): i for i, x in reversed([*enumerate(values)])}
        return (
            *(structure, *_packed(self._streams)),
            np.array([place.value for place in numbers], np.float64),
            np.array([first[id(x)] for x in values], np.int64),
            *(x.detach().cpu().numpy().copy() for x in values),
        )

    def restore(self, saved: tuple[np.ndarray, ...]) -> bool:
        structure, *streams = saved[:5]
        with self._own_streams():
            self._still()
        tensors, numbers, here = self._places()
        if not np.array_equal(structure, here):
            return False
        self._streams = _unpacked(*streams)
        values, first, *arrays = saved[5:]
        for place, number in zip(numbers, values, strict=True):
            place.held_in[place.key] = type(place.value)(number)
        put = [torch.from_numpy(x.copy()).to(self.device) for x in arrays]
        for place, i in zip(tensors, first, strict=True):
            place.held_in[place.key] = put[i]
        return True

    @contextlib.contextmanager
    def _own_streams(self) -> Iterator[None]:
        """Random numbers of these worlds: VMAS has one stream for all envs of a process."""
        shared = self._worlds.vmas_random_state
        before, shared[:] = list(shared), self._streams
        try:
            yield
        finally:
            self._streams, shared[:] = list(shared), before


class VmasEnv(TensorEnv):
    """One world as a single env: NumPy arrays, no resets of its own."""

    def __init__(self, env: EnvConfig, render_mode: str | None = None) -> None:
        if render_mode is not None:
            raise UsageError(
                f"{env.id} cannot be shown: VMAS draws with OpenGL in a window of its own, which "
                "Proximo does not open"
            )
        self._config, self._world = env, VmasVectorEnv(dataclasses.replace(env, num_envs=1))
        self.observation_space = self._world.single_observation_space
        self.action_space = self._world.single_action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return _only(self._world.reset(seed=seed)[0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        given = map_leaves(lambda x: torch.from_numpy(np.array(x)[None]), action)
        _, reward, terminated, truncated, info = self._world.step(given)
        seen = _only(info["final_obs"])
        return seen, float(reward), bool(terminated), bool(truncated), {}

    def many(self, count: int) -> VmasVectorEnv:
        return VmasVectorEnv(dataclasses.replace(self._config, num_envs=count))


def _streams(seed: int) -> list[Any]:
    """States of the generators that VMAS draws from, as it seeds them."""
    mersenne = np.random.RandomState(seed % 2**32)  # the kind that VMAS has
    torch_state = torch.Generator().manual_seed(seed).get_state()
    return [torch_state, mersenne.get_state(), random.Random(seed).getstate()]  # noqa: S311


def _packed(streams: list[Any]) -> tuple[np.ndarray, ...]:
    """Such states as arrays: of PyTorch's, NumPy's and Python's generator, and their numbers."""
    ours, (_, theirs, *rest), (_, pythons, gauss) = streams
    numbers = [*rest, np.nan if gauss is None else gauss]
    return ours.numpy(), theirs, np.array(pythons, np.int64), np.array(numbers, np.float64)


def _unpacked(ours: Any, theirs: Any, pythons: Any, numbers: Any) -> list[Any]:
    position, has_gauss, cached, gauss = numbers.tolist()
    return [
        torch.from_numpy(ours.copy()),
        ("MT19937", theirs, int(position), int(has_gauss), cached),
        (3, tuple(pythons.tolist()), None if np.isnan(gauss) else gauss),
    ]


def _places(path: str, held_in: Any, own: str, seen: dict[int, str]) -> Iterator[Place]:
    """Places below a list or a dict. own: the module of the scenario; seen: paths by identity."""
    seen[id(held_in)] = path
    pairs = held_in.items() if isinstance(held_in, dict) else enumerate(held_in)
    for number, (key, part) in enumerate(pairs):  # some are by entity
        here = f"{path}/{key if isinstance(key, str | int | tuple) else number}"
        inner = part
        if isinstance(part, torch.Tensor | bool | int | float):
            if not isinstance(held_in, tuple):  # which never changes
                yield Place(here, held_in, key)
            continue
        if _is_own(type(part).__module__, own) and not isinstance(part, Enum):
            inner = vars(part)
        elif not isinstance(part, dict | list | tuple):
            continue
        if id(inner) in seen:
            yield Place(here, held_in, key, seen[id(inner)])
        else:
            yield from _places(here, inner, own, seen)


def _is_own(module: str, own: str) -> bool:
    """Objects of this module are looked into."""
    return module == own or module.startswith(("vmas.", "torch.distributions."))


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Leave all generators as they are: making worlds seeds and resets them."""
    shared = vmas.simulator.environment.Environment.vmas_random_state
    before, generators = list(shared), (np.random.get_state(), random.getstate())  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            shared[:] = before
            np.random.set_state(generators[0])  # noqa: NPY002
            random.setstate(generators[1])


def _space(space: Any) -> Space:
    """Gymnasium's space for one of VMAS, which has those of gym."""
    if hasattr(space, "spaces"):
        return spaces.Dict({key: _space(part) for key, part in space.spaces.items()})
    if hasattr(space, "nvec"):
        return spaces.MultiDiscrete(space.nvec)
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    return spaces.Box(space.low, space.high, space.shape, np.float32)


def _plain(seen: Any) -> Any:
    """Observations in the type of their spaces."""
    return map_leaves(lambda part: part.to(torch.float32), seen)


def _only(batch: Any) -> Any:
    return map_leaves(lambda rows: rows[0].numpy().copy(), batch)
