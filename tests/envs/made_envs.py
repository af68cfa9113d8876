"""Envs of the kinds that users make: by class and by function."""

import gymnasium as gym
import numpy as np


class Own(gym.Env):
    """Episodes of 30 steps that earn what `pay` says; its info and a method name legal actions."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 as Gymnasium has it
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    pay = 1.0

    def __init__(self, render_mode=None, pay=1.0):
        self.render_mode, self.pay = render_mode, pay

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), self.info()

    def info(self):
        return {"action_mask": self.action_masks()}

    def action_masks(self):
        return np.array([1, 0], np.int8)

    def step(self, action):
        self.time += 1
        self.acted = action
        return np.zeros(2, np.float32), self.pay, self.time == 30, False, self.info()

    def render(self):
        return np.full((16, 20, 3), 5 * self.time % 256, np.uint8)


class Duck:
    """The two spaces and two methods that an env needs without a base class, and masks."""

    observation_space, action_space = Own.observation_space, Own.action_space

    def __init__(self, pay=1.0):
        self.pay = pay

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(2, np.float32), self.info()

    step, info, action_masks = Own.step, Own.info, Own.action_masks


def function(pay=1.0):
    return Own(pay=pay)


def wrapped(pay=1.0):
    """With a wrapper and a time limit of its own."""
    return gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TimeLimit(Own(pay=pay), 20))


def duck(pay=1.0):
    return Duck(pay)


def pole(**kwargs):
    return gym.make("CartPole-v1", **kwargs)


class Doubled(gym.ObservationWrapper):
    """A wrapper that can be seen."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-2, 2, (2,), np.float32)

    def observation(self, observation):
        return 2 * observation


class Raises(Own):
    """Closes a viewer that it never opened."""

    viewer = None

    def close(self):
        self.viewer.close()


class Long(Own):
    """Episodes of 40 steps."""

    steps = 40

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, self.time >= self.steps, truncated, info


class Loops(Long):
    """Episodes without an end."""

    steps = 10**9


gym.register("Made-v0", Own, max_episode_steps=20)
