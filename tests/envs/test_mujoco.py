"""MuJoCo's envs stepped in C: Gymnasium's numbers to the bit, on any number of threads."""

import ctypes
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from envs.test_compiled import play, weights
from proximo import PPO, EnvConfig, RolloutConfig, RunConfig, UsageError, resume, train
from proximo.envs import mujoco
from proximo.envs.make import make_envs
from proximo.envs.mujoco import STEPPED, MujocoEnvs, obstacle
from proximo.run.choices import choose_backend

pytest.importorskip("mujoco")
pytestmark = pytest.mark.skipif(
    bool(mujoco.missing("Hopper-v5")), reason=mujoco.missing("Hopper-v5")
)


def made(name, backend, seed=5, **settings):
    return make_envs(EnvConfig(id=name, backend=backend, **settings), seed)


def drawn(envs, steps):
    """Random actions, [T, N, A]."""
    low, high = envs.action_space.low, envs.action_space.high
    draws = np.random.default_rng(1).uniform(low, high, (steps, envs.count, *low.shape))
    return draws.astype(np.float32)


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("steps", [150, pytest.param(100_000, marks=pytest.mark.long)])
def test_steps_are_gymnasiums(name, steps):
    found = []
    for backend, threads in (("sync", 0), ("native", 1), ("native", 3)):
        envs = made(name, backend, num_envs=3, max_episode_steps=120, threads=threads)
        found.append(play(envs, drawn(envs, steps)))
        assert envs.close() == []
    (one, state), *others = found
    assert one.done.any()
    for other, its_state in others:
        for part in ("obs", "reward", "terminated", "done"):
            assert np.array_equal(getattr(one, part), getattr(other, part)), part
        for end, its_end in zip(one.final_obs, other.final_obs, strict=True):
            assert end[:2] == its_end[:2]
            assert np.array_equal(end[2], its_end[2])
        assert np.array_equal(state.episode, its_state.episode)


def go(backend, steps=2000, name="Hopper-v5", **more):
    return train(
        EnvConfig(id=name, num_envs=5, backend=backend),
        PPO(epochs=1, minibatch_size=100),
        rollout=RolloutConfig(steps=100),
        total_steps=steps,
        seed=3,
        **more,
    )


def test_training_gives_the_same_weights_and_resumes_to_the_bit(tmp_path):
    straight = weights(go("sync"))
    assert weights(go("auto", 1000, run_dir=tmp_path / "run")) != straight
    assert 'backend = "native"' in (tmp_path / "run" / "config.toml").read_text()
    assert weights(resume(tmp_path / "run", total_steps=2000)) == straight


def test_a_run_goes_on_where_its_steps_cannot_be_taken_in_c(tmp_path, monkeypatch):
    go("native", 1000, run_dir=tmp_path / "run")
    monkeypatch.setattr(mujoco, "LIBRARY", tmp_path / "mujoco.so")
    mujoco.missing.cache_clear()
    try:
        assert choose_backend(EnvConfig(id="Hopper-v5"), given=False)[0] == "sync"
        assert weights(resume(tmp_path / "run", total_steps=2000)) == weights(go("sync"))
    finally:
        mujoco.missing.cache_clear()


def test_an_env_that_gymnasium_has_changed_is_not_stepped_in_c(monkeypatch):
    env = gym.make("Swimmer-v5").unwrapped
    step = type(env).step
    assert mujoco.missing("Swimmer-v5") == ""

    def changed(self, action):
        seen, reward, *rest = step(self, action)
        return seen, reward + 1e-3, *rest

    mujoco.missing.cache_clear()
    monkeypatch.setattr(type(env), "step", changed)
    try:
        assert "not those of this version" in mujoco.missing("Swimmer-v5")
        assert choose_backend(EnvConfig(id="Swimmer-v5"), given=False)[0] == "sync"
        with pytest.raises(UsageError, match="use sync or auto"):
            made("Swimmer-v5", "native")
    finally:
        mujoco.missing.cache_clear()


@pytest.mark.parametrize(
    "settings", [{"kwargs": {"ctrl_cost_weight": 0.2}}, {"wrappers": ("own:Wrapper",)}]
)
def test_settings_of_an_env_leave_it_to_gymnasium(settings):
    env = EnvConfig(id="HalfCheetah-v5", **settings)
    assert next(iter(settings)) in obstacle(env) or "own:Wrapper" in obstacle(env)
    assert choose_backend(env, given=False)[0] == "sync"


def test_an_error_of_a_reset_arrives():
    envs = made("InvertedPendulum-v5", "native", num_envs=2)
    assert isinstance(envs, MujocoEnvs)
    actions = drawn(envs, 300)
    play(envs, actions[:1])

    def broken(**_):
        raise KeyboardInterrupt

    envs._singles[1].reset = broken
    with pytest.raises(KeyboardInterrupt):
        play(envs, actions)
    del envs._singles[1].reset
    buffer, _ = play(envs, actions)
    assert buffer.done.any()
    assert envs.close() == envs.close() == []


def test_the_structure_is_that_of_c():
    assert mujoco._steps().proximo_mujoco_size() == ctypes.sizeof(mujoco._Env)


def test_envs_have_the_threads_of_the_run_where_none_are_set_for_them(tmp_path):
    own = EnvConfig(id="InvertedPendulum-v5", num_envs=2, threads=3)
    for env, run, threads in ((own, 1, 3), (replace(own, threads=0), 1, 1), (own, 0, 3)):
        config = RunConfig(threads=run, total_steps=64)
        agent = train(env, PPO(), rollout=RolloutConfig(steps=32), run_config=config)
        assert agent.config.env.threads == threads
    # What the engine chose for itself is not what a resumed run gives its envs.
    go("native", 1000, name="InvertedPendulum-v5", run_dir=tmp_path / "run")
    assert resume(tmp_path / "run", total_steps=1500).config.env.threads == 0


def test_threads_are_for_those_that_have_them():
    with pytest.raises(UsageError, match="Atari, MuJoCo and EnvPool"):
        train(EnvConfig(id="CartPole-v1", threads=2), total_steps=64)
