"""EnvPool: what it does not check is checked, and its envs are Gymnasium's."""

import ctypes.util
import json
import subprocess
import sys
import types
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from commands.command_line import SMALL, here, proximo, refusal, succeeded, timeless
from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, RunConfig, UsageError, train
from proximo.envs import envpool as room
from proximo.envs.envpool import NEVER, SPLIT, EnvPoolEnvs
from proximo.envs.make import make_envs

__all__ = ["here"]


class FakePool:
    """Counts steps; no episode of it ends by itself but env 0's, on its fifth step."""

    def __init__(self, arguments, discrete):
        self.arguments, self.steps = arguments, []
        self.single_observation_space = gym.spaces.Box(-1, 1, (4,))
        self.single_action_space = (
            gym.spaces.Discrete(2) if discrete else gym.spaces.Box(-1.0, 1.0, (3,), np.float64)
        )
        self.observation_space = self.single_observation_space
        self.elapsed = np.zeros(arguments["num_envs"], np.int32)
        self.over = np.zeros(arguments["num_envs"], bool)
        self.closed, self.sent = False, None

    def reset(self, env_id=None):
        which = np.arange(len(self.elapsed)) if env_id is None else env_id
        self.elapsed[which] = 0
        return np.zeros((len(which), 4), np.float32), {}

    def step(self, actions, env_id=None):
        which = np.arange(len(self.elapsed)) if env_id is None else env_id
        self.steps.append(actions)
        fresh = self.over[which]
        self.elapsed[which] = np.where(fresh, 0, self.elapsed[which] + 1)
        over = (which == 0) & (self.elapsed[which] == 5)
        self.over[which] = over
        obs = np.repeat(self.elapsed[which, None], 4, 1).astype(np.float32)
        info = {"elapsed_step": self.elapsed[which].copy()}
        return obs, (~fresh).astype(np.float32), over, np.zeros(len(which), bool), info

    def send(self, actions, env_id=None):
        assert self.sent is None
        self.sent = actions, *(() if env_id is None else (env_id,))

    def recv(self):
        sent, self.sent = self.sent, None
        return self.step(*sent)

    def close(self):
        self.closed = True


@pytest.fixture
def fake(monkeypatch):
    made = []

    def make_gymnasium(name, **arguments):
        made.append(FakePool(arguments, name == "CartPole-v1"))
        return made[-1]

    def make_spec(name, **kwargs):
        return types.SimpleNamespace(config=types.SimpleNamespace(max_episode_steps=7))

    module = types.SimpleNamespace(
        make_gymnasium=make_gymnasium,
        make_spec=make_spec,
        list_all_envs=lambda: ["CartPole-v1", "Reach-v0"],
    )
    monkeypatch.setitem(sys.modules, "envpool", module)
    return made


def pool(name="CartPole-v1", num_envs=3, **settings):
    return EnvPoolEnvs(
        EnvConfig(id=name, num_envs=num_envs, backend="envpool", **settings), None, 2
    )


@pytest.mark.parametrize(
    ("name", "actions"),
    [
        ("CartPole-v1", np.array([0, 1])),
        ("CartPole-v1", np.array([0, 1, 1, 0])),
        ("CartPole-v1", np.array(1)),
        ("CartPole-v1", np.array([0, 1, 2])),
        ("CartPole-v1", np.array([0, 1, -1])),
        ("CartPole-v1", np.array([0, 1, 0.5])),
        ("CartPole-v1", np.array([0, 1, np.nan])),
        ("Reach-v0", np.zeros((3, 2))),
        ("Reach-v0", np.zeros((2, 3))),
        ("Reach-v0", np.full((3, 3), np.nan)),
        ("Reach-v0", np.full((3, 3), np.inf)),
    ],
)
def test_actions_that_envpool_would_not_refuse_are_refused(fake, name, actions):
    envs = pool(name)
    envs.reset(seed=1)
    with pytest.raises(ValueError, match="action"):
        envs.step(actions)
    assert fake[-1].steps == []


def test_actions_reach_it_in_its_own_type(fake):
    envs = pool("Reach-v0")
    envs.reset(seed=1)
    envs.step(np.zeros((3, 3), np.float32))
    assert fake[-1].steps[0].dtype == np.float64


