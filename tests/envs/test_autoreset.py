"""Time limits and resets: all three modes give what a scalar reference gives."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from proximo import PPO, EnvConfig, NetConfig, UsageError
from proximo.collect import collect
from proximo.engines.torch import TorchEngine
from proximo.envs.make import make_envs
from proximo.envs.vector import VectorEnvs
from proximo.nets.actor_critic import ActorCritic
from proximo.state import TrainState

ENVS, STEPS, GAMMA, LAM = 3, 40, 0.9, 0.8


def script(env, episode, step):
    """An action that depends on nothing but (env, episode, step)."""
    return float(np.sin(1.0 + 3.1 * env + 1.7 * episode + 0.9 * step))


class Scripted(gym.Env):
    """Episodes of changing length; every third is truncated, the others terminate."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, env):
        self.env, self.episode = env, -1

    def reset(self, *, seed=None, options=None):
        self.episode, self.step_number, self.total = self.episode + 1, 0, 0.0
        return self.see(), {}

    def see(self):
        return np.array([self.env, self.episode, self.step_number, self.total], np.float32)

    def step(self, action):
        self.total += float(action[0])
        reward = self.total + self.step_number
        self.step_number += 1
        over = self.step_number >= 2 + (self.env + 2 * self.episode) % 5
        cut = over and self.episode % 3 == 2
        return self.see(), reward, over and not cut, cut, {}


class ScriptedPolicy(ActorCritic):
    """Acts by the script, whatever its noise."""

    def act(self, obs, noise=None, recurrent_state=None):
        _, distribution, recurrent_state = super().act(obs, noise, recurrent_state)
        action = [[script(*map(int, row[:3]))] for row in obs.numpy()]
        return torch.tensor(action, dtype=self.dtype), distribution, recurrent_state


def make_policy():
    torch.manual_seed(0)
    policy = ScriptedPolicy(Scripted.observation_space, Scripted.action_space, NetConfig())
    return policy.double()


def experience(envs, policy, algorithm, steps, rollouts=1):
    state = TrainState(
        policy=policy,
        optimizer=None,
        engine=TorchEngine(policy, None),
        envs=envs.start(),
        collecting=torch.Generator(),
        shuffling=torch.Generator(),
        horizon=1,
    )
    collected = [collect(envs, state, EnvConfig(), steps=steps) for _ in range(rollouts)]
    return [(rollout, algorithm.prepare(state, rollout)) for rollout in collected]


def reference(policy, steps_per_env):
    """Plain Python, one env after the other, one episode after the other."""
    rows = []
    for one_env in range(ENVS):
        env, env_action = Scripted(one_env), 0
        while env_action < steps_per_env[one_env]:
            obs, _ = env.reset()
            episode, over = [], False
            while not over and env_action < steps_per_env[one_env]:
                action = script(one_env, env.episode, env.step_number)
                following, reward, terminated, truncated, _ = env.step(
                    np.array([action], np.float32)
                )
                episode.append((obs, action, reward, following, terminated))
                obs, over, env_action = following, terminated or truncated, env_action + 1
            rows += scalar_gae(policy, episode)
    return rows


def scalar_gae(policy, episode):
    def value(obs):
        return policy.value(torch.tensor(obs, dtype=torch.float64)).item()

    advantage, out = 0.0, []
    for obs, action, reward, following, terminated in reversed(episode):
        bootstrap = 0.0 if terminated else value(following)
        delta = reward + GAMMA * bootstrap - value(obs)
        advantage = delta + GAMMA * LAM * advantage
        out.append((*obs, action, advantage, advantage + value(obs)))
    return out[::-1]


def table(batch):
    columns = [batch.obs, batch.action, batch.advantage[:, None], batch.target[:, None]]
    return torch.cat(columns, 1).numpy()


def sync(mode):
    makers = [lambda env=env: Scripted(env) for env in range(ENVS)]
    return VectorEnvs(SyncVectorEnv(makers, autoreset_mode=mode), seed=0)


