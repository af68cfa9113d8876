"""Envs from a configuration, a callable or a vector env."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import OrderEnforcing

from proximo.envs import compiled, mujoco
from proximo.envs.base import NUMBERED, Envs, Maker, SyncEnvs, first_step
from proximo.envs.compiled import CompiledEnvs, is_own, make_compiled
from proximo.envs.config import EnvConfig, cores
from proximo.envs.envpool import EnvPoolEnv, EnvPoolEnvs, is_pooled
from proximo.envs.layers import Bare, check_spaces, close_all, layers, unwrapped
from proximo.envs.masks import Masked
from proximo.envs.parallel_env import ParallelEnv, is_pettingzoo, parallel_name
from proximo.envs.parallel_envs import ParallelEnvs
from proximo.envs.pooled import PooledEnvs
from proximo.envs.registries import ARCADE, is_registered, parallel_maker, prepared
from proximo.envs.suites import VMAS, load_suite, suite_of
from proximo.envs.vector import VectorEnvs
from proximo.errors import UsageError, explain, explained, faults, nearest
from proximo.imports import find, import_module
from proximo.spaces import MASK, Space


def make_env(env: EnvConfig, maker: Maker | None = None, render_mode: str | None = None) -> gym.Env:
    """One env; PettingZoo's as a `ParallelEnv`. Raises `UsageError`."""
    if maker is None and env.backend == "envpool" and not (":" in env.id or is_registered(env.id)):
        return EnvPoolEnv(env, render_mode)
    kwargs = dict(env.kwargs)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    arcade = maker is None and env.id.startswith(ARCADE)
    if arcade:
        one_env = _arcade(env, render_mode)
    else:
        made_by = maker or _maker(env)
        one_env = _single(_call(made_by, env, kwargs), _maker_name(made_by, env))
    for name in env.wrappers:
        with explained(f"the wrapper {name} failed"):
            wrapped = find(name)(one_env)
        one_env = _single(wrapped, f"the wrapper {name}")
    if is_pettingzoo(one_env, "ParallelEnv"):
        return ParallelEnv(one_env, env)
    own_limit = arcade or (maker is None and suite_of(env.id))  # an arcade counts frames
    if env.max_episode_steps is not None and not own_limit:
        one_env = _limited(one_env, env.max_episode_steps)
    if maker is None:
        one_env = prepared(one_env, env.id, wrapped=bool(env.wrappers))
    return one_env if env.action_masks == "observation" else Masked(one_env, env.action_masks)


def _arcade(env: EnvConfig, render_mode: str | None) -> gym.Env[Any, Any]:
    from proximo.envs.arcade import Arcade

    _maker(env)  # names the env that does not exist
    if render_mode != "human":
        return Arcade(env, render_mode)
    return gym.wrappers.HumanRendering(Arcade(env, "rgb_array"))


def _single(made: Any, maker: str) -> Any:
    """An env with Gymnasium's interface, or a parallel env. Raises `UsageError` for another."""
    if is_pettingzoo(made, "ParallelEnv"):
        return made
    missing = [name for name in ("reset", "step") if not callable(getattr(made, name, None))]
    wrong = ""
    if made is None:
        wrong = "None: let it end with return, and the env"
    elif isinstance(made, type):
        wrong = f"{made.__name__}, a class: let it return an env, {made.__name__}(...)"
    elif isinstance(made, VectorEnv):
        wrong = (
            f"{type(made).__name__}, a vector env, where one env is expected: return one, of which "
            "env.num_envs says the number, or give the vector env itself to proximo.train"
        )
    elif is_pettingzoo(made, "AECEnv"):
        wrong = (
            f"{parallel_name(made)}, a turn-based (AEC) env of PettingZoo: agents must act at "
            "once. Return its parallel_env(), or, where agents cannot do that, a Gymnasium env in "
            "which one of them acts and the others are part of it"
        )
    elif missing:
        wrong = (
            f"{made!r:.80}, of type {type(made).__name__}, which has no method "
            f"{' and no method '.join(missing)}: an env has both"
        )
    if wrong:
        raise UsageError(f"{maker} returned {wrong}")
    check_spaces(made)
    return made if isinstance(made, gym.Env) else Bare(made)


