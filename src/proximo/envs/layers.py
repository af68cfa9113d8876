"""An env and the wrappers around it: what it is called, whether it has spaces, how it is closed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorWrapper

from proximo.envs.parallel_env import ParallelEnv, parallel_name
from proximo.types import UsageError, explain, faults


class Bare(gym.Env[Any, Any]):
    """An env that is no subclass of `gym.Env`: two spaces, two methods, and perhaps more."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        # As fast as they are.
        self.reset, self.step = env.reset, env.step  # type: ignore[method-assign]
        self.metadata = getattr(env, "metadata", None) or {}
        self.render_mode = getattr(env, "render_mode", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__.get("env"), name)

    def render(self) -> Any:
        own = getattr(self.env, "render", super().render)
        return own()

    def close(self) -> None:
        own = getattr(self.env, "close", super().close)
        own()


def layers(env: Any) -> list[Any]:
    """An env and those that it wraps, from the outside in."""
    found: list[Any] = []
    while env is not None and not any(env is other for other in found):
        found.append(env)
        env = getattr(env, "__dict__", {}).get("env")  # runs no code of the env
    return found


def base(env: Any) -> Any:
    """An env without its wrappers: as `unwrapped`, of which an env may make something else."""
    while isinstance(env, gym.Wrapper | Bare | VectorWrapper) and "env" in vars(env):
        env = env.env
    return env


def title(env: Any) -> str:
    """The id of a registered env, the name of one of PettingZoo's, or that of its class."""
    if isinstance(env, ParallelEnv):
        return parallel_name(env.parallel)
    inner = base(env)
    spec = getattr(inner, "__dict__", {}).get("spec")  # runs no code of the env
    return spec.id if isinstance(spec, EnvSpec) else type(inner).__name__


def close_all(envs: Iterable[Any]) -> list[str]:
    """Close every env, though another one fails. Returns what failed, in words."""
    failed = []
    for env in envs:
        try:
            env.close()
        except faults() as error:
            failed.append(f"{title(env)} could not be closed: {explain(error)}")
    return failed


def check_spaces(env: Any) -> None:
    """Raises `UsageError` for an env without spaces."""
    if isinstance(env, gym.Wrapper) and "env" not in vars(env):
        name = type(env).__name__
        raise UsageError(f"the wrapper {name} wraps nothing: let it call super().__init__(env)")
    for name in ("observation_space", "action_space"):
        try:
            space = getattr(env, name, None)
        except faults() as error:
            raise UsageError(f"{title(env)} failed at its {name}: {explain(error)}") from error
        if space is None:
            raise UsageError(f"the world {title(env)} has no {name}: set it in its __init__")
        if not isinstance(space, gym.Space):
            kind = f"{type(space).__module__}.{type(space).__name__}"
            raise UsageError(
                f"the {name} of {title(env)} is of type {kind}: give it one of gymnasium.spaces, "
                "such as Box"
            )
