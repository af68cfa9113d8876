"""Compiled environments: files in C or C++ by the interface of native/proximo_env.h.

Those that Proximo ships compute what Gymnasium's envs of these names compute, to the last bit, as
long as both use the same mathematical library.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from proximo import native
from proximo.envs.base import Envs, by_step, first_step
from proximo.envs.check import check_made
from proximo.envs.config import EnvConfig
from proximo.envs.watch import SEED, Checked
from proximo.errors import UsageError
from proximo.types import EnvState, NativeCall, RolloutBuffer

PREFIX = "native:"
"""Begins the name of an env of the user's own: native:FILE."""
FOLDER = native.FOLDER
VERSION, STEPPER_VERSION = 1, 4
"""Of proximo_env.h, and of the library that steps the envs."""
SHIPPED = {
    "Acrobot-v1": "acrobot",
    "CartPole-v1": "cartpole",
    "MountainCar-v0": "mountain_car",
    "MountainCarContinuous-v0": "mountain_car_continuous",
    "Pendulum-v1": "pendulum",
}
"""Gymnasium's name -> file in native/envs."""
FLAGS = ("-O3", "-fPIC", "-shared", "-ffp-contract=off", "-w", f"-I{FOLDER}")
"""Of the compiler; without contraction, sums of products round as they do elsewhere."""
GUARD = 64
"""Numbers behind an observation and bytes behind a state that an env must not touch."""
CRASH = (
    "a crash ends this process, in which {name} is stepped: --env.backend workers steps it in "
    "processes of its own, replaces those that crash, and names the env and the step"
)
MOST_FAULTS = 3
"""Errors of a compiler that are shown."""

Reset = ctypes.CFUNCTYPE(None, c_void_p, c_uint64, c_void_p)
Step = ctypes.CFUNCTYPE(None, c_void_p, c_int64, *[c_void_p] * 6)
_Render = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)


class EnvDescription(ctypes.Structure):
    """ProximoEnv of proximo_env.h."""

    _fields_ = (
        ("version", c_int32),
        ("obs_size", c_int32),
        ("obs_low", ctypes.POINTER(c_float)),
        ("obs_high", ctypes.POINTER(c_float)),
        ("num_actions", c_int32),
        ("action_size", c_int32),
        ("action_low", ctypes.POINTER(c_float)),
        ("action_high", ctypes.POINTER(c_float)),
        ("state_size", c_int64),
        ("max_episode_steps", c_int32),
        ("render_width", c_int32),
        ("render_height", c_int32),
        ("reset", Reset),
        ("step", Step),
        ("render", _Render),
    )


class _Steps(ctypes.Structure):
    """ProximoSteps of stepper.cpp."""

    names = ("choices", "actions", "obs", "reward", "terminated", "done", "episode")
    _fields_ = tuple((name, c_void_p) for name in names)


class Description(NamedTuple):
    """What an env says of itself, and where: it lives as long as the process."""

    name: str
    env: Any
    obs_space: gym.Space[Any]
    action_space: gym.Space[Any]


@cache
def stepper() -> tuple[Any, str]:
    """The library that steps compiled envs, or None and why not."""
    library, missing = native.load(
        FOLDER / "stepper.so", "proximo_stepper_version", STEPPER_VERSION
    )
    if library is None:
        return None, missing
    library.proximo_stepper_open.restype = c_void_p
    library.proximo_stepper_open.argtypes = [c_void_p, *[c_int64] * 5]
    library.proximo_stepper_states.restype = c_void_p
    library.proximo_stepper_states.argtypes = [c_void_p]
    library.proximo_stepper_close.argtypes = [c_void_p]
    library.proximo_stepper_stagger.argtypes = [c_void_p] * 2
    library.proximo_stepper_reset.argtypes = [c_void_p] * 4
    library.proximo_stepper_run.argtypes = [*[c_void_p] * 4, c_int64, c_int64]
    library.proximo_stepper_ended.restype = c_int64
    library.proximo_stepper_ended.argtypes = [c_void_p] * 3
    library.proximo_stepper_replay.argtypes = [
        c_void_p,
        c_int64,
        *[c_void_p] * 2,
        c_int64,
        c_void_p,
    ]
    return library, ""


