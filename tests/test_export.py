"""A policy as an ONNX file acts as the policy does, whatever it sees, does and remembers."""

import itertools
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from examples.attention import Attention, Nearest

import proximo.export
from proximo import Agent, EnvConfig, NetConfig, UsageError
from proximo.envs.testing.probes import Match, Remember
from proximo.run.config import Config, make_policy
from proximo.types import Moments

onnxruntime = pytest.importorskip("onnxruntime", reason="export is an extra")
pytest.importorskip("onnxscript", reason="export is an extra")

BOXES = [
    {"action": "clip"},
    {"action": "squash"},
    {"action": "beta"},
    {"mean": "tanh", "trunk": "shared"},
    {"std": "softplus"},
    {"std": "gsde", "action": "squash"},
]
MEMORIES = ("none", "gru", "lstm")
CASES = [
    ("vector", "discrete", "none", False, {}),
    ("discrete", "multi-discrete", "gru", True, {}),
    ("multi-discrete", "binary", "lstm", False, {}),
    *(
        (seen, "box", recurrent, False, net)
        for seen, recurrent, net in zip(
            Match.SEEN, itertools.cycle(MEMORIES), itertools.cycle(BOXES), strict=False
        )
    ),
    ("image", "hybrid", "gru", True, {"std": "gsde"}),
    ("dict", "hybrid", "lstm", True, {"normalize_obs": True, "action": "beta"}),
    ("vector", "discrete", "lstm", True, {"normalize_obs": True}),
    ("image", "box", "none", False, {"norm": "layer", "cnn_pool": "average", "value_bins": 9}),
]
EVERY = [
    (seen, done, recurrent, done not in {"binary", "box"} and recurrent == "gru", net)
    for seen, done, recurrent in itertools.product(Match.SEEN, Match.DONE, MEMORIES)
    for net in (BOXES if done in ("box", "hybrid") else [{}])
]


class Questions(Match):
    """Three symbols in an episode, one after the other."""

    def reset(self, **how):
        self.left = 3
        return super().reset(**how)

    def step(self, action):
        assert self.action_space.contains(action)
        self.left -= 1
        self._symbol = int(self.np_random.integers(3))
        return self.observe(), 0.0, self.left == 0, False, {}


def untrained(obs_space, action_space, own=None, **net):
    """An agent whose every number is drawn at random, moments of the observations included."""
    torch.manual_seed(1)
    net = NetConfig(**{"hidden": (16,), "recurrent_size": 8, "policy_gain": 1.0} | net)
    config = Config(net=net, env=EnvConfig(id="tests:Env"))
    policy = make_policy((obs_space, action_space), config, own).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    if net.normalize_obs:
        shape = policy.obs_shape
        moments = Moments(torch.tensor(9), torch.randn(shape), 0.5 + torch.rand(shape))
        policy.set_obs_moments(moments)
    return Agent(policy, config, (obs_space, action_space), {"steps": 5})


def name_of_input(path):
    if path[:1] == ("action_mask",):
        return "/".join(path)
    return "/".join(("obs", *map(str, path))) if path else "observation"


def feed(agent, observations):
    """A batch of them, as the file takes it."""
    return {
        name_of_input(leaf.path): np.stack([np.asarray(leaf.of(o)) for o in observations]).astype(
            leaf.space.dtype
        )
        for leaf in agent.policy.observations.leaves
    }


def check_actions(agent, found, expected):
    """found: name -> batch; expected: a list of actions as envs take them."""
    for leaf in agent.policy.actions.leaves:
        name = "/".join(("action", *map(str, leaf.path)))
        own = np.stack([leaf.of(action) for action in expected])
        assert found[name].dtype == leaf.space.dtype
        np.testing.assert_allclose(found[name], own, rtol=1e-5, atol=1e-5)


def run(session, given):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def begin(session, count):
    """The carry with which an episode begins, by its name; nothing without a memory."""
    sizes = {
        put.name: put.shape[1] for put in session.get_inputs() if put.name == "recurrent_state"
    }
    return {name: np.zeros((count, size), np.float32) for name, size in sizes.items()}


