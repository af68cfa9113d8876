"""Evaluation in many envs at once, as tensors: the episodes that one env plays one by one."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from proximo import EnvConfig, NetConfig, UsageError, evaluation
from proximo.envs.base import TensorEnv
from proximo.envs.make import in_step, make_envs
from proximo.evaluation import BatchPlayer, EpisodePlayer, evaluate_policy, player
from proximo.nets.actor_critic import ActorCritic
from proximo.spaces import map_leaves

BOX = spaces.Box(-1, 1, (2,))
CHOICES = spaces.Dict({"action_mask": spaces.MultiBinary(3), "x": spaces.Box(-1, 1, (2,))})


class Walks(VectorEnv):
    """Random numbers of each episode's seed; it ends after 3 to 9 steps, by turns either way."""

    def __init__(self, count, space, legal=1):
        self.num_envs, self.single_observation_space, self._legal = count, space, legal
        self.single_action_space = BOX if space is BOX else spaces.Discrete(3)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.fails = False

    def _seen(self):
        drawn = [torch.rand(2, generator=one) * 2 - 1 for one in self._streams]
        if self.single_observation_space is BOX:
            return torch.stack(drawn)
        mask = torch.ones(self.num_envs, 3, dtype=torch.int8) * self._legal
        return {"action_mask": mask, "x": torch.stack(drawn)}

    def reset(self, *, seed=None, options=None):
        self._streams = [torch.Generator().manual_seed(one) for one in seed]
        self._time = torch.zeros(self.num_envs, dtype=torch.int64)
        self._last = torch.tensor(seed) % 7 + 3
        return self._seen(), {}

    def step(self, actions):
        if self.fails:
            raise RuntimeError("broken")
        self._time += 1
        over, seen = self._time >= self._last, self._seen()
        reward = actions.sum(-1) if actions.is_floating_point() else (actions + 1) * seen["x"][:, 0]
        even = self._last % 2 == 0
        return seen, reward, over & even, over & ~even, {"final_obs": seen}


class Walk(TensorEnv):
    def __init__(self, space=BOX, legal=1):
        self._made, self._one = (space, legal), Walks(1, space, legal)
        self.observation_space = space
        self.action_space = self._one.single_action_space

    def reset(self, *, seed=None, options=None):
        return map_leaves(lambda x: x[0].numpy(), self._one.reset(seed=[seed])[0]), {}

    def step(self, action):
        seen, reward, over, cut, _ = self._one.step(torch.as_tensor(np.asarray(action))[None])
        return map_leaves(lambda x: x[0].numpy(), seen), float(reward), bool(over), bool(cut), {}

    def many(self, count):
        return Walks(count, *self._made)


def made(space, **net):
    torch.manual_seed(3)
    env = Walk(space)
    policy = ActorCritic(env.observation_space, env.action_space, NetConfig(**net))
    for parameter in policy.parameters():  # actions that differ from state to state
        parameter.data = torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
    return env, policy


@pytest.mark.parametrize("deterministic", [True, False], ids=["likely", "sampled"])
@pytest.mark.parametrize("net", [{}, {"recurrent": "lstm"}, {"std": "gsde"}], ids=str)
@pytest.mark.parametrize("space", [BOX, CHOICES], ids=["box", "choices"])
def test_they_are_the_episodes_of_one_env(monkeypatch, space, net, deterministic):
    if space is CHOICES and "std" in net:
        pytest.skip("for boxes")
    env, policy = made(space, **net)
    how = {"episodes": 11, "seed": 40, "deterministic": deterministic, "limit": 8}
    alone = EpisodePlayer(in_step([env])).play(policy, **how)
    monkeypatch.setattr(evaluation, "WIDEST", 4)  # the last 4 are one more than wanted
    many = evaluate_policy(policy, env, **how)
    assert [e.length for e in many.episodes] == [e.length for e in alone.episodes]
    np.testing.assert_allclose(many.returns, alone.returns, rtol=0, atol=1e-5)
    assert len(set(many.returns)) > 5
    assert many.cut == alone.cut == sum((40 + k) % 7 + 3 > 8 for k in range(11)) > 0


def test_it_counts_the_episodes_that_have_ended():
    env, policy = made(BOX)
    ended = []
    BatchPlayer(env).play(policy, episodes=5, seed=0, watch=ended.append)
    assert ended == [0, 0, 0, 1, 2, 3, 4, 5]


def test_a_second_evaluation_takes_the_same_envs():
    env, policy = made(BOX)
    batch = BatchPlayer(env)
    first = batch.play(policy, episodes=5, seed=0)
    envs = batch._envs
    assert batch.play(policy, episodes=5, seed=0) == first
    assert batch._envs is envs
    fewer = batch.play(policy, episodes=3, seed=0).returns
    np.testing.assert_allclose(fewer, first.returns[:3], rtol=0, atol=1e-5)


def test_an_env_that_fails_and_a_mask_that_allows_nothing():
    env, policy = made(BOX)
    batch = BatchPlayer(env)
    batch.play(policy, episodes=2, seed=0)
    batch._envs.fails = True
    with pytest.raises(UsageError, match="the env failed after 0 steps: RuntimeError: broken"):
        batch.play(policy, episodes=2, seed=0)
    _, policy = made(CHOICES)
    with pytest.raises(UsageError, match="the action_mask of an env allows no action at step 0"):
        evaluate_policy(policy, Walk(CHOICES, legal=0), episodes=2, seed=0)


def test_other_envs_and_other_policies_are_played_one_by_one():
    env = Walk()
    assert isinstance(player(in_step([env])), BatchPlayer)
    apart = make_envs(EnvConfig(id="CartPole-v1", backend="sync"), 0).apart()
    assert isinstance(player(apart), EpisodePlayer)
    scores = evaluate_policy(lambda row: np.ones(2, np.float32), env, episodes=3, seed=0)
    assert scores.returns.tolist() == [6, 8, 10]