ALGORITHM = PPO(gamma=GAMMA, lam=LAM, normalize_advantage="none")


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name.lower())
def test_every_mode_gives_the_transitions_values_and_advantages_of_the_reference(mode):
    policy = make_policy()
    rollout, batch = experience(sync(mode), policy, ALGORITHM, STEPS)[0]
    real = rollout.mask.sum(0).tolist()
    # A next-step env spends a step on every reset; the others none.
    assert (sum(real) < ENVS * STEPS) == (mode is AutoresetMode.NEXT_STEP)
    expected = np.array(reference(policy, real))
    np.testing.assert_allclose(table(batch), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name.lower())
def test_returns_and_lengths_of_episodes_run_on_across_rollouts(mode):
    envs = sync(mode)
    pieces = experience(envs, make_policy(), ALGORITHM, steps=3, rollouts=12)
    whole = experience(sync(mode), make_policy(), ALGORITHM, steps=36)
    episodes = [e for rollout, _ in pieces for e in rollout.episodes]
    in_order = sorted(episodes)
    np.testing.assert_allclose(in_order, sorted(whole[0][0].episodes), atol=1e-9)
    assert {e.length for e in episodes} == {2, 3, 4, 5, 6}


def test_the_modes_differ_where_a_reset_step_were_taken_for_a_step():
    """The reference must be able to fail: without the mask, next-step mode gives other rows."""
    policy = make_policy()
    envs = sync(AutoresetMode.NEXT_STEP)
    rollout, _ = experience(envs, policy, ALGORITHM, STEPS)[0]
    assert not rollout.mask.all()
    naive = dataclasses.replace(rollout, mask=torch.ones_like(rollout.mask))
    state = TrainState(
        policy=policy,
        optimizer=None,
        engine=TorchEngine(policy, None),
        envs=None,
        collecting=None,
        shuffling=None,
        horizon=1,
    )
    assert len(ALGORITHM.prepare(state, naive)) > int(rollout.mask.sum())


def test_the_vector_entry_of_cartpole_masks_its_reset_steps():
    envs = make_envs(EnvConfig(id="CartPole-v1", num_envs=4, backend="vector"), seed=1)
    torch.manual_seed(0)
    policy = ActorCritic(envs.obs_space, envs.action_space, NetConfig())
    rollout, batch = experience(envs, policy, PPO(), 200)[0]
    ghosts = int((~rollout.mask).sum())
    assert 0 < ghosts <= len(rollout.episodes)
    assert (rollout.reward[~rollout.mask] == 0).all()
    assert len(batch) == 4 * 200 - ghosts
    # An episode of CartPole earns 1 a step: returns and lengths agree only without ghosts.
    assert all(episode.ret == episode.length for episode in rollout.episodes)


def test_envs_that_do_not_say_how_they_reset_are_refused():
    envs = SyncVectorEnv([lambda: Scripted(0)])
    envs.metadata = {}
    with pytest.raises(UsageError, match="autoreset_mode"):
        VectorEnvs(envs, seed=0)


def test_episodes_of_our_envs_start_from_their_own_seeds():
    def first_observations(envs_count, steps):
        envs = make_envs(EnvConfig(id="CartPole-v1", num_envs=envs_count), seed=5)
        torch.manual_seed(0)
        policy = ActorCritic(envs.obs_space, envs.action_space, NetConfig())
        rollout, _ = experience(envs, policy, PPO(), steps)[0]
        starts = torch.cat([torch.ones(1, envs_count, dtype=bool), rollout.boundary[:-1]])
        return [rollout.obs[:, i][starts[:, i]].numpy() for i in range(envs_count)]

    two, four = first_observations(2, 120), first_observations(4, 120)
    for a, b in zip(two, four, strict=False):  # the same envs, whatever runs beside them
        shared = min(len(a), len(b))
        assert shared > 2
        np.testing.assert_array_equal(a[:shared], b[:shared])
