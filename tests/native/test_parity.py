"""The native engine gives PyTorch's numbers: gradients, terms and weights."""

import copy
import dataclasses
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proximo import (
    A2C,
    PPO,
    TRPO,
    EnvConfig,
    NetConfig,
    PPOPenalty,
    Reinforce,
    RolloutConfig,
    RunConfig,
    UsageError,
    train,
)
from proximo.collect import allocate
from proximo.engines import library
from proximo.engines.base import Layout
from proximo.engines.native import NativeEngine
from proximo.engines.torch import TorchEngine
from proximo.envs.compiled import obstacle
from proximo.errors import TrainingError
from proximo.nets.actor_critic import ActorCritic
from proximo.run.choices import choose_engine
from proximo.spaces import MASK, choices
from proximo.types import Batch, Rollout, Segments

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason=library.load()[1])


def shown(space, inputs, masked):
    """What an env shows of which these are the actions: numbers, and what is legal."""
    numbers = gym.spaces.Box(-9, 9, (inputs,))
    if not (masked and choices(space)):
        return numbers
    return gym.spaces.Dict({MASK: gym.spaces.MultiBinary(choices(space)), "numbers": numbers})


def rows_of(policy, generator, *shape):
    """Rows of observations, and in each something to choose."""
    rows = torch.randn((*shape, policy.observations.width), generator=generator)
    if policy.masked:
        begin = policy.observations.mask_begin
        for among in torch.split(rows[..., begin:], list(policy.head.num_logits), -1):
            first = torch.randint(among.shape[-1], (*shape, 1), generator=generator)
            among.copy_((among > 0).float().scatter(-1, first, 1.0))
    return rows


