"""An env and its wrappers: the layers, the name, the spaces, how it is closed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorWrapper

from proximo.envs.parallel_env import ParallelEnv, parallel_name
from proximo.errors import UsageError, explain, explained, faults


class Bare(gym.Env[Any, Any]):
    """An env that is no subclass of `gym.Env`, but has two spaces, `reset` and `step`."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        vars(self).update(reset=env.reset, step=env.step)  # as fast as they are
        self.metadata = getattr(env, "metadata", None) or {}
        self.render_mode = getattr(env, "render_mode", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__.get("env"), name)

    def render(self) -> Any:
        return getattr(self.env, "render", super().render)()

    def close(self) -> None:
        getattr(self.env, "close", super().close)()


def layers(env: Any) -> list[Any]:
    """An env and those that it wraps, from the outside in."""
    nested: list[Any] = []
    while env is not None and not any(env is other for other in nested):
        nested.append(env)
        env = getattr(env, "__dict__", {}).get("env")  # runs no code of the env
    return nested


def unwrapped(env: Any) -> Any:
    """An env without its wrappers; its own `unwrapped` may be something else."""
    while isinstance(env, gym.Wrapper | Bare | VectorWrapper) and "env" in vars(env):
        env = env.env
    return env.parallel if isinstance(env, ParallelEnv) else env


def title(env: Any) -> str:
    """Name of an env: its id in Gymnasium, or PettingZoo's name, or the name of its class."""
    inner = unwrapped(env)
    spec = getattr(inner, "__dict__", {}).get("spec")  # runs no code of the env
    if isinstance(env, ParallelEnv):
        return parallel_name(inner)
    return spec.id if isinstance(spec, EnvSpec) else type(inner).__name__


def close_all(envs: Iterable[Any]) -> list[str]:
    """Close every env, though another one fails. Returns error texts."""
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
        with explained(f"{title(env)} failed at its {name}"):
            space = getattr(env, name, None)
        if space is None:
            raise UsageError(f"the env {title(env)} has no {name}: set it in its __init__")
        if not isinstance(space, gym.Space):
            kind = f"{type(space).__module__}.{type(space).__name__}"
            text = f"the {name} of {title(env)} is of type {kind}"
            raise UsageError(f"{text}: give it one of gymnasium.spaces, such as Box")
