"""First episodes that begin within their time limit: the same in every kind of envs."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from proximo import PPO, EnvConfig, RolloutConfig, UsageError, train
from proximo.collect import collect
from proximo.envs.base import first_step
from proximo.envs.compiled import missing
from proximo.envs.make import lacking, make_envs
from proximo.envs.tensors import TensorEnvs
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.config import NetConfig
from states import new_state

LIMIT, COUNT, SEED = 20, 4, 3
FIRST = [LIMIT - first_step(SEED, i, LIMIT) for i in range(COUNT)]
"""Lengths of the first episodes, in Pendulum, which ends by its time limit alone."""


class Counter(VectorEnv):
    """N envs of tensors that count their steps as those of Isaac Lab do, and pay 1 for each."""

    def __init__(self, limit=LIMIT):
        self.num_envs, self.max_episode_length = COUNT, limit
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.single_action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.episode_length_buf = torch.zeros(COUNT, dtype=torch.int64)
        return self.look(), {}

    def look(self):
        return self.episode_length_buf.float()[:, None]

    def step(self, action):
        self.episode_length_buf += 1
        over, final = self.episode_length_buf >= self.max_episode_length, self.look()
        self.episode_length_buf[over] = 0
        return self.look(), torch.ones(COUNT), over & False, over, {"final_obs": final}


def gather(env, steps=2 * LIMIT + 5, source=None):
    """One rollout, and the state behind it."""
    envs = make_envs(env, SEED, source)
    torch.manual_seed(0)
    policy = ActorCritic(envs.obs_space, envs.action_space, NetConfig(hidden=(4,)))
    state = new_state(policy, PPO(), envs)
    rollout = collect(envs, state, env, steps=steps)
    assert envs.close() == []
    return rollout, state


def ends(rollout, env):
    """The steps in which episodes of an env ended, counted from 1."""
    return (rollout.boundary[:, env].nonzero().squeeze(-1) + 1).tolist()


def check(rollout):
    for i, first in enumerate(FIRST):
        whole = [first + LIMIT] + [first + 2 * LIMIT] * (first <= 5)
        assert ends(rollout, i) == [first, *whole]
    assert not rollout.terminated.any()  # a cut by the time limit, with a bootstrap
    count = sum(len(ends(rollout, i)) for i in range(COUNT))
    assert len(rollout.final_obs) == count
    assert [e.length for e in rollout.episodes] == [LIMIT] * (count - COUNT)  # no first one


@pytest.mark.parametrize("backend", ["sync", "native", "workers"])
def test_first_episodes_are_short_and_are_not_scored(backend):
    if backend == "native" and (why := missing("Pendulum-v1")):
        pytest.skip(why)
    env = EnvConfig(id="Pendulum-v1", num_envs=COUNT, max_episode_steps=LIMIT, backend=backend)
    staggered = EnvConfig(**{**vars(env), "stagger": True})
    rollout, _ = gather(staggered)
    assert len(set(FIRST)) > 1
    check(rollout)
    together, _ = gather(env)
    assert [ends(together, i) for i in range(COUNT)] == [[LIMIT, 2 * LIMIT]] * COUNT
    # What an env shows does not depend on it: each episode begins from its own seed.
    assert torch.equal(rollout.obs[: min(FIRST)], together.obs[: min(FIRST)])


def test_mujocos_envs_in_c_are_those_of_gymnasium():
    swimmer = EnvConfig(id="Swimmer-v5", num_envs=COUNT, max_episode_steps=LIMIT, stagger=True)
    if lacking("Swimmer-v5"):
        pytest.skip(lacking("Swimmer-v5"))
    compiled, _ = gather(EnvConfig(**{**vars(swimmer), "backend": "native"}))
    alone, _ = gather(EnvConfig(**{**vars(swimmer), "backend": "sync"}))
    check(compiled)
    assert torch.equal(compiled.obs, alone.obs)


def test_envs_of_tensors_that_count_their_steps():
    rollout, _ = gather(EnvConfig(num_envs=COUNT, stagger=True), source=Counter())
    check(rollout)
    assert isinstance(make_envs(EnvConfig(num_envs=COUNT), SEED, Counter()), TensorEnvs)
    together, _ = gather(EnvConfig(num_envs=COUNT), source=Counter())
    assert len(together.episodes) == 2 * COUNT


def test_a_first_episode_that_terminates_is_not_scored_either():
    """Else the short ones among the first would be scored, and not the long ones."""
    env = EnvConfig(id="CartPole-v1", num_envs=COUNT, max_episode_steps=500, stagger=True)
    rollout, state = gather(env, steps=60)
    finished = [len(ends(rollout, i)) for i in range(COUNT)]
    assert rollout.terminated.any()
    assert len(rollout.episodes) == sum(n - 1 for n in finished if n)
    assert state.envs.episode.tolist() == finished


def test_parallel_envs_begin_within_the_limit_too():
    pytest.importorskip("pettingzoo", reason="an extra")
    from parallel_envs import Leaving

    class Staying(Leaving):
        def __init__(self):
            super().__init__()
            self.ends = {"early": 99, "late": 99}

    env = EnvConfig(num_envs=2, max_episode_steps=LIMIT, stagger=True)
    rollout, _ = gather(env, source=Staying)
    for row in range(4):  # two agents in each env
        assert ends(rollout, row)[:2] == [FIRST[row // 2], FIRST[row // 2] + LIMIT]
    assert all(e.length == LIMIT for e in rollout.episodes)


def test_where_no_limit_is_counted_it_is_refused():
    class Endless(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (1,))
        action_space = gym.spaces.Discrete(2)

    limits = "env.stagger is on, but no time limit is known .* set env.max_episode_steps"
    with pytest.raises(UsageError, match=limits):
        make_envs(EnvConfig(num_envs=2, stagger=True), 0, Endless)
    vector = EnvConfig(id="CartPole-v1", num_envs=2, stagger=True, backend="vector")
    with pytest.raises(UsageError, match=limits):
        make_envs(vector, 0)
    with pytest.raises(UsageError, match=r"rollout\.episodes counts whole episodes"):
        train(
            EnvConfig(id="CartPole-v1", stagger=True),
            PPO(),
            rollout=RolloutConfig(episodes=4),
            total_steps=100,
        )


def test_evaluations_are_of_whole_episodes():
    for backend in ("sync", "auto"):
        env = EnvConfig(id="Pendulum-v1", num_envs=1, stagger=True, backend=backend)
        envs = make_envs(env, SEED)
        apart = envs.apart()
        assert (envs.stagger, apart.stagger) == (True, False)
        assert envs.close() == []


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_the_first_steps_are_spread_over_the_limit(limit):
    drawn = np.array([first_step(0, i, limit) for i in range(2000)])
    assert drawn.min() == 0
    assert drawn.max() == limit - 1 if limit < 1000 else drawn.max() > 990
    assert abs(drawn.mean() - (limit - 1) / 2) < 0.03 * limit
    assert not np.array_equal(drawn, [first_step(1, i, limit) for i in range(2000)]) or limit == 1
