"""Envs from a configuration, under one step for all three autoreset modes of Gymnasium."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv, VectorWrapper

from proximo.envs.config import EnvConfig
from proximo.envs.known import ARCADE, is_registered, parallel_maker, prepared
from proximo.envs.pool import Pool, Pooled, is_pooled
from proximo.errors import UsageError, explain, faults, nearest
from proximo.named import find, import_module
from proximo.spaces import MASK, Actions, Observations, choices, flat_mask, misfit, own_copy
from proximo.types import EnvState, RolloutBuffer

if TYPE_CHECKING:
    import torch

Maker = Callable[..., gym.Env[Any, Any]]
Space = gym.Space[Any]
REPLAYED = 100_000
"""Steps of an episode up to which its actions are kept, so that it can be replayed."""
NUMBERED = -1
"""The seed of envs each of whose episodes begins from its own number."""


def episode_seed(seed: int, env: int, episode: int) -> int:
    """The seed, in [0, 2^32), with which episode number `episode` of an env starts: a hash.

    `NUMBERED` gives the number itself.
    """
    if seed == NUMBERED:
        return episode
    digest = hashlib.blake2b(f"{seed}/{env}/{episode}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


RESET = "an env's reset must return two things, (observation, info)"
"""Said of one that returns something else."""


class Envs(ABC):
    """N envs in step. `EnvState` says where they stand, and is theirs to move."""

    replayable: bool
    """Whether seeds and actions bring an env back, so that a run resumes exactly."""
    device: torch.device | None = None
    """Where their tensors lie; None: they give and take NumPy arrays."""
    agents: int = 1
    """Rows of one env, which begin together: its agents."""
    names: tuple[str, ...] = ()
    """What they are called, in the order of their rows, where they have names."""

    def __init__(self, count: int, obs_space: Space, action_space: Space) -> None:
        self.count = count
        # Copies: the envs may move the bounds of theirs.
        self.obs_space, self.action_space = own_copy(obs_space), own_copy(action_space)
        self.observations = Observations(self.obs_space)
        self.actions = Actions(self.action_space)

    def start(self, episode: int = 0) -> EnvState:
        """Every env at the beginning of the episode of this number."""
        state = EnvState(
            obs=np.empty(0),
            episode=np.full(self.count, episode - 1, np.int64),
            actions=[[] for _ in range(self.count)],
            resetting=np.zeros(self.count, bool),
            ret=np.zeros(self.count),
            length=np.ones(self.count, np.int64),
        )
        self.fresh(state)
        return state

    @abstractmethod
    def fresh(self, state: EnvState) -> None:
        """Let every env begin a new episode, unless it has just begun one."""

    @abstractmethod
    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        """One step of every env by `buffer.env_action[t]`: fills the rest of row t, and obs[t + 1].

        `state.obs` is not touched: `collect` sets it when the rollout has ended.
        """

    def remember(self, state: EnvState, buffer: RolloutBuffer) -> None:
        """Keep the actions since each env began, for `restore` to replay."""
        if not self.replayable:
            return
        begin = self._begins(buffer)
        for i, log in enumerate(state.actions):
            if begin[i] or state.length[i] > REPLAYED:
                log.clear()
            if state.length[i] > REPLAYED:
                continue
            if begin[i] < len(buffer):
                log.append(buffer.env_action[begin[i] :, i].copy())
                if len(log) > 64:  # an episode over many rollouts
                    log[:] = [np.concatenate(log)]

    @staticmethod
    def remembered(state: EnvState) -> np.ndarray:
        """[N] whose actions since they began are all kept."""
        logged = np.array([sum(map(len, log)) for log in state.actions])
        return logged >= state.length

    def _begins(self, buffer: RolloutBuffer) -> np.ndarray:
        """[N] the row with which each env began for the last time; 0: before these steps."""
        begin = np.zeros(self.count, np.int64)
        for t, i, _ in buffer.final_obs:
            begin[i] = t + 1
        return begin

    def restore(self, state: EnvState) -> bool:
        """Bring every env back to where `state` says it stood.

        Where that cannot be done, let new episodes begin in all of them and return False.
        """
        if self.replayable and self.remembered(state).all() and self._bring_back(state):
            return True
        state.length[:] = 1
        self.fresh(state)
        return False

    def _bring_back(self, state: EnvState) -> bool:
        """Replay all actions; whether every env then shows what `state` says."""
        return False

    @abstractmethod
    def close(self) -> list[str]:
        """Close the envs. Returns what failed, in words: no result depends on it any more."""


class SyncEnvs(Envs):
    """Single envs, stepped in turn and reset by us, each episode from its own seed.

    first: the number of the first one, where others are stepped elsewhere.
    """

    replayable = True

    def __init__(self, envs: list[gym.Env[Any, Any]], seed: int, first: int = 0) -> None:
        check_spaces(envs[0])
        super().__init__(len(envs), envs[0].observation_space, envs[0].action_space)
        self._envs, self._seed, self._first = envs, seed, first
        self._steps = [env.step for env in envs]
        self._shape = self.obs_space.shape
        self._plain = self.observations.plain

    def _reset(self, state: EnvState, env: int) -> Any:
        seed = episode_seed(self._seed, self._first + env, int(state.episode[env]))
        answer = self._envs[env].reset(seed=seed)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise UsageError(RESET)
        return answer[0]

    def fresh(self, state: EnvState) -> None:
        begun = state.length > 0
        obs = [self._begin(state, i) if begun[i] else state.obs[i] for i in range(self.count)]
        state.obs = np.stack(obs)

    def _begin(self, state: EnvState, env: int) -> np.ndarray:
        state.episode[env] += 1
        state.actions[env] = []
        state.ret[env] = state.length[env] = 0
        return self.observations.row(self._reset(state, env))

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        obs, reward = buffer.obs[t + 1], buffer.reward[t]
        plain, env_action = self._plain, buffer.env_action[t]
        # One copy for all of them: an env may keep its part of it, and change it.
        given = env_action.copy() if self.actions.simple else map(self.actions.nested, env_action)
        for i, (env_step, action) in enumerate(zip(self._steps, given, strict=True)):
            answer = env_step(action)
            try:
                seen, reward[i], over, cut, _ = answer
                if plain:
                    obs[i] = seen
            except (TypeError, ValueError) as error:
                raise UsageError(misanswer(answer, self.observations)) from error
            if not plain:
                self.observations.write(seen, obs[i])
            elif np.shape(seen) != self._shape:  # or it would be broadcast without a word
                raise UsageError(misfit(self.observations.leaves[0], seen, np.shape(seen)))
            if over or cut:
                buffer.terminated[t, i], buffer.done[t, i] = over, True
                buffer.final_obs.append((t, i, obs[i].copy()))
                state.episode[i] += 1
                self.observations.write(self._reset(state, i), obs[i])

    def _bring_back(self, state: EnvState) -> bool:
        obs = np.empty_like(state.obs)
        for i, (env, stretches) in enumerate(zip(self._envs, state.actions, strict=True)):
            seen = self._reset(state, i)
            for action in (a for stretch in stretches for a in stretch):
                seen = env.step(self.actions.given(action))[0]
            obs[i] = self.observations.row(seen)
        return np.array_equal(obs, state.obs)

    def close(self) -> list[str]:
        return close_all(self._envs)


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
    from proximo.envs import agents

    if isinstance(env, agents.Agents):
        return agents.parallel_name(env.parallel)
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
            raise UsageError(f"the env {title(env)} has no {name}: set it in its __init__")
        if not isinstance(space, gym.Space):
            kind = f"{type(space).__module__}.{type(space).__name__}"
            raise UsageError(
                f"the {name} of {title(env)} is of type {kind}: give it one of gymnasium.spaces, "
                "such as Box"
            )


def misanswer(answer: Any, observations: Observations) -> str:
    """What is wrong with what an env's step returned."""
    if not isinstance(answer, tuple) or len(answer) != 5:
        found = f"{len(answer)} things" if isinstance(answer, tuple) else repr(type(answer))
        return (
            "an env's step must return (observation, reward, terminated, truncated, info), "
            f"but returned {found}"
        )
    if np.ndim(answer[1]) or not isinstance(answer[1], int | float | np.number):
        return f"an env's reward must be one number, but it is {answer[1]!r}"
    try:
        observations.row(answer[0])
    except UsageError as error:
        return str(error)
    return f"an env returned an observation that cannot be: {answer[0]!r}"


