"""Parallel envs of several agents, small enough to be known by heart."""

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv


class Leaving(ParallelEnv):
    """Agent i of two shows the time. `early` terminates after 2 steps, `late` is cut after 5.

    early earns 1 a step, late 10.
    """

    def __init__(self, render_mode=None):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 10, "name": "leaving"}
        self.possible_agents = ["early", "late"]
        self.ends = {"early": 2, "late": 5}
        self.render_mode = render_mode

    def observation_space(self, agent):
        return gym.spaces.Box(0, 9, (1,), np.float32)

    def action_space(self, agent):
        return gym.spaces.Discrete(2)

    def see(self):
        return {agent: np.array([self.time], np.float32) for agent in self.agents}

    def reset(self, seed=None, options=None):
        self.time, self.agents = 0, list(self.possible_agents)
        return self.see(), {agent: {} for agent in self.agents}

    def step(self, actions):
        assert set(actions) == set(self.agents)  # nobody else is asked to act
        self.time += 1
        over = {agent: self.time == self.ends[agent] for agent in actions}
        seen = self.see()
        terminated = {agent: over[agent] and agent == "early" for agent in actions}
        truncated = {agent: over[agent] and agent == "late" for agent in actions}
        self.agents = [agent for agent in self.agents if not over[agent]]
        rewards = {agent: 1.0 if agent == "early" else 10.0 for agent in actions}
        return seen, rewards, terminated, truncated, {agent: {} for agent in actions}

    def render(self):
        return np.full((32, 32, 3), 20 * self.time, np.uint8)


class Sides(Leaving):
    """Each agent sees a side, drawn anew at every step, and earns 1 by naming it; 4 steps.

    For the first agent an error is the end.
    """

    def observation_space(self, agent):
        return gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.random = np.random.default_rng(seed)
        return super().reset()

    def see(self):
        self.sides = {agent: int(self.random.integers(2)) for agent in self.possible_agents}
        return {agent: self.sides[agent] for agent in self.agents}

    def step(self, actions):
        right = {agent: self.sides[agent] == action for agent, action in actions.items()}
        self.time += 1
        seen = self.see()
        terminated = {agent: agent == "early" and not right[agent] for agent in actions}
        truncated = dict.fromkeys(actions, self.time == 4)
        rewards = {agent: float(right[agent]) for agent in actions}
        self.agents = [a for a in self.agents if not (terminated[a] or truncated[a])]
        return seen, rewards, terminated, truncated, {agent: {} for agent in actions}


class Masked(Leaving):
    """Only action 1 is legal, and none in the state in which an agent ends."""

    def observation_space(self, agent):
        return gym.spaces.Dict(
            {"time": gym.spaces.Discrete(9), "action_mask": gym.spaces.MultiBinary(2)}
        )

    def see(self):
        return {
            agent: {"time": self.time, "action_mask": np.array([0, self.time < self.ends[agent]])}
            for agent in self.agents
        }


class Unequal(Leaving):
    def action_space(self, agent):
        return gym.spaces.Discrete(2 if agent == "early" else 3)


class Silent(Leaving):
    def see(self):
        return {"early": np.zeros(1, np.float32)}


class Unknown(Leaving):
    def reset(self, seed=None, options=None):
        seen, infos = super().reset()
        self.agents.append("third")
        return seen | {"third": np.zeros(1, np.float32)}, infos


class Empty(Leaving):
    def reset(self, seed=None, options=None):
        self.time, self.agents = 0, []
        return {}, {}


class Nobody(Leaving):
    def __init__(self):
        super().__init__()
        self.possible_agents = []


class NoSeed(Leaving):
    def reset(self):
        return super().reset()


class Unseeded(Leaving):
    """Shows how often it has begun, whatever its seed."""

    begun = 0

    def reset(self, seed=None, options=None):
        self.begun += 1
        return super().reset()

    def see(self):
        return {agent: seen + self.begun / 8 for agent, seen in super().see().items()}


class High(Leaving):
    """Zeros, as the rows of those who have left hold them, are outside its bounds."""

    def observation_space(self, agent):
        return gym.spaces.Box(1, 9, (1,), np.float32)

    def see(self):
        return {agent: np.array([1 + self.time], np.float32) for agent in self.agents}


def answering(base=Leaving, **wrong):
    """An env in whose fourth step `late`, who is alone by then, is told something else."""
    parts = ("obs", "reward", "terminated", "truncated")

    class Wrong(base):
        def step(self, actions):
            answer = super().step(actions)
            if self.time == 4:
                for name, value in wrong.items():
                    answer[parts.index(name)]["late"] = value
            return answer

    return Wrong


Hollow = answering(obs=np.array([np.nan]))
Stuck = answering(Masked, obs={"time": 4, "action_mask": np.zeros(2)})
