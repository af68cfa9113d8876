"""Envs with known answers: the learned values are right within 0.1, and so are the actions."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from proximo import PPO, NetConfig, RolloutConfig, train
from proximo.envs.testing import probes

QUICK = PPO(
    gamma=0.9,
    learning_rate="linear:1e-2:0",
    epochs=4,
    minibatch_size=64,
    entropy_coef=0.0,
)
KINDS = pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])


def learn(probe, continuous, algorithm=QUICK, steps=8_000, **kwargs):
    return train(
        lambda: probe(continuous),
        algorithm,
        total_steps=steps,
        num_envs=4,
        rollout=RolloutConfig(steps=64),
        net=NetConfig(**{"hidden": (32, 32), "log_std": -0.5 * continuous} | kwargs.pop("net", {})),
        seed=1,
        **kwargs,
    )


def value(agent, *obs):
    with torch.no_grad():
        return agent.policy.value(torch.tensor(obs, dtype=torch.float32)[:, None]).numpy()


def within(found, truth):
    np.testing.assert_allclose(found, truth, atol=0.1)


@KINDS
def test_a_constant_value_is_learned(continuous):
    within(value(learn(probes.ConstantValue, continuous), 0.0), [1.0])


@KINDS
def test_a_value_is_learned_from_the_observation(continuous):
    within(value(learn(probes.ValueFromObservation, continuous), -1.0, 1.0), [-1.0, 1.0])


@KINDS
def test_a_later_reward_is_discounted(continuous):
    within(value(learn(probes.DiscountedValue, continuous), 0.0, 1.0), [0.9, 1.0])


@KINDS
def test_the_best_action_is_found(continuous):
    agent = learn(probes.BestAction, continuous)
    within(value(agent, 0.0), [1.0])
    within(agent.act(np.zeros(1, np.float32)), 0.5 if continuous else 1)


@KINDS
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"advantage": "monte-carlo"},
        {"advantage": "td0", "value_target": "gae"},
        {"advantage": "n-step", "n": 3},
        {"value_loss": "huber"},
        {"value_loss": "clipped", "value_clip": 0.5},
        {"normalize_advantage": "batch"},
        {"normalize_advantage": "none", "entropy_coef": "linear:0.01:0"},
        {"optimizer": "rmsprop", "learning_rate": "cosine:5e-3:0"},
        {"critic_learning_rate": "linear:2e-2:0"},
        {"target_kl": 0.05, "epochs": 8},
    ],
    ids=lambda change: "-".join(map(str, change.values())) or "default",
)
def test_the_best_action_given_the_observation_is_found(continuous, change):
    agent = learn(
        probes.BestActionGivenObservation, continuous, dataclasses.replace(QUICK, **change)
    )
    within(value(agent, -1.0, 1.0), [1.0, 1.0])
    best = (-0.5, 0.5) if continuous else (0, 1)
    for obs, action in zip((-1.0, 1.0), best, strict=True):
        within(agent.act(np.array([obs], np.float32)), action)


@KINDS
@pytest.mark.parametrize(
    "net",
    [
        {"hidden": (32,), "trunk": "shared"},
        {"activation": "relu", "normalize_obs": True},
        {"activation": "elu", "normalize_returns": True},
        {"orthogonal": False},
    ],
    ids=["shared", "normalized-obs", "normalized-returns", "default-init"],
)
def test_every_kind_of_network_finds_it(continuous, net):
    agent = learn(probes.BestActionGivenObservation, continuous, net=net)
    within(value(agent, -1.0, 1.0), [1.0, 1.0])
    best = (-0.5, 0.5) if continuous else (0, 1)
    for obs, action in zip((-1.0, 1.0), best, strict=True):
        within(agent.act(np.array([obs], np.float32)), action)


def test_a_squashed_action_finds_it():
    agent = learn(probes.BestActionGivenObservation, True, net={"action": "squash"})
    for obs in (-1.0, 1.0):
        within(agent.act(np.array([obs], np.float32)), obs / 2)


def test_whole_episodes_in_order_find_it():
    episodes = dataclasses.replace(QUICK, minibatches="episodes", normalize_advantage="none")
    agent = train(
        lambda: gym.wrappers.TimeLimit(probes.Endless(), 8),
        dataclasses.replace(episodes, gamma=0.9, advantage="monte-carlo"),
        total_steps=8_000,
        num_envs=4,
        rollout=RolloutConfig(episodes=8),
        net=NetConfig(hidden=(32, 32), normalize_returns=True),
        seed=1,
    )
    np.testing.assert_allclose(value(agent, 0.0), [10.0], atol=0.1)


def test_a_time_limit_is_no_termination():
    """Reward 1 for ever, cut every 8 steps, gamma 0.98: V is 50, and 7.5 if the cut were an end."""
    agent = train(
        lambda: gym.wrappers.TimeLimit(probes.Endless(), 8),
        PPO(gamma=0.98, learning_rate="linear:1e-2:0", epochs=10, minibatch_size=64),
        total_steps=60_000,
        num_envs=8,
        rollout=RolloutConfig(steps=64),
        net=NetConfig(hidden=(32, 32), normalize_returns=True),
        seed=1,
    )
    assert abs(value(agent, 0.0).item() - 50) < 1
