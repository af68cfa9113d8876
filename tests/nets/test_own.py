"""Modules of the user's own: what they are shown, what is refused, what goes on working."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

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
from proximo.envs.testing.probes import Match
from proximo.loop import run_control
from proximo.nets.actor_critic import ActorCritic
from proximo.run.checkpoint import Checkpoint
from proximo.run.control import make_session
from proximo.run.folder import RunFolder
from proximo.spaces import MASK, Observations

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.attention import Attention, Nearest

QUICK = PPO(gamma=0.9, learning_rate="linear:5e-3:0", epochs=4, minibatch_size=64)


class Layers(nn.Module):
    """All that it is shown side by side, through one layer."""

    def __init__(self, space, width=16, dropout=0.0):
        super().__init__()
        self.layer = nn.LazyLinear(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, seen):
        parts = list(seen.values()) if isinstance(seen, dict) else [seen]
        rows = [part.flatten(1).to(self.layer.weight.dtype) for part in parts]
        return torch.tanh(self.dropout(self.layer(torch.cat(rows, -1))))


def quick(source=lambda: Match("dict", "discrete"), net=Layers, steps=256, **more):
    return train(source, QUICK, total_steps=steps, rollout=RolloutConfig(steps=32), net=net, **more)


# What it is shown

ROOM = spaces.Dict(
    {
        MASK: spaces.MultiBinary(2),
        "picture": spaces.Box(0, 255, (6, 7, 1), np.uint8),
        "place": spaces.Box(-1, 1, (2, 2)),
        "pair": spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 3])]),
        "secret": spaces.Box(-1, 1, ()),
        "switches": spaces.MultiBinary((2, 2)),
    }
)


class Spy(nn.Module):
    """Keeps what it was made with, and what it was called with."""

    def __init__(self, space):
        super().__init__()
        self.space, self.weight = space, nn.Parameter(torch.ones(1))

    def forward(self, seen):
        self.seen = seen
        return seen["place"].flatten(1) * self.weight


def test_it_is_shown_the_env_s_observations():
    net = NetConfig(module="here:Spy", privileged=("secret",), normalize_obs=True)
    policy = ActorCritic(ROOM, spaces.Discrete(2), net, own=Spy)
    ROOM.seed(3)
    samples = [ROOM.sample() for _ in range(5)]
    rows = np.stack([policy.observations.row(sample) for sample in samples])
    policy.value(torch.from_numpy(rows))
    policy.distribution(torch.from_numpy(rows))
    actor, critic = policy.actor.module, policy.critic.module
    assert list(actor.space.spaces) == ["pair", "picture", "place", "switches"]
    assert list(critic.space.spaces) == ["pair", "picture", "place", "secret", "switches"]
    assert actor.space["place"] == ROOM["place"]
    assert set(actor.seen) == set(actor.space)
    seen = critic.seen
    assert seen["picture"].dtype is torch.uint8
    for name in ("picture", "place", "secret", "switches"):
        np.testing.assert_array_equal(seen[name], np.stack([sample[name] for sample in samples]))
    choice, several = seen["pair"]
    np.testing.assert_array_equal(choice.argmax(-1) + 1, [s["pair"][0] for s in samples])
    assert choice.sum() == 5
    hot = [np.concatenate([np.eye(2)[a], np.eye(3)[b]]) for a, b in (s["pair"][1] for s in samples)]
    np.testing.assert_array_equal(several, hot)


@pytest.mark.parametrize(
    "space", [ROOM, spaces.Box(-np.inf, np.inf, (3,)), spaces.Discrete(4, start=2)]
)
def test_examples_are_of_their_space(space):
    rows = Observations(space)
    found = rows.examples(6)
    assert found.shape == (6, *rows.shape)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, Observations(space).examples(6))
    if isinstance(space, spaces.Discrete):
        assert (found.sum(-1) == 1).all()


# What is refused


def broken(forward, make=lambda self: setattr(self, "layer", nn.Linear(3, 4))):
    def build(self, space):
        nn.Module.__init__(self)
        make(self)

    return type("Broken", (nn.Module,), {"__init__": build, "forward": forward})


def layer(self, x):
    return self.layer(x)


class Counting(nn.Module):
    """Remembers how often it was called."""

    def __init__(self, space):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x) + self.calls


NO_LAYERS = {"make": lambda self: setattr(self, "layers", [nn.Linear(3, 4)])}
NORMAL = {
    "make": lambda self: setattr(self, "layer", nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
}
REFUSED = {
    "one row for all": (broken(lambda self, x: self.layer(x).mean(0)), r"gave \(4,\) for 4 obs"),
    "too many rows": (
        broken(lambda self, x: self.layer(x)[:1].repeat(7, 1)),
        r"\(7, 4\).*\(4, F\)",
    ),
    "no features": (
        broken(lambda self, x: self.layer(x)[:, :0]),
        r"gave \(4, 0\), no features: it must give at least one",
    ),
    "no tensor": (broken(lambda self, x: [self.layer(x)]), "gave list"),
    "double": (broken(lambda self, x: self.layer(x).double()), "torch.float64.*torch.float32"),
    "an error": (broken(lambda self, x: self.layer(x[:, :2])), "failed on 4.*RuntimeError"),
    "no module": (lambda space: 3, "gave 3: it must give a torch.nn.Module"),
    "no constructor": (lambda: 3, "cannot be made: TypeError"),
    "no parameters": (broken(lambda self, x: self.layers[0](x), **NO_LAYERS), "no parameters"),
    "BatchNorm": (broken(layer, **NORMAL), r"holds layer.1 BatchNorm1d.*nn.LayerNorm"),
    "the batch's mean": (
        broken(lambda self, x: (y := self.layer(x)) - y.mean(0)),
        "other features where others stand beside it",
    ),
    "not finite": (broken(lambda self, x: self.layer(x) / 0), "not finite for the env's first"),
    "no gradient": (broken(lambda self, x: self.layer(x).detach()), "lets no gradient through"),
    "dropout by hand": (
        broken(lambda self, x: nn.functional.dropout(self.layer(x))),
        "other features for the same observations",
    ),
    "a memory": (Counting, "other features for the same observations"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_learn_is_refused_before_training(case, tmp_path):
    make, message = REFUSED[case]
    # What has no name is refused a run folder.
    folder = tmp_path / "run" if make is Counting else None
    with pytest.raises(UsageError, match=f"net.module is .*{message}"):
        quick(lambda: Match("vector", "discrete"), make, run_dir=folder)
    assert not (tmp_path / "run").exists()


def test_the_same_layers_for_actor_and_critic_are_refused():
    once = Layers(None)
    with pytest.raises(UsageError, match="gave actor and critic the same layers"):
        quick(net=lambda space: once)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"net": NetConfig(module="nowhere:Net")}, "nowhere:Net: importing the module 'nowhere'"),
        (
            {"net": NetConfig(module="torch.nn:Linea")},
            "torch.nn has no 'Linea'. Did you mean.*Linear",
        ),
        ({"net": Layers(None)}, "net is a module, one Layers: give its class"),
        (
            {"net": Layers, "run_config": RunConfig(engine="compile")},
            "run.engine is compile, but net.module is code of your own",
        ),
        (
            {"net": Layers, "run_config": RunConfig(engine="native")},
            "run.engine is native, but net.module is code of your own",
        ),
    ],
    ids=str,
)
def test_names_and_engines_that_will_not_do(settings, message):
    with pytest.raises(UsageError, match=message):
        quick(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"module": "Layers"}, "net.module is 'Layers': write module:Class"),
        ({"kwargs": {"width": 3}}, "no net.module"),
        ({"module": "a:B", "kwargs": {"sizes": [3]}}, "net.kwargs.sizes"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UsageError, match=message):
        NetConfig(**settings)


# What goes on working


def test_dropout_does_nothing_while_acting_or_learning():
    here = f"{__name__}:Layers"
    plain = quick(net=NetConfig(module=here))
    dropped = quick(net=NetConfig(module=here, kwargs={"dropout": 0.5}))
    for a, b in zip(plain.policy.parameters(), dropped.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    policy = dropped.policy.train()
    assert not policy.actor.module.dropout.training
    row = torch.as_tensor(policy.observations.row(policy.observations.space.sample()))[None]
    action, acted, _ = policy.act(row, torch.full((1,), 0.3))
    judged = policy.evaluate(row, action, entropy=False)
    assert torch.equal(judged.log_prob, acted.log_prob(action))
    assert torch.equal(judged.distribution.parameters, acted.parameters)


class Transformer(nn.Module):
    """Its layers take a fast path where no gradient is needed."""

    def __init__(self, space):
        super().__init__()
        self.widen = nn.Linear(1, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)

    def forward(self, x):
        hidden = torch.zeros_like(x, dtype=torch.bool)
        hidden[:, -1] = True
        return self.layer(self.widen(x.unsqueeze(-1)), src_key_padding_mask=hidden).flatten(1)


def test_a_transformer_is_judged_as_it_acted():
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        agent = quick(lambda: Match("vector", "discrete"), Transformer)
        rows = torch.eye(3)
        with torch.no_grad():
            action, acted, _ = agent.policy.act(rows)
        judged = agent.policy.evaluate(rows, action, entropy=False)
        torch.testing.assert_close(judged.distribution.parameters, acted.parameters)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_frozen_layers_stay_as_they_are():
    class Frozen(Layers):
        def __init__(self, space):
            super().__init__(space)
            self.fixed = nn.Linear(16, 5).requires_grad_(False)

        def forward(self, seen):
            return self.fixed(super().forward(seen))

    for algorithm in (QUICK, QActorCritic()):
        agent = train(
            lambda: Match("dict", "hybrid"), algorithm, total_steps=64, net=Frozen,
            rollout=RolloutConfig(steps=16),
        )  # fmt: skip
        assert agent.policy.actor.outputs == 5
        assert not any(
            p is agent.policy.actor.module.fixed.weight for p in agent.policy.actor_parameters()
        )


@pytest.mark.parametrize("done", ["discrete", "hybrid"])
def test_a_critic_of_actions_has_layers_over_features_and_action(done):
    agent = train(
        lambda: Match("dict", done), QActorCritic(), total_steps=64, net=Layers,
        rollout=RolloutConfig(steps=16),
    )  # fmt: skip
    rows = torch.as_tensor(agent.policy.observations.examples(3))
    action, _, _ = agent.policy.act(rows)
    assert agent.policy.action_value(rows, action).shape == (3,)


def test_a_run_goes_on_and_acts_only_once_its_network_is_named_again(tmp_path):
    def go(name, stop=None):
        return train(
            EnvConfig(id="Acrobot-v1", num_envs=2, max_episode_steps=20),
            PPO(epochs=2, minibatch_size=16),
            total_steps=128,
            rollout=RolloutConfig(steps=16),
            net=NetConfig(module=f"{__name__}:Layers", kwargs={"width": 7}, normalize_obs=True),
            run_dir=tmp_path / name,
            callbacks=[lambda state, *_: state.updates == stop],
        )

    agent = go("straight")
    assert agent.policy.actor.outputs == 7
    go("parts", stop=2)
    folder = RunFolder.open(tmp_path / "parts")
    assert folder.read_config().net.module == f"{__name__}:Layers"
    saved = Checkpoint(folder.checkpoint("last"))
    run_control(make_session(folder.read_config(), folder=folder, resume=saved))
    last = [
        RunFolder(tmp_path / name).checkpoint("last").read_bytes() for name in ("straight", "parts")
    ]
    assert last[0] == last[1]
    with pytest.raises(UsageError, match=f"{__name__}:Layers, is code.*net='{__name__}:Layers'"):
        load(tmp_path / "straight")
    for net in (Layers, f"{__name__}:Layers"):
        again = load(tmp_path / "straight", net=net)
        for obs in np.random.default_rng(0).normal(size=(5, 6)):
            assert again.act(obs) == agent.act(obs)
    with pytest.raises(UsageError, match=r"has \(7, 6\) .* where policy\."):
        load(tmp_path / "straight", net=lambda space, width: Layers(space, 8))


def test_a_run_without_such_a_network_needs_none(tmp_path):
    quick(net=NetConfig(), run_dir=tmp_path / "run")
    with pytest.raises(UsageError, match="Proximo's: leave it out"):
        load(tmp_path / "run", net=Layers)


def test_a_class_of_a_program_is_asked_for_by_another_name(tmp_path, monkeypatch):
    program = type("Program", (Layers,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Program", program, raising=False)
    quick(net=program, run_dir=tmp_path / "run")
    with pytest.raises(UsageError, match=r"__main__:Program, is code.*net='module:Class'"):
        load(tmp_path / "run")
    assert load(tmp_path / "run", net=program).policy.actor.outputs == 16


class Named(Layers):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda space: Layers(space, 16),
        functools.partial(Layers, width=16),
        type("Named", (Layers,), {}),  # another one than its name leads to
        type("Local", (Layers,), {"__qualname__": "of.<locals>.Local"}),
    ],
    ids=["lambda", "partial", "another", "local"],
)
def test_what_no_name_leads_to_is_refused_a_run_folder_and_trains_without(make, tmp_path):
    with pytest.raises(UsageError, match=r"does not lead to it again.*leave run_dir out"):
        quick(net=make, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert quick(net=make).result["updates"]


# The example of docs/networks.md


def test_attention_finds_the_nearest_thing():
    """Guessing has 2 of 8. In as many steps the usual layers come to a little over 3."""
    agent = train(
        Nearest,
        PPO(gamma=0.5, learning_rate="linear:3e-3:0", epochs=4, minibatch_size=256),
        total_steps=16_384,
        num_envs=8,
        rollout=RolloutConfig(steps=128),
        net=Attention,
        seed=1,
    )
    assert agent.result["return_mean"] > 6


def test_the_order_of_the_things_does_not_matter():
    env = Nearest()
    seen, _ = env.reset(seed=5)
    module = Attention(env.observation_space).eval()
    rows = Observations(env.observation_space)

    def features(order):
        moved = {key: part[order] for key, part in seen.items()}
        policy = torch.as_tensor(rows.row(moved))[None]
        leaves = {leaf.name: policy[:, leaf.begin : leaf.end] for leaf in rows.leaves}
        leaves["place"] = leaves["place"].reshape(1, 8, 2)
        return module(leaves)

    torch.testing.assert_close(
        features(np.arange(8)), features(np.random.default_rng(1).permutation(8))
    )