def is_own(name: str) -> bool:
    """The name of an env of the user's own: native:FILE."""
    return name.startswith(PREFIX)


def obstacle(env: EnvConfig) -> str:
    """Why these envs cannot be compiled ones, in a few words; empty if they can."""
    if not (is_own(env.id) or env.id in SHIPPED):
        return f"there is no compiled version of {env.id}"
    return unlike(env) or missing(env.id)


def unlike(env: EnvConfig) -> str:
    """What these settings ask for that no compiled env does, in a few words; empty: nothing."""
    if env.wrappers:
        return f"{', '.join(env.wrappers)} wrap single envs"
    if env.action_masks != "observation":
        return f"env.action_masks is {env.action_masks}"
    if env.kwargs:
        return f"env.kwargs holds {', '.join(env.kwargs)}"
    return ""


def missing(name: str) -> str:
    """What this env lacks here, in a few words; empty: nothing. Own files are compiled later."""
    if is_own(name) or (FOLDER / "envs" / f"{SHIPPED[name]}.so").is_file():
        return stepper()[1]
    return stepper()[1] or native.NOT_BUILT


def describe(name: str) -> Description:
    """The env of this name, compiled if need be. Raises `UsageError`."""
    if not is_own(name):
        return _load(name, FOLDER / "envs" / f"{SHIPPED[name]}.so")
    path = Path(name.removeprefix(PREFIX))
    if path.suffix not in (".c", ".cpp", ".cc", ".cxx"):
        raise UsageError(f"{name} names no file in C or C++: give native:FILE.c or native:FILE.cpp")
    if not path.is_file():
        raise UsageError(f"{name}: there is no file {path}")
    built, library = _compiled(path), stepper()[0]
    if library is not None:
        library.proximo_stepper_on_crash(f"proximo: {CRASH.format(name=name)}\n".encode())
    return _load(name, built)


def _compiled(path: Path) -> Path:
    """The library of a source, from the cache where it was compiled before. Raises `UsageError`."""
    found = shlex.split(os.environ.get("CXX", ""))
    found = found or [name for name in ("g++", "c++", "clang++") if shutil.which(name)][:1]
    if not found:
        raise UsageError(f"{path} needs a C++ compiler: install g++ or clang, or name one in CXX")
    language = "c" if path.suffix == ".c" else "c++"
    begin = [*found, "-x", language, *FLAGS]
    # What the preprocessor makes of it holds every header too.
    source = _run([*begin, "-E", "-P", str(path)], path)
    digest = hashlib.sha256("\0".join([*begin, source]).encode()).hexdigest()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "proximo" / "envs"
    library = folder / f"{path.stem}-{digest[:32]}.so"
    if library.is_file():
        return library
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Path(place) / library.name
            _run([*begin, str(path), "-o", str(made), "-lm"], path)
            made.replace(library)  # whole, or not at all
    except OSError as error:
        raise UsageError(
            f"{path} is compiled in {folder}, which cannot be written ({error.strerror}): name "
            "another folder in XDG_CACHE_HOME"
        ) from error
    return library


