"""Adapters of the suites of `suites.py`: each makes a simulator of what the suite has."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from gymnasium import spaces

from proximo.envs.suites import check_known, load_suite, suite_of
from proximo.errors import UsageError, explained
from proximo.spaces import MASK, Space

ENDLESS = 2**30
"""A limit that no episode reaches, for suites whose `done` does not tell a time limit from an end:
there Proximo counts the steps itself."""


class Simulator(ABC):
    """An env of a suite as two pure functions. limit: steps of an episode, where we count them."""

    obs_space: Space
    action_space: Space
    limit: int | None = None
    fps: float = 30

    @abstractmethod
    def __init__(self, name: str, limit: int | None, kwargs: dict[str, Any]) -> None:
        """name: suite:env. limit: in place of the env's own. Raises `UsageError`."""

    @abstractmethod
    def reset(self, key: Any) -> tuple[Any, Any]:
        """State and observation at the beginning of an episode."""

    @abstractmethod
    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Any, Any, Any, Any]:
        """State, observation, reward, terminated and truncated."""

    def check_render(self, mode: str) -> None:
        """Raises `UsageError` where it cannot be shown so."""
        drawn = [suite for suite, adapter in ADAPTERS.items() if draws(adapter)]
        if mode != "rgb_array" or not draws(type(self)):
            raise UsageError(
                f"{type(self).__name__} has no pictures for render mode {mode!r}: of the suites, "
                f"{', '.join(drawn)} have rgb_array (play --video)"
            )

    def render(self, state: Any) -> np.ndarray:
        """[H, W, 3] bytes."""
        raise NotImplementedError


def draws(adapter: type[Simulator]) -> bool:
    """The envs of a suite can be shown."""
    return adapter.render is not Simulator.render


def make_simulator(name: str, limit: int | None, kwargs: dict[str, Any]) -> Simulator:
    """The env of this name. limit: in place of its own. Raises `UsageError`."""
    adapter = ADAPTERS[suite_of(name)]
    with explained(f"{name} cannot be made with the arguments {kwargs}"):
        return adapter(name, limit, kwargs)


