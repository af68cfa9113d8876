"""The family is one idea: its special cases are settings, to the bit or to rounding."""

import dataclasses
import math

import gymnasium as gym
import pytest
import torch

from proximo import A2C, PPO, TRPO, NetConfig, PPOPenalty, Reinforce, RolloutConfig, train
from proximo.envs.testing import probes
from proximo.functional.kl import kl_divergence
from proximo.functional.losses import clipped_surrogate, policy_gradient, surrogate
from proximo.functional.trust_region import (
    conjugate_gradient,
    fisher_vector_product,
    flat_gradient,
    line_search,
    natural_step,
)
from proximo.nets.actor_critic import ActorCritic
from proximo.types import Batch

SPACES = {
    "discrete": gym.spaces.Discrete(3),
    "continuous": gym.spaces.Box(-1, 1, (2,)),
}
BOTH = pytest.mark.parametrize("kind", SPACES)


def batch_of(kind, samples=40, moved=0.0, dtype=torch.float64):
    """A policy and a batch of its own, or of a policy that was somewhere else."""
    torch.manual_seed(3)
    net = NetConfig(hidden=(8,), policy_gain=1.0)
    policy = ActorCritic(gym.spaces.Box(-9, 9, (4,)), SPACES[kind], net).to(dtype)
    obs = torch.randn(samples, 4, dtype=dtype)
    with torch.no_grad():
        acted = policy.distribution(obs)
        noise = policy.head.noise(torch.Generator().manual_seed(0), (samples,)).to(dtype)
        action = acted.sample(noise)
        if moved:
            for parameter in policy.parameters():
                parameter.add_(moved * torch.randn(parameter.shape, dtype=dtype))
        value = policy.value(obs)
    advantage = torch.randn(samples, dtype=dtype)
    return policy, Batch(
        obs=obs,
        action=action,
        log_prob=acted.log_prob(action),
        parameters=acted.parameters,
        value=value,
        advantage=advantage,
        target=value + advantage,
        episode=torch.zeros(samples, dtype=torch.int64),
        segment_id=torch.zeros(samples, dtype=torch.int64),
        initial_state=torch.zeros(samples, 0),
    )


def gradient(algorithm, policy, batch):
    loss, _ = algorithm.loss(policy, batch, algorithm.coefficients(0.0))
    return flat_gradient(loss, list(policy.parameters()))


def weights(agent):
    return torch.cat([p.detach().reshape(-1) for p in agent.policy.parameters()])


def trained(algorithm, kind, **kwargs):
    return train(
        lambda: probes.BestActionGivenObservation(kind == "continuous"),
        algorithm,
        total_steps=1024,
        num_envs=4,
        rollout=kwargs.pop("rollout", RolloutConfig(steps=32)),
        net=NetConfig(hidden=(16,)),
        seed=5,
        **kwargs,
    )


@BOTH
@pytest.mark.parametrize("rollout", [RolloutConfig(steps=32), RolloutConfig(episodes=20)])
def test_reinforce_is_a2c_without_critic_at_lambda_1(kind, rollout):
    shared = {"critic": False, "optimizer": "adam", "learning_rate": 1e-2}
    plain = Reinforce(**shared)
    special = A2C(**shared, lam=1.0, normalize_advantage="minibatch")
    agents = [trained(algorithm, kind, rollout=rollout) for algorithm in (plain, special)]
    assert torch.equal(weights(agents[0]), weights(agents[1]))
    with_baseline = [
        trained(dataclasses.replace(a, critic=True), kind, rollout=rollout)
        for a in (plain, special)
    ]
    assert torch.equal(weights(with_baseline[0]), weights(with_baseline[1]))
    assert not torch.equal(weights(agents[0]), weights(with_baseline[0]))


