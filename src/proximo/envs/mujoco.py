"""Gymnasium's MuJoCo envs (v5), stepped in C: the numbers of their Python code, in less time.

Gymnasium makes and resets them. Between two resets native/envs/mujoco.c calls MuJoCo's own library:
no Python per step, and any number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from proximo import native
from proximo.envs import compiled
from proximo.envs.compiled import CompiledEnvs, Description
from proximo.envs.config import EnvConfig, cores
from proximo.envs.layers import close_all
from proximo.envs.library_warnings import show_mujoco_once
from proximo.errors import faults
from proximo.types import EnvState, NativeCall, RolloutBuffer

STEPPED = {
    "Ant-v5": "ant",
    "HalfCheetah-v5": "half_cheetah",
    "Hopper-v5": "hopper",
    "Humanoid-v5": "humanoid",
    "HumanoidStandup-v5": "humanoid_standup",
    "InvertedDoublePendulum-v5": "inverted_double_pendulum",
    "InvertedPendulum-v5": "inverted_pendulum",
    "Pusher-v5": "pusher",
    "Reacher-v5": "reacher",
    "Swimmer-v5": "swimmer",
    "Walker2d-v5": "walker2d",
}
"""Gymnasium's name -> function of native/envs/mujoco.c."""
BODIES = {
    "pusher": ("tips_arm", "object", "goal"),
    "reacher": ("fingertip", "target"),
}
"""Whose positions are looked at."""
CONTACTS = ("ant", "humanoid", "humanoid_standup")
"""Those that show the forces of contacts, which MuJoCo computes apart."""
LIBRARY = native.FOLDER / "envs" / "mujoco.so"
TRIED = 8
"""Steps that are compared with Gymnasium's before an env is stepped in C."""


class _Env(ctypes.Structure):
    """Mujoco of native/envs/mujoco.c: where MuJoCo keeps the state of one env."""

    arrays = ("ctrl", "qpos", "qvel", "xpos", "xipos", "site_xpos", "cinert", "cvel")
    forces = ("qfrc_actuator", "qfrc_constraint", "cfrc_ext")
    sizes = ("nq", "nv", "nu", "nbody")
    _fields_ = (
        *((name, c_void_p) for name in ("simulate", "contacts", "model", "data")),
        *((name, c_void_p) for name in (*arrays, *forces, "body_mass")),
        *((name, c_double) for name in ("total_mass", "timestep")),
        *((name, c_int64) for name in ("obs_size", *sizes, "frame_skip")),
        ("bodies", c_int64 * 3),
    )

    def set(self, name: str, env: Any) -> None:
        """Refer to this env, whose steps the function of this name takes. It must stay alive."""
        library, model, data = _mujoco(), env.model, env.data
        self.simulate = _address(library.mj_step)
        self.contacts = _address(library.mj_rnePostConstraint) if name in CONTACTS else None
        self.model, self.data = model._address, data._address
        for array in (*self.arrays, *self.forces):
            setattr(self, array, getattr(data, array).ctypes.data)
        self.body_mass = model.body_mass.ctypes.data
        self.total_mass, self.timestep = np.sum(model.body_mass), model.opt.timestep
        for size in self.sizes:
            setattr(self, size, getattr(model, size))
        self.obs_size, self.frame_skip = env.observation_space.shape[0], env.frame_skip
        for k, body in enumerate(BODIES.get(name, ())):
            self.bodies[k] = model.body(body).id


def _address(function: Any) -> int | None:
    return ctypes.cast(function, c_void_p).value


@cache
def _mujoco() -> Any:
    """MuJoCo's library, which its package has loaded."""
    import mujoco

    show_mujoco_once(mujoco)
    (path,) = Path(mujoco.__file__).parent.glob("libmujoco*.*")
    return ctypes.CDLL(str(path))


@cache
def _steps() -> Any:
    """The library of native/envs/mujoco.c. Raises `OSError`."""
    library = ctypes.CDLL(str(LIBRARY))
    library.proximo_mujoco_size.restype = c_int64
    if library.proximo_mujoco_size() != ctypes.sizeof(_Env):
        raise OSError("it is of another version: install Proximo again")
    return library


def _step_of(name: str) -> Any:
    """The step of proximo_env.h."""
    return ctypes.cast(getattr(_steps(), f"proximo_{name}"), compiled.Step)


