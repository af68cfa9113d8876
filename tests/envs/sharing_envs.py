"""Envs that keep, change and reuse every array that they are given or give, and ones that copy."""

import copy

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

ACTIONS = {
    "box": gym.spaces.Box(-1, 1, (2,), np.float32),
    "choices": gym.spaces.MultiDiscrete([3, 2]),
    "hybrid": gym.spaces.Dict(
        push=gym.spaces.Box(-1, 1, (2,), np.float32), tool=gym.spaces.Discrete(3)
    ),
}
OPTIONS = {"box": 0, "choices": 5, "hybrid": 3}
"""Entries of an action mask."""


def leaves(nested):
    """The arrays in what was given; a number cannot be changed."""
    if isinstance(nested, dict):
        return [leaf for part in nested.values() for leaf in leaves(part)]
    return [nested] if isinstance(nested, np.ndarray) or hasattr(nested, "clone") else []


def spoil(nested):
    """Write over all that can be."""
    for leaf in leaves(nested):
        leaf[...] = 1


class Single(gym.Env):
    """A point that is pushed, and pays for smooth pushes; episodes of 3 to 8 steps.

    how: `copies`; `keeps` its last action as it was given and writes over it later; `changes` it at
    once. The last two show and pay in arrays that they use again, and move their spaces' bounds.
    """

    def __init__(self, how="copies", actions="box"):
        self.how = how
        self.action_space = copy.deepcopy(ACTIONS[actions])
        inner = {
            "place": gym.spaces.Box(-99, 99, (2,), np.float32),
            "time": gym.spaces.Box(0, 99, (1,), np.float32),
        }
        if OPTIONS[actions]:
            inner["action_mask"] = gym.spaces.MultiBinary(OPTIONS[actions])
        self.observation_space = gym.spaces.Dict(inner)
        self.shown = {key: np.zeros(s.shape, s.dtype) for key, s in inner.items()}
        self.paid, self.over, self.cut = np.zeros(()), np.zeros((), bool), np.zeros((), bool)

    def see(self):
        seen = {"place": self.place, "time": np.array([self.time], np.float32)}
        if "action_mask" in self.shown:
            seen["action_mask"] = np.ones(self.shown["action_mask"].shape, np.int8)
            seen["action_mask"][self.time % 2] = 0
        if self.how == "copies":
            return {key: part.copy() for key, part in seen.items()}
        self.shown.update({key: self.shown.get(key, part) for key, part in seen.items()})
        for key, part in seen.items():
            self.shown[key][...] = part
        return self.shown

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.time, self.limit = 0, int(self.np_random.integers(3, 9))
        self.given, self.last = [], np.zeros(2)
        if self.how != "copies":
            for space in (self.action_space, *self.observation_space.spaces.values()):
                if isinstance(space, gym.spaces.Box):
                    space.low[...], space.high[...] = 5, 6
        return self.see(), {}

    def numbers(self, action):
        if isinstance(action, dict):
            return action["push"].astype(float) + float(action["tool"])
        return action.astype(float)

    def step(self, action):
        if self.how != "copies":
            spoil(self.shown)
            spoil({"paid": self.paid, "over": self.over})
        pushed = self.numbers(action)
        last = self.numbers(self.given[-1]) if self.given else self.last
        if self.how == "keeps":
            spoil({"before": self.given.pop()} if self.given else {})
            self.given.append(action)
        self.last = pushed
        self.place = (0.9 * self.place + 0.1 * pushed).astype(np.float32)
        self.time += 1
        if self.how == "changes":
            spoil(action)
        reward = -float(np.abs(pushed - last).sum()) - float(np.abs(self.place).sum())
        over, cut = bool(self.place[0] > 0.4), self.time == self.limit
        if self.how == "copies":
            return self.see(), reward, over, cut, {}
        self.paid[...], self.over[...], self.cut[...] = reward, over, cut
        return self.see(), self.paid, self.over, self.cut, {}


class Vector(VectorWrapper):
    """A vector env that writes over what it was given, and over what it gave before."""

    def __init__(self, env):
        super().__init__(env)
        self.gave = ()

    def _own(self, nested):
        """The same in arrays of its own."""
        if isinstance(nested, dict):
            return {key: self._own(part) for key, part in nested.items()}
        if isinstance(nested, np.ndarray) and nested.dtype == object:
            own = np.empty(len(nested), object)
            for i, part in enumerate(nested):
                own[i] = self._own(part)
            return own
        if hasattr(nested, "clone"):  # a tensor
            return nested.clone()
        return nested.copy() if isinstance(nested, np.ndarray) else nested

    def _give(self, answer):
        """Spoil what was given last time, keep what is given now."""
        for part in self.gave:
            for leaf in leaves(part):
                if leaf.dtype == object:
                    for own in leaf:
                        spoil(own)
                else:
                    spoil(leaf)
        self.gave = tuple(self._own(part) for part in answer)
        return self.gave

    def reset(self, *, seed=None, options=None):
        mask = None if options is None else options["reset_mask"]
        own = None if mask is None else {"reset_mask": self._own(mask)}
        answer = self._give(self.env.reset(seed=seed, options=own))
        spoil(mask)
        return answer

    def step(self, actions):
        answer = self.env.step(self._own(actions))
        spoil(actions)
        return self._give(answer)


def vector(mode, actions="box", spoiling=False):
    """N single envs that copy, in a vector env that does not."""
    made = SyncVectorEnv([lambda: Single(actions=actions)] * 3, autoreset_mode=mode)
    return Vector(made) if spoiling else made


class Pair:
    """Made into a PettingZoo env below, where that is installed."""

    metadata = {"name": "pair"}  # noqa: RUF012 as PettingZoo has it
    render_mode = None

    def __init__(self, how="copies"):
        self.how, self.possible_agents = how, ["a", "b"]
        self.single = {agent: Single(how) for agent in self.possible_agents}
        self.spaces = {a: (s.observation_space, s.action_space) for a, s in self.single.items()}
        self.dicts = [{} for _ in range(5)]

    def observation_space(self, agent):
        return self.spaces[agent][0]

    def action_space(self, agent):
        return self.spaces[agent][1]

    def _answer(self, *dicts):
        if self.how == "copies":
            return dicts
        for own, new in zip(self.dicts, dicts, strict=False):
            own.clear()
            own.update(new)
        return tuple(self.dicts[: len(dicts)])

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        seen = {a: self.single[a].reset(seed=seed + k)[0] for k, a in enumerate(self.agents)}
        return self._answer(seen, {a: {} for a in self.agents})

    def step(self, actions):
        for own in self.dicts:
            own.clear()
        parts = {agent: self.single[agent].step(action) for agent, action in actions.items()}
        if self.how != "copies":
            actions.clear()
        self.agents = [a for a, part in parts.items() if not (part[2] or part[3])]
        return self._answer(*({a: part[k] for a, part in parts.items()} for k in range(5)))

    def close(self):
        pass


try:
    from pettingzoo import ParallelEnv
except ImportError:
    pass
else:
    Pair = type("Pair", (Pair, ParallelEnv), {"__module__": __name__})

MODES = list(AutoresetMode)
