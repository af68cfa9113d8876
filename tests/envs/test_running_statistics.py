"""Running statistics that an env or a wrapper keeps are refused: no checkpoint holds them."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from gymnasium.wrappers.utils import RunningMeanStd
from gymnasium.wrappers.vector import NormalizeObservation as NormalizeObservations
from gymnasium.wrappers.vector import NormalizeReward as NormalizeRewards

from commands.command_line import SMALL, here, proximo, refusal, succeeded
from envs.made_envs import Duck, Own
from proximo import PPO, EnvConfig, UsageError, train
from proximo.envs.check import check_env, running_statistics
from proximo.envs.make import make_env

__all__ = ["here"]

OBS, REWARD = "--net.normalize-obs", "--algorithm.normalize-reward"


class Moments:
    """As other libraries have them: computed when they are read, and fed one by one."""

    def __init__(self):
        self.seen = []

    def push(self, x):
        self.seen.append(x)

    @property
    def mean(self):
        return np.mean(self.seen, 0)

    @property
    def std(self):
        return np.std(self.seen, 0) + 1


class Within(Own):
    """An env that standardises its own observations."""

    def __init__(self):
        super().__init__()
        self.filters = {"state": Moments()}

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.filters["state"].push(obs)
        return ((obs - self.filters["state"].mean) / 4).astype(np.float32), info


class Plain:
    """A wrapper that knows nothing of Gymnasium's."""

    def __init__(self, env):
        self.env, self.obs_rms = env, Moments()
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.step = env.step

    def reset(self, *, seed=None, options=None):
        obs, info = self.env.reset(seed=seed)
        self.obs_rms.push(obs + len(self.obs_rms.seen))
        return obs, info


class Several(gym.Wrapper):
    """Statistics in a list."""

    def __init__(self, env):
        super().__init__(env)
        self.norms = [RunningMeanStd(shape=())]

    def step(self, action):
        obs, reward, *flags = super().step(action)
        self.norms[0].update(np.array([reward]))
        return obs, reward, *flags


class Belief(Own):
    """An estimate of what an episode has shown, made once, which every reset sets back."""

    def __init__(self):
        super().__init__()
        self.filter = RunningMeanStd(shape=(2,))

    def reset(self, *, seed=None, options=None):
        self.filter.__init__(shape=(2,))
        return super().reset(seed=seed)

    def step(self, action):
        obs, *answer = super().step(action)
        self.filter.update(obs[None])
        return self.filter.mean.astype(np.float32), *answer


def frozen():
    """Statistics that were brought along, and are not updated."""
    env = NormalizeObservation(Own())
    env.update_running_mean = False
    return env


KEPT = {
    "observations": (lambda: NormalizeObservation(Own()), "NormalizeObservation", OBS),
    "rewards": (lambda: NormalizeReward(Own()), "NormalizeReward", REWARD),
    "deep": (
        lambda: gym.wrappers.TimeLimit(NormalizeObservation(Own()), 9),
        "NormalizeObservation",
        OBS,
    ),
    "of its own": (Within, r"Within keeps .* \(filters\)", f"{OBS} or {REWARD}"),
    "in a list": (lambda: Several(Own()), r"Several keeps .* \(norms\)", f"{OBS} or {REWARD}"),
    "another wrapper": (lambda: Plain(Own()), "Plain", OBS),
    "a bare env": (lambda: Plain(Duck()), "Plain", OBS),
}


@pytest.mark.parametrize(("maker", "keeper", "remedy"), KEPT.values(), ids=KEPT)
def test_they_are_refused_with_our_setting_as_the_remedy(maker, keeper, remedy):
    with pytest.raises(UsageError, match=rf"{keeper}.*no checkpoint holds.*use {remedy}"):
        train(maker, PPO(minibatch_size=32), total_steps=64, num_envs=1)


VECTORS = {
    "over": (lambda: NormalizeObservations(SyncVectorEnv([Own, Own])), OBS),
    "over, rewards": (lambda: NormalizeRewards(SyncVectorEnv([Own, Own])), REWARD),
    "under": (lambda: SyncVectorEnv([KEPT["observations"][0]] * 2), OBS),
    "in processes": (lambda: AsyncVectorEnv([KEPT["rewards"][0]] * 2), REWARD),
    "over processes": (lambda: NormalizeObservations(AsyncVectorEnv([Own, Own])), OBS),
}


@pytest.mark.parametrize(("maker", "remedy"), VECTORS.values(), ids=VECTORS)
def test_so_are_those_of_vector_envs(maker, remedy):
    with pytest.raises(UsageError, match=rf"no checkpoint holds.*use {remedy}"):
        train(maker(), PPO(minibatch_size=32), total_steps=64)


def test_what_keeps_none_or_updates_none_is_in_order():
    statistics = gym.wrappers.RecordEpisodeStatistics
    for maker in (
        Own,
        Duck,
        Belief,
        frozen,
        lambda: statistics(Own()),
        lambda: gym.make("CartPole-v1"),
    ):
        assert running_statistics(make_env(EnvConfig(), maker)) == ""
    for envs in (AsyncVectorEnv([frozen]), AsyncVectorEnv([Own]), SyncVectorEnv([frozen])):
        assert running_statistics(envs) == ""
        envs.close()


def test_they_are_refused_by_name_in_processes_and_told_where_one_insists(here):
    wrapper = "gymnasium.wrappers:NormalizeObservation"
    words = ("train", "ppo", "CartPole-v1", *SMALL, "--total-steps", "64", "--env.wrappers")
    for backend in ("sync", "workers"):
        more = ("--env.backend", backend, "--run-dir", "r")
        assert OBS in refusal(proximo(*words, wrapper, *more))
    assert OBS in refusal(proximo("check", "CartPole-v1", "--env.wrappers", wrapper))
    succeeded(proximo(*words, wrapper, "--env.no-check", "--run-dir", "r", "--quiet"))
    scored = proximo("eval", "r", "--wrappers", wrapper, "--episodes", "1")
    assert (scored.code, scored.err.count("\n")) == (0, 1)
    assert "what is scored is not what was trained: NormalizeObservation" in scored.err
    pytest.importorskip("imageio")
    shown = proximo("play", "r", "--wrappers", wrapper, "--video", "r.gif")
    assert "what is shown is not what was trained" in shown.err


class Unseen(Own):
    """A mean that outlives its episodes, as plain arrays: it is seen by what it does."""

    mean, count = np.zeros(2), 0

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.count += 1
        self.mean = self.mean + (obs - self.mean) / self.count
        return ((obs - self.mean) / 2).astype(np.float32), info


def test_what_else_outlives_a_reset_is_noted_with_what_it_means():
    (note,) = check_env(Unseen(), seconds=20.0).notes
    assert "reset with the same seed gives another observation" in note
    assert "an evaluation may show something else" in note
    assert "neither in the env nor in a wrapper of it" in note