def box(low: Any, high: Any, shape: Any, dtype: Any) -> Space:
    """A Box of floats, or of whole numbers; of bits: MultiBinary."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return spaces.MultiBinary(shape)
    low, high = (np.broadcast_to(np.asarray(x, np.float64), shape) for x in (low, high))
    if kind.kind == "f":
        most = np.finfo(np.float32).max
        low, high = (np.where(np.abs(x) >= most, np.copysign(np.inf, x), x) for x in (low, high))
        return spaces.Box(low.astype(np.float32), high.astype(np.float32), shape)
    held = np.iinfo(kind)
    low, high = (np.clip(x, held.min, held.max).astype(kind) for x in (low, high))
    return spaces.Box(low, high, shape, kind.type)


def unbounded(shape: Any) -> Any:
    """Space of observations of which a suite gives sizes alone."""
    if isinstance(shape, dict):
        return spaces.Dict({key: unbounded(inner) for key, inner in shape.items()})
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return spaces.Box(-np.inf, np.inf, shape)


class Gymnax(Simulator):
    """gymnax 1: `step_env` says what ended, `is_truncated` what the time limit cut off."""

    def __init__(self, name: str, limit: int | None, kwargs: dict[str, Any]) -> None:
        suite = load_suite(name, "gymnax")
        check_known(name, suite.registered_envs)
        self._env, params = suite.make(name.partition(":")[2])
        if limit is not None:
            kwargs = {**kwargs, "max_steps_in_episode": limit}
        self._params = params.replace(**kwargs)
        self.obs_space = self._space(self._env.observation_space(self._params))
        self.action_space = self._space(self._env.action_space(self._params))

    def _space(self, space: Any) -> Space:
        if isinstance(inner := getattr(space, "spaces", None), dict):
            return spaces.Dict({key: self._space(part) for key, part in inner.items()})
        if inner is not None:
            return spaces.Tuple([self._space(part) for part in inner])
        if hasattr(space, "n"):
            return spaces.Discrete(int(space.n))
        return box(space.low, space.high, space.shape, space.dtype)

    def reset(self, key: Any) -> tuple[Any, Any]:
        obs, state = self._env.reset_env(key, self._params)
        return state, obs

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Any, Any, Any, Any]:
        obs, state, reward, done, _ = self._env.step_env(key, state, action, self._params)
        return state, obs, reward, done, self._env.is_truncated(state, self._params)


class Craftax(Simulator):
    """Craftax: its `done` mixes time limit and end, so the limit is ours."""

    TILE = 16
    """Pixels of a cell, where it is shown."""

    def __init__(self, name: str, limit: int | None, kwargs: dict[str, Any]) -> None:
        suite = load_suite(name, "craftax.craftax_env")
        kinds = [f"{a}-{b}" for a in ("Craftax", "Craftax-Classic") for b in ("Symbolic", "Pixels")]
        known = [f"{kind}-v1" for kind in kinds]
        check_known(name, known)
        self._env = suite.make_craftax_env_from_name(name.partition(":")[2], auto_reset=False)
        params = self._env.default_params
        self.limit = limit or int(kwargs.pop("max_timesteps", params.max_timesteps))
        self._params = params.replace(**kwargs, max_timesteps=ENDLESS)
        seen = self._env.observation_space(self._params)
        self.obs_space = box(seen.low, seen.high, seen.shape, seen.dtype)
        self.action_space = spaces.Discrete(int(self._env.action_space(self._params).n))
        self._name, self.fps = name, 5

    def reset(self, key: Any) -> tuple[Any, Any]:
        obs, state = self._env.reset_env(key, self._params)
        return state, obs

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Any, Any, Any, Any]:
        obs, state, reward, done, _ = self._env.step_env(key, state, action, self._params)
        return state, obs, reward, done, False

    def render(self, state: Any) -> np.ndarray:
        kind = "craftax_classic" if "-Classic-" in self._name else "craftax"
        drawing = load_suite(self._name, f"craftax.{kind}.renderer")
        draw = drawing.make_craftax_pixel_renderer(self.TILE)
        return np.asarray(draw(state)).clip(0, 255).astype(np.uint8)


class Navix(Simulator):
    """NAVIX: MiniGrid. A cell is its categories, as in Proximo's own MiniGrid envs."""

    KINDS = (11, 6, 4)
    """Entities, colours, states."""

    def __init__(self, name: str, limit: int | None, kwargs: dict[str, Any]) -> None:
        self._suite = suite = load_suite(name, "navix")
        known = suite.registry()
        check_known(name, known)
        if limit is not None:
            kwargs = {**kwargs, "max_steps": limit}
        self._env = suite.make(name.partition(":")[2], **kwargs)
        seen = self._env.observation_space
        self.obs_space = box(int(seen.minimum), int(seen.maximum), seen.shape, seen.dtype)
        if len(seen.shape) == 3 and int(seen.maximum) < 255:
            self.obs_space = spaces.MultiDiscrete(np.broadcast_to(self.KINDS, seen.shape))
        self.action_space = spaces.Discrete(int(self._env.action_space.maximum) + 1)
        self.fps = 5

    def reset(self, key: Any) -> tuple[Any, Any]:
        state = self._env.reset(key)
        return state, state.observation

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Any, Any, Any, Any]:
        state = self._env._step(state, action)  # `step` resets by itself
        kind = state.step_type
        return state, state.observation, state.reward, kind == 2, kind == 1

    def render(self, state: Any) -> np.ndarray:
        small = np.asarray(self._suite.observations.rgb(state.state))  # 8 pixels a cell
        return small.repeat(4, 0).repeat(4, 1)


class XMiniGrid(Simulator):
    """XLand-MiniGrid: discount 0 is an end, a last step with discount 1 the time limit."""

    KINDS = (13, 12)
    """Tiles, colours."""

    def __init__(self, name: str, limit: int | None, kwargs: dict[str, Any]) -> None:
        suite = load_suite(name, "xminigrid")
        check_known(name, suite.registered_environments())
        if limit is not None:
            kwargs = {**kwargs, "max_steps": limit}
        self._env, self._params = suite.make(name.partition(":")[2], **kwargs)
        shape = self._env.observation_shape(self._params)
        self.obs_space = spaces.MultiDiscrete(np.broadcast_to(self.KINDS, shape))
        self.action_space = spaces.Discrete(self._env.num_actions(self._params))
        self.fps = 5

    def reset(self, key: Any) -> tuple[Any, Any]:
        state = self._env.reset(self._params, key)
        return state, state.observation

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Any, Any, Any, Any]:
        state = self._env.step(self._params, state, action)
        ended = state.discount == 0
        return state, state.observation, state.reward, ended, state.last() & ~ended

    def render(self, state: Any) -> np.ndarray:
        return np.asarray(self._env.render(self._params, state))


