"""PettingZoo's parallel worlds, several in step: all agents act by one policy.

W worlds of A agents are W*A rows of experience. Parameters are shared, so what one agent lives
through teaches all of them (Gupta et al. 2017, "Cooperative multi-agent control using deep
reinforcement learning"; Terry et al. 2020, arXiv 2005.13625).
"""

from __future__ import annotations

import numpy as np

from proximo.envs.base import Worlds, episode_seed, last_begins
from proximo.envs.check import check_made
from proximo.envs.layers import close_all
from proximo.envs.parallel_env import ByAgent, ParallelEnv, part_of
from proximo.envs.watch import Checked
from proximo.types import Steps, WorldState


class ParallelEnvs(Worlds):
    """W parallel worlds, stepped in turn: row w*A + a is agent a of world w.

    A row is not real from the step after its agent has ended until its world begins anew, which it
    does when the last agent has ended. `first` and `autoreset` are those of `SyncWorlds`.
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
        begun = (state.length > 0).reshape(-1, self.agents).any(-1)
        state.begin(np.repeat(begun, self.agents))
        obs = np.empty((self.count, *self.observations.shape), self.observations.dtype)
        if not begun.all():
            obs[:] = state.obs
        for world in np.flatnonzero(begun).tolist():
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
            if self.autoreset and not env.present:
                state.episode[list(self._rows(world))] += 1
                self._reset(state, world, obs)

    def _begins(self, steps: Steps) -> np.ndarray:
        return last_begins(steps, self.agents)

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

    def acting(self, steps: Steps, t: int) -> np.ndarray:
        return np.array([agent in env.present for env in self._envs for agent in env.agents])

    def check(self) -> Checked:
        return check_made(lambda: self.apart().single)

    def _close(self) -> list[str]:
        return close_all(self._envs)
