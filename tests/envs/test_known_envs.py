"""Envs that just work: trained, scored, shown and gone on with by their names alone."""

import ctypes.util
import json
import sys

import gymnasium as gym
import numpy as np
import pytest

from commands.command_line import SMALL, here, own_env, proximo, refusal, succeeded
from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, UsageError, load, train
from proximo.envs.base import episode_seed
from proximo.envs.make import make_env, make_envs
from proximo.envs.registries import FAMILIES
from proximo.loop import run_control
from proximo.run.checkpoint import Checkpoint
from proximo.run.choices import choose_backend
from proximo.run.control import make_session
from proximo.run.folder import RunFolder
from proximo.run.presets import find_preset
from proximo.types import RolloutBuffer

__all__ = ["here", "own_env"]

ENVS = {
    "CartPole-v1": "",
    "FrozenLake-v1": "",
    "CliffWalking-v1": "",
    "LunarLander-v3": "Box2D",
    "InvertedPendulum-v5": "mujoco",
    "ALE/Breakout-v5": "ale_py",
    "MiniGrid-DoorKey-5x5-v0": "minigrid",
    "BabyAI-GoToObj-v0": "minigrid",
    "dm_control/cartpole-balance-v0": "dm_control",
    "dm_control/walker-walk-v0": "dm_control",
}