def _run(words: list[str], path: Path) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise UsageError(
            f"{path} needs a C++ compiler, and {words[0]} cannot be run ({error.strerror}): name "
            "another one in CXX"
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason is given"]
        # Errors in a line of the source; else it is the linker or the disk, in words of its own.
        faults = [line for line in lines if re.search(r":\d+: .*error", line)] or lines
        text = "; ".join(line.replace(f"{path.parent}/", "") for line in faults[:MOST_FAULTS])
        raise UsageError(f"{path} does not compile: {text}")
    return done.stdout


@cache
def _load(name: str, path: Path) -> Description:
    """Raises `UsageError` for a library that describes no env."""
    try:
        function = ctypes.CDLL(str(path)).proximo_env
    except (OSError, AttributeError) as error:
        raise UsageError(
            f"{name} defines no proximo_env: const ProximoEnv* proximo_env(void) describes it "
            f"({error})"
        ) from error
    function.restype = ctypes.POINTER(EnvDescription)
    pointer = function()
    if not pointer:
        raise UsageError(f"{name}: proximo_env returned NULL: let it return a description")
    env = pointer.contents
    wrong = {
        f"version is {env.version}: it must be PROXIMO_ENV_VERSION, {VERSION}": (
            env.version != VERSION
        ),
        f"obs_size is {env.obs_size}: it must be at least 1": env.obs_size < 1,
        f"num_actions is {env.num_actions} and action_size {env.action_size}: one of them must be "
        "at least 1, and the other 0": (
            min(env.num_actions, env.action_size) != 0 or max(env.num_actions, env.action_size) < 1
        ),
        f"state_size is {env.state_size}: it must be at least 1": env.state_size < 1,
        "reset or step is NULL": not (env.reset and env.step),
        f"max_episode_steps is {env.max_episode_steps}: it must be at least 0": (
            env.max_episode_steps < 0
        ),
        "render needs render_width and render_height": bool(env.render)
        and min(env.render_width, env.render_height) < 1,
    }
    for text, holds in wrong.items():
        if holds:
            raise UsageError(f"{name}: its {text}")
    observations = _box(env.obs_low, env.obs_high, env.obs_size)
    if env.num_actions:
        return Description(name, env, observations, spaces.Discrete(env.num_actions))
    return Description(
        name, env, observations, _box(env.action_low, env.action_high, env.action_size)
    )


def _box(low: Any, high: Any, size: int) -> spaces.Box:
    def bound(numbers: Any, default: float) -> np.ndarray:
        found = numbers[:size] if numbers else [default] * size
        return np.array(found, np.float32)

    return spaces.Box(bound(low, -np.inf), bound(high, np.inf), dtype=np.float32)


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


class CompiledEnv(gym.Env[np.ndarray, Any]):
    """One compiled env with Gymnasium's interface: to check, to play, to evaluate in."""

    def __init__(self, name: str, render_mode: str | None = None) -> None:
        self._name, self._env, self.observation_space, self.action_space = describe(name)
        drawn = ["rgb_array"] if self._env.render else []
        self.metadata = {"render_modes": drawn, "render_fps": 30}
        if render_mode not in (None, *drawn):
            raise UsageError(
                f"{name} has no render mode {render_mode!r}: a file that defines render has "
                "rgb_array"
            )
        self.render_mode = render_mode
        size = self._env.state_size
        self._memory = np.zeros(size + GUARD + 16, np.uint8)
        begin = -self._memory.ctypes.data % 16
        self._state = self._memory[begin : begin + size]
        self._behind_state = self._memory[begin + size : begin + size + GUARD]
        self._obs = np.zeros(self._env.obs_size + GUARD, np.float32)
        self._reward = np.zeros(1)
        self._flags = np.zeros(2, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**32)) if seed is None else seed
        self._obs[: self._env.obs_size] = np.nan  # what is left out is noticed
        self._env.reset(self._state.ctypes.data, number, self._obs.ctypes.data)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        choice = given = None
        if self._env.num_actions:
            choice = np.array([action], np.int64)
        else:
            given = np.array(action, np.float32).reshape(self._env.action_size)
        self._obs[: self._env.obs_size] = self._reward[0] = np.nan
        self._flags[:] = 255, 0
        self._env.step(
            self._state.ctypes.data,
            1,
            _address(choice),
            _address(given),
            self._obs.ctypes.data,
            self._reward.ctypes.data,
            self._flags.ctypes.data,
            self._flags[1:].ctypes.data,
        )
        if self._flags[0] == 255:
            raise UsageError(f"{self._name}: its step does not set terminated: give 0 or 1")
        terminated, truncated = (bool(flag) for flag in self._flags)
        return self._seen(), float(self._reward[0]), terminated, truncated, {}

    def _seen(self) -> np.ndarray:
        """The observation. Raises `UsageError` for an env that has written behind it."""
        size = self._env.obs_size
        if self._obs[size:].any():
            raise UsageError(f"{self._name} writes beyond its observation: its obs_size is {size}")
        if self._behind_state.any():
            size = self._env.state_size
            raise UsageError(f"{self._name} writes beyond its state: its state_size is {size}")
        return self._obs[:size].copy()

    def render(self) -> Any:
        if self.render_mode is None:
            return None
        picture = np.zeros((self._env.render_height, self._env.render_width, 3), np.uint8)
        self._env.render(self._state.ctypes.data, picture.ctypes.data)
        return picture


