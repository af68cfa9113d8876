"""`proximo play --overlay`: what a policy expects and does, beside the frames of a video."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from commands.command_line import proximo, refusal, succeeded, train_in
from proximo import PPO, NetConfig, RolloutConfig
from proximo import train as train_here
from proximo.commands.overlay import Moment, Overlay, Painter
from proximo.envs.make import in_step
from proximo.evaluation import EpisodePlayer
from proximo.nets.heads import Choice, Interval
from proximo.types import Segments

imageio = pytest.importorskip("imageio.v3", reason="pictures are an extra")
pytest.importorskip("PIL", reason="pictures are an extra")

LOGS = """
import gymnasium as gym
import numpy as np
from pathlib import Path


class Logs(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)
    actions = ["<b>left", "right\\x1b[2J", "wait for a very long time indeed"]

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        with Path("actions").open("a") as log:
            log.write(f"{action} ")
        self.time += 1
        seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return seen, 1.0, self.time == 6, False, {}

    def render(self):
        return np.full((8, 12, 3), 30 * self.time, np.uint8)
"""


LSTM = ("--net.recurrent", "lstm", "--net.recurrent-size", "8")


@pytest.mark.parametrize(("how", "net"), [((), ()), (("--stochastic",), LSTM)])
def test_the_same_actions_are_taken_with_and_without_it(here, how, net):
    (here / "logs.py").write_text(LOGS)
    succeeded(train_in("logs:Logs", "--run-dir", "r", "--quiet", *net, steps=128))
    taken, shown = [], []
    for name, more in (("plain.gif", ()), ("over.gif", ("--overlay",))):
        (here / "actions").unlink(missing_ok=True)
        words = ("play", "r", "--env", "logs:Logs", "--episodes", "2", "--video", name)
        said = succeeded(proximo(*words, *how, *more)).out
        taken.append((here / "actions").read_text())
        shown.append(imageio.imread(here / name, index=None))
        assert f"14 states in {name}" in said
    assert taken[0] == taken[1]
    assert len(shown[0]) == len(shown[1]) == 14
    plain, over = shown[0], shown[1]
    assert plain.shape[1:3] == (8, 12)
    factor = 45  # to a height of 360
    assert over.shape[1] == 8 * factor
    assert over.shape[2] > 12 * factor + 150
    for i in (0, 6, 7, 13):  # the frames are those of the states
        inside = over[i, :, : 12 * factor].astype(float)
        assert inside.mean() == pytest.approx(plain[i].astype(float).mean(), abs=3)


def test_it_is_refused_without_a_video(here, trained):
    message = refusal(proximo("play", trained, "--overlay"))
    assert "--overlay draws beside the frames of a video: give --video FILE too" in message


def test_an_mp4_has_it_too(here, trained):
    pytest.importorskip("imageio_ffmpeg")
    succeeded(proximo("play", trained, "--video", "r.mp4", "--overlay", "--max-episode-steps", "5"))
    assert (here / "r.mp4").stat().st_size


# What is drawn is what the policy computes


class Canvas:
    """In place of a video."""

    def __init__(self):
        self.written = []

    def take(self):
        return np.zeros((4, 4, 3), np.uint8)

    def write(self, frame):
        self.written.append(frame)


class Made(gym.Env):
    """Random observations; episodes of 12 steps, in which step t earns t."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.taken, self.seen = 0, [], []
        return self.see(), {}

    def see(self):
        self.seen.append(self.np_random.uniform(-1, 1, 3).astype(np.float32))
        return self.seen[-1]

    def step(self, action):
        self.taken.append(copy.deepcopy(action))  # it may be changed
        self.t += 1
        return self.see(), float(self.t), self.t == 12, False, {}


def watched(monkeypatch, space, net=None, deterministic=True):
    """An agent, its env after two episodes, and what was drawn of every state."""
    drawn = []

    def beside(self, frame, step, moments):
        drawn.append((step, [Moment(**vars(moment)) for moment in moments]))
        return frame

    monkeypatch.setattr(Painter, "beside", beside)
    agent = train_here(
        lambda: Made(space),
        PPO(minibatch_size=16, epochs=1),
        rollout=RolloutConfig(steps=16),
        total_steps=64,
        num_envs=2,
        net=net or NetConfig(),
    )
    env, canvas = Made(space), Canvas()
    player = EpisodePlayer(in_step([env]))
    overlay = Overlay(agent, player, canvas, env)
    for number in (1, 2):
        overlay.begin()
        player.play(
            agent.policy,
            episodes=1,
            seed=number,
            deterministic=deterministic,
            watch=lambda episode: overlay.watch(),
        )
        overlay.end()
    assert len(drawn) == 26 == len(canvas.written)
    return agent, env, drawn[13:]