def _limited(env: gym.Env[Any, Any], steps: int) -> gym.Env[Any, Any]:
    """The env with this time limit, which replaces one that it has from Gymnasium."""
    limits = [layer for layer in layers(env) if isinstance(layer, gym.wrappers.TimeLimit)]
    for limit in limits:
        limit._max_episode_steps = steps
    return env if limits else gym.wrappers.TimeLimit(env, steps)


def _maker_name(maker: Any, env: EnvConfig) -> str:
    """Name of what makes an env."""
    return env.id or getattr(maker, "__qualname__", f"{maker!r:.80}")


def _call(maker: Callable[..., Any], env: EnvConfig, kwargs: dict[str, Any]) -> Any:
    what = _maker_name(maker, env) + (f" with the arguments {kwargs}" if kwargs else "")
    if not callable(maker):
        raise UsageError(
            f"{what} cannot be made: it is {maker!r:.80}, of type {type(maker).__name__}: name a "
            "class, or a function that returns an env"
        )
    try:
        return maker(**kwargs)
    except UsageError:
        raise
    except gym.error.DependencyNotInstalled as error:
        raise UsageError(f"{env.id} needs a package that is not installed: {error}") from error
    except faults() as error:
        hint = ""
        if "render_mode" in kwargs and isinstance(error, TypeError):
            hint = "; to be shown, it must take the argument render_mode, and keep it"
        raise UsageError(f"{what} cannot be made: {explain(error)}{hint}") from error


def make_envs(
    env: EnvConfig, seed: int, source: Maker | VectorEnv | None = None, first: int = 0
) -> Envs:
    """N envs, of numbers from `first` on: from the configuration, a callable or a vector env."""
    envs = _make_envs(env, seed, source, first)
    if env.stagger and not envs.stagger:  # compiled envs and workers have seen to it
        try:
            first_step(seed, first, envs.time_limit)
        except UsageError:
            envs.close()
            raise
        envs.stagger = True
    if not isinstance(source, VectorEnv):
        envs.make_apart = lambda: in_step([make_env(env, source)])
    return envs


def in_step(
    envs: list[gym.Env], seed: int = NUMBERED, first: int = 0, *, autoreset: bool = False
) -> Envs:
    """Single or parallel envs in step; without autoreset to play single episodes in."""
    if parallel := [env for env in envs if isinstance(env, ParallelEnv)]:
        return ParallelEnvs(parallel, seed, first, autoreset=autoreset)
    return SyncEnvs(envs, seed, first, autoreset=autoreset)


def _make_envs(env: EnvConfig, seed: int, source: Maker | VectorEnv | None, first: int) -> Envs:
    many = env.backend in ("vector", "envpool") or isinstance(source, VectorEnv)
    if source is not None:
        _check_given(env, source)
    if many and env.wrappers:
        raise UsageError(
            f"env.wrappers is {', '.join(env.wrappers)}, which wrap single envs: leave them out, "
            "or use --env.backend sync"
        )
    if many and env.action_masks != "observation":
        raise UsageError(
            f"env.action_masks is {env.action_masks}, but envs that are stepped together have "
            f"masks only under the key {MASK} of their observation: use --env.backend sync"
        )
    if isinstance(source, VectorEnv):
        from proximo.envs.tensors import SnapshotEnvs, Snapshots, TensorEnvs, held_on

        device = held_on(source, seed)
        if device and isinstance(source, Snapshots):
            return SnapshotEnvs(source, seed, device)
        return TensorEnvs(source, seed, device) if device else VectorEnvs(source, seed)
    if env.backend == "native":
        return _compiled(env, seed, first)
    if env.backend == "vector" and env.id.startswith(ARCADE):
        from proximo.envs.arcade import ArcadeEnvs

        _maker(env)  # names the env that does not exist
        return ArcadeEnvs(env, seed, env.threads or cores())
    if env.backend == "vector" and suite_of(env.id):
        from proximo.envs.tensors import SnapshotEnvs

        envs = _suite(env)
        return SnapshotEnvs(envs, seed, envs.device)
    if env.backend == "vector":
        return VectorEnvs(_native_vector(env), seed)
    if env.backend == "envpool":
        return PooledEnvs(EnvPoolEnvs(env, _spaces(env), env.threads or cores()), seed)
    if env.backend == "workers":  # each of its processes comes back here, for sync
        from proximo.envs.workers import WorkerEnvs

        return WorkerEnvs(env, seed, source)
    return in_step(_several(env, source), seed, first, autoreset=True)