@pytest.mark.parametrize("name", ENVS)
def test_every_command_takes_it(here, monkeypatch, name):
    if ENVS[name]:
        pytest.importorskip(ENVS[name])
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    small = (
        *SMALL,
        "--net.hidden",
        "8",
        "--net.trunk",
        "shared",
        "--env.max-episode-steps",
        "20",
        "--run-dir",
        "run",
    )
    succeeded(proximo("train", "ppo", name, "--total-steps", "128", *small))
    scores = json.loads(succeeded(proximo("eval", "run", "--episodes", "2", "--json")).out)
    assert scores["length_mean"] <= 20
    if ENVS[name] not in ("mujoco", "dm_control") or ctypes.util.find_library("EGL"):
        assert "states in run.gif" in succeeded(proximo("play", "run", "--video", "run.gif")).out
    resumed = succeeded(proximo("resume", "run", "--total-steps", "192"))
    assert "cannot be brought back" not in resumed.out


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("ALE/Pong-v5", "atari"),
        ("MiniGrid-Empty-5x5-v0", "minigrid"),
        ("BabyAI-GoToObj-v0", "minigrid"),
        ("dm_control/cartpole-balance-v0", "dm-control"),
        ("sisl/pursuit-v5", "pettingzoo"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(here, monkeypatch, name, extra):
    monkeypatch.delitem(gym.registry, name, raising=False)
    for family in FAMILIES:
        for package in family.packages:
            monkeypatch.setitem(sys.modules, package, None)
    message = refusal(proximo("train", "ppo", name))
    assert name in message
    assert f"pip install 'proximo[{extra}]'" in message


# Atari


SMALL_NET = NetConfig(hidden=(8,), trunk="shared")


def arcade(**settings):
    pytest.importorskip("ale_py")
    return EnvConfig(**{"id": "ALE/Breakout-v5", "num_envs": 3, "backend": "vector"} | settings)


def played(envs, actions):
    """Every observation, reward and end of envs that are given these actions. [T, N]."""
    state = envs.start()
    size = actions.shape
    buffer = RolloutBuffer(
        obs=np.empty((len(actions) + 1, *state.obs.shape), np.uint8),
        action=actions,
        parameters=np.empty(0),
        env_action=actions,
        reward=np.empty(size),
        terminated=np.zeros(size, bool),
        done=np.zeros(size, bool),
        valid=np.ones(size, bool),
        final_obs=[],
    )
    buffer.obs[0] = state.obs
    for t in range(len(actions)):
        envs.step(state, buffer, t)
    envs.close()
    return buffer


def test_atari_is_evaluated_on_the_very_pixels_it_is_trained_on():
    assert choose_backend(EnvConfig(id="ALE/Breakout-v5"), given=False)[0] == "vector"
    actions = np.random.default_rng(0).integers(0, 4, (80, 3))
    many, single = (arcade(backend=name, max_episode_steps=30) for name in ("vector", "sync"))
    buffer = played(make_envs(many, 7), actions)
    singly = played(make_envs(single, 7), actions)  # as they are evaluated
    assert buffer.obs.shape == (81, 3, 4, 84, 84)
    assert buffer.done.any()  # the pixels of second episodes are compared too
    for name in ("obs", "reward", "terminated", "done", "valid"):
        np.testing.assert_array_equal(getattr(buffer, name), getattr(singly, name), name)
    for (t, i, one), (u, j, other) in zip(buffer.final_obs, singly.final_obs, strict=True):
        assert (t, i) == (u, j)
        np.testing.assert_array_equal(one, other)


def test_atari_shows_the_screen_of_the_game_that_is_played():
    full = {"img_height": 210, "img_width": 160}
    env = make_env(arcade(kwargs=full), render_mode="rgb_array")
    seen, _ = env.reset(seed=3)
    for action in [1, 2, 3, 0] * 20:
        frame = env.render()
        assert frame.shape == (210, 160, 3)
        grey = frame @ [0.299, 0.587, 0.114]
        assert np.abs(grey - seen[-1]).max() < 2  # what the policy sees, but for rounding
        seen = env.step(action)[0]
    env.close()


def test_atari_resumes_to_the_bit(tmp_path):
    def go(folder, stop):
        train(
            arcade(max_episode_steps=23),
            PPO(epochs=1, minibatch_size=12),
            rollout=RolloutConfig(steps=8),
            net=SMALL_NET,
            total_steps=24 * 6,
            seed=3,
            run_dir=folder,
            callbacks=[lambda state, rollout, _: state.updates == stop],
        )

    go(tmp_path / "straight", None)
    go(tmp_path / "parts", 4)  # in the middle of the second episodes
    folder = RunFolder.open(tmp_path / "parts")
    saved = Checkpoint(folder.checkpoint("last"))
    session = make_session(folder.read_config(), folder=folder, resume=saved)
    assert not any("cannot be brought back" in note for note in session.log.setup_notes)
    run_control(session)
    last = [(tmp_path / run / "checkpoints/last.safetensors") for run in ("straight", "parts")]
    assert last[0].read_bytes() == last[1].read_bytes()


@pytest.mark.parametrize("ahead", [[50, 50, 50], [50, 0, 20]])
def test_atari_games_that_began_at_different_times_are_brought_back(ahead):
    rng = np.random.default_rng(1)
    envs = make_envs(arcade(), seed=2)
    state = envs.start()
    actions = rng.integers(0, 4, (50, 3))
    state.actions = [[actions[50 - n :, i]] if n else [] for i, n in enumerate(ahead)]
    single = make_env(arcade())
    for i, n in enumerate(ahead):
        seen, _ = single.reset(seed=episode_seed(2, i, 0))
        for action in actions[50 - n :, i]:
            seen = single.step(action)[0]
        state.obs[i] = seen
    assert envs.restore(state)
    assert state.episode.tolist() == [0, 0, 0]
    state.obs[1] += 1
    assert not envs.restore(state)
    assert state.episode.tolist() == [1, 1, 1]


def test_a_lost_life_ends_the_bootstrap_but_not_the_game():
    actions = np.random.default_rng(0).integers(0, 4, (350, 1))
    whole = played(make_envs(arcade(num_envs=1), 5), actions)
    told = arcade(num_envs=1, kwargs={"life_loss_info": True})
    lives = played(make_envs(told, 5), actions)
    for name in ("obs", "reward"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(lives, name), name)
    assert [(t, i) for t, i, _ in whole.final_obs] == [(t, i) for t, i, _ in lives.final_obs]
    games = len(whole.final_obs)
    assert games >= 1
    assert whole.done.sum() == whole.terminated.sum() == games
    assert lives.done.sum() == lives.terminated.sum() >= 5 * games  # five lives in a game
    # A score is that of a whole game, with all the lives.
    env = make_env(told)
    env.reset(seed=1)
    left = []
    for action in np.random.default_rng(0).integers(0, 4, 1000):
        _, _, over, _, info = env.step(action)
        left.append(info["lives"])
        if over:
            break
    assert sorted(set(left)) == [0, 1, 2, 3, 4, 5]


def test_rewards_of_atari_are_clipped_for_learning_and_logged_whole():
    seen = []
    agent = train(
        arcade(id="ALE/Qbert-v5", reward_clip=1.0, max_episode_steps=60),
        PPO(epochs=1, minibatch_size=32),
        rollout=RolloutConfig(steps=64),
        net=SMALL_NET,
        total_steps=192,
        callbacks=[lambda state, rollout, _: seen.append(rollout)],
    )
    assert seen[0].reward.unique().tolist() == [0.0, 1.0]
    assert agent.result["return_mean"] >= 25 / 3  # the score of one cube in three games


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"episodic_life": True}, "life_loss_info"),
        ({"reward_clipping": True}, r"use env\.reward_clip"),
        ({"num_envs": 3}, r"use env\.num_envs"),
        ({"colour": "red"}, "cannot be made"),
    ],
)
def test_arguments_that_are_not_for_atari_are_refused(kwargs, message):
    for backend in ("sync", "vector"):
        with pytest.raises(UsageError, match=message):
            make_envs(arcade(kwargs=kwargs, backend=backend), 0)
    with pytest.raises(UsageError, match="Did you mean ALE/Pong-v5"):
        make_envs(arcade(id="ALE/Pongg-v5"), 0)


def test_all_of_atari_has_the_settings_that_are_standard():
    preset = find_preset("ppo", "ALE/Seaquest-v5")
    assert preset.name == "atari"
    assert find_preset("ppo", "ALE/Pong-v5") is preset
    assert find_preset("a2c", "ALE/Pong-v5") is None
    assert find_preset("ppo", "Pong-v5") is None


# MiniGrid


