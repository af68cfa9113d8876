"""Every algorithm finds the right action, and the right value where it has one."""

import dataclasses
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch

from proximo import (
    A2C,
    PPO,
    TRPO,
    NetConfig,
    PPOPenalty,
    QActorCritic,
    Reinforce,
    RolloutConfig,
    train,
)
from proximo.envs.testing import probes

KINDS = pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
RATE = {"gamma": 0.9, "learning_rate": "linear:1e-2:0"}
ALGORITHMS = {
    "reinforce": (Reinforce(**RATE), {"steps": 16}),
    "reinforce-without-critic": (Reinforce(**RATE, critic=False), {"steps": 32}),
    "reinforce-episodes": (Reinforce(**RATE), {"episodes": 32}),
    "qac": (QActorCritic(**RATE, normalize_advantage="batch"), {"steps": 8}),
    "a2c": (A2C(**RATE, optimizer="adam"), {"steps": 8}),
    "a2c-rmsprop": (A2C(**(RATE | {"learning_rate": "linear:5e-3:0"})), {"steps": 8}),
    "trpo": (TRPO(gamma=0.9, critic_learning_rate="linear:1e-2:0", max_kl=0.02), {"steps": 64}),
    "ppo-penalty": (PPOPenalty(**RATE, epochs=4), {"steps": 64}),
    "ppo-penalty-fixed": (PPOPenalty(**RATE, beta=1.0, kl_target=None, epochs=4), {"steps": 64}),
    "ppo-without-clip": (PPO(**RATE, clip=None, epochs=4), {"steps": 64}),
    "ppo-two-clips": (PPO(**RATE, clip_high=0.3, dual_clip=2.0, epochs=4), {"steps": 64}),
    "ppo-rate-by-kl": (
        PPO(**(RATE | {"learning_rate": 1e-3}), desired_kl=0.01, epochs=4),
        {"steps": 64},
    ),
}
EACH = pytest.mark.parametrize("name", ALGORITHMS)


def learn(probe, name, continuous, **kwargs):
    algorithm, rollout = ALGORITHMS[name]
    net = NetConfig(hidden=(32, 32), log_std=-0.5 * continuous)
    return train(
        lambda: probe(continuous),
        algorithm,
        **{"total_steps": 16_000, "num_envs": 4, "seed": 1, "net": net} | kwargs,
        rollout=RolloutConfig(**rollout),
    )


def value(agent, *obs):
    with torch.no_grad():
        return agent.policy.value(torch.tensor(obs, dtype=torch.float32)[:, None]).numpy()


@EACH
@KINDS
def test_the_best_action_given_the_observation_is_found(name, continuous):
    agent = learn(probes.BestActionGivenObservation, name, continuous)
    best = (-0.5, 0.5) if continuous else (0, 1)
    for obs, action in zip((-1.0, 1.0), best, strict=True):
        np.testing.assert_allclose(agent.act(np.array([obs], np.float32)), action, atol=0.1)
    if agent.config.algorithm.critic:
        np.testing.assert_allclose(value(agent, -1.0, 1.0), [1.0, 1.0], atol=0.1)


@EACH
@KINDS
def test_a_later_reward_is_discounted(name, continuous):
    algorithm, _ = ALGORITHMS[name]
    if not algorithm.critic:
        pytest.skip("it has no values")
    agent = learn(probes.DiscountedValue, name, continuous)
    np.testing.assert_allclose(value(agent, 0.0, 1.0), [0.9, 1.0], atol=0.1)


@pytest.mark.parametrize("name", ["qac", "a2c", "reinforce", "trpo", "ppo-penalty"])
@KINDS
def test_a_time_limit_is_no_termination(name, continuous):
    """Reward 1 for ever, cut every 8 steps, gamma 0.9: V is 10, and 5.7 if the cut were an end."""
    agent = train(
        lambda: gym.wrappers.TimeLimit(probes.Endless(continuous), 8),
        ALGORITHMS[name][0],
        total_steps=24_000,
        num_envs=4,
        rollout=RolloutConfig(**ALGORITHMS[name][1]),
        net=NetConfig(hidden=(32, 32), normalize_returns=True),
        seed=1,
    )
    np.testing.assert_allclose(value(agent, 0.0), [10.0], atol=0.5)


@KINDS
def test_q_values_tell_right_from_wrong(continuous):
    agent = learn(probes.BestAction, "qac", continuous)
    policy = agent.policy
    obs = torch.zeros(2, 1)
    with torch.no_grad():
        if continuous:
            action = torch.tensor([[0.5], [0.3]])
            truth = [1.0, 0.96]
        else:
            action, truth = torch.tensor([1, 0]), [1.0, -1.0]
            # The wrong action is hardly tried any more: its value is what it was by then.
            assert policy.action_value(obs, action)[1] < 0.5
            truth = truth[:1]
        found = policy.action_value(obs, action)[: len(truth)].numpy()
    np.testing.assert_allclose(found, truth, atol=0.1)


@pytest.mark.parametrize("net", [{"mean": "tanh"}, {"std": "softplus"}])
@pytest.mark.parametrize("engine", ["torch", "native"])
def test_gaussians_of_another_kind_find_it(net, engine):
    from proximo import RunConfig
    from proximo.engines import library

    if engine == "native" and library.load()[0] is None:
        pytest.skip(library.load()[1])
    agent = learn(
        probes.BestActionGivenObservation,
        "ppo-penalty",
        True,
        net=NetConfig(hidden=(32, 32), log_std=-0.5, **net),
        run_config=RunConfig(engine=engine),
    )
    for obs in (-1.0, 1.0):
        found = agent.act(np.array([obs], np.float32))
        np.testing.assert_allclose(found, obs / 2, atol=0.1)


def test_beta_moves_by_the_papers_rule():
    found = []

    def note(state, rollout, metrics):
        found.append((metrics["beta"], metrics["kl"], state.beta))

    algorithm = dataclasses.replace(ALGORITHMS["ppo-penalty"][0], kl_target=0.003)
    train(
        probes.BestActionGivenObservation,
        algorithm,
        total_steps=8_000,
        num_envs=4,
        rollout=RolloutConfig(steps=64),
        seed=1,
        callbacks=[note],
    )
    assert found[0][0] == 1.0
    for (beta, kl, after), (following, *_) in pairwise(found):
        factor = 0.5 if kl < 0.002 else 2.0 if kl > 0.0045 else 1.0
        assert after == following == max(beta * factor, 1e-6)
    assert len({beta for beta, *_ in found}) > 2


def test_the_learning_rate_follows_the_kl():
    found = []

    def note(state, rollout, metrics):
        found.append((metrics["learning_rate"], metrics["kl"]))

    train(
        probes.BestActionGivenObservation,
        PPO(learning_rate=3e-3, desired_kl=0.003),
        total_steps=8_000,
        num_envs=4,
        rollout=RolloutConfig(steps=64),
        seed=1,
        callbacks=[note],
    )
    for (rate, kl), (following, _) in pairwise(found):
        factor = 1.5 if kl < 0.0015 else 1 / 1.5 if kl > 0.006 else 1.0
        assert following == pytest.approx(min(rate * factor, 3e-2))
    assert len({round(rate, 9) for rate, _ in found}) > 2
