"""PettingZoo's parallel worlds, several in step: all agents act by one policy.

W worlds of A agents are W*A rows of experience. Parameters are shared, so what one agent lives
through teaches all of them (Gupta et al. 2017, "Cooperative multi-agent control using deep
reinforcement learning"; Terry et al. 2020, arXiv 2005.13625).
"""

from __future__ import annotations

import numpy as np

from proximo.envs.base import Worlds, episode_seed
from proximo.envs.layers import close_all
from proximo.envs.parallel_env import ByAgent, ParallelEnv, part_of
from proximo.types import Steps, WorldState


class ParallelEnvs(Worlds):
    """W parallel worlds, stepped in turn: row w*A + a is agent a of world w.

    A row is not real from the step after its agent has ended until its world begins anew, which it
    does when the last agent has ended. first: the number of the first world, as in `SyncWorlds`.
    """

    replayable = True

    def __init__(self, envs: list[ParallelEnv], seed: int, first: int = 0) -> None:
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
                self.observations.write(part_of(agent, seen), obs[row])
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
                reward[row] = part_of(agent, rewards)
                if agent not in env.present:
                    steps.terminated[t, row] = bool(terminated.get(agent))
                    steps.ended[t, row] = True
                    final = self.observations.row(part_of(agent, seen))
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