class VectorEnvs(Envs):
    """A Gymnasium vector env, which keeps its own resets in whichever mode it declares."""

    replayable = False

    def __init__(self, envs: VectorEnv[Any, Any, Any], seed: int) -> None:
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.envs, self._seed = envs, seed
        metadata = getattr(envs, "metadata", None)
        mode = metadata.get("autoreset_mode") if isinstance(metadata, dict) else None
        if not isinstance(mode, AutoresetMode):
            raise UsageError(
                f"{title(envs)} declares metadata['autoreset_mode'] = {mode!r}: it must be one of "
                "gymnasium.vector.AutoresetMode, or its resets cannot be told from its steps"
            )
        self.mode = mode
        plain = envs.unwrapped
        # So does Gymnasium's 1.4; `check_vector` looks at what others do.
        self.owes = isinstance(plain, AsyncVectorEnv) and not plain.shared_memory
        """Next-step mode: whether a reset leaves the one due after an end, which then follows."""
        self.due = np.zeros(self.count, bool)
        """In which envs one is due before the first reset, where `owes`."""

    def fresh(self, state: EnvState) -> None:
        begun = (state.length > 0) | state.resetting
        if not begun.any():
            return
        state.episode += begun
        if self.mode is AutoresetMode.DISABLED and len(state.obs):
            state.obs = self._rows(self.reset_some(begun))
        else:
            # One generator serves all the envs: it is seeded once, and goes on from there.
            # After a resume it is seeded anew, by how far it had come: not the same beginnings.
            first = episode_seed(self._seed, 0, int(state.episode.max()))
            seed = None if len(state.obs) else first
            obs, info = self.envs.reset(seed=seed)
            if not isinstance(info, dict):
                raise UsageError(infos_of(info))
            state.obs = self._rows(obs)
            begun[:] = True
            state.resetting = self.owes & (state.resetting if seed is None else self.due)
        state.ret[begun] = 0
        state.length[begun] = 0

    def reset_some(self, which: np.ndarray) -> Any:
        return self.envs.reset(options={"reset_mask": which.copy()})[0]

    def _rows(self, seen: Any) -> np.ndarray:
        """The observations of all envs, copied: some give every one in one and the same array."""
        rows = np.empty((self.count, *self.observations.shape), self.observations.dtype)
        self.observations.write(seen, rows)
        return rows

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        action = self.actions.given(buffer.env_action[t])
        obs, reward, terminated, truncated, info = self.envs.step(action)
        # NumPy's: arrays of other libraries would take our own over, with types of theirs.
        terminated = np.asarray(terminated, bool)
        ended = terminated | np.asarray(truncated, bool)
        if self.mode is AutoresetMode.NEXT_STEP:
            if state.resetting.any():
                buffer.valid[t] = ~state.resetting
                ended &= buffer.valid[t]
            state.resetting = ended
        buffer.reward[t] = np.asarray(reward)
        self.observations.write(obs, buffer.obs[t + 1])
        if ended.any():
            buffer.terminated[t], buffer.done[t] = terminated & ended, ended
            last = buffer.obs[t + 1].copy()
            if self.mode is AutoresetMode.SAME_STEP:
                self.write_finals(info["final_obs"], ended, last)
            buffer.final_obs.extend((t, int(i), last[i]) for i in np.flatnonzero(ended))
            state.episode += ended
            if self.mode is AutoresetMode.DISABLED:
                self.observations.write(self.reset_some(ended), buffer.obs[t + 1])

    def write_finals(self, final: Any, ended: np.ndarray, rows: np.ndarray) -> None:
        """True successors: one per env, or batched by leaf where observations are nested."""
        for i in np.flatnonzero(ended):
            self.observations.write(final_of(final, int(i)), rows[i])

    def restore(self, state: EnvState) -> bool:
        state.obs = np.empty(0)
        return super().restore(state)

    def close(self) -> list[str]:
        return close_all([self.envs])


