"""Options that are off by default: what each does, what it refuses, that it resumes to the bit."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from examples.spo import SPO
from torch.nn import functional

from proximo import (
    A2C,
    PPO,
    TRPO,
    EnvConfig,
    NetConfig,
    QActorCritic,
    RolloutConfig,
    RunConfig,
    UsageError,
    load,
    train,
)
from proximo.engines import library
from proximo.envs.testing import probes
from proximo.loop import run_control
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.optimizer import FlatOptimizer
from proximo.run.checkpoint import Checkpoint
from proximo.run.choices import choose_engine
from proximo.run.control import make_session
from proximo.run.folder import RunFolder

NUMBERS, BOX = gym.spaces.Box(-9, 9, (4,)), gym.spaces.Box(-1, 1, (2,))
native = pytest.mark.skipif(library.load()[0] is None, reason=library.load()[1])
ENGINES = ["torch", pytest.param("native", marks=native)]


def policy_of(net=None, **how):
    torch.manual_seed(3)
    return ActorCritic(NUMBERS, gym.spaces.Discrete(3), net or NetConfig(hidden=(8,)), **how)


def weights(agent):
    return torch.cat([p.detach().reshape(-1) for p in agent.policy.parameters()])


def trained(updates=2, engine="torch", net=None, env=None, algorithm=PPO, run_dir=None, **settings):
    """A short run in CartPole."""
    settings = {"epochs": 2, "minibatch_size": 16, "learning_rate": 1e-2} | settings
    return train(
        env or EnvConfig(id="CartPole-v1", num_envs=2),
        algorithm(**settings),
        rollout=RolloutConfig(steps=32),
        net=net or NetConfig(hidden=(8,)),
        run_config=RunConfig(total_steps=64 * updates, engine=engine),
        seed=3,
        run_dir=run_dir,
    )


# Adam's step count


def test_a_reset_forgets_the_steps_and_the_moments_if_it_says_so():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = FlatOptimizer([[parameter]], "adam", 1e-12, (0.9, 0.999))
    optimizer.rates = [1.0]
    for _ in range(5):
        optimizer.gradients[0].copy_(torch.tensor([1.0, -2.0]))
        optimizer.step()
    before = parameter.detach().clone()
    optimizer.reset(moments=False)
    assert float(optimizer.records[0]["step"]) == 0
    optimizer.step()
    # m = (1 - 0.9^6) g and v = (1 - 0.999^6) g², over what they would be after one step.
    step = (1 - 0.9**6) / (1 - 0.9) / ((1 - 0.999**6) / (1 - 0.999)) ** 0.5
    torch.testing.assert_close(before - parameter.detach(), torch.tensor([step, -step]))
    optimizer.reset(moments=True)
    assert not any(record.any() for record in optimizer.records[0].values())


@pytest.mark.parametrize("engine", ENGINES)
def test_every_update_begins_with_step_0(engine, tmp_path):
    runs = {}
    for reset in ("none", "step", "moments"):
        runs[reset] = trained(3, engine, adam_reset=reset, run_dir=tmp_path / reset)
        saved = Checkpoint(RunFolder(tmp_path / reset).checkpoint("last")).tensors
        assert float(saved["optimizer.0.step"]) == (24 if reset == "none" else 8)
    assert not torch.equal(weights(runs["none"]), weights(runs["step"]))
    assert not torch.equal(weights(runs["moments"]), weights(runs["step"]))
    # In the first update there is nothing to reset.
    first = [weights(trained(1, engine, adam_reset=reset)) for reset in ("none", "step")]
    assert torch.equal(*first)


# Outer steps


@pytest.mark.parametrize("engine", ENGINES)
def test_an_outer_step_goes_from_the_old_weights_towards_the_new_ones(engine, tmp_path):
    """The first update of a run is the same up to there."""
    plain = weights(trained(1, engine, run_dir=tmp_path / "run"))
    first = Checkpoint(RunFolder(tmp_path / "run").checkpoint(0))
    policy = copy.deepcopy(trained(1, engine).policy)
    first.load_policy(policy)
    start = torch.cat([p.detach().reshape(-1) for p in policy.parameters()])
    for rate in (0.5, 1.5):
        found = weights(trained(1, engine, outer_learning_rate=rate))
        torch.testing.assert_close(found, start + rate * (plain - start))
    with_momentum = weights(trained(1, engine, outer_momentum=0.5))
    torch.testing.assert_close(with_momentum, start + 1.5 * (plain - start))
    assert torch.equal(
        weights(trained(2, engine, outer_learning_rate=1.0)), weights(trained(2, engine))
    )


@native
def test_the_next_rollout_is_of_the_weights_after_the_outer_step():
    """What acted is what is evaluated, and both engines go the same way."""
    both = [
        weights(trained(4, engine, outer_learning_rate=1.7, outer_momentum=0.4))
        for engine in ("torch", "native")
    ]
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-4)


# SPO


@pytest.mark.parametrize("setting", [{}, {"target_kl": 0.01}])
def test_the_setting_is_the_example_to_the_bit(setting):
    runs = [
        trained(3, algorithm=SPO, **setting),
        trained(3, surrogate="spo", **setting),
        trained(3, **setting),
    ]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


# Layer normalisation


def test_layers_are_normalised_before_the_nonlinearity():
    net = NetConfig(hidden=(8, 6), norm="layer")
    policy, plain = policy_of(net), policy_of(NetConfig(hidden=(8, 6)))
    obs = torch.randn(5, 4)
    x = obs
    for layer, norm, other in zip(
        policy.actor.linears, policy.actor.norms, plain.actor.linears, strict=True
    ):
        assert torch.equal(layer.weight, other.weight)  # the same first weights as without
        x = layer(x)
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = torch.tanh(x * norm.weight + norm.bias)
    torch.testing.assert_close(policy.actor(obs), x)
    assert len(policy.critic.norms) == 2
    assert plain.state_dict().keys() < policy.state_dict().keys()


@pytest.mark.parametrize("cnn", ["small", "impala"])
def test_convolutions_are_normalised_over_cells_and_channels(cnn):
    image = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    net = NetConfig(hidden=(8,), norm="layer", cnn=cnn, cnn_pool="average")
    torch.manual_seed(0)
    policy = ActorCritic(image, gym.spaces.Discrete(2), net)
    groups = [m for m in policy.actor.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert len(groups) == (15 if cnn == "impala" else 2)
    x = torch.randn(2, groups[0].num_channels, 4, 4)
    torch.testing.assert_close(groups[0](x), functional.layer_norm(x, x.shape[1:]))
    obs = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    # A brighter image has nearly the same features: only the rounding and the eps differ.
    bright = policy.actor(torch.full_like(obs, 200)) - policy.actor(torch.full_like(obs, 100))
    assert bright.abs().max() < 1e-2


# Symlogs and histograms


@pytest.mark.parametrize(
    ("algorithm", "net"),
    [
        (PPO, {"value_symlog": True}),
        (PPO, {"value_bins": 41, "value_range": (0.0, 12.0), "value_sigma": 0.0}),
        (TRPO, {"value_bins": 41, "value_symlog": True, "value_range": (-4.0, 4.0)}),
    ],
)
def test_the_value_is_learned_in_units_of_the_reward(algorithm, net):
    """V = 1/(1 - γ) = 5, whatever the critic puts out."""
    rate = "critic_learning_rate" if algorithm is TRPO else "learning_rate"
    agent = train(
        EnvConfig(id="proximo.envs.testing.probes:Endless", num_envs=4, max_episode_steps=20),
        algorithm(gamma=0.8, lam=1.0, epochs=10, minibatch_size=64, **{rate: 3e-2}),
        rollout=RolloutConfig(steps=32),
        net=NetConfig(hidden=(16,), **net),
        total_steps=128 * 12,
        seed=1,
    )
    obs, _ = probes.Endless().reset(seed=0)
    with torch.no_grad():
        value = agent.policy.value(torch.as_tensor(obs)[None])
    assert float(value) == pytest.approx(5.0, abs=0.5)


def test_a_histogram_begins_with_the_value_in_the_middle():
    policy = policy_of(NetConfig(hidden=(8,), value_bins=11, value_range=(-2.0, 6.0)))
    obs = torch.randn(5, 4)
    torch.testing.assert_close(policy.value(obs), torch.full((5,), 2.0))
    evaluation = policy.evaluate(obs, torch.zeros(5, dtype=torch.int64), entropy=False)
    assert evaluation.value_logits.shape == (5, 11)
    assert policy_of().evaluate(obs, torch.zeros(5).long(), entropy=False).value_logits is None


def test_targets_beyond_the_bins_are_counted(tmp_path):
    trained(
        2, net=NetConfig(hidden=(8,), value_bins=11, value_range=(0.0, 1.0)), run_dir=tmp_path / "a"
    )
    trained(2, net=NetConfig(hidden=(8,), value_bins=11, value_symlog=True), run_dir=tmp_path / "b")
    outside = [RunFolder(tmp_path / name).read_metrics()[-1]["value_outside"] for name in "ab"]
    assert outside[0] > 0.5
    assert outside[1] == 0


# The discount


def test_a_horizon_sets_the_discount(tmp_path):
    assert PPO(discount_horizon=200).gamma == 0.995
    assert PPO(discount_horizon=1).gamma == 0.0
    assert A2C(discount_horizon=None).gamma == 0.99
    agent = trained(1, discount_horizon=0, run_dir=tmp_path / "run")
    assert agent.config.algorithm.gamma == 1 - 1 / 500
    stored = RunFolder.open(tmp_path / "run").read_config().algorithm
    assert (stored.discount_horizon, stored.gamma) == (500, 1 - 1 / 500)
    assert torch.equal(weights(agent), weights(trained(1, gamma=1 - 1 / 500)))
    short = EnvConfig(id="CartPole-v1", num_envs=2, max_episode_steps=50)
    assert trained(1, env=short, discount_horizon=0).config.algorithm.gamma == 1 - 1 / 50
    with pytest.raises(UsageError, match=r"discount_horizon is 0, .* none is known: give"):
        train(probes.Endless, PPO(discount_horizon=0), total_steps=64)


# All of them


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PPO(surrogate="spo", clip=None),
            "surrogate is spo, .* none: use --algorithm.clip",
        ),
        (lambda: PPO(surrogate="spo", clip_high=0.3), "clip_high is 0.3, .*surrogate is spo"),
        (lambda: PPO(surrogate="spo", dual_clip=3.0), "dual_clip is 3.0, .*surrogate is spo"),
        (lambda: A2C(adam_reset="step"), "adam_reset is step, .*optimizer is rmsprop"),
        (lambda: TRPO(outer_learning_rate=0.5), "outer_learning_rate is 0.5, .* is trpo"),
        (lambda: QActorCritic(outer_momentum=0.5), "outer_momentum is 0.5, .* is qac"),
        (lambda: PPO(gamma=0.9, discount_horizon=50), "gamma is 0.9, .*discount_horizon is 50"),
        (lambda: PPO(gamma=0.9, discount_horizon=0), "gamma is 0.9, .*discount_horizon is 0"),
        (lambda: NetConfig(value_bins=1), "value_bins is 1: a histogram has at least 2"),
        (lambda: NetConfig(value_range=(1.0, 1.0)), r"value_range is \(1.0, 1.0\): the first"),
        (
            lambda: NetConfig(value_bins=9, normalize_returns=True),
            "normalize_returns is on and net.value_bins is 9",
        ),
        (
            lambda: NetConfig(value_symlog=True, normalize_returns=True),
            "normalize_returns is on and net.value_symlog is True",
        ),
        (
            lambda: trained(net=NetConfig(value_bins=9), value_loss="clipped"),
            "value_loss is clipped, .* net.value_bins is 9: a histogram learns by cross-entropy",
        ),
        (
            lambda: train("CartPole-v1", QActorCritic(), net=NetConfig(value_bins=9)),
            "value_bins is 9, but qac has a critic of actions",
        ),
        (
            lambda: trained(net=NetConfig(value_symlog=True), engine="native"),
            "engine is native, but its critic puts out symlog values",
        ),
        (
            lambda: trained(net=NetConfig(norm="layer"), engine="native"),
            "engine is native, but it does not know layer normalisation",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_the_engine_says_why_it_is_torch():
    for net, why in (
        ({"norm": "layer"}, "not native: it does not know layer normalisation"),
        ({"hidden": (), "critic_hidden": (4,), "norm": "layer"}, "not native: it does not know la"),
        ({"value_bins": 9}, "not native: its critic puts out symlog values or a histogram"),
    ):
        name, said = choose_engine("auto", PPO(), policy_of(NetConfig(**net)))
        assert (name, said[: len(why)]) == ("torch", why)
    everything = PPO(surrogate="spo", adam_reset="step", outer_momentum=0.5, discount_horizon=9)
    if library.load()[0] is not None:
        assert choose_engine("auto", everything, policy_of())[0] == "native"


RESUMED = {
    "of the algorithm": (
        EnvConfig(id="Pendulum-v1", num_envs=3, max_episode_steps=17, stagger=True),
        {
            "surrogate": "spo",
            "adam_reset": "step",
            "outer_learning_rate": 1.2,
            "outer_momentum": 0.3,
            "discount_horizon": 0,
        },
        {"normalize_obs": True},
    ),
    "of the net": (
        EnvConfig(id="CartPole-v1", num_envs=3, max_episode_steps=17, backend="sync", stagger=True),
        {"outer_momentum": 0.3, "critic_learning_rate": 1e-3},
        {"norm": "layer", "value_symlog": True, "value_bins": 21},
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_resumes_to_the_bit(case, tmp_path):
    env, algorithm, net = RESUMED[case]

    def begin(folder, callbacks=()):
        return train(
            env,
            PPO(epochs=2, minibatch_size=7, **algorithm),
            rollout=RolloutConfig(steps=7),
            net=NetConfig(hidden=(8,), **net),
            total_steps=9 * 21,
            seed=3,
            run_dir=folder,
            callbacks=callbacks,
        )

    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    agent = begin(straight)
    for update in (1, 4):  # in a first episode, and behind some
        folder = stopped.with_name(f"stopped-{update}")
        begin(folder, [lambda state, rollout, metrics, at=update: state.updates == at])
        run = RunFolder.open(folder)
        saved = Checkpoint(run.checkpoint("last"))
        assert "outer_velocity" in saved.tensors
        session = make_session(run.read_config(), folder=run, resume=saved)
        assert not any("cannot be brought back" in note for note in session.log.setup_notes)
        run_control(session)
        files = [RunFolder(x).checkpoint("last").read_bytes() for x in (straight, folder)]
        assert files[0] == files[1]
    again, moved = load(straight), tmp_path / "moved"
    agent.save(moved)
    for other in (again, load(moved)):
        for _ in range(5):
            obs = np.clip(agent.obs_space.sample(), -5, 5)
            np.testing.assert_array_equal(agent.act(obs), other.act(obs))