def test_a_grid_is_told_in_categories_and_without_its_mission():
    pytest.importorskip("minigrid")
    envs = make_envs(EnvConfig(id="MiniGrid-Empty-5x5-v0", num_envs=1), 0)
    assert list(envs.obs_space.spaces) == ["direction", "image"]
    state = envs.start()
    assert state.obs.shape == (1, 4 + 49 * (11 + 6 + 4))
    seen, _ = gym.make("MiniGrid-Empty-5x5-v0").reset(seed=episode_seed(0, 0, 0))
    row = state.obs[0]
    assert row.sum() == 1 + 49 * 3
    assert row[:4].argmax() == seen["direction"]
    cells = row[4:].reshape(7, 7, 21)
    for begin, end, what in ((0, 11, 0), (11, 17, 1), (17, 21, 2)):
        np.testing.assert_array_equal(cells[..., begin:end].argmax(-1), seen["image"][..., what])


def test_a_grid_is_learned():
    pytest.importorskip("minigrid")
    agent = train("MiniGrid-Empty-5x5-v0", PPO(), total_steps=10_000, seed=1)
    assert agent.result["return_mean"] > 0.5


# Wrappers


class Doubled(gym.ObservationWrapper):
    """Shows twice what the env shows."""

    def observation(self, seen):
        return 2 * seen


class Shifted(gym.ObservationWrapper):
    def observation(self, seen):
        return seen + 1


def test_wrappers_are_put_on_in_order():
    names = tuple(f"envs.test_known_envs:{name}" for name in ("Doubled", "Shifted"))
    plain = make_env(EnvConfig(id="CartPole-v1")).reset(seed=1)[0]
    for wrappers, expected in ((names, 2 * plain + 1), (names[::-1], 2 * (plain + 1))):
        env = EnvConfig(id="CartPole-v1", wrappers=wrappers)
        np.testing.assert_array_equal(make_env(env).reset(seed=1)[0], expected)
        assert (
            choose_backend(
                EnvConfig(id="CartPole-v1", num_envs=64, wrappers=wrappers), given=False
            )[0]
            == "sync"
        )
    with pytest.raises(UsageError, match="wrap single envs"):
        make_envs(EnvConfig(id="CartPole-v1", wrappers=names, backend="vector"), 0)
    with pytest.raises(UsageError, match="name a wrapper as module:Class"):
        EnvConfig(wrappers=("Doubled",))
    with pytest.raises(UsageError, match="Did you mean Doubled"):
        make_env(EnvConfig(id="CartPole-v1", wrappers=("envs.test_known_envs:Double",)))


def test_a_grid_may_be_wrapped_and_then_only_its_mission_is_left_out():
    pytest.importorskip("minigrid")
    env = EnvConfig(
        id="MiniGrid-Empty-5x5-v0", wrappers=("minigrid.wrappers:RGBImgPartialObsWrapper",)
    )
    shown = make_env(env).observation_space
    assert list(shown.spaces) == ["direction", "image"]
    assert shown["image"] == gym.spaces.Box(0, 255, (56, 56, 3), np.uint8)
    env = EnvConfig(id=env.id, wrappers=("minigrid.wrappers:ImgObsWrapper",))
    assert make_env(env).observation_space == gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)


WRAPPER = """
from pathlib import Path

import gymnasium as gym

Path("imported-wrapper").touch()


class Same(gym.Wrapper):
    pass
"""


def test_a_stored_wrapper_is_imported_only_at_the_users_word(here):
    (here / "own_wrapper.py").write_text(WRAPPER)
    name = "own_wrapper:Same"
    mark = here / "imported-wrapper"
    words = (*SMALL, "--run-dir", "run", "--env.wrappers", name)
    succeeded(proximo("train", "ppo", "CartPole-v1", "--total-steps", "64", *words))
    assert load("run").config.env.wrappers == (name,)
    mark.unlink()
    del sys.modules["own_wrapper"]
    for verb, more in (("eval", ["--episodes", "1"]), ("resume", ["--total-steps", "128"])):
        message = refusal(proximo(verb, "run", *more))
        line = f"proximo {verb} run {' '.join(more)} --wrappers {name}"
        assert f"If you trust it, type: {line}" in message
    again = ("train", "--config", "run/config.toml", "--run-dir", "again")
    assert f"--env.wrappers {name}" in refusal(proximo(*again))
    assert not mark.exists()
    succeeded(proximo("eval", "run", "--episodes", "1", "--wrappers", name))
    assert mark.exists()
    succeeded(proximo("resume", "run", "--total-steps", "128", "--wrappers", name))
    succeeded(proximo(*again, "--env.wrappers", name))


def test_an_env_and_its_wrapper_both_need_the_word(own_env, here):
    (here / "own_wrapper.py").write_text(WRAPPER)
    words = (*SMALL, "--run-dir", "run", "--env.wrappers", "own_wrapper:Same")
    succeeded(proximo("train", "ppo", own_env, "--total-steps", "64", *words))
    message = refusal(proximo("eval", "run"))
    assert f"type: proximo eval run --env {own_env} --wrappers own_wrapper:Same" in message
    assert "--wrappers" in refusal(proximo("eval", "run", "--env", own_env))
    assert "--env" in refusal(proximo("eval", "run", "--wrappers", "own_wrapper:Same"))