def case(
    algorithm,
    net,
    *,
    inputs=4,
    actions=3,
    continuous=False,
    samples=64,
    seed=0,
    space=None,
    masked=False,
):
    """A policy, its optimizer and a batch that the policy itself might have collected."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        plain = gym.spaces.Box(-1, 1, (actions,)) if continuous else gym.spaces.Discrete(actions)
        space = space or plain
        policy = ActorCritic(shown(space, inputs, masked), space, net)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    policy.return_shift.fill_(0.3)
    policy.return_scale.fill_(2.0)
    obs = rows_of(policy, generator, samples)
    earlier = obs.clone()
    earlier[:, :inputs] += 0.2 * normal(samples, inputs)
    segment_id, segments = torch.zeros(samples, dtype=torch.int64), None
    recurrent_state = 0.5 * normal(samples, policy.state_size)
    if policy.state_size:
        begins = torch.rand(samples, generator=generator) < 0.25
        begins[0] = False
        segment_id = begins.long().cumsum(0)
        segments = Segments(segment_id, recurrent_state)
    with torch.no_grad():
        distribution = policy.distribution(obs, segments)
        noise = policy.head.noise(generator, (samples,))
        action = distribution.sample(noise)
        before = policy.distribution(earlier, segments)
        batch = Batch(
            obs=obs,
            action=action,
            log_prob=distribution.log_prob(action) + 0.2 * normal(samples),
            parameters=before.parameters,
            value=policy.value(obs, segments) + 0.3 * normal(samples),
            advantage=normal(samples),
            target=normal(samples) * 2,
            episode=torch.arange(samples) // 7,
            segment_id=segment_id,
            initial_state=recurrent_state,
        )
    return policy, algorithm.make_optimizer(policy), batch


def engine_of(name, algorithm, policy, optimizer, threads=1):
    if name in ("torch", "compile"):
        return TorchEngine(policy, optimizer, compiled=name == "compile")
    spec = algorithm.native_spec(algorithm.coefficients(0.0))
    assert library.obstacle(policy, spec) == ""
    return NativeEngine(policy, optimizer, threads)


def run(name, algorithm, net, epochs=1, layout=None, change=None, threads=1, **kwargs):
    """An update on one engine: (outcome, gradient, weights, the optimizer's records)."""
    policy, optimizer, batch = case(algorithm, net, **kwargs)
    if change:
        batch = change(batch, policy)
    algorithm = dataclasses.replace(algorithm, epochs=epochs)
    if name == "exact":
        name, batch, policy = "torch", in_double(batch), policy.double()
        optimizer = algorithm.make_optimizer(policy)
    optimizer.rates = [1e-3, 2e-3][: len(optimizer.flats)]
    layout = layout or algorithm.layout(batch, torch.Generator().manual_seed(1))
    engine = engine_of(name, algorithm, policy, optimizer, threads)
    outcome = engine.descend(algorithm, batch, layout, algorithm.coefficients(0.0))
    flats = optimizer.flats
    gradient = torch.cat([flat.grad for flat in flats])
    weights = torch.cat([flat.detach() for flat in flats])
    records = [tensor for record in optimizer.records for tensor in record.values()]
    return outcome, gradient, weights, records


def in_double(batch):
    tensors = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return Batch(**{k: x.double() if x.is_floating_point() else x for k, x in tensors.items()})


def both(*args, **kwargs):
    """The same update on both engines."""
    return [run(name, *args, **kwargs) for name in ("torch", "native")]


def assert_same(results, gradients=1e-5, weights=1e-4, rounding=1e-9, exact=None):
    """The engines agree, or native is nearer to the `exact` result, in double, than torch."""
    (outcome, gradient, theta, records), (other, other_gradient, other_theta, others) = results
    assert outcome[1:] == other[1:]
    assert set(outcome.terms) == set(other.terms)
    for name, term in outcome.terms.items():
        # Terms are added up over the steps, so their tolerance is as well.
        tolerance = 2e-5 * outcome.steps**0.5
        found, expected = float(other.terms[name]), float(term)
        if exact is not None:
            truth = float(exact[0].terms[name])
            tolerance = max(tolerance, abs(expected - truth) / max(abs(truth), 1.0) * 2)
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), name
    if gradients is not None:
        # Where everything cancels, what is left is the rounding of numbers of unit size.
        apart, allowed = (gradient - other_gradient).abs().max(), rounding
        if exact is not None and apart > gradients * gradient.abs().max() + rounding:
            apart, allowed = ((g - exact[1]).abs().max() for g in (other_gradient, gradient))
        assert apart <= gradients * gradient.abs().max() + allowed
    assert (theta - other_theta).norm() <= weights * theta.norm()
    assert len(records) == len(others)
    for record, other_record in zip(records, others, strict=True):
        if record.dim() == 0:
            assert record == other_record  # the optimizer's steps


of_the_actor = {
    "entropy_coef": st.sampled_from([0.0, 0.01, 0.5]),
    "normalize_advantage": st.sampled_from(["minibatch", "none"]),
    "max_grad_norm": st.sampled_from([None, 0.1, 0.5, 100.0]),
    "minibatch_size": st.just(64),
}
of_the_critic = {
    "value_coef": st.floats(0.0, 2.0),
    "value_loss": st.sampled_from(["mse", "huber", "clipped"]),
    "value_clip": st.floats(0.05, 0.5),
    "huber_delta": st.floats(0.2, 3.0),
    "critic_learning_rate": st.sampled_from([None, 1e-3]),
}


def with_and_without_critic(algorithm, **own):
    own |= of_the_actor
    alone = st.builds(algorithm, critic=st.just(False), **own)
    return st.builds(algorithm, **of_the_critic | own) | alone


