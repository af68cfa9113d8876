"""The survey of an env tells what is there, to the number: returns, ranges, hidden state."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from proximo.envs.config import EnvConfig
from proximo.envs.history import Transitions, hidden_state
from proximo.envs.make import in_step, make_env, make_envs
from proximo.envs.survey import GAMMA, _Readings, constant_actions, play, survey
from proximo.envs.testing import probes, puzzles
from proximo.envs.vector import VectorEnvs
from proximo.envs.watch import Clock, Sampler
from proximo.errors import UsageError
from proximo.spaces import Actions

LONG = 30.0
"""Seconds, where the test is not to depend on the machine."""


class Known(gym.Env):
    """Episodes of four steps: each pays its action, the last one 10 more; every fourth is cut."""

    observation_space = spaces.Box(-np.inf, 5, (3,), np.float32)
    action_space = spaces.Discrete(3, start=1)
    episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.episode = 0, self.episode + 1
        return self.see(), {}

    def see(self):
        return np.array([self.steps, 7.0, self.steps % 2], np.float32)

    def step(self, action):
        self.steps += 1
        over, cut = self.steps == 4, self.steps == 4 and self.episode % 4 == 3
        return self.see(), float(action) + 10 * over, over and not cut, cut, {}


def look(maker, seconds=LONG, steps=400, episodes=20, **config):
    envs = in_step([make_env(EnvConfig(**config), maker)], autoreset=True)
    try:
        return survey(envs, seconds=seconds, steps=steps, episodes=episodes)
    finally:
        envs.close()


def test_returns_lengths_ranges_and_baselines_are_exact():
    found = look(Known)
    assert [p.name for p in found.constants] == ["always 1", "always 2", "always 3"]
    assert [set(p.returns) for p in found.constants] == [{14.0}, {18.0}, {22.0}]
    assert found.best_constant.name == "always 3"
    assert found.tried == 3
    random = found.random
    assert random.steps == 400  # more than the episodes, to have enough to go by
    assert set(random.lengths) == {4}
    assert random.truncated == len(random.episodes) / 4
    assert set(found.rewards) == {1.0, 2.0, 3.0, 11.0, 12.0, 13.0}
    assert set(found.end_rewards) <= {11.0, 12.0, 13.0}
    assert len(found.end_rewards) == len(random.episodes) - random.truncated
    first = found.rewards[:4]
    assert found.returns[0] == pytest.approx(sum(r * GAMMA**t for t, r in enumerate(first)))
    assert len(found.returns) == len(found.rewards) == 400
    place, still, bit = found.columns
    assert (place.low, place.high) == (0, 3)
    assert place.mean == pytest.approx(1.5)
    assert place.std == pytest.approx(np.std([0, 1, 2, 3]))
    assert place.bounds == (-np.inf, 5)
    assert (still.low, still.high, still.std, still.bit) == (7, 7, 0, False)
    assert (bit.bit, place.bit) == (True, False)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_vector_envs_count_every_step_once_in_every_mode_of_their_resets(mode):
    made = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=mode)
    envs = VectorEnvs(made, 0)
    found = survey(envs, seconds=LONG, steps=200, episodes=10, repeat=True)
    assert found.repeats
    assert set(found.rewards) == {1.0}
    for played in (found.random, *found.constants):
        assert len(played.episodes) >= 10
        assert list(played.returns) == list(played.lengths)  # CartPole pays 1 a step
        assert played.steps >= played.lengths.sum()
    assert found.best_constant.lengths.mean() < 12
    assert mode.value in envs.resets
    envs.close()


def test_agents_that_act_by_one_policy_are_counted_each():
    pytest.importorskip("pettingzoo")
    envs = in_step([make_env(EnvConfig(id="classic/rps-v2"))], autoreset=True)
    found = survey(envs, seconds=LONG, steps=40, episodes=4)
    assert found.agents == 2
    assert found.random.steps == 80
    assert found.rewards.sum() == 0  # what one wins the other loses
    envs.close()


@pytest.mark.parametrize(
    "maker",
    [
        puzzles.Maze,
        puzzles.Cards,
        *(lambda d=d: probes.Match("nested", d, True) for d in ("hybrid",)),
    ],
    ids=["maze", "cards", "hybrid"],
)
def test_no_illegal_action_is_taken(maker):
    """These envs refuse one."""
    assert look(maker, steps=150).random.steps >= 100


def test_envs_in_processes_are_surveyed_as_well():
    envs = make_envs(EnvConfig(id="CartPole-v1", num_envs=2, backend="workers"), 0)
    try:
        found = survey(envs, seconds=LONG, steps=100, episodes=4, repeat=True)
        assert found.repeats
        assert list(found.random.returns) == list(found.random.lengths)
    finally:
        envs.close()


class Fails(Known):
    def step(self, action):
        if self.episode > 30:
            raise RuntimeError("the socket is closed")
        return super().step(action)


def test_an_env_that_fails_late_is_named_with_step_and_policy():
    with pytest.raises(UsageError, match=r"step \d+ of the play of random: RuntimeError: the sock"):
        look(Fails)


class Random(Known):
    def see(self):
        return np.random.default_rng().uniform(0, 1, 3).astype(np.float32)


@pytest.mark.parametrize(("env", "same"), [(Known, True), (Random, False)])
def test_an_env_that_ignores_its_seed_is_found(env, same):
    envs = VectorEnvs(SyncVectorEnv([env]), 0)
    assert survey(envs, seconds=LONG, steps=40, episodes=2, repeat=True).repeats is same
    envs.close()


@pytest.mark.parametrize(
    ("space", "rows"),
    [
        (spaces.Discrete(3, start=-1), [[-1], [0], [1]]),
        (spaces.Discrete(100), None),
        (spaces.Box(-2, 4, (2,)), [[-2, -2], [1, 1], [4, 4]]),
        (spaces.Box(-np.inf, np.inf, (1,)), [[-1], [0], [1]]),
        (spaces.MultiDiscrete([3, 5]), [[0, 0], [1, 2], [2, 4]]),
        (spaces.MultiBinary(2), [[0, 0], [1, 1], [1, 1]]),
        (spaces.Dict(a=spaces.Box(0, 1, (1,)), b=spaces.Discrete(3)), [[0, 0], [0.5, 1], [1, 2]]),
    ],
    ids=str,
)
def test_constant_actions_are_actions_of_the_space(space, rows):
    actions = Actions(space)
    found = list(constant_actions(actions))
    for _, row in found:
        given = row.astype(actions.dtype)
        given = given.reshape(space.shape)[()] if actions.single else given
        assert space.contains(actions.given(np.asarray(given)[()])), row
    if rows is None:
        assert len(found) == 18
        assert (found[0][0], found[-1][0]) == ("always 0", "always 99")
    else:
        assert [list(row) for _, row in found] == rows


HIDDEN = {
    "a reward for what was shown four steps ago": puzzles.Copy,
    "a reward for what was shown first": lambda: probes.Match(later=1),
    "CartPole without velocities": puzzles.still_cartpole,
    "Pendulum without its velocity": puzzles.still_pendulum,
}
SEEN = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "FrozenLake-v1"]


def evidence(env, steps=1_200):
    envs = in_step([env], autoreset=True)
    readings, sampler = _Readings(envs), Sampler(envs.actions)
    play(envs, "random", sampler.draw, Clock(LONG, steps), 10**6, readings)
    envs.close()
    return hidden_state(readings.transitions)


@pytest.mark.parametrize("maker", HIDDEN.values(), ids=HIDDEN)
def test_hidden_state_is_found(maker):
    assert evidence(maker(), steps=700)


@pytest.mark.parametrize("name", SEEN)
def test_none_is_found_where_everything_is_shown(name):
    assert evidence(make_env(EnvConfig(id=name))) == ""


def test_a_few_steps_are_no_evidence():
    assert hidden_state(Transitions()) == ""
    assert evidence(puzzles.still_cartpole(), steps=100) == ""
