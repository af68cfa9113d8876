"""EnvPool's envs in step, or in two groups: one steps while the policy acts in the other."""

from __future__ import annotations

from proximo.envs.envpool import EnvPoolEnvs
from proximo.envs.vector import VectorEnvs
from proximo.types import EnvState, RolloutBuffer


class PooledEnvs(VectorEnvs):
    """A backend of ours: it needs no check."""

    def __init__(self, envs: EnvPoolEnvs, seed: int) -> None:
        super().__init__(envs, seed)
        self._pools, self.groups = envs, envs.groups

    def send(self, buffer: RolloutBuffer, t: int, group: int) -> None:
        self._pools.send(self.actions.given(buffer.env_action[t, self.groups[group]]), group)

    def receive(self, state: EnvState, buffer: RolloutBuffer, t: int, group: int) -> None:
        self._fill(state, buffer, t, self.groups[group], self._pools.receive(group))

    def check(self) -> None:
        return None
