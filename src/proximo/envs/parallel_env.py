"""A PettingZoo parallel env: several agents in one env, all acting at once."""

from __future__ import annotations

import itertools
import sys
from typing import Any, Literal

import gymnasium as gym

from proximo.envs.config import EnvConfig
from proximo.errors import UsageError

ByAgent = dict[Any, Any]


def is_pettingzoo(env: Any, kind: Literal["ParallelEnv", "AECEnv"]) -> bool:
    """This is an env of PettingZoo, of this class: there is none before that is imported."""
    pettingzoo = sys.modules.get("pettingzoo")
    return pettingzoo is not None and isinstance(env, getattr(pettingzoo, kind))


def parallel_name(env: Any) -> str:
    """Name of an env of PettingZoo in its metadata, or the name of its class."""
    metadata = getattr(env, "metadata", None)
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else type(env).__name__


class ParallelEnv(gym.Env[ByAgent, ByAgent]):
    """A parallel env: observations, actions, rewards and ends come by agent.

    The spaces are those of every single agent. An agent that has ended is no longer in `present`;
    the env is over when nobody is.
    """

    def __init__(self, one_env: Any, env: EnvConfig) -> None:
        """Raises `UsageError` if there are none, or if two of them see or do different things."""
        if env.action_masks != "observation":
            raise UsageError(
                f"env.action_masks is {env.action_masks}, but agents of a parallel env show "
                "their masks in their observations, under the key action_mask"
            )
        self.parallel, self.limit, self._length = one_env, env.max_episode_steps, 0
        self.agents = tuple(getattr(one_env, "possible_agents", ()))
        self.present: list[Any] = []
        if not self.agents:
            raise UsageError(
                f"{parallel_name(one_env)} has no possible_agents: its __init__ must name all that "
                "ever act in it"
            )
        first, *others = self.agents
        self.observation_space = one_env.observation_space(first)
        self.action_space = one_env.action_space(first)
        self.metadata = getattr(one_env, "metadata", {})
        self.render_mode = getattr(one_env, "render_mode", None)
        for other, what in itertools.product(others, ("observation_space", "action_space")):
            mine, its = getattr(self, what), getattr(one_env, what)(other)
            if mine != its:
                raise UsageError(
                    f"the {what.replace('_', ' ')} of agent {first!r} is {mine}, but that of "
                    f"{other!r} is {its}: agents that share a policy must have equal spaces "
                    "(SuperSuit's pad_observations_v0 and pad_action_space_v0 make them so)"
                )

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[ByAgent, dict[str, Any]]:
        seen, infos = _parts(self.parallel.reset(seed=seed), "reset", "observations, infos")
        self.present, self._length = list(self.parallel.agents), 0
        return seen, infos

    def begin_at(self, steps: int) -> None:
        """Let the time limit count these steps as taken."""
        self._length = steps

    def step(self, action: ByAgent) -> tuple[ByAgent, Any, Any, Any, dict[str, Any]]:
        """One step of those who are present. At the time limit all of them are cut off."""
        seen, reward, terminated, truncated, infos = _parts(
            self.parallel.step(dict(action)),  # the env may change its own
            "step",
            "observations, rewards, terminated, truncated, infos",
        )
        self._length += 1
        if self._length == self.limit:
            truncated = dict.fromkeys(action, True)
        self.present = [
            agent
            for agent in self.parallel.agents
            if not (terminated.get(agent) or truncated.get(agent))
        ]
        return seen, reward, terminated, truncated, infos

    def render(self) -> Any:
        return self.parallel.render()

    def close(self) -> None:
        self.parallel.close()


def _parts(answer: Any, method: str, names: str) -> Any:
    """The dicts, and any info, that a parallel env returned. Raises `UsageError` for others."""
    kinds = answer if isinstance(answer, tuple) else (answer,)
    if len(kinds) == names.count(",") + 1 and all(isinstance(part, dict) for part in kinds[:-1]):
        return kinds
    raise UsageError(
        f"a parallel env's {method} must return ({names}), each a dict by agent, but returned "
        f"({', '.join(type(part).__name__ for part in kinds)})"
    )


def part_of(agent: Any, answer: ByAgent, where: str = "") -> Any:
    """One agent's part of an answer. Raises `UsageError` where there is none."""
    if agent not in answer:
        raise UsageError(
            f"a parallel env said nothing to its agent {agent!r}{where}: reset and step must "
            "answer every agent that acts, or is in agents"
        )
    return answer[agent]
