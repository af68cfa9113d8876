"""EnvPool: what it does not check is checked, and its envs are Gymnasium's."""

import ctypes.util
import json
import subprocess
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from commands.command_line import SMALL, here, proximo, refusal, succeeded
from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, RunConfig, UsageError, train
from proximo.envs.envpool import NEVER, EnvPoolEnvs
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
        self.closed = False

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