@BOTH
def test_the_gradient_of_a2c_is_that_of_the_surrogate_at_ratio_1(kind):
    policy, batch = batch_of(kind)
    parameters = policy.actor_parameters()
    log_prob = policy.evaluate(batch.obs, batch.action, entropy=False).log_prob
    of_log = policy_gradient(log_prob, batch.advantage).mean()
    of_ratio = surrogate(log_prob, batch.log_prob, batch.advantage).mean()
    found = flat_gradient(of_log, parameters, retain=True)
    torch.testing.assert_close(found, flat_gradient(of_ratio, parameters), rtol=1e-12, atol=1e-14)
    assert found.norm() > 1e-3


@BOTH
@pytest.mark.parametrize("engine", ["torch", "native"])
def test_one_epoch_of_one_full_batch_of_ppo_is_the_step_of_a2c(kind, engine):
    from proximo import RunConfig
    from proximo.engines import library

    if engine == "native" and library.load()[0] is None:
        pytest.skip(library.load()[1])
    shared = {
        "optimizer": "rmsprop",
        "learning_rate": 1e-2,
        "normalize_advantage": "none",
        "lam": 1.0,
        "entropy_coef": 0.01,
    }
    run = RunConfig(engine=engine)
    a2c = trained(A2C(**shared), kind, run_config=run)
    ppo = trained(PPO(**shared, epochs=1, minibatches="whole"), kind, run_config=run)
    torch.testing.assert_close(weights(a2c), weights(ppo), rtol=1e-4, atol=1e-5)
    longer = trained(PPO(**shared, epochs=2, minibatches="whole"), kind, run_config=run)
    assert not torch.allclose(weights(a2c), weights(longer), rtol=1e-2, atol=1e-3)


@BOTH
def test_a_penalty_of_beta_0_is_the_unclipped_surrogate(kind):
    policy, batch = batch_of(kind, moved=0.3)
    unclipped = gradient(PPO(clip=None), policy, batch)
    assert torch.equal(gradient(PPOPenalty(beta=0.0, kl_target=None), policy, batch), unclipped)
    assert not torch.equal(gradient(PPOPenalty(beta=1.0), policy, batch), unclipped)
    # A clip that nothing reaches is none.
    torch.testing.assert_close(gradient(PPO(clip=1e6), policy, batch), unclipped)


@BOTH
def test_the_clip_is_a_penalty_on_the_samples_that_it_switched_off(kind):
    """∇L^CLIP = ∇(r Â - β_t KL_t), KL_t estimated by -log r, β_t = -r Â there and 0 elsewhere.

    On a sample with Â > 0 beyond the clip this β_t is negative, as the penalty pulls it back to
    where r Â pushed: the two cancel.
    """
    policy, batch = batch_of(kind, moved=0.3)
    log_prob = policy.evaluate(batch.obs, batch.action, entropy=False).log_prob
    ratio = (log_prob - batch.log_prob).exp().detach()
    too_far = ((ratio > 1.2) & (batch.advantage > 0)) | ((ratio < 0.8) & (batch.advantage < 0))
    assert 0 < too_far.sum() < len(ratio)
    beta = torch.where(too_far, -ratio * batch.advantage, 0)
    penalty = -(log_prob - batch.log_prob)
    penalized = surrogate(log_prob, batch.log_prob, batch.advantage) - beta * penalty
    clipped = clipped_surrogate(log_prob, batch.log_prob, batch.advantage, 0.2)
    parameters = policy.actor_parameters()
    expected = flat_gradient(clipped.mean(), parameters, retain=True)
    torch.testing.assert_close(flat_gradient(penalized.mean(), parameters), expected)


def kl_of(policy, batch):
    new = policy.evaluate(batch.obs, batch.action, entropy=False)
    return kl_divergence(policy.head.restore(batch.parameters), new.distribution).mean()


