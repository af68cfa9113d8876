"""The native engine gives PyTorch's numbers for every kind of action, with and without masks."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_parity import algorithms, assert_same, both, case, nets, rows_of, run, shown

from proximo import A2C, PPO, TRPO, NetConfig, PPOPenalty, RolloutConfig, RunConfig, train
from proximo.collect import allocate
from proximo.engines import library
from proximo.engines.native import NativeEngine
from proximo.engines.torch import TorchEngine
from proximo.envs.testing.probes import Match
from proximo.functional.distributions import ILLEGAL
from proximo.nets.actor_critic import ActorCritic
from proximo.run.choices import choose_engine

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason=library.load()[1])

spaces = gym.spaces
box = spaces.Box(np.array([-1, -2, 0.5], np.float32), np.array([1, 0, 0.6], np.float32))
KINDS = {
    "discrete": spaces.Discrete(5, start=3),
    "multi-discrete": spaces.MultiDiscrete([3, 1, 4], start=[0, 7, -2]),
    "binary": spaces.MultiBinary((2, 2)),
    "box": box,
    "hybrid": spaces.Dict(
        {
            "bits": spaces.MultiBinary(2),
            "push": box,
            "tools": spaces.Tuple([spaces.Discrete(4, start=9), spaces.MultiDiscrete([2, 3])]),
            "turn": spaces.Box(-1, 3, (2, 1), np.float64),
        }
    ),
    "choices": spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(3)]),
}
WITH_MASKS = [(kind, False) for kind in KINDS] + [
    (kind, True) for kind in ("discrete", "multi-discrete", "hybrid", "choices")
]
each_kind = pytest.mark.parametrize(
    ("kind", "masked"), WITH_MASKS, ids=[kind + "-masked" * masked for kind, masked in WITH_MASKS]
)
simple = st.one_of(
    st.builds(spaces.Discrete, st.integers(1, 9)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 5), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
    st.builds(lambda size: spaces.Box(-1, 2, (size,)), st.integers(1, 4)),
)
layouts = simple | st.lists(simple | st.builds(spaces.Tuple, st.tuples(simple)), min_size=1).map(
    spaces.Tuple
)


@given(
    algorithm=algorithms,
    net=nets,
    space=layouts,
    masked=st.booleans(),
    samples=st.integers(1, 64),
    seed=st.integers(0, 10_000),
)
def test_one_step_from_the_same_minibatch(algorithm, net, space, masked, samples, seed):
    if isinstance(algorithm, TRPO):
        net = dataclasses.replace(net, trunk="separate")
    if net.trunk == "shared":
        algorithm = dataclasses.replace(algorithm, critic_learning_rate=None)
    batch = {"space": space, "masked": masked, "samples": samples, "seed": seed}
    assert_same(
        both(algorithm, net, **batch),
        exact=run("exact", algorithm, net, **batch),
        weights=3e-3,  # as in test_parity
        # And the entropy pushes by p (log p + H), which nearly cancels where p is nearly even.
        rounding=1e-9 + 1e-7 * (getattr(algorithm, "beta", 0.0) + algorithm.entropy_coef),
    )


@each_kind
@pytest.mark.parametrize("trunk", ["separate", "shared"])
@pytest.mark.parametrize(
    "algorithm",
    [PPO(entropy_coef=0.01, dual_clip=1.2), PPOPenalty(beta=3.0), A2C()],
    ids=["ppo", "penalty", "a2c"],
)
def test_forty_steps_on_one_batch(kind, masked, trunk, algorithm):
    net = NetConfig(trunk=trunk)
    results = both(algorithm, net, epochs=40, space=KINDS[kind], masked=masked)
    assert_same(results, gradients=None)


@pytest.mark.parametrize("kind", ["box", "hybrid"])
@pytest.mark.parametrize("net", [{"action": "squash"}, {"mean": "tanh", "std": "softplus"}])
def test_forty_steps_with_other_gaussians(kind, net):
    algorithm = PPO(entropy_coef=0.0)
    results = both(algorithm, NetConfig(**net), epochs=40, space=KINDS[kind], masked=True)
    assert_same(results, gradients=None)


@given(
    net=nets,
    space=layouts,
    masked=st.booleans(),
    squash=st.booleans(),
    samples=st.integers(1, 130),
    seed=st.integers(0, 1000),
)
def test_evaluations(net, space, masked, squash, samples, seed):
    changes = {"action": "squash", "mean": "linear"} if squash else {}
    net = dataclasses.replace(net, normalize_obs=True, obs_clip=1.0, **changes)
    policy, optimizer, batch = case(
        PPO(), net, space=space, masked=masked, samples=samples, seed=seed
    )
    policy.obs_shift.fill_(0.2)
    policy.obs_scale.fill_(0.7)
    with torch.no_grad():
        expected = policy.evaluate(batch.obs, batch.action, entropy=True)
    found = NativeEngine(policy, optimizer, 2).evaluate(batch.obs, batch.action, entropy=True)
    pairs = [(getattr(found, n), getattr(expected, n)) for n in ("log_prob", "entropy", "value")]
    pairs.append((found.distribution.parameters, expected.distribution.parameters))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    illegal = expected.distribution.parameters == ILLEGAL
    assert torch.equal(found.distribution.parameters == ILLEGAL, illegal)


def acted(policy, rows, noise):
    """What both engines do there: the steps of each."""
    optimizer = PPO().make_optimizer(policy)
    found = []
    for engine in (TorchEngine(policy, optimizer), NativeEngine(policy, optimizer, 1)):
        buffer = allocate(policy, rows[0].numpy(), len(rows))
        buffer.obs[:-1] = rows.numpy()
        with torch.no_grad():
            act = engine.actor(buffer, noise)
            for t in range(len(rows)):
                act(t)
        found.append(buffer)
    return found


def policy_for(space, masked, **net):
    torch.manual_seed(0)
    net = NetConfig(normalize_obs=True, policy_gain=1.0, **net)
    policy = ActorCritic(shown(space, 6, masked), space, net)
    policy.obs_shift.fill_(0.2)
    return policy


@each_kind
@pytest.mark.parametrize(
    "net",
    [{}, {"action": "squash"}, {"mean": "tanh", "std": "softplus"}],
    ids=["plain", "squash", "from-the-state"],
)
@pytest.mark.parametrize("draws", [True, False], ids=["drawn", "most-likely"])
def test_acting(kind, masked, net, draws):
    """From the same rows and noise come the same actions, in what the envs take."""
    space, generator = KINDS[kind], torch.Generator().manual_seed(1)
    policy = policy_for(space, masked, **net)
    rows = rows_of(policy, generator, 20, 70)
    noise = policy.head.noise(generator, (20, 70)) if draws else None
    expected, found = acted(policy, rows, noise)
    np.testing.assert_allclose(found.parameters, expected.parameters, rtol=1e-5, atol=1e-5)
    for ours, theirs in ((found.action, expected.action), (found.env_action, expected.env_action)):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        # Rounding may carry a draw over the edge between two choices, once in a million.
        assert np.isclose(ours, theirs, rtol=1e-5, atol=1e-5).mean() > 0.9995
    taken = policy.actions.nested(
        found.env_action.reshape(-1, *found.env_action.shape[2:])[:, None]
    )
    for i in range(len(found.env_action)):
        assert space.contains(_row(taken, i))
    if masked:
        log_prob = policy.distribution(rows).log_prob(torch.from_numpy(found.action))
        assert (log_prob > -100).all()  # nothing illegal
    assert len(np.unique(found.env_action.reshape(-1, found.env_action[0, 0].size), axis=0)) > 1


def _row(taken, index):
    """One action of a nested batch [B, 1, ...] of them."""
    if isinstance(taken, dict):
        return {key: _row(own, index) for key, own in taken.items()}
    if isinstance(taken, tuple):
        return tuple(_row(own, index) for own in taken)
    return taken[index][0]


@given(seed=st.integers(0, 1000), size=st.integers(1, 40))
def test_no_noise_draws_an_illegal_action(seed, size):
    """Nor does it at the edges of the noise, where PyTorch draws the same."""
    policy = policy_for(spaces.Discrete(size), masked=True)
    generator = torch.Generator().manual_seed(seed)
    rows = rows_of(policy, generator, 3, 50)
    last = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    noise = torch.stack([torch.zeros(50), last.expand(50), torch.rand(50, generator=generator)])
    expected, found = acted(policy, rows, noise)
    assert np.array_equal(found.action, expected.action)
    legal = policy.observations.legal(rows)
    assert legal.gather(-1, torch.from_numpy(found.action)[..., None]).all()


@pytest.mark.parametrize("kind", ["discrete", "multi-discrete", "hybrid"])
def test_where_nothing_is_legal_it_is_as_in_torch(kind):
    space, algorithm = KINDS[kind], PPO(entropy_coef=0.1)
    policy = policy_for(space, masked=True)
    rows = torch.randn(1, 5, policy.observations.width)
    rows[..., policy.observations.mask_begin :] = 0
    noise = policy.head.noise(torch.Generator().manual_seed(0), (1, 5))
    expected, found = acted(policy, rows, noise)
    np.testing.assert_allclose(found.action, expected.action, rtol=1e-5, atol=1e-5)

    def nothing_legal(batch, policy):
        batch.obs[::2, policy.observations.mask_begin :] = 0
        with torch.no_grad():
            new = policy.distribution(batch.obs)
        return dataclasses.replace(
            batch, log_prob=new.log_prob(batch.action), parameters=new.parameters
        )

    results = both(algorithm, NetConfig(), space=space, masked=True, change=nothing_legal)
    assert_same(results, weights=3e-3)


def test_only_measurements_are_standardised():
    seen = spaces.Dict({"numbers": spaces.Box(-9, 9, (2,)), "room": spaces.Discrete(3)})
    torch.manual_seed(0)
    policy = ActorCritic(seen, KINDS["hybrid"], NetConfig(normalize_obs=True, obs_clip=0.5))
    assert policy.measured.tolist() == [True, True, False, False, False]
    policy.obs_shift.fill_(0.3)
    policy.obs_scale.fill_(0.4)
    rows = torch.cat([3 * torch.randn(40, 2), torch.eye(3)[torch.randint(3, (40,))]], -1)
    optimizer = PPO().make_optimizer(policy)
    found = NativeEngine(policy, optimizer, 1).value(rows)
    torch.testing.assert_close(found, policy.value(rows).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trunk", ["separate", "shared"])
@pytest.mark.parametrize("masks", [False, True], ids=["free", "masked"])
@pytest.mark.parametrize("done", Match.DONE)
def test_both_engines_learn_alike_for_the_first_updates(done, masks, trunk):
    if masks and done in ("binary", "box"):
        pytest.skip("there is nothing to choose from")

    def go(engine):
        return train(
            lambda: Match("dict", done, masks),
            PPO(epochs=2, minibatch_size=32, max_grad_norm=0.5, entropy_coef=0.01),
            total_steps=256,
            num_envs=2,
            rollout=RolloutConfig(steps=64),
            net=NetConfig(hidden=(32, 32), trunk=trunk, normalize_obs=True, normalize_returns=True),
            run_config=RunConfig(engine=engine),
            seed=2,
        )

    first, second = go("torch"), go("auto")
    assert first.config.run.engine == "torch"
    assert second.config.run.engine == "native"
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@each_kind
def test_auto_takes_native_for_every_kind_of_action(kind, masked):
    policy = ActorCritic(shown(KINDS[kind], 3, masked), KINDS[kind], NetConfig())
    assert choose_engine("auto", PPO(entropy_coef=0.01), policy)[0] == "native"


@pytest.mark.parametrize(
    ("seen", "net", "reason"),
    [
        (None, {"action": "beta"}, "it does not know a BetaHead"),
        (None, {"action": "squash"}, "its entropy of squashed actions is an integral"),
        (spaces.Box(0, 255, (8, 8, 1), np.uint8), {}, "more than fully connected layers"),
    ],
)
def test_what_remains_with_torch(seen, net, reason):
    seen = seen or shown(KINDS["hybrid"], 3, masked=True)
    policy = ActorCritic(seen, KINDS["hybrid"], NetConfig(**net))
    engine, why = choose_engine("auto", PPO(entropy_coef=0.01), policy)
    assert engine == "torch"
    assert reason in why