algorithms = st.one_of(
    with_and_without_critic(
        PPO,
        clip=st.floats(0.05, 0.5),
        clip_high=st.none() | st.floats(0.05, 0.5),
        dual_clip=st.none() | st.floats(1.05, 2.0),
    ),
    with_and_without_critic(PPO, clip=st.none()),
    with_and_without_critic(PPO, clip=st.floats(0.05, 0.5), surrogate=st.just("spo")),
    with_and_without_critic(PPOPenalty, beta=st.floats(0.0, 10.0), kl_target=st.none()),
    with_and_without_critic(A2C),
    with_and_without_critic(Reinforce),
    st.builds(TRPO, **of_the_actor | of_the_critic | {"critic_learning_rate": st.just(1e-3)}),
)
nets = st.builds(
    NetConfig,
    hidden=st.lists(st.integers(1, 70), min_size=1, max_size=4).map(tuple),
    activation=st.sampled_from(["tanh", "relu", "elu"]),
    trunk=st.sampled_from(["separate", "shared"]),
    normalize_returns=st.booleans(),
    mean=st.sampled_from(["linear", "tanh"]),
    std=st.sampled_from(["free", "softplus"]),
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
    if isinstance(algorithm, TRPO):
        net = dataclasses.replace(net, trunk="separate")
    if net.trunk == "shared":
        algorithm = dataclasses.replace(algorithm, critic_learning_rate=None)
    sizes = {"inputs": inputs, "actions": actions, "samples": samples, "seed": seed}
    sizes["continuous"] = continuous
    assert_same(
        both(algorithm, net, **sizes),
        exact=run("exact", algorithm, net, **sizes),
        # A first step of Adam moves by the sign of a gradient, however small, so an entry that is
        # zero but for rounding may go either way: the weights are compared over forty steps.
        weights=3e-3,
        # The penalty pulls by beta (p - p_old), probabilities that differ by little.
        rounding=1e-9 + 1e-7 * getattr(algorithm, "beta", 0.0),
    )


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize("trunk", ["separate", "shared"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("value_loss", ["mse", "huber", "clipped"])
def test_forty_steps_on_one_batch(continuous, trunk, activation, value_loss):
    algorithm = PPO(value_loss=value_loss, entropy_coef=0.01, minibatch_size=64)
    net = NetConfig(hidden=(64, 64), trunk=trunk, activation=activation)
    # At seed 0 a ReLU passes zero within the rounding of a product, whose order the processor's
    # library chooses: even two results in double then part by 3e-4 after forty steps.
    results = both(algorithm, net, epochs=40, continuous=continuous, seed=2)
    assert_same(results, gradients=None)


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize(
    "algorithm",
    [
        PPOPenalty(beta=3.0),
        PPO(clip=None),
        PPO(clip=0.1, clip_high=0.3, dual_clip=1.2),
        PPO(surrogate="spo"),
        A2C(),
        Reinforce(critic=False),
        TRPO(),
    ],
    ids=["penalty", "no-clip", "clips", "spo", "a2c", "reinforce", "trpo"],
)
@pytest.mark.parametrize("heads", ["plain", "from-the-state"])
def test_forty_steps_of_the_lineage(continuous, algorithm, heads):
    net = NetConfig()
    if heads == "from-the-state":
        if not continuous:
            pytest.skip("only continuous actions have a mean and a deviation")
        net = NetConfig(mean="tanh", std="softplus")
    assert_same(both(algorithm, net, epochs=40, continuous=continuous), gradients=None)


@pytest.mark.parametrize("minibatch_size", [1, 5, 64, 100])
def test_a_smaller_last_minibatch_and_minibatches_of_one(minibatch_size):
    algorithm = PPO(minibatch_size=minibatch_size, normalize_advantage="none")
    assert_same(both(algorithm, NetConfig(), epochs=2, samples=64), gradients=1e-4)


def test_whole_episodes_in_order():
    algorithm = PPO(minibatches="episodes", normalize_advantage="none")
    assert_same(both(algorithm, NetConfig(), epochs=3), gradients=1e-4)


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
    (_, expected, *_), (_, found, *_) = both(algorithm, NetConfig(), change=change)
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
    engine = NativeEngine(policy, optimizer, 1)
    for index in range(len(x)):
        layout = Layout(torch.zeros(1, 1, dtype=torch.int64), [[0, 1]])
        sample = batch[index : index + 1]
        outcome = engine.descend(algorithm, sample, layout, algorithm.coefficients(0.0))
        found = float(outcome.terms["value_loss"]) ** 0.5
        assert abs(found - abs(np.tanh(float(x[index])))) <= 2e-7


OWN = f"native:{Path(__file__).parents[2] / 'examples' / 'catch.c'}"


@pytest.mark.parametrize(
    ("env", "backend"), [("CartPole-v1", "sync"), ("Pendulum-v1", "native"), (OWN, "native")]
)
def test_both_engines_learn_alike_for_the_first_updates(env, backend):
    if backend == "native" and (text := obstacle(EnvConfig(id=env))):
        pytest.skip(text)

    def go(engine):
        return train(
            EnvConfig(id=env, num_envs=2, backend=backend),
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
    policy, _, _ = case(PPO(), NetConfig())
    change(policy)
    engine, why = choose_engine("auto", PPO(), policy)
    assert engine == ("torch" if reason else "native")
    assert reason in why
    if reason:
        with pytest.raises(UsageError, match=reason):
            choose_engine("native", PPO(), policy)


@pytest.mark.parametrize(
    ("algorithm", "net", "reason"),
    [
        (OwnLoss(), NetConfig(), "loss"),
        (PPO(), NetConfig(hidden=(513,)), "wider"),
        (PPO(), NetConfig(hidden=(8,) * 7), "layers"),
    ],
)
def test_settings_that_native_does_not_know_run_on_torch(algorithm, net, reason):
    policy, _, _ = case(algorithm, net)
    engine, why = choose_engine("auto", algorithm, policy)
    assert engine == "torch"
    assert reason in why


def test_without_the_library_everything_runs_on_torch(monkeypatch, tmp_path):
    for content in (None, b"no library"):
        if content:
            (tmp_path / "engine.so").write_bytes(content)
        monkeypatch.setattr(library, "LIBRARY", tmp_path / "engine.so")
        library.load.cache_clear()
        policy, _, _ = case(PPO(), NetConfig())
        assert choose_engine("auto", PPO(), policy)[0] == "torch"
    monkeypatch.undo()
    library.load.cache_clear()


def test_structures_of_another_size_are_not_used(monkeypatch):
    class Part(library._Part):
        _fields_ = (("more", library._float),)

    changed = [Part if kind is library._Part else kind for kind in library.STRUCTURES]
    monkeypatch.setattr(library, "STRUCTURES", tuple(changed))
    library.load.cache_clear()
    found, why = library.load()
    library.load.cache_clear()
    assert found is None
    assert re.search(r"has Part of 40 bytes, not \d+: install Proximo again", why)


def test_the_batch_is_left_alone():
    algorithm = PPO(minibatch_size=16)
    policy, optimizer, batch = case(algorithm, NetConfig())
    before = copy.deepcopy(vars(batch))
    layout = algorithm.layout(batch, torch.Generator())
    engine = NativeEngine(policy, optimizer, 2)
    engine.descend(algorithm, batch, layout, algorithm.coefficients(0.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vars(batch).items())


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("part", ["actor", "critic"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_gradient_that_is_not_finite_is_noticed_and_not_stepped_along(activation, part, threads):
    algorithm = PPO(epochs=3, minibatch_size=16)
    policy, optimizer, batch = case(algorithm, NetConfig(hidden=(16, 16), activation=activation))
    with torch.no_grad():
        getattr(policy, part).layers[0].weight[3, 1] = torch.nan
    before = [parameter.clone() for parameter in policy.parameters()]
    layout = algorithm.layout(batch, torch.Generator())
    engine = NativeEngine(policy, optimizer, threads)
    outcome = engine.descend(algorithm, batch, layout, algorithm.coefficients(0.0))
    assert outcome == ({}, 3, 0, layout.steps)  # every minibatch was left out
    assert all(not record.any() for record in optimizer.records[0].values())
    for parameter, old in zip(policy.parameters(), before, strict=True):
        assert torch.equal(parameter.nan_to_num(9.0), old.nan_to_num(9.0))


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
@pytest.mark.parametrize("critic_learning_rate", [None, 2e-3], ids=["one", "apart"])
def test_every_optimizer_and_its_records(optimizer, critic_learning_rate):
    algorithm = PPO(
        optimizer=optimizer, minibatch_size=16, critic_learning_rate=critic_learning_rate
    )
    results = both(algorithm, NetConfig(), epochs=4)
    assert_same(results, gradients=None)
    records, others = results[0][3], results[1][3]
    assert len(records) == {"adam": 3, "rmsprop": 2, "sgd": 0}[optimizer] * (
        1 if critic_learning_rate is None else 2
    )
    for record, other in zip(records, others, strict=True):
        torch.testing.assert_close(record, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize("trunk", ["separate", "shared"])
@pytest.mark.parametrize("target_kl", [1e-9, 3e-3, 0.1, 1e9])
def test_the_limit_of_the_kl_ends_both_at_the_same_epoch(continuous, trunk, target_kl):
    algorithm = PPO(minibatch_size=16, target_kl=target_kl, normalize_advantage="none")
    net = NetConfig(trunk=trunk)

    def near(batch, policy):
        with torch.no_grad():
            same = policy.distribution(batch.obs).log_prob(batch.action)
        return dataclasses.replace(batch, log_prob=same)

    results = both(algorithm, net, epochs=12, continuous=continuous, change=near)
    assert_same(results, gradients=None)
    epochs = results[0][0].epochs
    assert epochs == {1e-9: 1, 1e9: 12}.get(target_kl, epochs)
    assert epochs < 12 or target_kl > 3e-3


@given(
    net=nets,
    inputs=st.integers(1, 40),
    actions=st.integers(2, 20),
    continuous=st.booleans(),
    samples=st.integers(1, 200),
    minibatch_size=st.integers(2, 200),
    target_kl=st.sampled_from([None, 0.05]),
)
def test_two_threads_give_the_bits_of_one(
    net, inputs, actions, continuous, samples, minibatch_size, target_kl
):
    algorithm = PPO(minibatch_size=minibatch_size, target_kl=target_kl, entropy_coef=0.01)
    shapes = {"inputs": inputs, "actions": actions, "continuous": continuous, "samples": samples}
    one, two = (
        run("native", algorithm, net, epochs=3, threads=threads, **shapes) for threads in (1, 2)
    )
    assert one[0][1:] == two[0][1:]
    assert all(torch.equal(term, two[0].terms[name]) for name, term in one[0].terms.items())
    assert torch.equal(one[1], two[1])
    assert torch.equal(one[2], two[2])


@pytest.fixture(params=[0, 1, 2], ids=["plain", "AVX2", "AVX-512"])
def kernels(request):
    """Those of this processor kind, or of the nearest below where it lacks them."""
    native, _ = library.load()
    native.proximo_use(request.param)
    yield request.param
    native.proximo_use(2)


@pytest.mark.parametrize("hidden", [(64, 64), (7,), (33, 130, 5)])
def test_every_kind_of_processor(kernels, hidden):
    algorithm = PPO(minibatch_size=100, entropy_coef=0.01)
    assert_same(both(algorithm, NetConfig(hidden=hidden), samples=200, inputs=11))
    for activation in ("relu", "elu"):
        net = NetConfig(hidden=hidden, activation=activation)
        assert_same(both(algorithm, net, samples=200, inputs=11))


@given(
    net=nets,
    inputs=st.integers(1, 40),
    actions=st.integers(2, 20),
    continuous=st.booleans(),
    samples=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
def test_evaluations(net, inputs, actions, continuous, samples, seed):
    net = dataclasses.replace(net, normalize_obs=True, obs_clip=1.0)
    policy, optimizer, batch = case(
        PPO(),
        net,
        inputs=inputs,
        actions=actions,
        continuous=continuous,
        samples=samples,
        seed=seed,
    )
    policy.obs_shift.fill_(0.2)
    policy.obs_scale.fill_(0.7)
    engine = NativeEngine(policy, optimizer, 2)
    with torch.no_grad():
        expected = policy.evaluate(batch.obs, batch.action, entropy=True)
    found = engine.evaluate(batch.obs, batch.action, entropy=True)
    for name in ("log_prob", "entropy", "value"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(
        found.distribution.parameters, expected.distribution.parameters, rtol=1e-5, atol=1e-5
    )
    assert engine.evaluate(batch.obs, batch.action, entropy=False).entropy is None
    assert torch.equal(engine.value(batch.obs), found.value)
    # As a rollout lays them out, and not in one piece.
    pair = torch.stack([batch.obs, batch.obs], 1)
    assert torch.equal(engine.value(pair)[:, 1], found.value)
    assert torch.equal(engine.value(pair.transpose(0, 1))[1], found.value)


@pytest.mark.parametrize("action", ["clip", "squash", "tanh-mean"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("count", [1, 3, 130])
def test_acting(action, dtype, kind, count):
    """From the same observations and noise come the same actions, in what the envs take."""
    if kind == "discrete":
        space = gym.spaces.Discrete(5, start=3)
    else:
        space = gym.spaces.Box(
            np.array([[-1, -2, 0.5]], dtype), np.array([[1, 0, 0.6]], dtype), dtype=dtype
        )
    torch.manual_seed(0)
    changes = {"action": action}
    if action == "tanh-mean":
        changes = {"mean": "tanh", "std": "softplus"}
    net = NetConfig(normalize_obs=True, policy_gain=1.0, **changes)
    policy = ActorCritic(gym.spaces.Box(-9, 9, (6,)), space, net)
    policy.obs_shift.fill_(0.2)
    optimizer = PPO().make_optimizer(policy)
    results = []
    for engine in (TorchEngine(policy, optimizer), NativeEngine(policy, optimizer, 1)):
        generator = torch.Generator().manual_seed(1)
        buffer = allocate(policy, np.zeros((count, 6), np.float32), 20)
        buffer.obs[:] = torch.randn(buffer.obs.shape, generator=generator).numpy()
        noise = policy.head.noise(generator, (20, count))
        with torch.no_grad():
            act = engine.actor(buffer, noise)
            for t in range(20):
                act(t)
        results.append(buffer)
    expected, found = results
    np.testing.assert_allclose(found.parameters, expected.parameters, rtol=1e-5, atol=1e-5)
    assert found.env_action.dtype == (np.int64 if kind == "discrete" else dtype)
    assert found.env_action.shape == (20, count, *space.shape)
    assert all(space.contains(taken) for row in found.env_action for taken in row)
    if kind == "discrete":
        # Rounding may carry a draw over the edge between two actions, once in a million.
        assert (found.action == expected.action).mean() > 0.999
        assert count < 100 or set(found.env_action.reshape(-1)) == {3, 4, 5, 6, 7}
    else:
        np.testing.assert_allclose(found.action, expected.action, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.env_action, expected.env_action, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_the_most_likely_actions(kind):
    policy, optimizer, _ = case(PPO(), NetConfig(policy_gain=1.0), continuous=kind == "continuous")
    rooms = []
    for engine in (TorchEngine(policy, optimizer), NativeEngine(policy, optimizer, 1)):
        buffer = allocate(policy, np.zeros((7, 4)), 1)
        buffer.obs[:] = np.random.default_rng(0).normal(size=buffer.obs.shape)
        with torch.no_grad():
            engine.actor(buffer, None)(0)
        rooms.append(buffer)
    expected, found = rooms
    np.testing.assert_allclose(found.action, expected.action, rtol=1e-5, atol=1e-6)
    assert len(np.unique(found.action)) > 1


def test_an_actor_keeps_the_weights_that_it_began_with():
    policy, optimizer, _ = case(PPO(), NetConfig())
    engine = NativeEngine(policy, optimizer, 1)
    buffer = allocate(policy, np.ones((3, 4), np.float32), 2)
    buffer.obs[:] = 1
    act = engine.actor(buffer, torch.rand(2, 3))
    act(0)
    with torch.no_grad():
        policy.logits.bias.add_(torch.tensor([1.0, 0.0, 0.0]))
    act(1)
    assert np.array_equal(buffer.parameters[0], buffer.parameters[1])
    engine.actor(buffer, torch.rand(2, 3))(1)
    assert not np.array_equal(buffer.parameters[0], buffer.parameters[1])


def test_loss_terms_are_added_to_every_minibatch():
    """w' = w - lr ∇(L + term), by PyTorch alone."""
    algorithm = PPO(
        minibatch_size=64, epochs=1, optimizer="sgd", max_grad_norm=None, minibatches="whole"
    )
    policy, optimizer, batch = case(algorithm, NetConfig(hidden=(8,)))
    engine = TorchEngine(policy, optimizer)
    engine.loss_terms = [lambda policy, batch: policy.value(batch.obs).square().mean()]
    optimizer.rates = [0.1]
    coefficients = algorithm.coefficients(0.0)
    loss, _ = algorithm.loss(policy, batch, coefficients)
    term = engine.loss_terms[0](policy, batch)
    parameters = policy.actor_parameters() + policy.critic_parameters()
    gradients = torch.autograd.grad(loss + term, parameters)
    expected = [p.detach() - 0.1 * g for p, g in zip(parameters, gradients, strict=True)]
    layout = algorithm.layout(batch, torch.Generator())
    terms = engine.descend(algorithm, batch, layout, coefficients).terms
    assert terms["callback_loss"].item() == pytest.approx(term.item())
    assert terms["loss"].item() == pytest.approx((loss + term).item(), rel=1e-5)
    for now, then in zip(parameters, expected, strict=True):
        torch.testing.assert_close(now.detach(), then, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [1, 3, 8, 70])
@pytest.mark.parametrize("kind", ["discrete", "continuous", "squashed"])
def test_what_acting_keeps_is_what_evaluating_finds_to_the_bit(kind, count):
    changes = {"action": "squash"} if kind == "squashed" else {}
    net = NetConfig(normalize_obs=True, policy_gain=1.0, **changes)
    space = gym.spaces.Discrete(5) if kind == "discrete" else gym.spaces.Box(-2, 2, (3,))
    policy = ActorCritic(gym.spaces.Box(-9, 9, (6,)), space, net)
    engine = NativeEngine(policy, PPO().make_optimizer(policy), 1)
    generator = torch.Generator().manual_seed(0)
    buffer = allocate(policy, np.zeros((count, 6), np.float32), 9)
    buffer.obs[:] = torch.randn(buffer.obs.shape, generator=generator).numpy()
    act = engine.actor(buffer, policy.head.noise(generator, (9, count)))
    for t in range(9):
        act(t)
    mask = torch.ones(9, count, dtype=torch.bool)
    rollout = Rollout(
        obs=torch.from_numpy(buffer.obs[:-1]),
        action=torch.from_numpy(buffer.action),
        reward=torch.zeros(9, count),
        terminated=~mask,
        boundary=~mask,
        mask=mask,
        last_obs=torch.from_numpy(buffer.obs[-1]),
        final_obs=torch.empty(0, 6),
        final_index=torch.empty(0, dtype=torch.int64),
        acted=torch.from_numpy(buffer.parameters),
        initial_state=torch.zeros(count, 0),
        episodes=(),
    )
    kept = engine.evaluate_old(rollout)
    assert engine._kept is None
    again = engine.evaluate_old(rollout)  # nothing is kept any more
    moved = dataclasses.replace(rollout, obs=rollout.obs + 1)
    for name, value in again._asdict().items():
        assert torch.equal(getattr(kept, name), value), name
    with pytest.raises(TrainingError, match="is not the one that is evaluated"):
        engine.evaluate_old(moved)