@BOTH
def test_the_fisher_matrix_is_that_of_the_score(kind):
    """F = E[∇log π ∇log πᵀ], over the policy's own actions: here all of them, weighted."""
    policy, batch = batch_of(kind)
    parameters = policy.actor_parameters()
    size = sum(p.numel() for p in parameters)
    product = fisher_vector_product(kl_of(policy, batch), parameters, damping=0.0)
    dense = torch.stack([product(v) for v in torch.eye(size, dtype=torch.float64)])
    torch.testing.assert_close(dense, dense.T, rtol=1e-9, atol=1e-12)
    if kind == "discrete":
        score = torch.zeros_like(dense)
        for row in range(len(batch)):
            for action in range(3):
                log_p = policy.distribution(batch.obs[row]).log_p[action]
                g = flat_gradient(log_p, parameters, retain=True)
                score += log_p.detach().exp() * torch.outer(g, g) / len(batch)
        torch.testing.assert_close(dense, score, rtol=1e-8, atol=1e-12)
    assert torch.linalg.eigvalsh(dense).min() > -1e-12


@BOTH
def test_the_step_of_trpo_is_that_of_a_dense_solve(kind):
    policy, batch = batch_of(kind)
    parameters = policy.actor_parameters()
    size = sum(p.numel() for p in parameters)
    log_prob = policy.evaluate(batch.obs, batch.action, entropy=False).log_prob
    g = flat_gradient(surrogate(log_prob, batch.log_prob, batch.advantage).mean(), parameters)
    product = fisher_vector_product(kl_of(policy, batch), parameters, damping=0.1)
    dense = torch.stack([product(v) for v in torch.eye(size, dtype=torch.float64)])
    direction = torch.linalg.solve(dense, g)
    found = conjugate_gradient(product, g, 200)
    torch.testing.assert_close(found, direction, rtol=1e-3, atol=1e-5)
    step = natural_step(product, g, 0.01, 200)
    expected = math.sqrt(0.02 / (direction @ dense @ direction)) * direction
    torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-5)
    # To second order the KL is what was asked for.
    assert 0.5 * step @ dense @ step == pytest.approx(0.01)
    # Ten steps, as it is used, are near enough to climb almost as well.
    near = natural_step(product, g, 0.01, 10)
    assert near @ g > 0.95 * (step @ g)


def test_without_a_slope_there_is_no_step():
    policy, batch = batch_of("discrete")
    parameters = policy.actor_parameters()
    product = fisher_vector_product(kl_of(policy, batch), parameters, damping=0.1)
    g = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    assert not natural_step(product, g, 0.01, 10).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_not_taken_for_none(bad):
    g = torch.ones(3, dtype=torch.float64)
    assert not torch.isfinite(natural_step(lambda v: bad * v, g, 0.01, 10)).all()


@pytest.mark.parametrize(
    ("gains", "kls", "share"),
    [
        ([1, 1, 1], [0.02, 0.009, 0.004], 0.5),  # too far at first
        ([-1, 0, 1], [0.001, 0.001, 0.001], 0.25),  # no better at first
        ([1, 1, 1], [0.01, 0, 0], 1.0),  # on the bound is within it
        ([-1, -1, -1], [0, 0, 0], 0.0),
        ([math.nan, 1, 1], [0, math.nan, 0], 0.25),
    ],
)
def test_the_line_search_by_hand(gains, kls, share):
    asked = []

    def measure(where):
        asked.append(where)
        return gains[len(asked) - 1], kls[len(asked) - 1]

    assert line_search(measure, 0.01, 0.5, 3) == share
    assert asked == [1.0, 0.5, 0.25][: len(asked)]


@BOTH
def test_every_step_of_trpo_keeps_its_bound(kind):
    found = []
    trained(
        TRPO(max_kl=0.005),
        kind,
        callbacks=[lambda state, rollout, metrics: found.append(dict(metrics)) and None],
    )
    assert len(found) == 8
    assert all(row["kl"] <= 0.005 * (1 + 1e-4) for row in found)
    assert sum(row["line_search_fraction"] > 0 for row in found) >= 6
    assert max(row["kl"] for row in found) > 0.001