def test_every_env_has_a_seed_of_its_own_and_a_new_seed_makes_a_new_pool(fake):
    envs = pool()
    envs.reset(seed=1)
    envs.reset(seed=2)
    first, second = fake[-2], fake[-1]
    assert first.closed
    seeds = first.arguments["seed"] + second.arguments["seed"]
    assert len(set(seeds)) == 6
    assert all(-(2**31) <= seed < 2**31 for seed in seeds)
    envs.reset()
    assert fake[-1] is second


def test_its_arguments(fake):
    envs = pool("Reach-v0", max_episode_steps=9, kwargs={"weight": 2.0})
    assert fake[-1].arguments["weight"] == 2.0
    assert fake[-1].arguments["max_episode_steps"] == NEVER
    assert fake[-1].arguments["num_threads"] == 2
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    with pytest.raises(UsageError, match=r"\['num_threads'\], which EnvPool uses for itself"):
        pool(kwargs={"num_threads": 3})
    with pytest.raises(UsageError, match="Did you mean CartPole-v1"):
        pool("CartPole-v2")
    envs.close()
    assert fake[-1].closed


@pytest.mark.parametrize("limit", [None, 5, 3])
def test_time_limits_cut_and_a_fall_on_the_last_step_is_still_a_fall(fake, limit):
    envs = pool(num_envs=2, max_episode_steps=limit)
    envs.reset(seed=1)
    history = []
    for _ in range(20):
        obs, _, terminated, truncated, _ = envs.step(np.zeros(2, np.int64))
        history.append((obs[:, 0].tolist(), terminated.tolist(), truncated.tolist()))
    at = (limit or 7) - 1
    seen, terminated, truncated = history[at]
    assert seen[1] == limit or seen[1] == 7  # the true successor, not the next beginning
    assert truncated[1]
    assert not terminated[1]
    assert history[at + 1][0][1] == 0  # a step that only resets
    assert history[at + 2][0][1] == 1
    if limit == 5:
        assert terminated[0]
        assert truncated[0]
    if limit is None:
        assert history[4][1][0]
        assert not history[4][2][0]
        assert history[5][0][0] == 0


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UsageError, match=r"pip install 'proximo\[envpool\]'"):
        make_envs(EnvConfig(id="CartPole-v1", backend="envpool"), 0)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "LunarLander-v3", "HalfCheetah-v5"])
def test_policies_trained_in_it_are_for_gymnasiums_env(tmp_path, name):
    pytest.importorskip("envpool")
    runs = []
    for number in range(2):
        agent = train(
            EnvConfig(id=name, num_envs=8, backend="envpool", max_episode_steps=40),
            PPO(epochs=2, minibatch_size=64),
            rollout=RolloutConfig(steps=64),
            net=NetConfig(normalize_obs=True),
            run_config=RunConfig(total_steps=1500, seed=1),
            run_dir=tmp_path / str(number),
        )
        runs.append((tmp_path / str(number) / "checkpoints" / "last.safetensors").read_bytes())
    assert runs[0] == runs[1]
    env = gym.make(name)
    assert (agent.obs_space, agent.action_space) == (env.observation_space, env.action_space)
    assert env.action_space.contains(agent.act(env.reset(seed=0)[0]))
    if name == "CartPole-v1":
        assert agent.result["return_mean"] == agent.result["length_mean"]


@pytest.mark.parametrize(("name", "length"), [("Pong-v5", 30), ("CartpoleBalance-v1", 30)])
def test_what_only_envpool_has_is_scored_and_shown_in_it(here, name, length):
    pytest.importorskip("envpool")
    small = ("--net.hidden", "8", "--net.trunk", "shared", "--run-dir", "run")
    words = ("train", "ppo", name, *SMALL, *small, "--env.max-episode-steps", str(length))
    refused = refusal(proximo(*words, "--total-steps", "128"))
    assert "EnvPool has it: use --env.backend envpool" in refused
    # A time limit that cuts one env off while the other goes on, or both, in nested rows too.
    succeeded(proximo(*words, "--total-steps", "128", "--env.backend", "envpool"))
    first, again = (
        json.loads(succeeded(proximo("eval", "run", "--episodes", "2", "--json")).out)
        for _ in range(2)
    )
    assert first == again
    assert first["length_mean"] == length
    if name == "Pong-v5" or ctypes.util.find_library("OpenGL"):
        # A process of its own: MuJoCo within EnvPool ends it where MuJoCo draws otherwise.
        play = (sys.executable, "-m", "proximo", "play", "run", "--video", "run.gif")
        done = subprocess.run(play, capture_output=True, text=True, timeout=120)
        assert "31 states" in done.stdout, done.stderr
    resumed = succeeded(proximo("resume", "run", "--total-steps", "192"))
    assert "these envs cannot be brought back" in resumed.out