def test_return_value_and_probabilities_are_those_of_the_state(monkeypatch):
    agent, env, drawn = watched(monkeypatch, spaces.Discrete(3, start=5))
    obs = agent.policy.as_rows(np.stack(env.seen))
    with torch.no_grad():
        values = agent.policy.value(obs)
        probabilities = agent.policy.distribution(obs).log_p.exp()
    for t, (step, [moment]) in enumerate(drawn[:-1]):
        assert step == t
        assert moment.ret == sum(range(t + 1))
        assert moment.value == pytest.approx(float(values[t]), abs=1e-5)
        [choice] = moment.marginals
        assert choice.start == 5
        torch.testing.assert_close(choice.probabilities, probabilities[t])
        assert moment.action.tolist() == [env.taken[t]]
        assert int(choice.probabilities.argmax()) + 5 == env.taken[t]
    step, [last] = drawn[-1]
    assert (step, last.ret, last.value, last.marginals) == (12, 78.0, None, [])


@pytest.mark.parametrize("trunk", ["shared", "separate"])
def test_a_recurrent_policy_is_shown_with_what_it_remembers(monkeypatch, trunk):
    net = NetConfig(recurrent="gru", recurrent_size=8, hidden=(8,), trunk=trunk)
    agent, env, drawn = watched(monkeypatch, spaces.Discrete(4), net)
    obs = agent.policy.as_rows(np.stack(env.seen[:-1]))
    whole = Segments(torch.zeros(12, dtype=torch.int64), torch.zeros(12, agent.policy.state_size))
    with torch.no_grad():
        values = agent.policy.value(obs, whole)
        probabilities = agent.policy.distribution(obs, whole).log_p.exp()
    for t, (_, [moment]) in enumerate(drawn[:-1]):
        assert moment.value == pytest.approx(float(values[t]), abs=1e-5)
        torch.testing.assert_close(moment.marginals[0].probabilities, probabilities[t])
        assert int(moment.marginals[0].probabilities.argmax()) == env.taken[t]


BOX = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32))
MIXED = spaces.Dict(a=spaces.Discrete(2), b=BOX, c=spaces.MultiBinary(2))


@pytest.mark.parametrize(
    ("space", "net"),
    [
        (spaces.MultiDiscrete([3, 4], start=[1, 0]), {}),
        (spaces.MultiBinary(3), {}),
        (BOX, {}),
        (BOX, {"action": "squash"}),
        (BOX, {"action": "beta"}),
        (BOX, {"std": "gsde"}),
        (spaces.Box(-np.inf, np.inf, (2,)), {}),
        (MIXED, {}),
    ],
    ids=["MultiDiscrete", "MultiBinary", "Box", "squash", "beta", "gsde", "no bounds", "Dict"],
)
def test_every_action_space_is_shown_in_the_units_of_the_env(monkeypatch, space, net):
    _, env, drawn = watched(monkeypatch, space, NetConfig(**net))
    for t, (_, [moment]) in enumerate(drawn[:-1]):
        parts = env.taken[t].values() if isinstance(space, spaces.Dict) else [env.taken[t]]
        taken = np.concatenate([np.ravel(part) for part in parts]).astype(float)
        np.testing.assert_allclose(moment.action, taken, rtol=1e-6)
        assert len(moment.marginals) == len(taken)
        for marginal, number in zip(moment.marginals, taken.tolist(), strict=True):
            if isinstance(marginal, Choice):
                assert float(marginal.probabilities.sum()) == pytest.approx(1)
                assert int(marginal.probabilities.argmax()) + marginal.start == number
            else:  # the likeliest action is the mean
                low, mean, high = marginal.ends.tolist()
                assert mean == pytest.approx(number, abs=1e-5)
                assert marginal.low <= low < high <= marginal.high