def make_compiled(name: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """A `CompiledEnv` with its time limit. Raises `UsageError`."""
    env = CompiledEnv(name, render_mode)
    limit = describe(name).env.max_episode_steps
    return gym.wrappers.TimeLimit(env, limit) if limit else env


class CompiledEnvs(Envs):
    """N compiled envs in step; with a native actor, whole rollouts in one call.

    Each episode begins from its own seed, as those of `SyncEnvs`: the data are the same.
    """

    replayable = True

    def __init__(
        self,
        description: Description,
        env: EnvConfig,
        seed: int,
        first: int = 0,
        *,
        known: tuple[gym.Space[Any], gym.Space[Any]] | None = None,
        threads: int = 1,
    ) -> None:
        """known: the spaces of Gymnasium's env of that name. threads: that step the envs."""
        self._library, self._description = stepper()[0], description
        described = description.env
        super().__init__(
            env.num_envs, *(known or (description.obs_space, description.action_space))
        )
        self._known = known is not None
        self._limit = env.max_episode_steps or described.max_episode_steps
        self._discrete = bool(described.num_actions)
        numbers = range(first, first + env.num_envs) if env.stagger else ()
        begins = np.array([first_step(seed, i, self.time_limit) for i in numbers], np.int64)
        self._handle = self._library.proximo_stepper_open(
            ctypes.byref(described), env.num_envs, seed, first, self._limit, threads
        )
        if not self._handle:
            raise MemoryError(f"there is no memory for {env.num_envs} envs")
        self.stagger = env.stagger
        if env.stagger:
            self._library.proximo_stepper_stagger(self._handle, begins.ctypes.data)

    @property
    def time_limit(self) -> int | None:
        return self._limit or None

    def _begin(self, state: EnvState, begun: np.ndarray) -> np.ndarray:
        obs = np.zeros((self.count, *self.observations.shape), np.float32)
        if not begun.all():
            obs[:] = state.obs
        self._reset(state, begun, obs)
        return obs

    def _reset(self, state: EnvState, begun: np.ndarray, obs: np.ndarray) -> None:
        """Begin the running episode of the state in these envs, [N] bool."""
        self._library.proximo_stepper_reset(
            self._handle, begun.ctypes.data, state.episode.ctypes.data, obs.ctypes.data
        )

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        self._run(self._rows_of(state, buffer), buffer, NativeCall(None, None), t, t + 1)

    def with_actor(
        self, act: NativeCall | None, state: EnvState, buffer: RolloutBuffer
    ) -> Callable[[int, int], None] | None:
        if act is None:
            return None
        rows = self._rows_of(state, buffer)
        return lambda begin, end: self._run(rows, buffer, act, begin, end)

    def _rows_of(self, state: EnvState, buffer: RolloutBuffer) -> _Steps:
        given = "choices" if self._discrete else "actions"
        arrays = {name: getattr(buffer, name) for name in ("obs", "reward", "terminated", "done")}
        arrays |= {"episode": state.episode, given: buffer.env_action}
        return _Steps(**{name: array.ctypes.data for name, array in arrays.items()})

    def _run(
        self, rows: _Steps, buffer: RolloutBuffer, act: NativeCall, begin: int, end: int
    ) -> None:
        call = (self._handle, ctypes.byref(rows), *act, begin, end)
        if self._library.proximo_stepper_run(*call):
            raise MemoryError("there is no memory for the last observations of episodes")
        index, obs = ctypes.POINTER(c_int64)(), ctypes.POINTER(c_float)()
        ended = self._library.proximo_stepper_ended(
            self._handle, ctypes.byref(index), ctypes.byref(obs)
        )
        if ended:
            shape = (ended, *self.observations.shape)
            seen = np.ctypeslib.as_array(obs, shape).copy()
            places = (divmod(number, self.count) for number in index[:ended])
            buffer.final_obs.extend((t, i, o) for (t, i), o in zip(places, seen, strict=True))

    def _bring_back(self, state: EnvState) -> bool:
        obs = np.zeros_like(state.obs)
        self._reset(state, np.ones(self.count, bool), obs)
        for i in range(self.count):
            if given := by_step(state, self._rows(i)):
                kind = np.int64 if self._discrete else np.float32
                log: np.ndarray = np.ascontiguousarray(np.stack(given), kind)
                count = self._description.env.num_actions
                if self._discrete and not np.isin(log, range(count)).all():  # C checks nothing
                    raise UsageError(
                        f"the envs cannot be replayed: an action is not one of {self.action_space}"
                    )
                choices, actions = (log, None) if self._discrete else (None, log)
                self._library.proximo_stepper_replay(
                    *(self._handle, i, _address(choices), _address(actions)),
                    *(len(log), obs[i].ctypes.data),
                )
        return np.array_equal(obs, state.obs)

    def check(self) -> Checked | None:
        if self._known:
            return None
        checked = check_made(lambda: self.apart().single)
        self._check_several()
        return checked

    def _check_several(self) -> None:
        """Several envs in one call must do what they do alone. Raises `UsageError`."""
        env, width = self._description.env, self._description.env.obs_size
        singles = [CompiledEnv(self._description.name) for _ in range(3)]
        for number, single in enumerate(singles):
            single.reset(seed=number)
            single.action_space.seed(SEED + number)
        memory = np.zeros(3 * env.state_size + 16, np.uint8)
        states = memory[-memory.ctypes.data % 16 :][: 3 * env.state_size]
        for number in range(3):
            at = states[number * env.state_size :]
            env.reset(at.ctypes.data, number, np.zeros(width, np.float32).ctypes.data)
        drawn = np.array([single.action_space.sample() for single in singles])
        drawn = drawn.astype(np.int64 if self._discrete else np.float32)
        obs, reward = np.zeros((3, width), np.float32), np.zeros(3)
        flags = np.zeros((2, 3), np.uint8)
        env.step(
            *(states.ctypes.data, 3),
            *((drawn.ctypes.data, None) if self._discrete else (None, drawn.ctypes.data)),
            *(obs.ctypes.data, reward.ctypes.data, flags[0].ctypes.data, flags[1].ctypes.data),
        )
        for number, single in enumerate(singles):
            alone = single.step(drawn[number])
            together = (obs[number], reward[number], *flags[:, number])
            pairs = zip(alone, together, strict=False)  # without the info
            if not all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs):
                raise UsageError(
                    f"{self._description.name}: env {number} of 3 in one call of step gives "
                    f"{together}, but alone {alone[:4]}: step all `count` envs, each in its own "
                    "state and row"
                )

    def _close(self) -> list[str]:
        if self._handle:
            self._library.proximo_stepper_close(self._handle)
            self._handle = None
        return []
