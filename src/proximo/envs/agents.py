"""PettingZoo's parallel worlds: several agents in each, all of them acting by one policy.

W worlds of A agents are W*A rows of experience. Parameters are shared, so what one agent lives
through teaches all of them (Gupta et al. 2017, "Cooperative multi-agent control using deep
reinforcement learning"; Terry et al. 2020, arXiv 2005.13625).
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.envs.config import EnvConfig
from proximo.envs.make import Worlds, close_all, episode_seed
from proximo.errors import UsageError
from proximo.types import Steps, WorldState

ByAgent = dict[Any, Any]


def is_parallel(world: Any) -> bool:
    """Whether this is a PettingZoo `ParallelEnv`; there is none where that was never imported."""
    pettingzoo = sys.modules.get("pettingzoo")
    return pettingzoo is not None and isinstance(world, pettingzoo.ParallelEnv)


def is_turn_based(world: Any) -> bool:
    """Whether this is a PettingZoo `AECEnv`, in which agents act one after the other."""
    pettingzoo = sys.modules.get("pettingzoo")
    return pettingzoo is not None and isinstance(world, pettingzoo.AECEnv)


def parallel_name(world: Any) -> str:
    """What the metadata of an env of PettingZoo call it, or the name of its class."""
    metadata = getattr(world, "metadata", None)
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else type(world).__name__


class Agents(gym.Env[ByAgent, ByAgent]):
    """A parallel world: observations, actions, rewards and ends come by agent.

    The spaces are those of every single agent. An agent that has ended is no longer in `present`;
    the world is over when nobody is.
    """

    def __init__(self, world: Any, env: EnvConfig) -> None:
        """Raises `UsageError` if there are none, or if two of them see or do different things."""
        if env.action_masks != "observation":
            raise UsageError(
                f"env.action_masks is {env.action_masks}, but agents of a parallel world show "
                "their masks in their observations, under the key action_mask"
            )
        self.parallel, self.limit, self._length = world, env.max_episode_steps, 0
        self.agents = tuple(getattr(world, "possible_agents", ()))
        self.present: list[Any] = []
        if not self.agents:
            raise UsageError(
                f"{parallel_name(world)} has no possible_agents: its __init__ must name all that "
                "ever act in it"
            )
        first, *others = self.agents
        self.observation_space = world.observation_space(first)
        self.action_space = world.action_space(first)
        self.metadata = getattr(world, "metadata", {})
        self.render_mode = getattr(world, "render_mode", None)
        for other in others:
            for what, own, its in (
                ("observation", self.observation_space, world.observation_space(other)),
                ("action", self.action_space, world.action_space(other)),
            ):
                if own != its:
                    raise UsageError(
                        f"the {what} space of agent {first!r} is {own}, but that of {other!r} is "
                        f"{its}: agents that share a policy must have equal spaces (SuperSuit's "
                        "pad_observations_v0 and pad_action_space_v0 make them so)"
                    )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ByAgent, dict[str, Any]]:
        seen, infos = _parts(self.parallel.reset(seed=seed), "reset", "observations, infos")
        self.present, self._length = list(self.parallel.agents), 0
        return seen, infos

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


class AgentWorlds(Worlds):
    """W parallel worlds, stepped in turn: row w*A + a is agent a of world w.

    A row is not real from the step after its agent has ended until its world begins anew, which it
    does when the last agent has ended. first: the number of the first world, as in `SyncWorlds`.
    """

    replayable = True

    def __init__(self, envs: list[Agents], seed: int, first: int = 0) -> None:
        self._envs, self._seed, self._first = envs, seed, first
        self.agents, self.names = len(envs[0].agents), tuple(map(repr, envs[0].agents))
        count = len(envs) * self.agents
        super().__init__(count, envs[0].observation_space, envs[0].action_space)
        self._nothing = np.zeros(self.observations.shape, self.observations.dtype)
        """What a row shows whose agent is away: zeros, and a mask that allows everything."""
        if self.observations.mask_begin < self.observations.width:
            self._nothing[..., self.observations.mask_begin :] = 1

    def _rows(self, world: int) -> range:
        return range(world * self.agents, (world + 1) * self.agents)

    def _reset(self, state: WorldState, world: int, obs: np.ndarray) -> None:
        """Let a world begin the episode that `state` says; `obs`: the rows of all of them."""
        env, first = self._envs[world], world * self.agents
        seed = episode_seed(self._seed, self._first + world, int(state.episode[first]))
        self._show(world, env.reset(seed=seed)[0], obs)

    def _show(self, world: int, seen: ByAgent, obs: np.ndarray) -> None:
        env = self._envs[world]
        for row, agent in zip(self._rows(world), env.agents, strict=True):
            if agent in env.present:
                self.observations.write(_of(agent, seen), obs[row])
            else:
                obs[row] = self._nothing

    def fresh(self, state: WorldState) -> None:
        obs = np.empty((self.count, *self.observations.shape), self.observations.dtype)
        for world in range(len(self._envs)):
            rows = slice(world * self.agents, (world + 1) * self.agents)
            if not (state.length[rows] > 0).any():
                obs[rows] = state.obs[rows]
                continue
            state.episode[rows] += 1
            state.ret[rows] = state.length[rows] = 0
            state.actions[rows] = [[] for _ in range(self.agents)]
            self._reset(state, world, obs)
        state.obs = obs

    def _acts(self, world: int, taken: np.ndarray) -> ByAgent:
        env, given = self._envs[world], self.actions.given
        pairs = zip(self._rows(world), env.agents, strict=True)
        return {agent: given(taken[row]) for row, agent in pairs if agent in env.present}

    def step(self, state: WorldState, steps: Steps, t: int) -> None:
        obs, reward = steps.obs[t + 1], steps.reward[t]
        for world, env in enumerate(self._envs):
            acts = self._acts(world, steps.taken[t])
            seen, rewards, terminated, *_ = env.step(acts)
            self._show(world, seen, obs)
            for row, agent in zip(self._rows(world), env.agents, strict=True):
                if agent not in acts:
                    steps.real[t, row], reward[row] = False, 0.0
                    continue
                reward[row] = _of(agent, rewards)
                if agent not in env.present:
                    steps.terminated[t, row] = bool(terminated.get(agent))
                    steps.ended[t, row] = True
                    final = self.observations.row(_of(agent, seen))
                    steps.finals.append((t, row, final.astype(obs.dtype)))
            if not env.present:
                state.episode[list(self._rows(world))] += 1
                self._reset(state, world, obs)

    def _begins(self, steps: Steps) -> np.ndarray:
        # A world begins anew behind the step at which nobody in it is left.
        gone = (steps.ended | ~steps.real).reshape(len(steps), -1, self.agents).all(-1)
        behind = np.arange(1, len(steps) + 1)[:, None]
        return np.repeat((gone * behind).max(0), self.agents)

    def _bring_back(self, state: WorldState) -> bool:
        obs = np.empty_like(state.obs)
        taken = np.empty((self.count, *(self.actions.shape or ())), self.actions.dtype)
        for world, env in enumerate(self._envs):
            rows = self._rows(world)
            self._reset(state, world, obs)
            logs = [np.concatenate(state.actions[i]) for i in rows if state.actions[i]]
            for t in range(len(logs[0]) if logs else 0):
                taken[rows.start : rows.stop] = [log[t] for log in logs]
                seen = env.step(self._acts(world, taken))[0]
                self._show(world, seen, obs)
        return np.array_equal(obs, state.obs)

    def close(self) -> list[str]:
        return close_all(self._envs)


def _parts(answer: Any, method: str, names: str) -> Any:
    """The parts of what a parallel world returned. Raises `UsageError` unless they are dicts.

    Infos may be anything: nobody reads them.
    """
    kinds = answer if isinstance(answer, tuple) else (answer,)
    if len(kinds) == names.count(",") + 1 and all(isinstance(part, dict) for part in kinds[:-1]):
        return kinds
    raise UsageError(
        f"a parallel world's {method} must return ({names}), each a dict by agent, but returned "
        f"({', '.join(type(part).__name__ for part in kinds)})"
    )


def _of(agent: Any, answer: ByAgent) -> Any:
    """What a world answered to one agent."""
    if agent not in answer:
        raise UsageError(
            f"a parallel world said nothing to its agent {agent!r}: its reset and step must answer "
            "every agent that is present"
        )
    return answer[agent]
