"""The native engine gives PyTorch's numbers: gradients, terms and weights."""

import copy
import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, RunConfig, UsageError, train
from proximo.algorithms.update import choose_engine, lay_out, torch_epoch
from proximo.native import library
from proximo.native.library import NativeUpdate, obstacle
from proximo.nets.actor_critic import ActorCritic
from proximo.types import Batch

pytestmark = pytest.mark.skipif(library._load()[0] is None, reason=library._load()[1])


def case(algorithm, net, *, inputs=4, actions=3, continuous=False, samples=64, seed=0):
    """A policy, its optimizer and a batch that the policy itself might have collected."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        space = gym.spaces.Box(-1, 1, (actions,)) if continuous else gym.spaces.Discrete(actions)
        policy = ActorCritic(gym.spaces.Box(-9, 9, (inputs,)), space, net)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    policy.return_shift.fill_(0.3)
    policy.return_scale.fill_(2.0)
    obs = normal(samples, inputs)
    with torch.no_grad():
        distribution = policy.distribution(obs)
        noise = policy.head.noise(generator, (samples,))
        action = distribution.sample(noise)
        batch = Batch(
            obs=obs,
            action=action,
            log_prob=distribution.log_prob(action) + 0.2 * normal(samples),
            value=policy.value(obs) + 0.3 * normal(samples),
            advantage=normal(samples),
            target=normal(samples) * 2,
            episode=torch.arange(samples) // 7,
        )
    return policy, algorithm.make_optimizer(policy), batch


def both(algorithm, net, epochs=1, **kwargs):
    """The same epochs on both engines: (terms, gradient, weights) of each."""
    results = []
    for engine in ("torch", "native"):
        policy, optimizer, batch = case(algorithm, net, **kwargs)
        coefficients = algorithm.coefficients(0.0)
        for group, rate in zip(optimizer.param_groups, (1e-3, 2e-3), strict=False):
            group["lr"] = rate
        spec = algorithm.loss_spec(coefficients)
        assert obstacle(policy, spec, optimizer) == ""
        native = NativeUpdate(policy, optimizer, batch, spec) if engine == "native" else None
        shuffling = torch.Generator().manual_seed(1)
        for _ in range(epochs):
            layout = lay_out(algorithm, batch, shuffling)

            def loss(minibatch, policy=policy, coefficients=coefficients):
                return algorithm.loss(policy, minibatch, coefficients)

            terms = (
                native.epoch(*layout)
                if native
                else torch_epoch(optimizer, batch, layout, loss, algorithm.max_grad_norm)
            )
        flats = [group["params"][0] for group in optimizer.param_groups]
        gradient = torch.cat([flat.grad for flat in flats])
        weights = torch.cat([flat.detach() for flat in flats])
        states = [optimizer.state[flat] for flat in flats]
        steps = [int(state["step"]) for state in states]
        results.append((terms, gradient, weights, steps))
    return results


def assert_same(results, gradients=1e-5, weights=1e-4):
    (terms, gradient, theta, steps), (other_terms, other_gradient, other, other_steps) = results
    assert set(terms) == set(other_terms)
    for name, term in terms.items():
        assert float(other_terms[name]) == pytest.approx(float(term), rel=2e-5, abs=2e-5), name
    if gradients is not None:
        assert (gradient - other_gradient).abs().max() <= gradients * gradient.abs().max()
    assert (theta - other).norm() <= weights * theta.norm()
    assert steps == other_steps


algorithms = st.builds(
    PPO,
    clip=st.floats(0.05, 0.5),
    entropy_coef=st.sampled_from([0.0, 0.01, 0.5]),
    value_coef=st.floats(0.0, 2.0),
    value_loss=st.sampled_from(["mse", "huber", "clipped"]),
    value_clip=st.floats(0.05, 0.5),
    huber_delta=st.floats(0.2, 3.0),
    normalize_advantage=st.sampled_from(["minibatch", "none"]),
    max_grad_norm=st.sampled_from([None, 0.1, 0.5, 100.0]),
    critic_learning_rate=st.sampled_from([None, 1e-3]),
    minibatch_size=st.just(64),
)
nets = st.builds(
    NetConfig,
    hidden=st.lists(st.integers(1, 70), min_size=1, max_size=4).map(tuple),
    activation=st.sampled_from(["tanh", "relu", "elu"]),
    trunk=st.sampled_from(["separate", "shared"]),
    normalize_returns=st.booleans(),
)


@given(
    algorithm=algorithms,
    net=nets,
    inputs=st.integers(1, 40),
    actions=st.integers(2, 20),
    continuous=st.booleans(),
    samples=st.integers(1, 64),
    seed=st.integers(0, 10_000),
)
def test_one_step_from_the_same_minibatch(
    algorithm, net, inputs, actions, continuous, samples, seed
):
    if net.trunk == "shared":
        algorithm = dataclasses.replace(algorithm, critic_learning_rate=None)
    assert_same(
        both(
            algorithm,
            net,
            inputs=inputs,
            actions=actions,
            continuous=continuous,
            samples=samples,
            seed=seed,
        ),
        # A first step of Adam moves by the sign of a gradient, however small, so an entry that is
        # zero but for rounding may go either way: the weights are compared over forty steps.
        weights=3e-3,
    )


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize("trunk", ["separate", "shared"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("value_loss", ["mse", "huber", "clipped"])
def test_forty_steps_on_one_batch(continuous, trunk, activation, value_loss):
    algorithm = PPO(value_loss=value_loss, entropy_coef=0.01, minibatch_size=64)
    net = NetConfig(hidden=(64, 64), trunk=trunk, activation=activation)
    results = both(algorithm, net, epochs=40, continuous=continuous)
    assert_same(results, gradients=None)


@pytest.mark.parametrize("minibatch_size", [1, 5, 64, 100])
def test_a_smaller_last_minibatch_and_minibatches_of_one(minibatch_size):
    algorithm = PPO(minibatch_size=minibatch_size, normalize_advantage="none")
    assert_same(both(algorithm, NetConfig(), epochs=2, samples=64), gradients=1e-4)


def test_whole_episodes_in_order():
    algorithm = PPO(minibatches="episodes", normalize_advantage="none")
    assert_same(both(algorithm, NetConfig(), epochs=3), gradients=1e-4)


def edge(change, algorithm):
    """The gradient of a batch whose ratios or advantages lie on an edge, from both engines."""
    gradients = []
    for engine in ("torch", "native"):
        policy, optimizer, batch = case(algorithm, NetConfig())
        batch = change(batch, policy)
        coefficients = algorithm.coefficients(0.0)
        layout = (torch.arange(len(batch)), [0, len(batch)])
        if engine == "native":
            spec = algorithm.loss_spec(coefficients)
            NativeUpdate(policy, optimizer, batch, spec).epoch(*layout)
        else:
            torch_epoch(
                optimizer,
                batch,
                layout,
                lambda minibatch, p=policy, c=coefficients: algorithm.loss(p, minibatch, c),
                algorithm.max_grad_norm,
            )
        gradients.append(torch.cat([g["params"][0].grad for g in optimizer.param_groups]))
    return gradients


def first_ratio_is_one(batch, policy):
    with torch.no_grad():
        new = policy.distribution(batch.obs).log_prob(batch.action)
    return dataclasses.replace(batch, log_prob=new)


def no_advantage(batch, policy):
    return dataclasses.replace(batch, advantage=torch.zeros_like(batch.advantage))


def huge_ratio(batch, policy):
    return dataclasses.replace(batch, log_prob=batch.log_prob - 100, advantage=-batch.value.abs())


def value_at_its_old_value(batch, policy):
    with torch.no_grad():
        return dataclasses.replace(batch, value=policy.value(batch.obs))


@pytest.mark.parametrize(
    "change", [first_ratio_is_one, no_advantage, huge_ratio, value_at_its_old_value]
)
@pytest.mark.parametrize("normalize", ["minibatch", "none"])
def test_edges(change, normalize):
    algorithm = PPO(normalize_advantage=normalize, value_loss="clipped")
    expected, found = edge(change, algorithm)
    assert torch.isfinite(expected).all()
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max() + 1e-9


def test_tanh_is_exact_to_2e_7():
    """A critic of one unit with weights 1 gives V = tanh x, and its loss against 0 is tanh² x."""
    x = torch.linspace(-12, 12, 401)[:, None]
    algorithm = PPO(normalize_advantage="none", max_grad_norm=None)
    policy, optimizer, batch = case(
        algorithm, NetConfig(hidden=(1,)), inputs=1, actions=2, samples=len(x)
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        policy.critic.layers[0].weight.fill_(1.0)
        policy.baseline.weight.fill_(1.0)
    zero = torch.zeros(len(x))
    batch = dataclasses.replace(batch, obs=x, advantage=zero, target=zero, value=zero)
    native = NativeUpdate(
        policy, optimizer, batch, algorithm.loss_spec(algorithm.coefficients(0.0))
    )
    optimizer.param_groups[0]["lr"] = 0.0
    for index in range(len(x)):
        found = float(native.epoch(torch.tensor([index]), [0, 1])["value_loss"]) ** 0.5
        assert abs(found - abs(np.tanh(float(x[index])))) <= 2e-7


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_both_engines_learn_alike_for_the_first_updates(env):
    def go(engine):
        return train(
            EnvConfig(id=env, worlds=2),
            PPO(epochs=2, minibatch_size=32, max_grad_norm=0.5),
            rollout=RolloutConfig(steps=64),
            net=NetConfig(hidden=(32, 32), normalize_obs=True, normalize_returns=True),
            run_config=RunConfig(engine=engine, total_steps=256),
            seed=2,
        )

    first, second = go("torch"), go("native")
    assert first.config.run.engine == "torch"
    assert second.config.run.engine == "native"
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


class Other(ActorCritic):
    pass


class OwnLoss(PPO):
    def loss(self, policy, batch, coefficients):
        return super().loss(policy, batch, coefficients)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p, ""),
        (lambda p: p.double(), "single precision"),
        (lambda p: p.baseline.weight.requires_grad_(False), "frozen"),
        (lambda p: p.actor.register_forward_hook(lambda *a: None), "hooks"),
        (lambda p: setattr(p, "__class__", Other), "network is not one"),
    ],
)
def test_what_native_does_not_know_runs_on_torch_and_says_so(change, reason):
    policy, optimizer, _ = case(PPO(), NetConfig())
    change(policy)
    engine, why = choose_engine("auto", PPO(), policy, optimizer)
    assert engine == ("torch" if reason else "native")
    assert reason in why
    if reason:
        with pytest.raises(UsageError, match=reason):
            choose_engine("native", PPO(), policy, optimizer)


@pytest.mark.parametrize(
    ("algorithm", "net", "reason"),
    [
        (OwnLoss(), NetConfig(), "loss"),
        (PPO(optimizer="sgd"), NetConfig(), "Adam"),
        (PPO(), NetConfig(hidden=(300,)), "wider"),
        (PPO(), NetConfig(hidden=(8,) * 7), "layers"),
    ],
)
def test_settings_that_native_does_not_know_run_on_torch(algorithm, net, reason):
    policy, optimizer, _ = case(algorithm, net)
    engine, why = choose_engine("auto", algorithm, policy, optimizer)
    assert engine == "torch"
    assert reason in why


def test_without_the_library_everything_runs_on_torch(monkeypatch, tmp_path):
    for content in (None, b"no library"):
        if content:
            (tmp_path / "engine.so").write_bytes(content)
        monkeypatch.setattr(library, "LIBRARY", tmp_path / "engine.so")
        library._load.cache_clear()
        policy, optimizer, _ = case(PPO(), NetConfig())
        assert choose_engine("auto", PPO(), policy, optimizer)[0] == "torch"
    monkeypatch.undo()
    library._load.cache_clear()


def test_the_batch_is_left_alone():
    algorithm = PPO(minibatch_size=16)
    policy, optimizer, batch = case(algorithm, NetConfig())
    before = copy.deepcopy(vars(batch))
    spec = algorithm.loss_spec(algorithm.coefficients(0.0))
    native = NativeUpdate(policy, optimizer, batch, spec)
    native.epoch(*lay_out(algorithm, batch, torch.Generator()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vars(batch).items())


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("part", ["actor", "critic"])
def test_nan_does_not_vanish(activation, part):
    """A NaN among the weights comes out as NaN, as it does in PyTorch, so that it is noticed."""
    algorithm = PPO()
    policy, optimizer, batch = case(algorithm, NetConfig(hidden=(16, 16), activation=activation))
    with torch.no_grad():
        getattr(policy, part).layers[0].weight[3, 1] = torch.nan
    spec = algorithm.loss_spec(algorithm.coefficients(0.0))
    terms = NativeUpdate(policy, optimizer, batch, spec).epoch(
        *lay_out(algorithm, batch, torch.Generator())
    )
    assert torch.isnan(terms["loss"])
