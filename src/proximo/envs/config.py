"""The `env` section of a configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from proximo.bounds import above, at_least
from proximo.disk import warn
from proximo.errors import UsageError, check_values


def cores() -> int:
    """The processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


MOVED = {f"proximo.envs.{name}": f"proximo.envs.testing.{name}" for name in ("probes", "puzzles")}
"""Modules of envs by the names that they had in earlier versions."""


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The envs to learn in."""

    id: str = ""
    """The name of an env, as Gymnasium, ALE, MiniGrid, PettingZoo or EnvPool have it, suite:name
    for envs in JAX (gymnax:CartPole-v1), or module:Class (imported from the current folder or the
    environment)."""
    num_envs: Annotated[int, at_least(1)] = 4
    """N, the number of parallel envs (the paper's actors)."""
    kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Arguments for the env's constructor, as KEY VALUE pairs."""
    wrappers: tuple[str, ...] = ()
    """Wrappers of each single env, the innermost first: module:Class, called with the env."""
    max_episode_steps: Annotated[int | None, at_least(1)] = None
    """Time limit in steps; by default the env's own. It replaces a limit of Gymnasium's, and cannot
    lengthen what an env ends by itself."""
    stagger: bool = False
    """Begin the first episode of each env at a random step of the time limit, so that episodes do
    not end all at once (rsl_rl's init_at_random_ep_len; arXiv 2511.21011). These first episodes are
    not scored."""
    backend: Literal["auto", "sync", "native", "workers", "vector", "envpool"] = "auto"
    """sync: single envs in turn. native: compiled envs, from files in C or C++ (auto: for
    native:FILE.c, and for classic control and MuJoCo, with Gymnasium's numbers). workers: in
    processes of their own, for those that are slow or crash. vector: the version of many that the
    env registers (auto: from 32 envs, and for Atari). envpool: EnvPool's, in C++."""
    check: bool = True
    """Play an env apart for a moment before training, and look for mistakes in it."""
    threads: Annotated[int, at_least(0)] = 0
    """Threads that step the envs (Atari, MuJoCo and EnvPool only); 0: as many as run.threads says,
    or all cores."""
    processes: Annotated[int, at_least(0)] = 0
    """Processes that the envs are spread over (workers only); 0: all cores."""
    timeout: Annotated[float, above(0)] = 60.0
    """Seconds that one step or reset of an env may take (workers only)."""
    restarts: Annotated[int, at_least(0)] = 3
    """How often an env may fail within 10,000 steps (workers only): it begins a new episode, and
    one time more ends the run."""
    action_masks: Literal["observation", "info", "method"] = "observation"
    """Place of an env's action masks, if it has any: the key action_mask of its observation or its
    info, or a method action_masks()."""
    reward_shift: float = 0.0
    """Added to every reward, before `reward_scale`. Logged returns stay in the env's units."""
    reward_scale: float = 1.0
    """Every reward is multiplied by this constant; algorithm.normalize_reward adapts it."""
    reward_clip: Annotated[float | None, above(0)] = None
    """Rewards are then cut off at plus and minus this; none leaves them."""

    def __post_init__(self) -> None:
        check_values("env", self)
        module, _, name = self.id.partition(":")
        if name and module in MOVED:
            warn(f"{self.id} is named {MOVED[module]}:{name} now")
            object.__setattr__(self, "id", f"{MOVED[module]}:{name}")
        for name in self.wrappers:
            if not all(name.partition(":")):
                raise UsageError(f"env.wrappers holds {name!r}: name a wrapper as module:Class")

    def shape_reward(self, reward: Any) -> Any:
        """clip((r + shift) * scale): the reward to learn from, of an array or a tensor."""
        shaped, most = (reward + self.reward_shift) * self.reward_scale, self.reward_clip
        return shaped if most is None else shaped.clip(-most, most)