def test_nested_observations_keep_their_places_when_some_envs_are_cut_off(fake):
    envs = pool(num_envs=2, max_episode_steps=3)
    inner = fake[-1]
    for method in ("reset", "step"):
        plain = getattr(inner, method)

        def nested(*args, plain=plain, **kwargs):
            obs, *rest = plain(*args, **kwargs)
            return {"place": {"x": obs[:, :1], "rest": obs[:, 1:]}}, *rest

        setattr(inner, method, nested)
    envs.reset()
    inner.elapsed[1] = 1  # env 1 is a step ahead, and is cut off alone
    seen = [envs.step(np.zeros(2, np.int64))[0]["place"] for _ in range(4)]
    assert [obs["x"][:, 0].tolist() for obs in seen] == [[1, 2], [2, 3], [3, 0], [0, 1]]
    assert all((obs["rest"] == obs["x"]).all() for obs in seen)


class TracePool(FakePool):
    """Shows the sum of its actions; an episode of env k ends after lengths[k] steps."""

    order: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, arguments, discrete):
        super().__init__(arguments, discrete)
        self.lengths = 3 + np.array(arguments["seed"]) % 5
        self.sum = np.zeros((len(self.lengths), 4), np.float32)

    def reset(self, env_id=None):
        obs, info = super().reset(env_id)
        which = slice(None) if env_id is None else env_id
        self.sum[which] = 0
        return obs, info

    def send(self, actions, env_id=None):
        self.order.append(("send", id(self)))
        super().send(actions, env_id)

    def recv(self):
        self.order.append(("recv", id(self)))
        return super().recv()

    def step(self, actions, env_id=None):
        which = np.arange(len(self.elapsed)) if env_id is None else env_id
        fresh = self.over[which]
        self.elapsed[which] = np.where(fresh, 0, self.elapsed[which] + 1)
        self.sum[which[fresh]] = 0
        self.sum[which, :3] += np.where(fresh[:, None], 0, actions[:, :3])
        self.sum[which, 3] = self.elapsed[which] / 10
        over = self.elapsed[which] == self.lengths[which]
        self.over[which] = over
        reward = np.where(fresh, 0, actions[:, 0] - self.elapsed[which] / 10)
        info = {"elapsed_step": self.elapsed[which].copy()}
        return self.sum[which].copy(), reward, over, np.zeros(len(which), bool), info


def trained(folder, num_envs, *, engine="native", **net):
    """The last checkpoint of a short run, and its metrics but for times."""
    agent = train(
        EnvConfig(id="Reach-v0", num_envs=num_envs, backend="envpool", check=False),
        PPO(epochs=2, minibatch_size=32, normalize_reward=True),
        rollout=RolloutConfig(steps=20),
        net=NetConfig(hidden=(8,), normalize_obs=True, **net),
        run_config=RunConfig(total_steps=num_envs * 60, seed=1, engine=engine),
        run_dir=folder,
    )
    return (folder / "checkpoints" / "last.safetensors").read_bytes(), timeless(folder), agent


@pytest.mark.parametrize("net", [{}, {"recurrent": "gru", "recurrent_size": 4, "bptt_steps": 4}])
@pytest.mark.parametrize(("num_envs", "groups"), [(2, 1), (5, 2), (16, 2)])
def test_two_groups_that_step_by_turns_give_the_bits_of_one(
    fake, monkeypatch, tmp_path, num_envs, groups, net
):
    monkeypatch.setattr(
        sys.modules["envpool"],
        "make_gymnasium",
        lambda name, **arguments: fake.append(TracePool(arguments, False)) or fake[-1],
    )
    monkeypatch.setattr(room, "SPLIT", 1_000_000)
    whole = trained(tmp_path / "whole", num_envs, **net)
    monkeypatch.setattr(room, "SPLIT", 3)
    TracePool.order.clear()
    halves = trained(tmp_path / "halves", num_envs, **net)
    assert halves[:2] == whole[:2]
    assert whole[2].result["episodes"] > 3 * num_envs
    pools = list(dict.fromkeys(pool for _, pool in TracePool.order))
    assert len(pools) == groups
    if groups == 2:  # the second steps while the policy acts in the first, and the other way round
        a, b = pools
        begin = [("send", a), ("send", b), ("recv", a), ("send", a), ("recv", b), ("send", b)]
        assert TracePool.order[:6] == begin