def test_the_interval_is_one_standard_deviation(monkeypatch):
    agent, _, drawn = watched(monkeypatch, spaces.Box(-9, 9, (1,)), deterministic=False)
    std = float(agent.policy.head.log_std.detach().exp())
    for _, [moment] in drawn[:-1]:
        low, mean, high = moment.marginals[0].ends.tolist()
        assert high - mean == pytest.approx(std, rel=1e-4)
        assert mean - low == pytest.approx(std, rel=1e-4)
    assert any(abs(m.action[0] - float(m.marginals[0].ends[1])) > 0.01 for _, [m] in drawn[:-1])


def test_each_agent_of_a_parallel_env_has_its_own(monkeypatch):
    pytest.importorskip("pettingzoo")
    from envs.parallel_envs import Leaving
    from proximo.envs.config import EnvConfig
    from proximo.envs.parallel_env import ParallelEnv

    drawn = []
    real = Painter.beside

    def beside(self, frame, step, moments):
        drawn.append([Moment(**vars(moment)) for moment in moments])
        return real(self, frame, step, moments)

    monkeypatch.setattr(Painter, "beside", beside)
    agent = train_here(
        Leaving, PPO(minibatch_size=16, epochs=1), rollout=RolloutConfig(steps=16), total_steps=64
    )
    env, canvas = ParallelEnv(Leaving("rgb_array"), EnvConfig()), Canvas()
    player = EpisodePlayer(in_step([env]))
    overlay = Overlay(agent, player, canvas, env)
    overlay.begin()
    player.play(agent.policy, episodes=1, seed=1, watch=lambda episode: overlay.watch())
    overlay.end()
    assert [[m.ret for m in moments] for moments in drawn] == [
        *([0, 0], [1, 10], [2, 20], [2, 30], [2, 40], [2, 50])
    ]
    assert [[bool(m.marginals) for m in moments] for moments in drawn] == [
        *([True, True], [True, True], [False, True], [False, True], [False, True], [False, False])
    ]
    assert [m.name for m in drawn[0]] == ["'early'", "'late'"]
    assert len({frame.shape for frame in canvas.written}) == 1


# What it looks like


def choice(*p, start=0):
    return Choice(torch.tensor(p), start)


def interval(low=-1.0, high=1.0):
    return Interval(torch.tensor([-0.2, 0.1, 0.4]), low, high)


ACTIONS = {
    "two": [choice(0.25, 0.75)],
    "many": [choice(*[1 / 300] * 300)],
    "several": [choice(0.2, 0.8), choice(0.5, 0.3, 0.2, start=1)],
    "numbers": [interval() for _ in range(40)],
    "endless": [interval(-np.inf, np.inf)],
    "mixed": [choice(0.5, 0.5), interval()],
    "over": [],
}
SIZES = [(1, 1), (40, 1000), (800, 40), (210, 160), (401, 601)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("agents", [1, 20])
def test_it_fits_beside_a_frame_of_any_size(size, agents):
    frame = np.full((*size, 3), 77, np.uint8)
    for value in (1.5, None):
        for marginals in ACTIONS.values():
            painter = Painter(
                value="value estimate", labels=[str(i) for i in range(40)], meanings=[]
            )
            painter.begin()
            action = np.ones(len(marginals))
            moments = [Moment("a", -1e7, value, marginals, action)] * agents
            painter.take_in(moments)
            whole = painter.beside(frame, 123_456, moments)
            assert whole.dtype == np.uint8
            assert whole.shape[0] % 2 == whole.shape[1] % 2 == 0
            assert whole.shape[0] >= max(size[0], 230)
            enlarged = (whole == 77).all(-1).any(0).sum()
            assert enlarged % size[1] == 0
            panel = whole[:, enlarged:]
            assert panel.shape[1] >= 230
            ink = (np.abs(panel.astype(int) - panel[-1, -1]).max(-1) > 90).any(0)
            margins = ink[:8].any(), ink[-8:].any()  # no text is cut off at its sides
            assert margins == (False, False)


def test_a_curve_that_is_flat_or_not_finite_is_drawn():
    for values in ([5.0] * 300, [np.nan] * 3, [np.inf, 1.0], [1e30, -1e30], [0.0]):
        painter = Painter(value="value estimate", labels=["0"], meanings=[])
        painter.begin()
        for value in values:
            moments = [Moment("", 0.0, value, ACTIONS["two"], np.ones(1))]
            painter.take_in(moments)
        painter.beside(np.zeros((400, 400, 3), np.uint8), 1, moments)
