"""PettingZoo's parallel envs: several agents in each, all of them acting by one policy.

W envs of A agents are W*A rows of experience. Parameters are shared, so what one agent lives
through teaches all of them (Gupta et al. 2017, "Cooperative multi-agent control using deep
reinforcement learning"; Terry et al. 2020, arXiv 2005.13625).
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.envs.config import EnvConfig
from proximo.envs.make import Envs, close_all, episode_seed
from proximo.errors import UsageError
from proximo.types import EnvState, RolloutBuffer

ByAgent = dict[Any, Any]


def is_parallel(env: Any) -> bool:
    """Whether this is a PettingZoo `ParallelEnv`; there is none where that was never imported."""
    pettingzoo = sys.modules.get("pettingzoo")
    return pettingzoo is not None and isinstance(env, pettingzoo.ParallelEnv)


def is_turn_based(env: Any) -> bool:
    """Whether this is a PettingZoo `AECEnv`, in which agents act one after the other."""
    pettingzoo = sys.modules.get("pettingzoo")
    return pettingzoo is not None and isinstance(env, pettingzoo.AECEnv)


def parallel_name(env: Any) -> str:
    """What the metadata of an env of PettingZoo call it, or the name of its class."""
    metadata = getattr(env, "metadata", None)
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else type(env).__name__


class Agents(gym.Env[ByAgent, ByAgent]):
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
        for other in others:
            for what, own, its in (
                ("observation", self.observation_space, one_env.observation_space(other)),
                ("action", self.action_space, one_env.action_space(other)),
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


class AgentEnvs(Envs):
    """W parallel envs, stepped in turn: row w*A + a is agent a of env w.

    A row is not real from the step after its agent has ended until its env begins anew, which it
    does when the last agent has ended. first: the number of the first env, as in `SyncEnvs`.
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

    def _rows(self, env: int) -> range:
        return range(env * self.agents, (env + 1) * self.agents)

    def _reset(self, state: EnvState, one_env: int, obs: np.ndarray) -> None:
        """Let an env begin the episode that `state` says; `obs`: the rows of all of them."""
        env, first = self._envs[one_env], one_env * self.agents
        seed = episode_seed(self._seed, self._first + one_env, int(state.episode[first]))
        self._show(one_env, env.reset(seed=seed)[0], obs)

    def _show(self, one_env: int, seen: ByAgent, obs: np.ndarray) -> None:
        env = self._envs[one_env]
        for row, agent in zip(self._rows(one_env), env.agents, strict=True):
            if agent in env.present:
                self.observations.write(_of(agent, seen), obs[row])
            else:
                obs[row] = self._nothing

    def fresh(self, state: EnvState) -> None:
        obs = np.empty((self.count, *self.observations.shape), self.observations.dtype)
        for env in range(len(self._envs)):
            rows = slice(env * self.agents, (env + 1) * self.agents)
            if not (state.length[rows] > 0).any():
                obs[rows] = state.obs[rows]
                continue
            state.episode[rows] += 1
            state.ret[rows] = state.length[rows] = 0
            state.actions[rows] = [[] for _ in range(self.agents)]
            self._reset(state, env, obs)
        state.obs = obs

    def _acts(self, one_env: int, env_action: np.ndarray) -> ByAgent:
        env, given = self._envs[one_env], self.actions.given
        pairs = zip(self._rows(one_env), env.agents, strict=True)
        return {agent: given(env_action[row]) for row, agent in pairs if agent in env.present}

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        obs, reward = buffer.obs[t + 1], buffer.reward[t]
        for one_env, env in enumerate(self._envs):
            acts = self._acts(one_env, buffer.env_action[t])
            seen, rewards, terminated, *_ = env.step(acts)
            self._show(one_env, seen, obs)
            for row, agent in zip(self._rows(one_env), env.agents, strict=True):
                if agent not in acts:
                    buffer.valid[t, row], reward[row] = False, 0.0
                    continue
                reward[row] = _of(agent, rewards)
                if agent not in env.present:
                    buffer.terminated[t, row] = bool(terminated.get(agent))
                    buffer.done[t, row] = True
                    final = self.observations.row(_of(agent, seen))
                    buffer.final_obs.append((t, row, final.astype(obs.dtype)))
            if not env.present:
                state.episode[list(self._rows(one_env))] += 1
                self._reset(state, one_env, obs)

    def _begins(self, buffer: RolloutBuffer) -> np.ndarray:
        # An env begins anew behind the step at which nobody in it is left.
        gone = (buffer.done | ~buffer.valid).reshape(len(buffer), -1, self.agents).all(-1)
        behind = np.arange(1, len(buffer) + 1)[:, None]
        return np.repeat((gone * behind).max(0), self.agents)

    def _bring_back(self, state: EnvState) -> bool:
        obs = np.empty_like(state.obs)
        taken = np.empty((self.count, *(self.actions.shape or ())), self.actions.dtype)
        for one_env, env in enumerate(self._envs):
            rows = self._rows(one_env)
            self._reset(state, one_env, obs)
            logs = [np.concatenate(state.actions[i]) for i in rows if state.actions[i]]
            for t in range(len(logs[0]) if logs else 0):
                taken[rows.start : rows.stop] = [log[t] for log in logs]
                seen = env.step(self._acts(one_env, taken))[0]
                self._show(one_env, seen, obs)
        return np.array_equal(obs, state.obs)

    def close(self) -> list[str]:
        return close_all(self._envs)


def _parts(answer: Any, method: str, names: str) -> Any:
    """The parts of what a parallel env returned. Raises `UsageError` unless they are dicts.

    Infos may be anything: nobody reads them.
    """
    kinds = answer if isinstance(answer, tuple) else (answer,)
    if len(kinds) == names.count(",") + 1 and all(isinstance(part, dict) for part in kinds[:-1]):
        return kinds
    raise UsageError(
        f"a parallel env's {method} must return ({names}), each a dict by agent, but returned "
        f"({', '.join(type(part).__name__ for part in kinds)})"
    )


def _of(agent: Any, answer: ByAgent) -> Any:
    """What an env answered to one agent."""
    if agent not in answer:
        raise UsageError(
            f"a parallel env said nothing to its agent {agent!r}: its reset and step must answer "
            "every agent that is present"
        )
    return answer[agent]