def test_an_engine_that_rounds_by_the_batch_acts_in_all_at_once(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys.modules["envpool"],
        "make_gymnasium",
        lambda name, **arguments: fake.append(TracePool(arguments, False)) or fake[-1],
    )
    runs = []
    for split in (1_000_000, 3):
        monkeypatch.setattr(room, "SPLIT", split)
        TracePool.order.clear()
        runs.append(trained(tmp_path / str(split), 6, engine="torch")[:2])
    assert runs[0] == runs[1]
    assert [what for what, _ in TracePool.order[:4]] == ["send", "send", "recv", "recv"]


@pytest.mark.parametrize(("frames", "groups"), [(1, 1), (SPLIT // 64, 2)])
def test_costly_envs_stand_in_two_pools(fake, monkeypatch, frames, groups):
    config = types.SimpleNamespace(max_episode_steps=7, frame_skip=frames)
    spec = types.SimpleNamespace(config=config)
    monkeypatch.setattr(sys.modules["envpool"], "make_spec", lambda name, **kwargs: spec)
    envs = pool("Reach-v0", num_envs=64)
    envs.reset(seed=3)
    seeds = [seed for one in fake[-groups:] for seed in one.arguments["seed"]]
    assert [len(one.arguments["seed"]) for one in fake[-groups:]] == [64 // groups] * groups
    drawn = np.random.SeedSequence(3).generate_state(64)
    assert seeds == [int(number) - 2**31 for number in drawn]
    envs.close()
    assert all(one.closed for one in fake[-groups:])


@pytest.mark.parametrize("net", [{}, {"recurrent": "lstm", "recurrent_size": 8}])
@pytest.mark.parametrize(
    ("name", "num_envs", "limit"), [("Hopper-v5", 33, None), ("HalfCheetah-v5", 9, 25)]
)
def test_two_real_pools_give_the_bits_of_one(monkeypatch, tmp_path, name, num_envs, limit, net):
    pytest.importorskip("envpool")
    kept = []
    for split, threads in ((1_000_000, 1), (1, 1), (1, 2)):
        monkeypatch.setattr(room, "SPLIT", split)
        folder = tmp_path / str(len(kept))
        train(
            EnvConfig(
                id=name,
                num_envs=num_envs,
                backend="envpool",
                threads=threads,
                max_episode_steps=limit,
            ),
            PPO(epochs=2, minibatch_size=64, normalize_reward=True),
            rollout=RolloutConfig(steps=40),
            net=NetConfig(normalize_obs=True, **net),
            run_config=RunConfig(total_steps=num_envs * 120, seed=1),
            run_dir=folder,
        )
        kept.append((folder / "checkpoints" / "last.safetensors").read_bytes())
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize(
    ("name", "bare"),
    [("HalfCheetah-v5", True), ("CartPole-v1", True), ("CartpoleBalance-v1", False)],
)
def test_its_bare_calls_give_what_its_own_python_does(monkeypatch, name, bare):
    pytest.importorskip("envpool")
    answers = []
    for of in (room._BarePool.of, lambda pool: None):
        monkeypatch.setattr(room._BarePool, "of", staticmethod(of))
        envs = pool(name, num_envs=5, max_episode_steps=20)
        envs.reset(seed=4)
        assert isinstance(envs._quick[0], room._BarePool) == (bare and not answers)
        space = envs.single_action_space
        space.seed(0)
        actions = [np.stack([space.sample() for _ in range(5)]) for _ in range(50)]
        answers.append([envs.step(action) for action in actions])
        envs.close()
    for one, other in zip(*answers, strict=True):
        for left, right in zip(one[:4], other[:4], strict=True):
            room.map_leaves(np.testing.assert_array_equal, left, right)
    assert any((terminated | truncated).any() for _, _, terminated, truncated, _ in answers[0])
