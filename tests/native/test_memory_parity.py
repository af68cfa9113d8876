"""The native engine gives PyTorch's numbers for an LSTM and a GRU, in what it does and learns."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_heads_parity import KINDS, WITH_MASKS
from test_parity import algorithms, assert_same, both, case, kernels, nets, run

from proximo import A2C, PPO, TRPO, NetConfig, PPOPenalty, RolloutConfig, RunConfig, train
from proximo.collect import allocate
from proximo.engines import library
from proximo.engines.native import NativeEngine
from proximo.engines.torch import TorchEngine
from proximo.envs.testing.probes import Remember
from proximo.nets.actor_critic import ActorCritic

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason=library.load()[1])
each_memory = pytest.mark.parametrize("recurrent", ["gru", "lstm"])
each_trunk = pytest.mark.parametrize("trunk", ["separate", "shared"])
assert kernels  # a fixture
remembering = st.builds(
    lambda net, recurrent, size: dataclasses.replace(net, recurrent=recurrent, recurrent_size=size),
    nets,
    st.sampled_from(["gru", "lstm"]),
    st.integers(1, 70),
)


@given(
    algorithm=algorithms,
    net=remembering,
    inputs=st.integers(1, 40),
    actions=st.integers(2, 20),
    continuous=st.booleans(),
    samples=st.integers(1, 64),
    seed=st.integers(0, 10_000),
)
def test_one_step_from_the_same_minibatch(
    algorithm, net, inputs, actions, continuous, samples, seed
):
    if isinstance(algorithm, TRPO):
        net = dataclasses.replace(net, trunk="separate")
    if net.trunk == "shared":
        algorithm = dataclasses.replace(algorithm, critic_learning_rate=None)
    sizes = {"inputs": inputs, "actions": actions, "samples": samples, "seed": seed}
    sizes["continuous"] = continuous
    assert_same(
        both(algorithm, net, **sizes),
        exact=run("exact", algorithm, net, **sizes),
        weights=3e-3,  # as in test_parity
        rounding=1e-8 + 1e-7 * (getattr(algorithm, "beta", 0.0) + algorithm.entropy_coef),
    )


@each_memory
@each_trunk
@pytest.mark.parametrize(
    "algorithm",
    [PPO(entropy_coef=0.01, target_kl=1e9), PPOPenalty(beta=3.0), A2C()],
    ids=["ppo", "penalty", "a2c"],
)
@pytest.mark.parametrize(("kind", "masked"), [WITH_MASKS[0], ("hybrid", True)])
def test_forty_steps_of_many_minibatches(recurrent, trunk, algorithm, kind, masked):
    net = NetConfig(trunk=trunk, recurrent=recurrent, recurrent_size=20, activation="relu")
    if algorithm.minibatches == "shuffled":
        algorithm = dataclasses.replace(algorithm, minibatch_size=30)
    sizes = {"space": KINDS[kind], "masked": masked, "samples": 200}
    assert_same(both(algorithm, net, epochs=6, **sizes), gradients=None, weights=3e-4)


@each_memory
@pytest.mark.parametrize("size", [64, 5])
def test_every_kind_of_processor(kernels, recurrent, size):
    net = NetConfig(recurrent=recurrent, recurrent_size=size, hidden=(33,))
    algorithm = PPO(minibatch_size=100, entropy_coef=0.01)
    assert_same(both(algorithm, net, samples=200, inputs=11))


@each_memory
def test_two_threads_give_the_bits_of_one(recurrent):
    net = NetConfig(recurrent=recurrent, recurrent_size=17)
    algorithm = PPO(minibatch_size=50, target_kl=0.05)
    one, two = (run("native", algorithm, net, epochs=3, threads=n, samples=300) for n in (1, 2))
    assert torch.equal(one[2], two[2])


@given(net=remembering, samples=st.integers(1, 300), seed=st.integers(0, 1000))
def test_evaluations(net, samples, seed):
    net = dataclasses.replace(net, normalize_obs=True, obs_clip=1.0)
    policy, optimizer, batch = case(PPO(), net, samples=samples, seed=seed)
    policy.obs_shift.fill_(0.2)
    policy.obs_scale.fill_(0.7)
    engine = NativeEngine(policy, optimizer, 2)
    with torch.no_grad():
        expected = policy.evaluate(batch.obs, batch.action, entropy=True, segments=batch.segments)
    found = engine.evaluate(batch.obs, batch.action, entropy=True, segments=batch.segments)
    assert found.recurrent_state.shape == (int(batch.segment_id[-1]) + 1, policy.state_size)
    for name in ("log_prob", "entropy", "value", "recurrent_state"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4
        )
    assert torch.equal(engine.value(batch.obs, batch.segments), found.value)


@each_memory
@each_trunk
@pytest.mark.parametrize("count", [1, 3, 130])
def test_acting(recurrent, trunk, count):
    """The same actions and recurrent states, at episode ends and resets of next-step envs."""
    torch.manual_seed(0)
    net = NetConfig(
        normalize_obs=True, policy_gain=1.0, recurrent=recurrent, recurrent_size=9, trunk=trunk
    )
    policy = ActorCritic(gym.spaces.Box(-9, 9, (6,)), gym.spaces.Discrete(5), net)
    optimizer = PPO().make_optimizer(policy)
    begin = torch.randn(count, policy.state_size)
    results = []
    for engine in (TorchEngine(policy, optimizer), NativeEngine(policy, optimizer, 1)):
        generator = torch.Generator().manual_seed(1)
        buffer, recurrent_state = (
            allocate(policy, np.zeros((count, 6), np.float32), 20),
            begin.clone(),
        )
        buffer.obs[:] = torch.randn(buffer.obs.shape, generator=generator).numpy()
        buffer.done[:] = (torch.rand(buffer.done.shape, generator=generator) < 0.1).numpy()
        buffer.valid[:] = (torch.rand(buffer.valid.shape, generator=generator) < 0.9).numpy()
        noise = policy.head.noise(generator, (20, count))
        seen = []
        with torch.no_grad():
            act = engine.actor(buffer, noise, recurrent_state)
            for t in range(20):
                act(t)
                seen.append(recurrent_state.clone())
        results.append((buffer, torch.stack(seen)))
    (expected, recurrent_states), (found, others) = results
    np.testing.assert_allclose(found.parameters, expected.parameters, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(others, recurrent_states, rtol=1e-5, atol=1e-5)
    assert (found.action == expected.action).mean() > 0.999
    assert (recurrent_states[1:][torch.from_numpy(expected.done[:-1])][:, -1] == 0).all() or (
        trunk == "shared"
    )


@each_memory
@pytest.mark.parametrize("algorithm", [PPO(epochs=2, minibatch_size=32), A2C(), TRPO()])
def test_both_engines_learn_alike_for_the_first_updates(recurrent, algorithm):
    def go(engine):
        return train(
            Remember,
            algorithm,
            num_envs=2,
            rollout=RolloutConfig(steps=64),
            net=NetConfig(hidden=(8,), recurrent=recurrent, recurrent_size=8, bptt_steps=2),
            run_config=RunConfig(engine=engine, total_steps=256),
            seed=2,
        )

    first, second = go("torch"), go("native")
    assert second.config.run.engine == "native"
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)