def play(agent, session, envs, episodes=2):
    """Envs whose episodes are of one length, side by side; every action is compared."""
    players = [
        Agent(agent.policy, agent.config, (agent.obs_space, agent.action_space)) for _ in envs
    ]
    for episode in range(episodes):
        carry, over = begin(session, len(envs)), False
        seen = [env.reset(seed=10 * episode + i)[0] for i, env in enumerate(envs)]
        for player in players:
            player.reset()
        while not over:
            found = run(session, feed(agent, seen) | carry)
            actions = [player.act(obs) for player, obs in zip(players, seen, strict=True)]
            check_actions(agent, found, actions)
            if carry:
                carry = {"recurrent_state": found["next_recurrent_state"]}
            steps = [w.step(action) for w, action in zip(envs, actions, strict=True)]
            seen, over = [step[0] for step in steps], steps[0][2]


def exported(agent, folder):
    agent.export(folder / "policy.onnx", overwrite=True)
    return onnxruntime.InferenceSession((folder / "policy.onnx").read_bytes())


def check_case(folder, seen, done, recurrent, masks, net):
    envs = [Questions(seen, done, masks) for _ in range(7)]
    agent = untrained(envs[0].observation_space, envs[0].action_space, recurrent=recurrent, **net)
    session = exported(agent, folder)
    play(agent, session, envs)
    play(agent, session, envs[:1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:3])))
def test_the_file_acts_as_the_agent_does(tmp_path, case):
    check_case(tmp_path, *case)


@pytest.mark.long
@pytest.mark.parametrize("case", EVERY, ids=str)
def test_every_combination_acts_as_the_agent_does(tmp_path, case):
    check_case(tmp_path, *case)


@pytest.mark.parametrize("recurrent", ["gru", "lstm"])
@pytest.mark.parametrize("continuous", [False, True])
def test_the_carry_is_what_is_remembered(tmp_path, recurrent, continuous):
    envs = [Remember(continuous) for _ in range(7)]
    agent = untrained(envs[0].observation_space, envs[0].action_space, recurrent=recurrent)
    session = exported(agent, tmp_path)
    play(agent, session, envs)
    given, zero = {"observation": np.ones((7, 1), np.float32)}, begin(session, 7)
    assert zero["recurrent_state"].shape == (
        7,
        16 if recurrent == "lstm" else 8,
    )  # the critic's is left out
    first = run(session, given | zero)
    later = run(session, given | {"recurrent_state": first["next_recurrent_state"]})
    assert (np.abs(later["distribution"] - first["distribution"]).max(-1) > 1e-3).all()


SPACES = gym.spaces
NESTED = SPACES.Tuple(
    [
        SPACES.Discrete(3, start=-1),
        SPACES.Dict(
            screen=SPACES.Box(0, 255, (3, 8, 6), np.uint8),
            pairs=SPACES.MultiDiscrete([[2, 3], [4, 5]], start=[[0, -1], [2, 3]]),
            bytes=SPACES.Box(0, 255, (4,), np.uint8),
            double=SPACES.Box(-2, 2, (2, 2), np.float64),
        ),
    ]
)
DEEDS = SPACES.Tuple(
    [
        SPACES.MultiBinary((2, 2)),
        SPACES.Dict(
            push=SPACES.Box(np.float64([-1, 0]), np.float64([3, 1e-3]), dtype=np.float64),
            pick=SPACES.MultiDiscrete([[2, 3], [4, 5]], start=[[0, -1], [2, 3]]),
        ),
    ]
)


@pytest.mark.parametrize(
    ("seen", "done", "measured"),
    [
        (NESTED, DEEDS, True),
        (NESTED[1]["double"], DEEDS[1]["pick"], True),
        (SPACES.Box(0, 255, (40, 44, 3), np.uint8), DEEDS[0], False),
        (SPACES.Dict(stack=SPACES.Box(0, 255, (2, 8, 6, 3), np.uint8)), DEEDS[1]["push"], False),
        (SPACES.Box(0, 255, (40, 44), np.uint8), SPACES.Discrete(3, start=-1), False),
    ],
    ids=["nested", "alone", "picture", "stack", "grey"],
)
def test_spaces_of_every_type_and_start(tmp_path, seen, done, measured):
    agent = untrained(seen, done, action="squash", normalize_obs=measured)
    session = exported(agent, tmp_path)
    seen.seed(1)
    observations = [seen.sample() for _ in range(5)]
    found = run(session, feed(agent, observations))
    check_actions(agent, found, [agent.act(obs) for obs in observations])


def test_the_distribution_is_there(tmp_path):
    env = Questions("vector", "hybrid", masks=True)
    agent = untrained(env.observation_space, env.action_space, log_std=-0.5)
    session = exported(agent, tmp_path)
    obs, _ = env.reset(seed=1)
    found = run(session, feed(agent, [obs]))["distribution"][0]
    row = torch.as_tensor(agent.policy.observations.row(obs))[None]
    with torch.no_grad():
        own = agent.policy.distribution(row).parameters[0]
    np.testing.assert_allclose(found, own, rtol=1e-5, atol=1e-5)
    illegal = obs["action_mask"] == 0
    assert np.exp(found[-3:])[illegal] == 0
    assert np.exp(found[-3:]).sum() == pytest.approx(1)


