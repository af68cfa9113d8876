"""Compiled envs: Gymnasium's numbers to the bit, an env of one's own, and what can be wrong."""

import ctypes
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from commands.command_line import proximo, refusal, succeeded
from proximo import PPO, EnvConfig, RolloutConfig, RunConfig, UsageError, load, resume, train
from proximo.envs import compiled
from proximo.envs.base import NUMBERED, episode_seed
from proximo.envs.check import check_env
from proximo.envs.compiled import SHIPPED, CompiledEnv, CompiledEnvs, describe, obstacle
from proximo.envs.make import make_env, make_envs
from proximo.types import RolloutBuffer

COMPILER = next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), None)
EXAMPLE = Path(__file__).parents[2] / "examples" / "catch.c"
pytestmark = pytest.mark.skipif(
    compiled.stepper()[0] is None or COMPILER is None, reason="there is no C++ compiler"
)
IDS = sorted(SHIPPED)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of compiled envs of each test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def buffer_of(envs, steps):
    shape = (steps, envs.count)
    return RolloutBuffer(
        obs=np.zeros((steps + 1, envs.count, *envs.observations.shape), np.float32),
        action=np.zeros(shape),
        parameters=np.zeros((2, envs.count, 1)),
        env_action=np.zeros((*shape, *(envs.actions.shape or ())), envs.actions.dtype),
        reward=np.zeros(shape),
        terminated=np.zeros(shape, bool),
        done=np.zeros(shape, bool),
        valid=np.ones(shape, bool),
        final_obs=[],
    )


def both(name, count, seed, **settings):
    env = EnvConfig(id=name, num_envs=count, **settings)
    return [make_envs(EnvConfig(**{**vars(env), "backend": b}), seed) for b in ("sync", "native")]


def play(envs, actions):
    """The buffer of these actions, [T, N, ...], and the state behind it."""
    state, buffer = envs.start(), buffer_of(envs, len(actions))
    buffer.env_action[:] = actions
    for t in range(len(actions)):
        envs.step(state, buffer, t)
    return buffer, state