def infos_of(info: Any) -> str:
    """What is wrong with an info of a vector env that is no dict."""
    return (
        f"its info is a {type(info).__name__}, as the wrapper DictInfoToList makes it: a vector "
        "env must give a dict, in which final_obs stands. Leave that wrapper out"
    )


def final_of(final: Any, index: int) -> Any:
    """One env's part of `final_obs`, the env's own array where it is one."""
    return final[index] if isinstance(final, np.ndarray) else _pick(final, index)


def _pick(nested: Any, index: int) -> Any:
    """One env's part of a nested batch."""
    if isinstance(nested, dict):
        return {key: _pick(part, index) for key, part in nested.items()}
    if isinstance(nested, tuple):
        return tuple(_pick(part, index) for part in nested)
    return (nested if isinstance(nested, list) else np.asarray(nested))[index]


class Masked(gym.Wrapper[Any, Any, Any, Any]):
    """An env whose masks stand in its info, or come from a method, shown as an observation.

    They join the keys of a `Dict`; any other observation becomes the key `observation` beside them.
    """

    def __init__(self, env: gym.Env[Any, Any], source: str) -> None:
        super().__init__(env)
        self._method: Callable[[], Any] | None = None
        if source == "method":
            if not env.has_wrapper_attr(f"{MASK}s"):
                raise UsageError(
                    f"env.action_masks is method, but {title(env)} has no method {MASK}s(): give "
                    f"it one, or an observation with the key {MASK}"
                )
            self._method = env.get_wrapper_attr(f"{MASK}s")
        count = choices(env.action_space)
        if not count:
            raise UsageError(
                f"env.action_masks is {source}, but {env.action_space} has nothing to choose "
                "from: leave it out"
            )
        seen = env.observation_space
        self._joins = isinstance(seen, gym.spaces.Dict)
        shown = dict(seen.spaces) if isinstance(seen, gym.spaces.Dict) else {"observation": seen}
        if MASK in shown:
            raise UsageError(
                f"env.action_masks is {source}, but the observations of {title(env)} have the "
                f"key {MASK} already: leave it out"
            )
        self.observation_space = gym.spaces.Dict({**shown, MASK: gym.spaces.MultiBinary(count)})

    def _shown(self, seen: Any, info: dict[str, Any]) -> Any:
        if self._method is None and MASK not in info:
            raise UsageError(
                f"env.action_masks is info, but an env's info has no {MASK}: it has "
                f"{', '.join(map(str, info)) or 'nothing'}"
            )
        mask = flat_mask(self._method() if self._method else info[MASK], self.env.action_space)
        return {**(seen if self._joins else {"observation": seen}), MASK: mask}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        seen, info = self.env.reset(**kwargs)
        return self._shown(seen, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        seen, reward, over, cut, info = self.env.step(action)
        return self._shown(seen, info), reward, over, cut, info


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


def make_env(env: EnvConfig, maker: Maker | None = None, render_mode: str | None = None) -> gym.Env:
    """One env, as `EnvConfig` or a callable describes it. Raises `UsageError`.

    A PettingZoo parallel env comes as `proximo.envs.agents.Agents`.
    """
    from proximo.envs.agents import Agents, is_parallel

    if maker is None and env.backend == "envpool" and not (":" in env.id or is_registered(env.id)):
        return Pooled(env, render_mode)
    kwargs = dict(env.kwargs)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    arcade = maker is None and env.id.startswith(ARCADE)
    if arcade:
        one_env = _arcade(env, render_mode)
    else:
        made_by = maker or _maker(env)
        one_env = _single(_call(made_by, env, kwargs), _said(made_by, env))
    for name in env.wrappers:
        try:
            wrapped = find(name)(one_env)
        except UsageError:
            raise
        except faults() as error:
            raise UsageError(f"the wrapper {name} failed: {explain(error)}") from error
        one_env = _single(wrapped, f"the wrapper {name}")
    if is_parallel(one_env):
        return Agents(one_env, env)
    if env.max_episode_steps is not None and not arcade:  # which counts frames
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
    """What was made, as one env with Gymnasium's interface, or a PettingZoo parallel env.

    Raises `UsageError` for anything else. maker: what made it, in words.
    """
    from proximo.envs.agents import is_parallel, is_turn_based, parallel_name

    if is_parallel(made):
        return made
    if made is None:
        raise UsageError(f"{maker} returned None: let it end with return, and the env")
    if isinstance(made, type):
        name = made.__name__
        raise UsageError(f"{maker} returned {name}, a class: let it return an env, {name}(...)")
    if isinstance(made, VectorEnv):
        raise UsageError(
            f"{maker} returned {type(made).__name__}, a vector env, where one env is expected: "
            "return one, of which env.num_envs says the number, or give the vector env itself to "
            "proximo.train"
        )
    if is_turn_based(made):
        raise UsageError(
            f"{maker} returned {parallel_name(made)}, a turn-based (AEC) env of "
            "PettingZoo: agents must act at once. Return its parallel_env(), or, where agents "
            "cannot do that, a Gymnasium env in which one of them acts and the others are part of "
            "it"
        )
    missing = [name for name in ("reset", "step") if not callable(getattr(made, name, None))]
    if missing:
        raise UsageError(
            f"{maker} returned {made!r:.80}, of type {type(made).__name__}, which has no method "
            f"{' and no method '.join(missing)}: an env has both"
        )
    check_spaces(made)
    return made if isinstance(made, gym.Env) else Bare(made)


def _limited(env: gym.Env[Any, Any], steps: int) -> gym.Env[Any, Any]:
    """The env with this time limit, in place of that which it has from Gymnasium."""
    found = [layer for layer in layers(env) if isinstance(layer, gym.wrappers.TimeLimit)]
    for layer in found:
        layer._max_episode_steps = steps
    return env if found else gym.wrappers.TimeLimit(env, steps)


def _said(maker: Any, env: EnvConfig) -> str:
    """What makes an env, in words."""
    return env.id or getattr(maker, "__qualname__", f"{maker!r:.80}")


def _call(maker: Callable[..., Any], env: EnvConfig, kwargs: dict[str, Any]) -> Any:
    what = _said(maker, env) + (f" with the arguments {kwargs}" if kwargs else "")
    if not callable(maker):
        raise UsageError(
            f"{what} cannot be made: it is {maker!r:.80}, of type {type(maker).__name__}: name a "
            "class, or a function that returns an env"
        )
    try:
        return maker(**kwargs)
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
    """N envs: from the configuration, a callable that makes one, or a vector env itself.

    first: the number of the first single env, by which its episodes are seeded.
    """
    from proximo.envs.agents import AgentEnvs, Agents

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
        from proximo.envs.tensors import TensorEnvs, held_on

        device = held_on(source, seed)
        return TensorEnvs(source, seed, device) if device else VectorEnvs(source, seed)
    if env.backend == "vector" and env.id.startswith(ARCADE):
        from proximo.envs.arcade import ArcadeEnvs

        _maker(env)  # names the env that does not exist
        return ArcadeEnvs(env, seed, env.threads or cores())
    if env.backend == "vector":
        return VectorEnvs(_native_vector(env), seed)
    if env.backend == "envpool":
        return VectorEnvs(Pool(env, _spaces(env), env.threads or cores()), seed)
    if env.backend == "workers":  # each of its processes comes back here, for sync
        from proximo.envs.workers import WorkerEnvs

        return WorkerEnvs(env, seed, source)
    made = _several(env, source)
    together = [one_env for one_env in made if isinstance(one_env, Agents)]
    return AgentEnvs(together, seed, first) if together else SyncEnvs(made, seed, first)


def _check_given(env: EnvConfig, source: Maker | VectorEnv) -> None:
    """Refuse settings that cannot act on what the caller gives. Raises `UsageError`."""
    if env.backend in ("vector", "envpool"):
        raise UsageError(
            f"env.backend is {env.backend}, which makes envs by their id, but {_said(source, env)} "
            "is given: leave it out"
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
    """Single envs, each of them another one. Raises `UsageError`, and then leaves none open."""
    from proximo.envs.agents import Agents

    made: list[gym.Env[Any, Any]] = []
    try:
        for _ in range(env.num_envs):
            made.append(make_env(env, source))
    except BaseException:
        close_all(made)
        raise
    if len({id(w.parallel if isinstance(w, Agents) else base(w)) for w in made}) < len(made):
        raise UsageError(
            "the callable returned one and the same env twice: make a new one each time"
        )
    return made


def cores() -> int:
    """The processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _spaces(env: EnvConfig) -> tuple[Space, Space] | None:
    """Those of Gymnasium's own env of that name, with which the policy will be used."""
    if not is_registered(env.id):
        return None
    try:
        one_env = make_env(dataclasses.replace(env, kwargs={}))
    except UsageError:  # a package that only Gymnasium's env needs
        return None
    close_all([one_env])
    return one_env.observation_space, one_env.action_space


def has_vector_version(env: EnvConfig) -> bool:
    """Whether the env registers a version of itself that steps many at once."""
    return is_registered(env.id) and gym.registry[env.id].vector_entry_point is not None


def return_threshold(env: EnvConfig) -> float | None:
    """The return at which Gymnasium calls this task solved, where it names one."""
    return gym.registry[env.id].reward_threshold if env.id in gym.registry else None


def time_limit(env: EnvConfig) -> int | None:
    """The steps after which an env cuts off its episodes, where its id has such a limit."""
    return gym.registry[env.id].max_episode_steps if is_registered(env.id) else None


def _maker(env: EnvConfig) -> Maker:
    if not env.id:
        raise UsageError("no env is named: give a Gymnasium id or module:Class")
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


def _registered(name: str, env: EnvConfig, **kwargs: Any) -> gym.Env[Any, Any]:
    # The passive checker looks at the first step only; the rollout is checked whole.
    kwargs = {"max_episode_steps": env.max_episode_steps, "disable_env_checker": True, **kwargs}
    return gym.make(name, **kwargs)


def _user_maker(env: EnvConfig) -> Maker:
    module, attribute = import_module(env.id), env.id.partition(":")[2]
    if attribute in gym.registry and not hasattr(module, attribute):
        return partial(_registered, attribute, env)  # importing it registered it, as for gym.make
    if not all(part.isidentifier() for part in attribute.split(".")):
        raise UsageError(_unregistered(module, attribute))
    maker: Maker = find(env.id)
    return maker


def _unregistered(module: ModuleType, name: str) -> str:
    """What is wrong with `module:ID` where importing the module does not register that id."""
    place, others = module.__name__, [*gym.registry]
    within = [m for key, m in list(sys.modules.items()) if f"{key}.".startswith(f"{place}.")]
    calls = sorted(
        {
            f"{each.__module__}.{key}()"
            for part in within
            for key, each in vars(part).items()
            if "register" in key and getattr(each, "__module__", "").split(".")[0] == place
        }
    )
    near = nearest(name, others)
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
