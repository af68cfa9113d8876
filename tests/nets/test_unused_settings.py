"""Every setting of the net changes what is learned, or is refused: none is silent."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from proximo import (
    PPO,
    EnvConfig,
    NetConfig,
    QActorCritic,
    RolloutConfig,
    RunConfig,
    UsageError,
    load,
    train,
)
from proximo.nets.actor_critic import ActorCritic
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import Config, read_config, to_toml
from proximo.run.control import make_session
from proximo.run.folder import RunFolder

OTHER = {
    "hidden": (5,),
    "critic_hidden": (6, 5),
    "activation": "relu",
    "cnn": "impala",
    "cnn_pool": "average",
    "trunk": "shared",
    "orthogonal": False,
    "policy_gain": 0.9,
    "log_std": -1.0,
    "std": "softplus",
    "gsde_steps": 2,
    "mean": "tanh",
    "recurrent": "gru",
    "recurrent_size": 5,
    "bptt_steps": 2,
    "action": "squash",
    "normalize_obs": True,
    "obs_clip": 0.05,
    "normalize_returns": True,
    "norm": "layer",
    "value_symlog": True,
    "value_bins": 9,
    "value_range": (-3.0, 9.0),
    "value_sigma": 0.0,
}
"""Each setting at another value than its default."""
BASES = (
    {},
    {"recurrent": "lstm"},
    {"std": "gsde"},
    {"action": "beta"},
    {"normalize_obs": True},
    {"orthogonal": False},
    {"trunk": "shared"},
    {"hidden": ()},
    {"hidden": (), "critic_hidden": (4,)},
    {"value_bins": 7},
)
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "several": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(2),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "both": spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-1, 1, (1,), np.float32)),
}


class Walk(gym.Env):
    """Three numbers to see; what is done pays."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, kind):
        self.action_space = ACTIONS[kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.see(), {}

    def see(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def step(self, action):
        self.time += 1
        paid = spaces.flatten(self.action_space, action).astype(float).sum()
        return self.see(), float(paid), self.time == 6, False, {}


def outcome(kind, net, critic, **more):
    """What a short training came to: the weights behind the policy and the critic."""
    algorithm = PPO(minibatch_size=16, epochs=2, critic=critic)
    env = EnvConfig(id=f"{__name__}:Walk", kwargs={"kind": kind}, num_envs=2, check=False)
    agent = train(
        env,
        algorithm,
        total_steps=32,
        rollout=RolloutConfig(steps=8),
        net=NetConfig(**net),
        **more,
    )
    obs = torch.linspace(-1, 1, 12).view(4, 3)
    policy = agent.policy
    if policy.state_size:
        return [p.detach().flatten() for p in policy.parameters()]
    with torch.no_grad():
        return [policy.distribution(obs).parameters, policy.value(obs)]


def same(a, b):
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


def test_every_setting_is_tried():
    named = {f.name for f in dataclasses.fields(NetConfig)}
    assert named - set(OTHER) == {"module", "kwargs", "privileged"}  # refused elsewhere
    assert all(getattr(NetConfig(), name) != value for name, value in OTHER.items())


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(sorted(OTHER)),
    st.sampled_from(BASES),
    st.sampled_from(sorted(ACTIONS)),
    st.booleans(),
)
def test_a_setting_changes_what_is_learned_or_is_refused(name, base, kind, critic):
    if name in base:
        return
    try:
        before = outcome(kind, base, critic)
    except UsageError:
        return
    try:
        after = outcome(kind, {**base, name: OTHER[name]}, critic)
    except UsageError:
        return
    # Without a critic, its layers shift no bit of the policy: sharing them is a matter of memory.
    assert not same(before, after) or (name, critic) == ("trunk", False)


@pytest.mark.parametrize(
    ("net", "why"),
    [
        ({"std": "gsde"}, "no action is a Box"),
        ({"std": "softplus"}, "no action is a Box"),
        ({"action": "squash"}, "no action is a Box"),
        ({"action": "beta"}, "no action is a Box"),
        ({"mean": "tanh"}, "no action is a Box"),
        ({"log_std": -1.0}, "no action is a Box"),
        ({"gsde_steps": 2}, "no action is a Box"),
        ({"recurrent_size": 32}, "net.recurrent is none"),
        ({"bptt_steps": 4}, "net.recurrent is none"),
        ({"obs_clip": 5.0}, "net.normalize_obs is off"),
        ({"orthogonal": False, "policy_gain": 0.1}, "net.orthogonal is off"),
        ({"trunk": "shared", "critic_hidden": (8,)}, "net.trunk is shared"),
        ({"hidden": (), "activation": "relu"}, "net.hidden is empty"),
        ({"cnn": "impala"}, "no observation is an image"),
        ({"cnn_pool": "average"}, "no observation is an image"),
        ({"hidden": (), "trunk": "shared"}, "there is no layer to share"),
        ({"hidden": (), "norm": "layer"}, "there is no layer"),
        ({"value_range": (0.0, 1.0)}, "net.value_bins is 0"),
        ({"value_sigma": 0.0}, "net.value_bins is 0"),
    ],
)
def test_what_does_nothing_is_refused_before_training(net, why, tmp_path):
    name = list(net)[-1]
    with pytest.raises(UsageError, match=rf"net\.{name} is .*does nothing where {why}: leave it"):
        outcome("discrete", net, critic=True, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("net", "why"),
    [
        ({"action": "beta", "std": "softplus"}, "net.action is beta"),
        ({"action": "beta", "log_std": -1.0}, "net.action is beta"),
        ({"gsde_steps": 2}, "net.std is free"),
    ],
)
def test_what_does_nothing_to_a_box_is_refused_too(net, why):
    with pytest.raises(UsageError, match=f"does nothing where {why}"):
        outcome("box", net, critic=True)


@pytest.mark.parametrize("name", ["critic_hidden", "normalize_returns"])
def test_what_is_the_critics_is_refused_without_one(name):
    with pytest.raises(UsageError, match=f"net.{name} is .*algorithm.critic is off"):
        outcome("box", {name: OTHER[name]}, critic=False)


def test_layers_of_ones_own_leave_nothing_to_ours():
    module = f"{__name__}:Own"
    for name in ("hidden", "activation", "critic_hidden"):
        with pytest.raises(UsageError, match=f"net.{name} is .*net.module stands for"):
            outcome("box", {"module": module, name: OTHER[name]}, critic=True)
    # A critic of numbers takes them, beside the features, through layers of ours.
    net = NetConfig(module=module, hidden=(5,), critic_hidden=(4,))
    agent = train(lambda: Walk("box"), QActorCritic(), num_envs=2, total_steps=8, net=net)
    assert agent.policy.critic.outputs == 4


class Own(torch.nn.Module):
    def __init__(self, space):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, x):
        return self.layer(x)