def drawn(envs, steps, seed):
    """Actions that are kept for a while each, so that episodes come far, some beyond the bounds."""
    rng, space = np.random.default_rng(seed), envs.action_space
    kept = -(-steps // 5), envs.count
    if isinstance(space, gym.spaces.Discrete):
        actions = rng.integers(space.n, size=kept)
    else:
        actions = rng.uniform(1.5 * space.low, 1.5 * space.high, (*kept, *space.shape))
    return np.repeat(actions, 5, axis=0)[:steps].astype(envs.actions.dtype)


def assert_equal(name, steps, count, seed):
    plain, fast = both(name, count, seed)
    assert isinstance(fast, CompiledEnvs)
    actions = drawn(plain, steps, seed)
    (expected, state), (found, other) = play(plain, actions), play(fast, actions)
    for part in ("reward", "terminated", "done"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part), part)
    begins = np.concatenate([np.zeros((1, count), bool), expected.done])
    # Gymnasium's Acrobot shows single-precision cosines at its reset, which others round otherwise.
    loose = begins if name == "Acrobot-v1" else np.zeros_like(begins)
    np.testing.assert_array_equal(found.obs[~loose], expected.obs[~loose])
    np.testing.assert_allclose(found.obs[loose], expected.obs[loose], atol=1.2e-7)
    assert [end[:2] for end in found.final_obs] == [end[:2] for end in expected.final_obs]
    for (*_, a), (*_, b) in zip(found.final_obs, expected.final_obs, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(other.episode, state.episode)
    assert expected.done.any()


@pytest.mark.parametrize("name", IDS)
def test_steps_are_gymnasiums_to_the_bit(name):
    assert_equal(name, steps=1200, count=3, seed=7)


@pytest.mark.long
@pytest.mark.parametrize("name", IDS)
def test_a_million_steps_are_gymnasiums(name):
    for seed in range(100):
        assert_equal(name, steps=2500, count=4, seed=seed)


@pytest.mark.parametrize("name", IDS)
def test_spaces_and_limits_are_gymnasiums(name):
    plain, fast = both(name, 1, 0)
    own = describe(name)
    assert own.obs_space == plain.obs_space == fast.obs_space
    assert own.action_space == plain.action_space == fast.action_space
    assert own.env.max_episode_steps in (gym.spec(name).max_episode_steps, 500)


def test_a_time_limit_of_the_settings_replaces_that_of_the_env():
    plain, fast = both("Pendulum-v1", 2, 3, max_episode_steps=7)
    buffers = [play(envs, drawn(plain, 30, 1))[0] for envs in (plain, fast)]
    np.testing.assert_array_equal(buffers[0].done, buffers[1].done)
    assert buffers[1].done[6].all()
    assert not buffers[1].terminated.any()


def weights(agent):
    numbers = [p.detach().numpy().tobytes() for p in agent.policy.parameters()]
    return hashlib.sha256(b"".join(numbers)).hexdigest()


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCarContinuous-v0", "Pendulum-v1"])
@pytest.mark.parametrize("engine", ["native", "torch"])
def test_training_gives_the_same_weights(name, engine):
    found = {
        weights(
            train(
                EnvConfig(id=name, num_envs=3, backend=backend),
                PPO(epochs=2, minibatch_size=120),
                rollout=RolloutConfig(steps=80),
                run_config=RunConfig(engine=engine, total_steps=1000, seed=5),
            )
        )
        for backend in ("sync", "native", "auto")
    }
    assert len(found) == 1


def test_whole_episodes_and_a_recurrent_policy_too():
    from proximo import NetConfig, Reinforce

    found = {
        weights(
            train(
                EnvConfig(id="CartPole-v1", num_envs=3, backend=backend),
                algorithm,
                rollout=rollout,
                net=NetConfig(recurrent="gru", recurrent_size=8, bptt_steps=16),
                total_steps=600,
                seed=2,
            )
        )
        for backend in ("sync", "native")
        for algorithm, rollout in [(Reinforce(), RolloutConfig(episodes=5))]
    }
    assert len(found) == 1


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_a_resumed_run_is_a_straight_one(name, tmp_path):
    def go(steps, **more):
        return train(
            EnvConfig(id=name, num_envs=2),
            PPO(epochs=1, minibatch_size=32, learning_rate=1e-3),
            rollout=RolloutConfig(steps=50),
            total_steps=steps,
            seed=3,
            **more,
        )

    go(300, run_dir=tmp_path / "run")
    assert (tmp_path / "run" / "config.toml").read_text().count('backend = "native"') == 1
    assert weights(resume(tmp_path / "run", total_steps=900)) == weights(go(900))


def test_a_run_goes_on_without_the_compiled_version(tmp_path, monkeypatch):
    settings = {"rollout": RolloutConfig(steps=50), "seed": 3, "num_envs": 2}
    algorithm = PPO(epochs=1, minibatch_size=50)
    train("CartPole-v1", algorithm, total_steps=300, run_dir=tmp_path / "run", **settings)
    straight = weights(train("CartPole-v1", algorithm, total_steps=900, **settings))
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    assert weights(resume(tmp_path / "run", total_steps=900)) == straight
    assert "was not built" in obstacle(EnvConfig(id="CartPole-v1"))


@pytest.mark.parametrize("seed", [NUMBERED, 0, 123, 2**62])
def test_episodes_have_the_same_seeds(seed):
    function = compiled.stepper()[0].proximo_episode_seed
    function.restype, function.argtypes = ctypes.c_uint64, [ctypes.c_int64] * 3
    for env, episode in [(0, 0), (3, 17), (10**6, 10**9)]:
        assert function(seed, env, episode) == episode_seed(seed, env, episode)


RANDOM = """
#include "proximo_random.h"
double numbers(uint64_t seed, int skip) {
  ProximoRandom random = proximo_random(seed);
  for (int i = 0; i < skip; i++) proximo_random_bits(&random);
  return proximo_random_uniform(&random, -3, 5);
}
"""


def test_random_numbers_are_numpys(tmp_path):
    source, library = tmp_path / "numbers.c", tmp_path / "numbers.so"
    source.write_text(RANDOM)
    subprocess.run(
        [COMPILER, "-x", "c", *compiled.FLAGS, source, "-o", library],
        check=True,
        capture_output=True,
    )
    numbers = ctypes.CDLL(str(library)).numbers
    numbers.restype, numbers.argtypes = ctypes.c_double, [ctypes.c_uint64, ctypes.c_int]
    for seed in (0, 1, 42, 2**32 - 1, 2**32, 2**63 + 12345):
        expected = np.random.default_rng(seed).uniform(-3, 5, 50)
        assert [numbers(seed, skip) for skip in range(50)] == expected.tolist()


# ---- an env of one's own


def own(tmp_path, **changes):
    """The example with words replaced, and its name."""
    text = EXAMPLE.read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "my_env.c"
    path.write_text(text)
    return f"native:{path}"


def test_the_example_is_sound_and_learned(tmp_path):
    name = own(tmp_path)
    report = check_env(make_env(EnvConfig(id=name)))
    assert report.notes == []
    algorithm = PPO(gamma=0.9, learning_rate=2e-3)
    agent = train(EnvConfig(id=name, num_envs=8), algorithm, total_steps=60_000, seed=1)
    assert agent.result["return_mean"] > 0.5  # at random: -0.75


def test_a_run_names_it_and_imports_it_only_when_it_is_named_again(tmp_path):
    name, run = own(tmp_path), tmp_path / "run"
    words = ["--total-steps", "600", "--run-dir", str(run), "--num-envs", "2"]
    succeeded(proximo("train", "ppo", name, *words))
    assert "importing it needs your word" in refusal(proximo("eval", str(run)))
    again = ["--env", name, "--episodes", "3"]
    scores = json.loads(succeeded(proximo("eval", str(run), *again, "--json")).out)
    assert scores["episodes"] == 3
    succeeded(proximo("play", str(run), "--env", name, "--video", str(tmp_path / "catch.gif")))
    assert (tmp_path / "catch.gif").stat().st_size > 1000
    succeeded(proximo("resume", str(run), "--env", name, "--total-steps", "1200"))
    assert load(run).config.env.backend == "native"


def test_it_is_compiled_once(tmp_path, monkeypatch):
    name = own(tmp_path)
    describe(name)
    real, made = compiled._run, []
    monkeypatch.setattr(compiled, "_run", lambda *call: made.append(call[0]) or real(*call))
    describe(name)
    assert ["-E" in words for words in made] == [True]
    own(tmp_path, change=("ROWS = 10", "ROWS = 12"))
    describe(name)
    assert ["-E" in words for words in made] == [True, True, False]


WRONG = {
    "it does not compile": (
        "s->row++;",
        "s->row++",
        r"does not compile: my_env.c:\d+:\d+: error: exp",
    ),
    "no function": ("proximo_env(void)", "another(void)", "defines no proximo_env"),
    "another version": (
        ".version = PROXIMO_ENV_VERSION",
        ".version = 99",
        "version is 99: it must",
    ),
    "no observation": (".obs_size = 4", ".obs_size = 0", "obs_size is 0: it must be at least 1"),
    "two kinds of action": (".num_actions = 3,", ".num_actions = 3, .action_size = 2,", "one of"),
    "no state": (".state_size = sizeof(Catch)", ".state_size = 0", "state_size is 0: it must"),
    "no step": (".step = step", ".step = NULL", "reset or step is NULL"),
    "no picture": (".render_width = COLUMNS * CELL,", "", "render needs render_width"),
}


@pytest.mark.parametrize(("old", "new", "text"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_its_description_is_named(tmp_path, old, new, text):
    name = own(tmp_path, change=(old, new))
    with pytest.raises(UsageError, match=text):
        train(EnvConfig(id=name), total_steps=100, algorithm=PPO())


BROKEN = {
    "behind its observation": ("obs[3] =", "obs[7] = 1; obs[3] =", "beyond its observation: its o"),
    "behind its state": ("s->row = 0;", "s->row = 0; *((char*)(s + 1)) = 1;", "beyond its state"),
    "an observation left out": ("  obs[2] = (float)s->drift;\n", "", "nan"),
    "a reward that is none": ("s->paddle ? 1 : -1) : 0;", "s->paddle ? 1 : -1) : 0.0 / 0;", "nan"),
    "no end": ("terminated[i] = s->row == ROWS - 1;", "", "does not set terminated"),
    "only the first env": ("i < count;", "i < 1;", "env 1 of 3 in one call of step"),
}


@pytest.mark.parametrize(("old", "new", "text"), BROKEN.values(), ids=BROKEN)
def test_what_it_does_wrong_is_named_before_training(tmp_path, old, new, text):
    name = own(tmp_path, change=(old, new))
    if "terminated[i]" in old:
        name = own(tmp_path, a=(old, new), b=("reward[i] = terminated[i] ?", "reward[i] = 0 ?"))
    with pytest.raises(UsageError, match=text):
        train(EnvConfig(id=name), total_steps=100, algorithm=PPO())


def test_a_number_that_is_not_finite_in_training_is_named(tmp_path):
    late = (
        "observe(s, obs + 4 * i);",
        "observe(s, obs + 4 * i); if (s->column == 8) obs[4*i] /= 0;",
    )
    name = own(tmp_path, change=late)
    with pytest.raises(UsageError, match=r"env \d gave .*(inf|nan).* at step"):
        train(EnvConfig(id=name, check=False), total_steps=2000, algorithm=PPO())


def test_other_refusals(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"there is no file missing\.c"):
        describe("native:missing.c")
    with pytest.raises(UsageError, match="names no file in C or C"):
        describe("native:my_env.py")
    for settings, text in (
        ({"id": "LunarLander-v3"}, "there is no compiled version of LunarLander-v3: use sync"),
        ({"id": "CartPole-v1", "kwargs": {"sutton_barto_reward": True}}, "env.kwargs holds sutton"),
        ({"id": "CartPole-v1", "wrappers": ("a:B",)}, "a:B wrap single envs"),
    ):
        with pytest.raises(UsageError, match=text):
            train(EnvConfig(backend="native", **settings), PPO(), total_steps=100)
    name = own(tmp_path)
    with pytest.raises(UsageError, match="has no render mode 'human'"):
        CompiledEnv(name, "human")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(UsageError, match="name another folder in XDG_CACHE_HOME"):
        describe(name)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="needs a C\\+\\+ compiler"):
        describe(name)


def test_the_threads_of_torch_stay(tmp_path):
    before = torch.get_num_threads()
    train("CartPole-v1", PPO(), total_steps=600, num_envs=2)
    assert torch.get_num_threads() == before