def not_compiled(env: EnvConfig) -> str:
    """Why these envs cannot be stepped in C, in a few words; empty if they can."""
    return mujoco.obstacle(env) if env.id in mujoco.STEPPED else compiled.obstacle(env)


def lacking(name: str) -> str:
    """Why an env of Gymnasium's that can be stepped in C cannot be so here; empty if it can."""
    return mujoco.missing(name) if name in mujoco.STEPPED else compiled.missing(name)


def _compiled(env: EnvConfig, seed: int, first: int) -> Envs:
    if text := not_compiled(env):
        raise UsageError(f"env.backend is native, but {text}: use sync or auto")
    if env.id in mujoco.STEPPED:
        return mujoco.MujocoEnvs(env, _several(env, None), seed, first)
    known = None if is_own(env.id) else _spaces(env)
    return CompiledEnvs(compiled.describe(env.id), env, seed, first, known=known)


def _check_given(env: EnvConfig, source: Maker | VectorEnv) -> None:
    """Refuse settings that cannot act on what the caller gives. Raises `UsageError`."""
    if env.backend in ("native", "vector", "envpool"):
        raise UsageError(
            f"env.backend is {env.backend}, which makes envs by their id, but "
            f"{_maker_name(source, env)} is given: leave it out"
        )
    if not isinstance(source, VectorEnv):
        return
    if env.max_episode_steps is not None:
        raise UsageError(
            f"env.max_episode_steps is {env.max_episode_steps}, but a vector env ends its episodes "
            "itself: leave it out, and give the limit to what makes it"
        )
    if env.kwargs:
        raise UsageError(
            f"env.kwargs holds {', '.join(env.kwargs)}, but the vector env is made already: give "
            "them to what makes it"
        )


def _several(env: EnvConfig, source: Maker | None) -> list[gym.Env[Any, Any]]:
    """N different single envs. Raises `UsageError`, and then leaves none open."""
    made: list[gym.Env[Any, Any]] = []
    try:
        for _ in range(env.num_envs):
            made.append(make_env(env, source))
    except BaseException:
        close_all(made)
        raise
    if len({id(unwrapped(one_env)) for one_env in made}) < len(made):
        raise UsageError("the callable returned the same env twice: make a new one each time")
    return made


def _spaces(env: EnvConfig) -> tuple[Space, Space] | None:
    """Spaces of Gymnasium's env of that name, in which the policy will be used."""
    if not is_registered(env.id):
        return None
    try:
        one_env = make_env(dataclasses.replace(env, kwargs={}))
    except UsageError:  # a package that only Gymnasium's env needs
        return None
    close_all([one_env])
    return one_env.observation_space, one_env.action_space


def has_vector_version(env: EnvConfig) -> bool:
    """The env registers a version of itself that steps many at once."""
    return is_registered(env.id) and gym.registry[env.id].vector_entry_point is not None


def return_threshold(env: EnvConfig) -> float | None:
    """Return at which Gymnasium calls this env solved, or None."""
    return gym.registry[env.id].reward_threshold if env.id in gym.registry else None


def time_limit(env: EnvConfig) -> int | None:
    """Steps after which the env of this id truncates its episodes, or None."""
    return gym.registry[env.id].max_episode_steps if is_registered(env.id) else None


