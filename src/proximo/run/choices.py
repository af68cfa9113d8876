"""What `auto` settles on: rules on sizes, never on a timing, so that the same gives the same."""

from __future__ import annotations

import torch

from proximo.algorithms.base import OnPolicy
from proximo.engines.base import Engine
from proximo.engines.library import obstacle
from proximo.engines.native import NativeEngine
from proximo.engines.torch import TorchEngine
from proximo.envs import mujoco
from proximo.envs.compiled import SHIPPED
from proximo.envs.config import EnvConfig, cores
from proximo.envs.make import has_vector_version, lacking, not_compiled
from proximo.envs.registries import ARCADE
from proximo.envs.suites import suite_of
from proximo.errors import UsageError
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.optimizer import FlatOptimizer

SMALL = 1_000_000
"""Parameters up to which a network runs on the CPU, and PyTorch's operations on one thread."""
MANY_ENVS = 32
"""Envs from which their vector version is worth that a resumed run begins new episodes."""
WORTH_A_THREAD = 500_000
"""Parameters x samples of a minibatch from which a second thread is worth the waiting for it."""


def size(policy: ActorCritic) -> int:
    """The number of its parameters."""
    return sum(p.numel() for p in policy.parameters())


def choose_backend(env: EnvConfig, *, given: bool) -> tuple[str, str]:
    """What steps the envs, and why. `given`: the caller brings the envs."""
    like_gymnasium = env.id in SHIPPED or env.id in mujoco.STEPPED
    if env.backend == "native" and like_gymnasium and (text := lacking(env.id)):
        return "sync", f"one after the other, in Python: {text}"
    if env.backend != "auto":
        return env.backend, "as set"
    if not given and not not_compiled(env):
        same = ", with Gymnasium's numbers" if like_gymnasium else ""
        return "native", f"compiled{same}"
    if env.wrappers:
        return "sync", "one after the other, each in its wrappers"
    if env.id.startswith(ARCADE) and not given:
        return "vector", "the games' own, in C++"
    if suite_of(env.id) and not given and env.action_masks == "observation":
        return "vector", "the suite's own, as tensors"
    single = given or env.action_masks != "observation"
    if single or env.num_envs < MANY_ENVS or not has_vector_version(env):
        return "sync", "one after the other"
    return "vector", f"{env.num_envs} envs in one; a resumed run begins new episodes"


def has_threads(env: EnvConfig) -> bool:
    """The backend steps these envs on threads of its own."""
    of_some = {"vector": env.id.startswith(ARCADE), "native": env.id in mujoco.STEPPED}
    return of_some.get(env.backend, env.backend == "envpool")


def check_backend(env: EnvConfig) -> None:
    """Refuse settings of the backend that have no effect with this one. Raises `UsageError`."""
    unused = [] if has_threads(env) else [("threads", "for Atari, MuJoCo and EnvPool")]
    if env.backend != "workers":
        names = ("processes", "timeout", "restarts")
        unused += [(name, "for --env.backend workers") for name in names]
    for name, what in unused:
        value = getattr(env, name)
        if value != getattr(EnvConfig, name):
            raise UsageError(
                f"env.{name} is {value}, which is {what} only, and the backend is {env.backend}: "
                "leave it out"
            )


def choose_device(
    wish: str, policy: ActorCritic, held_on: torch.device | None = None
) -> tuple[str, str]:
    """Device of the networks, and why. held_on: that of the envs' tensors. Raises `UsageError`."""
    if held_on is not None:
        if wish not in ("auto", held_on.type):
            raise UsageError(
                f"run.device is {wish}, but the envs hold tensors on {held_on}: use auto"
            )
        if held_on.type == "cuda" and held_on.index not in (None, torch.cuda.current_device()):
            raise UsageError(
                f"the envs hold tensors on {held_on}, but the networks would be on "
                f"cuda:{torch.cuda.current_device()}: call torch.cuda.set_device first"
            )
        return held_on.type, "where the envs' tensors are"
    if wish == "auto":
        if size(policy) <= SMALL:
            return "cpu", "small networks are faster there"
        return ("cuda", "a large network") if torch.cuda.is_available() else ("cpu", "no GPU")
    if wish != "cpu" and not getattr(torch, wish).is_available():
        raise UsageError(f"run.device is {wish}, but PyTorch finds none here: use cpu or auto")
    return wish, "as set"


def choose_engine(
    wish: str, algorithm: OnPolicy, policy: ActorCritic, *, loss_terms: bool = False
) -> tuple[str, str]:
    """The engine that acts and computes the updates, and why. A rule on sizes, never on a timing.

    auto: native where it can be, else torch. loss_terms: callbacks add some to the loss. Raises
    `UsageError` where the wish cannot be met.
    """
    if loss_terms and algorithm.separate_optimizers:
        raise UsageError(
            f"a callback adds a loss term, but {algorithm.name} has no one loss for actor and "
            "critic: use ppo, ppo-penalty, a2c or reinforce"
        )
    cannot_compile = {
        f"{algorithm.name} has no one loss": algorithm.q_critic,
        "the policy is recurrent": policy.state_size,
        "net.module is code of your own": policy.own,
        "algorithm.minibatches is episodes, each of a length of its own, which would all have to "
        "be compiled": algorithm.minibatches == "episodes",
    }
    for hindrance, holds in cannot_compile.items():
        if wish == "compile" and holds:
            raise UsageError(f"run.engine is compile, but {hindrance}: use torch or auto")
    if wish in ("torch", "compile"):
        return wish, "as set"
    hindrance = "a callback adds a loss term" if loss_terms else ""
    hindrance = hindrance or obstacle(policy, algorithm.native_spec(algorithm.coefficients(0.0)))
    if not hindrance:
        return "native", "a small network on a CPU"
    if wish == "native":
        raise UsageError(f"run.engine is native, but {hindrance}: use torch or auto")
    return "torch", f"not native: {hindrance}"


def make_engine(name: str, policy: ActorCritic, optimizer: FlatOptimizer, threads: int) -> Engine:
    """torch, compile or native."""
    if name == "native":
        return NativeEngine(policy, optimizer, threads)
    return TorchEngine(policy, optimizer, compiled=name == "compile")


def choose_threads(wish: int, engine: str, policy: ActorCritic, samples: int) -> int:
    """Threads of the native engine, or of PyTorch's operations. samples: of a minibatch."""
    if wish:
        return min(wish, cores())
    if engine == "native":
        apart = policy.critic is not None
        worth = size(policy) * samples >= WORTH_A_THREAD
        return min(2, cores()) if apart and worth else 1
    return 1 if size(policy) <= SMALL else torch.get_num_threads()