def obstacle(env: EnvConfig) -> str:
    """Why these envs cannot be stepped in C, in a few words; empty if they can."""
    if env.id not in STEPPED:
        return f"there is no compiled version of {env.id}"
    return compiled.unlike(env) or missing(env.id)


@cache
def missing(name: str) -> str:
    """Why this env cannot be stepped in C as it is installed here; empty if it can."""
    if not LIBRARY.is_file() or compiled.stepper()[0] is None:
        return compiled.stepper()[1] or native.NOT_BUILT
    try:
        same = _same_as_gymnasium(name)
    except (ImportError, gym.error.DependencyNotInstalled):
        return "MuJoCo is not installed"
    except faults() as error:
        return f"its first steps failed ({error})"
    return "" if same else "its first steps are not those of this version of Gymnasium"


def _same_as_gymnasium(name: str) -> bool:
    """The first steps agree, whatever this version of Gymnasium or MuJoCo has changed."""
    _mujoco()
    one: Any = gym.make(name, disable_env_checker=True).unwrapped
    other: Any = gym.make(name, disable_env_checker=True).unwrapped
    state, step = _Env(), _step_of(STEPPED[name])
    state.set(STEPPED[name], one)
    one.reset(seed=0)
    other.reset(seed=0)
    same, draws = True, np.random.default_rng(0)
    low, high = one.action_space.low, one.action_space.high
    obs, reward, flags = np.zeros(state.obs_size, np.float32), np.zeros(1), np.zeros(2, np.uint8)
    for _ in range(TRIED):
        action = draws.uniform(low, high).astype(np.float32)
        places = (action, obs, reward, flags[:1], flags[1:])
        step(ctypes.byref(state), 1, None, *(place.ctypes.data for place in places))
        seen, paid, terminated, truncated, _ = other.step(action)
        same &= np.allclose(obs, seen, 1e-6, 1e-6) and np.allclose(reward, paid, 1e-9)
        same &= flags.tolist() == [terminated, truncated]
        if terminated:
            break
    one.close()
    other.close()
    return bool(same)


class MujocoEnvs(CompiledEnvs):
    """N of Gymnasium's MuJoCo envs; each episode begins from its own seed, as in `SyncEnvs`."""

    def __init__(
        self, env: EnvConfig, singles: Sequence[gym.Env[Any, Any]], seed: int, first: int = 0
    ) -> None:
        name, made = STEPPED[env.id], singles[0]
        self._singles: list[Any] = [single.unwrapped for single in singles]
        self._failed: BaseException | None = None
        limit = made.spec.max_episode_steps if made.spec else None
        described = compiled.EnvDescription(
            version=compiled.VERSION,
            obs_size=np.size(made.observation_space.sample()),
            action_size=np.size(made.action_space.sample()),
            state_size=ctypes.sizeof(_Env),
            max_episode_steps=limit or 0,
            reset=compiled.Reset(self._answer),
            step=_step_of(name),
        )
        spaces = made.observation_space, made.action_space
        threads = env.threads or cores()
        description = Description(env.id, described, *spaces)
        super().__init__(description, env, seed, first, known=spaces, threads=threads)
        self._place = self._library.proximo_stepper_states(self._handle)
        for i, single in enumerate(self._singles):
            _Env.from_address(self._place + i * ctypes.sizeof(_Env)).set(name, single)

    def _answer(self, place: int, seed: int, obs: int) -> None:
        """Reset the env whose state lies there. C calls it, and an error must not end in C."""
        try:
            env = self._singles[(place - self._place) // ctypes.sizeof(_Env)]
            seen, _ = env.reset(seed=seed)
            (c_float * len(seen)).from_address(obs)[:] = seen.tolist()
        except BaseException as error:
            self._failed = self._failed or error

    def _reset(self, state: EnvState, begun: np.ndarray, obs: np.ndarray) -> None:
        super()._reset(state, begun, obs)
        self._raise()

    def _run(self, rows: Any, buffer: RolloutBuffer, act: NativeCall, begin: int, end: int) -> None:
        super()._run(rows, buffer, act, begin, end)
        self._raise()

    def _raise(self) -> None:
        failed, self._failed = self._failed, None
        if failed:
            raise failed

    def _close(self) -> list[str]:
        texts = super()._close()
        return [*texts, *close_all(self._singles)]