def _maker(env: EnvConfig) -> Maker:
    if not env.id:
        raise UsageError("no env is named: give a Gymnasium id or module:Class")
    if is_own(env.id):
        return partial(make_compiled, env.id)
    if suite_of(env.id):
        return partial(_simulated, env)
    if ":" in env.id:
        return _user_maker(env)
    if parallel := parallel_maker(env.id):
        return parallel
    if not is_registered(env.id):
        known = nearest(env.id, gym.registry)
        if is_pooled(env.id):
            known = "EnvPool has it: use --env.backend envpool"
        elif not known.startswith("Did"):
            known = f"An env that a module registers is named with it, as in module:{env.id}"
        raise UsageError(f"there is no env {env.id!r} in Gymnasium. {known}")

    return partial(_registered, env.id, env)


def _suite(env: EnvConfig) -> Any:
    """Envs of a suite, all of them in one."""
    if suite_of(env.id) == VMAS:
        return load_suite(env.id, "proximo.envs.vmas").VmasVectorEnv(env)
    load_suite(env.id, "jax")
    from proximo.envs.simulators import SimulatorVectorEnv

    return SimulatorVectorEnv(env)


def _simulated(env: EnvConfig, render_mode: str | None = None, **_: Any) -> gym.Env[Any, Any]:
    if suite_of(env.id) == VMAS:
        world: gym.Env[Any, Any] = load_suite(env.id, "proximo.envs.vmas").VmasEnv(env, render_mode)
        return world
    load_suite(env.id, "jax")
    from proximo.envs.simulators import SimulatorEnv

    return SimulatorEnv(env, render_mode)


def _registered(name: str, env: EnvConfig, **kwargs: Any) -> gym.Env[Any, Any]:
    # The passive checker sees the first step only; the rollout is checked whole.
    kwargs = {"max_episode_steps": env.max_episode_steps, "disable_env_checker": True, **kwargs}
    made: gym.Env[Any, Any] = gym.make(name, **kwargs)
    # An env here is reset before it is stepped: what watches over that costs 0.5 us a step.
    if isinstance(made, gym.Wrapper) and type(made.env) is OrderEnforcing:
        made.env = made.env.env
    return made.env if type(made) is OrderEnforcing else made


def _user_maker(env: EnvConfig) -> Maker:
    module, attribute = import_module(env.id), env.id.partition(":")[2]
    if attribute in gym.registry and not hasattr(module, attribute):
        return partial(_registered, attribute, env)  # importing it registered it, as for gym.make
    if not all(part.isidentifier() for part in attribute.split(".")):
        raise UsageError(_unregistered(module, attribute))
    maker: Maker = find(env.id)
    return maker


def _unregistered(module: ModuleType, name: str) -> str:
    """Error text for `module:ID` where importing the module does not register that id."""
    place, near = module.__name__, nearest(name, [*gym.registry])
    within = [m for key, m in list(sys.modules.items()) if f"{key}.".startswith(f"{place}.")]
    calls = sorted(
        {
            f"{function.__module__}.{key}()"
            for part in within
            for key, function in vars(part).items()
            if "register" in key and getattr(function, "__module__", "").split(".")[0] == place
        }
    )
    call = " or ".join(calls) or "the function of it that does"
    return (
        f"importing {place} registers no env {name!r} in Gymnasium. "
        + (f"{near} " if near.startswith("Did") else "")
        + f"If it must be told to, write a module of your own, my_envs.py say, that imports "
        f"{place} and calls {call}, and name the env my_envs:{name}"
    )


def _native_vector(env: EnvConfig) -> VectorEnv:
    _maker(env)  # names the env that does not exist
    if not has_vector_version(env):
        raise UsageError(f"env.backend is vector, but {env.id} has no vector version: use sync")
    kwargs: dict[str, Any] = dict(env.kwargs)
    if env.max_episode_steps is not None:
        kwargs["max_episode_steps"] = env.max_episode_steps
    make = partial(
        gym.make_vec, env.id, num_envs=env.num_envs, vectorization_mode="vector_entry_point"
    )
    made: VectorEnv[Any, Any, Any] = _call(make, env, kwargs)
    return made
