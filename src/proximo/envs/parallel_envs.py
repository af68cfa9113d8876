"""PettingZoo's parallel envs, several in step: all agents act by one policy (parameter sharing).

Gupta et al. 2017, "Cooperative multi-agent control using deep reinforcement learning"; Terry et al.
2020, arXiv 2005.13625.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from proximo.envs.base import SyncEnvs
from proximo.envs.parallel_env import ByAgent, ParallelEnv, part_of
from proximo.types import EnvState, RolloutBuffer


class ParallelEnvs(SyncEnvs):
    """W parallel envs, stepped in turn: row w*A + a is agent a of env w.

    A row is not valid from the step after its agent has ended until its env begins anew, which it
    does when the last agent has ended.
    """

    _envs: Sequence[ParallelEnv]

    def __init__(
        self, envs: Sequence[ParallelEnv], seed: int, first: int = 0, *, autoreset: bool = True
    ) -> None:
        self.agents, self.names = len(envs[0].agents), tuple(map(repr, envs[0].agents))
        super().__init__(envs, seed, first, autoreset=autoreset)
        self._nothing = np.zeros(self.observations.shape, self.observations.dtype)
        """Row of an agent that is away: zeros, and a mask that allows everything."""
        if self.observations.mask_begin < self.observations.width:
            self._nothing[..., self.observations.mask_begin :] = 1

    def _show(self, env: int, seen: ByAgent, obs: np.ndarray) -> None:
        one = self._envs[env]
        for row, agent in zip(obs[self._rows(env)], one.agents, strict=True):
            if agent in one.present:
                self.observations.write(part_of(agent, seen), row)
            else:
                row[...] = self._nothing

    def _given(self, env: int, env_action: np.ndarray) -> ByAgent:
        one, given = self._envs[env], self.actions.given
        pairs = zip(env_action, one.agents, strict=True)
        return {agent: given(action) for action, agent in pairs if agent in one.present}

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        obs, reward = buffer.obs[t + 1], buffer.reward[t]
        for k, env in enumerate(self._envs):
            rows = self._rows(k)
            acts = self._given(k, buffer.env_action[t, rows])
            seen, rewards, terminated, *_ = env.step(acts)
            self._show(k, seen, obs)
            for row, agent in zip(range(rows.start, rows.stop), env.agents, strict=True):
                if agent not in acts:
                    buffer.valid[t, row], reward[row] = False, 0.0
                    continue
                reward[row] = part_of(agent, rewards)
                if agent not in env.present:
                    buffer.terminated[t, row] = bool(terminated.get(agent))
                    buffer.done[t, row] = True
                    final = self.observations.row(part_of(agent, seen))
                    buffer.final_obs.append((t, row, final.astype(obs.dtype)))
            if self.autoreset and not env.present:
                state.episode[rows] += 1
                self._reset(state, k, obs)

    def acting(self, buffer: RolloutBuffer, t: int) -> np.ndarray:
        return np.array([agent in env.present for env in self._envs for agent in env.agents])