def test_a_run_that_began_with_such_settings_loads_and_goes_on(tmp_path, monkeypatch):
    """As those of earlier versions may have."""
    monkeypatch.setattr(Config, "check_net", lambda self, spaces: None)
    outcome(
        "discrete", {"log_std": -1.0, "recurrent_size": 9}, critic=True, run_dir=tmp_path / "run"
    )
    monkeypatch.undo()
    folder = RunFolder.open(tmp_path / "run")
    assert folder.read_config().net.log_std == -1.0
    assert load(tmp_path / "run").policy.logits.out_features == 3
    saved = Checkpoint(folder.checkpoint("last"))
    with make_session(folder.read_config(), folder=folder, resume=saved) as session:
        assert session.state.updates == saved.updates


@pytest.mark.parametrize("widths", [None, (), (5,), (7, 3)])
def test_widths_survive_their_file(widths, tmp_path):
    net = NetConfig(hidden=(), critic_hidden=widths)
    (tmp_path / "config.toml").write_text(to_toml(Config(net=net)))
    assert read_config(tmp_path / "config.toml").net == net


@pytest.mark.parametrize("kind", ["discrete", "box"])
@pytest.mark.parametrize(
    "net",
    [
        {"hidden": ()},
        {"hidden": (), "normalize_obs": True},
        {"hidden": (9,), "critic_hidden": (17, 5)},
        {"hidden": (9, 4), "critic_hidden": ()},
        {"hidden": (), "critic_hidden": (8,)},
        {"hidden": (), "recurrent": "gru"},
        {"hidden": (), "recurrent": "lstm", "trunk": "shared"},
        {"hidden": (9,), "critic_hidden": (), "recurrent": "gru"},
    ],
    ids=str,
)
def test_a_linear_policy_and_a_critic_of_other_widths_are_alike_in_both_engines(
    kind, net, tmp_path
):
    weights = {}
    for engine in ("torch", "native"):
        agent = train(
            lambda: Walk(kind),
            PPO(minibatch_size=16, epochs=2),
            num_envs=2,
            total_steps=96,
            rollout=RolloutConfig(steps=16),
            net=NetConfig(**net),
            run_config=RunConfig(engine=engine),
            run_dir=tmp_path / engine,
        )
        weights[engine] = torch.cat([p.detach().flatten() for p in agent.policy.parameters()])
        again = load(tmp_path / engine)
        for obs in np.random.default_rng(0).uniform(-1, 1, (4, 3)).astype(np.float32):
            np.testing.assert_array_equal(again.act(obs), agent.act(obs))
    torch.testing.assert_close(weights["torch"], weights["native"], rtol=1e-4, atol=1e-5)
    policy = load(tmp_path / "native").policy
    if not net["hidden"] and "recurrent" not in net:
        assert policy.logits.in_features == 3  # the observation itself
    if net["hidden"] == (9,) and net["critic_hidden"] == (17, 5):
        assert [layer.out_features for layer in policy.critic.linears] == [17, 5]


def test_a_linear_policy_over_pixels_is_linear_in_their_features():
    seen = spaces.Box(0, 255, (12, 12, 3), np.uint8)
    policy = ActorCritic(seen, spaces.Discrete(2), NetConfig(hidden=()))
    assert policy.logits.in_features == policy.actor.images[0].outputs
    assert policy.act(torch.zeros(2, 12, 12, 3, dtype=torch.uint8))[0].shape == (2,)