class Jumanji(Simulator):
    """Jumanji: discount 0 is an end, a last step with discount 1 the time limit.

    At their time limit most envs give discount 0 too: what counts is what the same step gives
    without a limit. Where a mask has an entry for each combination of several choices, they become
    one choice.
    """

    def __init__(self, name: str, limit: int | None, kwargs: dict[str, Any]) -> None:
        suite = load_suite(name, "jumanji")
        check_known(name, suite.registered_environments())
        self._env, self.limit = suite.make(name.partition(":")[2], **kwargs), limit
        self._endless = copy.copy(self._env)
        if hasattr(self._env, "time_limit"):
            self._endless.time_limit = ENDLESS
        self.obs_space = self._space(self._env.observation_spec)
        self.action_space = self._space(self._env.action_spec)
        self._choices: tuple[int, ...] = ()
        if isinstance(self.action_space, spaces.MultiDiscrete):
            counts = tuple(self.action_space.nvec.reshape(-1).tolist())
            inner = self.obs_space.spaces if isinstance(self.obs_space, spaces.Dict) else {}
            masks = inner.get(MASK)
            if masks is not None and masks.shape == counts and len(counts) > 1:
                self._choices = counts
                self.action_space = spaces.Discrete(int(np.prod(counts)))

    def _space(self, spec: Any) -> Space:
        if spec.name == "step_count":  # a number, of which an end has one more than is told
            return box(0, getattr(spec, "maximum", np.inf) + 1, spec.shape, spec.dtype)
        if hasattr(spec, "num_values"):
            number = np.asarray(spec.num_values)
            return spaces.MultiDiscrete(number) if number.ndim else spaces.Discrete(int(number))
        if hasattr(spec, "minimum"):
            return box(spec.minimum, spec.maximum, spec.shape, spec.dtype)
        if hasattr(spec, "dtype"):
            return box(-np.inf, np.inf, spec.shape, spec.dtype)
        return spaces.Dict({key: self._space(part) for key, part in spec._specs.items()})

    def _seen(self, spec: Any, obs: Any) -> Any:
        if hasattr(spec, "dtype"):
            return obs
        seen = {key: self._seen(part, getattr(obs, key)) for key, part in spec._specs.items()}
        if spec is self._env.observation_spec and MASK in seen:
            # Before a loss that is certain nothing is legal: Jumanji then takes any action.
            legal = seen[MASK]
            axes = None if self._choices else -1
            seen[MASK] = legal | ~legal.any(axis=axes, keepdims=True)
        return seen

    def reset(self, key: Any) -> tuple[Any, Any]:
        state, step = self._env.reset(key)
        return state, self._seen(self._env.observation_spec, step.observation)

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Any, Any, Any, Any]:
        if self._choices:
            jnp = load_suite("jumanji:", "jax.numpy")
            action = jnp.stack(jnp.unravel_index(action, self._choices))
        _, endless = self._endless.step(state, action)
        state, step = self._env.step(state, action)
        ended, last = (endless.discount == 0).all(), step.last()
        obs = self._seen(self._env.observation_spec, step.observation)
        return state, obs, step.reward.sum(), last & ended, last & ~ended


class Physics(Simulator):
    """What Brax and MuJoCo Playground have in common: `done` is an end, the time limit is ours."""

    _env: Any
    EPISODE = 1000

    def _describe(self, limit: int | None) -> None:
        self.limit = limit or self.EPISODE
        self.obs_space = unbounded(self._env.observation_size)
        self.action_space = spaces.Box(-1, 1, (self._env.action_size,))
        self.fps = round(1 / self._env.dt)

    def reset(self, key: Any) -> tuple[Any, Any]:
        state = self._env.reset(key)
        return state, state.obs

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, Any, Any, Any, Any]:
        state = self._env.step(state, action)
        return state, state.obs, state.reward, state.done > 0, False


class Brax(Physics):
    """Brax."""

    def __init__(self, name: str, limit: int | None, kwargs: dict[str, Any]) -> None:
        suite = load_suite(name, "brax.envs")
        check_known(name, suite._envs)
        self._env = suite.get_environment(name.partition(":")[2], **kwargs)
        self._describe(limit)

    def render(self, state: Any) -> np.ndarray:
        return np.asarray(self._env.render([state.pipeline_state])[0])


class Playground(Physics):
    """MuJoCo Playground, in MJX's JAX (`impl` says another): its default runs on NVIDIA alone."""

    def __init__(self, name: str, limit: int | None, kwargs: dict[str, Any]) -> None:
        suite = load_suite(name, "mujoco_playground").registry
        check_known(name, suite.ALL_ENVS)
        env = name.partition(":")[2]
        self._env = suite.load(env, config_overrides={"impl": "jax", **kwargs})
        own = suite.get_default_config(env).get("episode_length", self.EPISODE)
        self._describe(limit or int(own))

    def render(self, state: Any) -> np.ndarray:
        return np.asarray(self._env.render([state])[0])


ADAPTERS: dict[str, type[Simulator]] = {
    "brax": Brax,
    "craftax": Craftax,
    "gymnax": Gymnax,
    "jumanji": Jumanji,
    "navix": Navix,
    "playground": Playground,
    "xminigrid": XMiniGrid,
}