def test_what_only_the_critic_sees_is_not_asked_for(tmp_path):
    env = Questions("dict")
    spaces = (env.observation_space, env.action_space)
    agent = untrained(*spaces, privileged=("noise",), normalize_obs=True)
    session = exported(agent, tmp_path)
    assert [put.name for put in session.get_inputs()] == ["obs/symbol"]
    for seed in range(4):
        obs, _ = env.reset(seed=seed)
        found = run(session, {"obs/symbol": np.array([obs["symbol"]])})
        check_actions(agent, found, [agent.act(obs)])


def test_a_network_of_ones_own(tmp_path):
    env = Nearest()
    spaces = (env.observation_space, env.action_space)
    agent = untrained(*spaces, own=Attention, module="examples.attention:Attention")
    session = exported(agent, tmp_path)
    seen = [env.reset(seed=seed)[0] for seed in range(7)]
    check_actions(agent, run(session, feed(agent, seen)), [agent.act(obs) for obs in seen])


class Fixed(torch.nn.Module):
    def __init__(self, space):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, x):
        return self.layer(x.reshape(len(x), -1))


class Torn(Fixed):
    def forward(self, x):
        return torch.cat([self.layer(row[None] if row.sum() > 0 else -row[None]) for row in x])


@pytest.mark.parametrize("own", [Fixed, Torn])
def test_a_network_that_cannot_be_exported_is_told_why(tmp_path, capfd, own):
    env = Questions()
    spaces = (env.observation_space, env.action_space)
    agent = untrained(*spaces, own=own, module="tests:Own")
    with pytest.raises(UsageError, match=r"cannot be exported \(.*must not depend") as caught:
        agent.export(tmp_path / "policy.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("done", ["discrete", "box"])
def test_a_file_that_acts_otherwise_is_not_written(tmp_path, monkeypatch, done):
    graph = proximo.export._graph

    def off(acting, about):
        with torch.no_grad():
            acting.policy.logits.bias[0] += 0.01
        return graph(acting, about)

    monkeypatch.setattr(proximo.export, "_graph", off)
    env = Questions(done=done)
    agent = untrained(env.observation_space, env.action_space)
    with pytest.raises(UsageError, match="would not act as it does"):
        agent.export(tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_file_says_what_it_is_and_not_where_it_was_made(tmp_path):
    env = Questions()
    agent = untrained(env.observation_space, env.action_space, recurrent="lstm")
    before = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
    session = exported(agent, tmp_path)
    assert session.get_modelmeta().custom_metadata_map == {
        "proximo": proximo.__version__,
        "env": "tests:Env",
        "algorithm": "ppo",
        "steps": "5",
        "observation_space": "Box(-1.0, 1.0, (3,), float32)",
        "action_space": "Discrete(3, start=1)",
    }
    data = (tmp_path / "policy.onnx").read_bytes()
    assert b".py" not in data
    assert str(Path.home()).encode() not in data
    assert b"critic" not in data
    agent.export(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == data
    assert agent.policy.critic is not None
    for name, tensor in agent.policy.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_names_that_would_meet_are_refused(tmp_path):
    one = SPACES.Box(-1, 1, (1,))
    agent = untrained(SPACES.Dict({"a": SPACES.Dict({"b": one}), "a/b": one}), SPACES.Discrete(2))
    with pytest.raises(UsageError, match="two parts of this env would be named obs/a/b"):
        agent.export(tmp_path / "policy.onnx")


def test_the_example_of_the_docs_runs_without_pytorch(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    example = page.split("```python\n", 1)[1].split("```", 1)[0]
    env = gym.make("CartPole-v1")
    agent = untrained(env.observation_space, env.action_space)
    agent.export(tmp_path / "policy.onnx")
    seen = [env.reset(seed=seed)[0] for seed in range(3)]
    checked = (
        f"{example}\nimport sys\n"
        "assert not {'torch', 'proximo', 'gymnasium'} & set(sys.modules)\n"
        f"print(*(act(np.array(obs, np.float32)) for obs in {np.stack(seen).tolist()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", checked], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [int(word) for word in done.stdout.split()] == [agent.act(obs) for obs in seen]
