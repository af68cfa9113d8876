"""PettingZoo's parallel envs, several in step: all agents act by one policy.

W envs of A agents are W*A rows of experience. Parameters are shared, so what one agent lives
through teaches all of them (Gupta et al. 2017, "Cooperative multi-agent control using deep
reinforcement learning"; Terry et al. 2020, arXiv 2005.13625).
"""

from __future__ import annotations

import numpy as np

from proximo.envs.base import Envs, episode_seed, last_begins
from proximo.envs.check import check_made
from proximo.envs.layers import close_all
from proximo.envs.parallel_env import ByAgent, ParallelEnv, part_of
from proximo.envs.watch import Checked
from proximo.types import EnvState, RolloutBuffer


class ParallelEnvs(Envs):
    """W parallel envs, stepped in turn: row w*A + a is agent a of env w.

    A row is not valid from the step after its agent has ended until its env begins anew, which it
    does when the last agent has ended. `first` and `autoreset` are those of `SyncEnvs`.
    """

    def __init__(
        self, envs: list[ParallelEnv], seed: int, first: int = 0, *, autoreset: bool = True
    ) -> None:
        self._envs, self._seed, self._first, self.single = envs, seed, first, envs[0]
        self.replayable = self.autoreset = autoreset
        self.agents, self.names = len(envs[0].agents), tuple(map(repr, envs[0].agents))
        count = len(envs) * self.agents
        super().__init__(count, envs[0].observation_space, envs[0].action_space)
        self._nothing = np.zeros(self.observations.shape, self.observations.dtype)
        """Row of an agent that is away: zeros, and a mask that allows everything."""
        if self.observations.mask_begin < self.observations.width:
            self._nothing[..., self.observations.mask_begin :] = 1

    def _rows(self, k: int) -> range:
        return range(k * self.agents, (k + 1) * self.agents)

    def _reset(self, state: EnvState, k: int, obs: np.ndarray) -> None:
        """Reset env k for its episode in the state. obs: [N, *obs] the rows of all envs."""
        seed = episode_seed(self._seed, self._first + k, int(state.episode[k * self.agents]))
        self._show(k, self._envs[k].reset(seed=seed)[0], obs)

    def _show(self, k: int, seen: ByAgent, obs: np.ndarray) -> None:
        """Write the observations of the agents of env k to their rows."""
        env = self._envs[k]
        for row, agent in zip(self._rows(k), env.agents, strict=True):
            if agent in env.present:
                self.observations.write(part_of(agent, seen), obs[row])
            else:
                obs[row] = self._nothing

    def fresh(self, state: EnvState) -> None:
        begun = (state.length > 0).reshape(-1, self.agents).any(-1)
        state.begin(np.repeat(begun, self.agents))
        obs = np.empty((self.count, *self.observations.shape), self.observations.dtype)
        if not begun.all():
            obs[:] = state.obs
        for k in np.flatnonzero(begun).tolist():
            self._reset(state, k, obs)
        state.obs = obs

    def _acts(self, k: int, env_action: np.ndarray) -> ByAgent:
        env, given = self._envs[k], self.actions.given
        pairs = zip(self._rows(k), env.agents, strict=True)
        return {agent: given(env_action[row]) for row, agent in pairs if agent in env.present}

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        obs, reward = buffer.obs[t + 1], buffer.reward[t]
        for k, env in enumerate(self._envs):
            acts = self._acts(k, buffer.env_action[t])
            seen, rewards, terminated, *_ = env.step(acts)
            self._show(k, seen, obs)
            for row, agent in zip(self._rows(k), env.agents, strict=True):
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
                state.episode[list(self._rows(k))] += 1
                self._reset(state, k, obs)

    def _begins(self, buffer: RolloutBuffer) -> np.ndarray:
        return last_begins(buffer, self.agents)

    def _bring_back(self, state: EnvState) -> bool:
        obs = np.empty_like(state.obs)
        env_action = np.empty((self.count, *(self.actions.shape or ())), self.actions.dtype)
        for k, env in enumerate(self._envs):
            rows = self._rows(k)
            self._reset(state, k, obs)
            logs = [np.concatenate(state.actions[i]) for i in rows if state.actions[i]]
            for t in range(len(logs[0]) if logs else 0):
                env_action[rows.start : rows.stop] = [log[t] for log in logs]
                self._show(k, env.step(self._acts(k, env_action))[0], obs)
        return np.array_equal(obs, state.obs)

    def acting(self, buffer: RolloutBuffer, t: int) -> np.ndarray:
        return np.array([agent in env.present for env in self._envs for agent in env.agents])

    def check(self) -> Checked:
        return check_made(lambda: self.apart().single)

    def _close(self) -> list[str]:
        return close_all(self._envs)
