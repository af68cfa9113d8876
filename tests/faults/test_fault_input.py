"""Bad input: exit code 2, a message with the value and the remedy, and nothing left behind."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from commands.command_line import (
    proximo,
    refusal,
    run_folders,
    succeeded,
    train,
    train_in,
)
from proximo.run import preflight

UNBOUNDED = """
import gymnasium as gym
import numpy as np


class Unbounded(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
"""


def nothing_left(place):
    """Whether a folder holds no trace of a run."""
    return run_folders(place) == []


# Names


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["ppo", "CartPoll-v1"], ["'CartPoll-v1'", "Did you mean CartPole-v1"]),
        (["ppo", "Nothing/LikeIt-v7"], ["'Nothing/LikeIt-v7'"]),
        (["ppq", "CartPole-v1"], ["'ppq'", "Did you mean ppo"]),
        (["CartPole-v1"], ["'CartPole-v1'", "ppo"]),
        (["ppo", "CartPole-v1", "--preset", "cartpol"], ["'cartpol'", "Did you mean cartpole"]),
        (["--preset", "none"], ["proximo train ppo CartPole-v1", "--preset"]),
        (["ppo"], ["name an env", "proximo train ppo CartPole-v1"]),
        ([], ["name an algorithm and an env", "proximo train ppo CartPole-v1"]),
        (["ppo", "nowhere:Env"], ["'nowhere'", "failed"]),
        (["ppo", "os:NoSuchEnv"], ["os", "'NoSuchEnv'"]),
        (["ppo", "CartPole-v1", "--net.activation", "tahn"], ["tahn", "tanh"]),
        (["ppo", "CartPole-v1", "--device", "tpu"], ["tpu", "cpu", "cuda", "mps"]),
        (["ppo", "CartPole-v1", "MountainCar-v0"], ["MountainCar-v0"]),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_a_name_that_is_not_known(here, words, parts):
    message = refusal(proximo("train", *words))
    for part in parts:
        assert part in message
    assert nothing_left(here)


def test_an_unknown_algorithm_beside_a_configuration_is_not_overlooked(here, trained):
    words = ("ppq", "CartPole-v1", "--config", trained / "config.toml", "--run-dir", "r")
    assert "'ppq'" in refusal(proximo("train", *words))
    assert nothing_left(here)


# Settings on the command line


@pytest.mark.parametrize(
    ("flag", "value", "remedy"),
    [
        ("--algorithm.gamma", "1.5", "[0, 1]"),
        ("--algorithm.gamma", "-0.1", "[0, 1]"),
        ("--algorithm.gamma", "nan", "finite"),
        ("--algorithm.lam", "-1.0", "[0, 1]"),
        ("--algorithm.n", "0", "1"),
        ("--algorithm.learning-rate", "-1.0", "[0, 10]"),
        ("--algorithm.learning-rate", "nan", "finite"),
        ("--algorithm.learning-rate", "inf", "finite"),
        ("--algorithm.learning-rate", "linear:-1.0:0.0", "[0, 10]"),
        ("--algorithm.learning-rate", "linear:0.1:nan", "finite"),
        ("--algorithm.critic-learning-rate", "-1.0", "[0, 10]"),
        ("--algorithm.clip", "0.0", "above 0"),
        ("--algorithm.clip", "-0.2", "above 0"),
        ("--algorithm.target-kl", "0.0", "above 0"),
        ("--algorithm.epochs", "0", "1"),
        ("--algorithm.minibatch-size", "0", "1"),
        ("--algorithm.max-grad-norm", "0.0", "above 0"),
        ("--algorithm.max-grad-norm", "nan", "finite"),
        ("--algorithm.optimizer-eps", "0.0", "above 0"),
        ("--algorithm.entropy-coef", "-0.1", "[0, "),
        ("--algorithm.value-coef", "inf", "finite"),
        ("--algorithm.value-clip", "0.0", "above 0"),
        ("--algorithm.huber-delta", "-1.0", "above 0"),
        ("--rollout.steps", "0", "at least 1"),
        ("--rollout.episodes", "-1", "at least 0"),
        ("--env.num-envs", "0", "at least 1"),
        ("--env.max-episode-steps", "0", "at least 1"),
        ("--env.reward-clip", "-1.0", "above 0"),
        ("--env.reward-clip", "nan", "finite"),
        ("--env.reward-scale", "nan", "finite"),
        ("--env.reward-shift", "inf", "finite"),
        ("--net.hidden", "0", "at least 1"),
        ("--net.log-std", "5.0", "[-10, 2]"),
        ("--net.log-std", "nan", "finite"),
        ("--net.policy-gain", "0.0", "above 0"),
        ("--net.policy-gain", "inf", "finite"),
        ("--net.obs-clip", "nan", "finite"),
        ("--run.seed", "-1", "[0, "),
        ("--run.seed", "99999999999999999999", ""),
        ("--run.stop-at", "nan", "finite"),
        ("--run.smoothing", "2.0", "(0, 1]"),
        ("--run.smoothing", "0.0", "(0, 1]"),
        ("--run.log-every", "0", "at least 1"),
        ("--run.save-every", "-1", "[0, "),
        ("--run.eval-every", "-1", "[0, "),
        ("--run.eval-episodes", "0", "at least 1"),
        ("--run.threads", "-1", "[0, "),
        ("--total-steps", "0", "at least 1"),
        ("--seed", "-1", "[0, "),
    ],
)
def test_a_setting_out_of_range(here, flag, value, remedy):
    message = refusal(train("--run-dir", "r", flag, value, steps=64))
    setting = flag.removeprefix("--").replace("-", "_")
    assert message.startswith("proximo: ")
    assert setting in message
    assert value in message
    assert remedy in message
    assert nothing_left(here)


def test_a_layer_without_width(here):
    message = refusal(train("--net.hidden", "8", "0", steps=64))
    assert message.startswith("proximo: net.hidden is (8, 0): it must be a list, each at least 1")
    assert nothing_left(here)


@pytest.mark.parametrize(
    ("flag", "value", "remedy"),
    [
        ("--algorithm.learning-rate", "linear:0.1", "linear:START:END"),
        ("--algorithm.learning-rate", "line:0.1:0.0", "linear:START:END"),
        ("--algorithm.learning-rate", "linear:a:b", "linear:START:END"),
        ("--algorithm.learning-rate", "linear:1:2:3:4", "linear:START:END"),
        ("--algorithm.learning-rate", "fast", "linear:START:END"),
        ("--algorithm.epochs", "2.5", "INT"),
        ("--env.num-envs", "many", "INT"),
        ("--env.kwargs", "lonely", "pair"),
    ],
)
def test_a_setting_that_cannot_be_read(here, flag, value, remedy):
    message = refusal(train("--run-dir", "r", flag, value, steps=64))
    assert flag in message
    assert value in message or flag == "--env.kwargs"
    assert remedy in message
    assert nothing_left(here)


# Sizes that no machine has room for

MARKED = """
from pathlib import Path

import gymnasium as gym
import numpy as np


class Marked(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (10**6,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        Path("made").touch()
"""


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--rollout.steps", 10**12], [f"rollout.steps is {10**12}", f"{32 * 10**12:,} bytes"]),
        (["--rollout.steps", 10**40], [f"{32 * 10**40:,} bytes"]),
        (["--env.num-envs", 10**11], [f"env.num_envs is {10**11}", f"{10**14:,} bytes"]),
        (["--rollout.episodes", 10**13], [f"rollout.episodes is {10**13}"]),
        (["--net.hidden", 10**9, 10**9], ["net.hidden is (1000000000, 1000000000)"]),
        (["--net.hidden", 10**30], [f"{8 * 10**30:,} bytes"]),
        (
            ["--net.recurrent", "gru", "--net.recurrent-size", 10**9],
            [f"net.recurrent_size {10**9}"],
        ),
    ],
    ids=lambda value: value[0].removeprefix("--") if isinstance(value[0], str) else "",
)
def test_a_size_for_which_there_is_no_memory(here, words, parts):
    (here / "marked.py").write_text(MARKED)
    message = refusal(train_in("marked:Marked", "--run-dir", "r", *words))
    for part in (*parts, f"this machine has {preflight.memory():,}"):
        assert part in message
    assert not (here / "made").exists()
    assert nothing_left(here)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--net.hidden", 10**9], "net.hidden is (1000000000,)"),
        (["--rollout.steps", 10**9], f"bytes at least, and this machine has {2**40:,}"),
    ],
)
def test_a_size_for_which_there_is_no_memory_in_this_env(here, words, part, monkeypatch):
    monkeypatch.setattr(preflight, "memory", lambda: 2**40)
    (here / "marked.py").write_text(MARKED)
    words = ("--env.no-check", "--run-dir", "r", *words)
    assert part in refusal(train_in("marked:Marked", *words))
    assert (here / "made").exists()  # or nobody would know what it shows
    assert nothing_left(here)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        # CartPole's actor has 4*64+64 + 64*64+64 + 64*2+2 parameters, the critic 65 fewer.
        ([], 8 * (4610 + 4545)),
        # A step shows 4 numbers of 4 bytes, and has an action twice, a reward and 3 flags.
        (["--rollout.steps", "2048"], 2 * 2048 * (16 + 8 + 8 + 8 + 3)),
    ],
)
def test_what_fits_is_not_refused(here, words, needed, monkeypatch):
    monkeypatch.setattr(preflight, "memory", lambda: needed)
    succeeded(train("--run-dir", "r", *words, steps=64))
    monkeypatch.setattr(preflight, "memory", lambda: needed - 1)
    message = refusal(train("--run-dir", "r2", *words, steps=64))
    assert f"{needed:,} bytes at least, and this machine has {needed - 1:,}" in message
    assert run_folders(here) == [here / "r"]


def test_a_container_says_how_much_memory_there_is(monkeypatch):
    whole = preflight.memory()
    monkeypatch.setattr(Path, "read_text", lambda path: f"{path}"[-3:])
    assert preflight.memory() == whole  # "max" is no number
    monkeypatch.setattr(Path, "read_text", lambda path: "123456789")
    assert preflight.memory() == 123456789


# Settings that do not go together


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["--algorithm.minibatch-size", "65"],
            ["algorithm.minibatch_size is 65", "64 samples", "env.num_envs 2 x rollout.steps 32"],
        ),
        (
            ["--algorithm.minibatches", "episodes"],
            [
                "algorithm.minibatch_size is 32",
                "does nothing where algorithm.minibatches is episodes",
            ],
        ),
        (
            ["--net.trunk", "shared", "--algorithm.critic-learning-rate", "1e-3"],
            ["algorithm.critic_learning_rate", "net.trunk is shared", "separate"],
        ),
        (["--run.keep-best", "evaluation"], ["run.keep_best is evaluation", "run.eval_every"]),
        (["--env.kwargs", "colour", "red"], ["CartPole-v1", "colour", "cannot be made"]),
        (
            ["--env.kwargs", "colour", "red", "--env.backend", "vector"],
            ["CartPole-v1", "colour", "cannot be made"],
        ),
    ],
    ids=lambda value: value[0].removeprefix("--") if value[0].startswith("--") else "",
)
def test_settings_that_do_not_go_together(here, words, parts):
    message = refusal(train("--run-dir", "r", *words, steps=64))
    for part in parts:
        assert part in message
    assert nothing_left(here)


def test_minibatches_by_episode_need_whole_episodes(here):
    words = ("--algorithm.minibatches", "episodes", "--run-dir", "r")
    message = refusal(proximo("train", "ppo", "CartPole-v1", "--preset", "none", *words))
    assert "algorithm.minibatches is episodes" in message
    assert "--rollout.episodes" in message
    assert nothing_left(here)


def test_an_env_without_a_vector_version(here):
    message = refusal(train_in("Acrobot-v1", "--env.backend", "vector", steps=64))
    assert "env.backend is vector" in message
    assert "Acrobot-v1" in message
    assert nothing_left(here)


def test_squashed_actions_without_bounds(here):
    (here / "unbounded.py").write_text(UNBOUNDED)
    message = refusal(train_in("unbounded:Unbounded", "--net.action", "squash", steps=64))
    assert "net.action is squash" in message
    assert "Box(-inf, inf, (1,), float32)" in message
    assert "use clip" in message
    assert nothing_left(here)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(here, device):
    if getattr(torch, device).is_available():
        pytest.skip(f"there is a {device} device here")
    message = refusal(train("--run-dir", "r", "--device", device, steps=64))
    assert f"run.device is {device}" in message
    assert "use cpu or auto" in message
    assert nothing_left(here)


# Run folders


def test_a_run_folder_that_exists_is_left_as_it_is(here):
    (here / "r").mkdir()
    (here / "r/thesis.txt").write_text("years of work")
    message = refusal(train("--run-dir", "r", steps=64))
    assert "the run folder r exists" in message
    assert "--run-dir" in message
    assert [path.name for path in (here / "r").iterdir()] == ["thesis.txt"]


def test_a_finished_run_is_not_written_over(here, trained):
    shutil.copytree(trained, here / "r")
    message = refusal(train("--run-dir", "r", steps=64))
    assert "proximo resume r" in message
    for path in trained.rglob("*"):
        if path.is_file():
            assert (here / "r" / path.relative_to(trained)).read_bytes() == path.read_bytes()


def test_a_run_folder_below_a_file_cannot_be_made(here):
    (here / "file").touch()
    message = refusal(train("--run-dir", "file/r", steps=64))
    assert "the run folder file/r cannot be made" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_run_folder_in_a_place_that_is_not_ours_cannot_be_made(here):
    (here / "locked").mkdir(mode=0o500)
    message = refusal(train("--run-dir", "locked/r", steps=64))
    assert "the run folder locked/r cannot be made: Permission denied" in message


@pytest.mark.parametrize("verb", ["resume", "eval", "play", "plot"])
def test_a_run_folder_that_is_missing(here, verb):
    message = refusal(proximo(verb, "nowhere"))
    assert message.startswith("proximo: nowhere is no run folder")


@pytest.mark.parametrize("verb", ["resume", "eval", "play", "plot"])
def test_a_folder_that_is_no_run(here, verb):
    (here / "photos").mkdir()
    message = refusal(proximo(verb, "photos"))
    assert message.startswith("proximo: photos is no run folder")
    assert list((here / "photos").iterdir()) == []


@pytest.mark.parametrize("verb", ["resume", "eval", "play"])
def test_a_verb_without_a_run(verb):
    assert "RUN" in refusal(proximo(verb))


def test_starting_from_a_run_that_is_missing(here):
    message = refusal(train("--run-dir", "r", "--from", "nowhere", steps=64))
    assert "nowhere is no run folder" in message
    assert nothing_left(here)


def test_starting_from_a_policy_of_another_env(here, trained):
    message = refusal(train_in("Acrobot-v1", "--run-dir", "r", "--from", trained, steps=64))
    assert "(4,)" in message
    assert "(6,)" in message
    assert nothing_left(here)


def test_a_run_that_starts_from_a_policy_has_its_network(trained, here):
    succeeded(train("--run-dir", "r", "--from", trained, "--net.hidden", "8", steps=64))
    assert "hidden = [64, 64]" in (here / "r/config.toml").read_text()


def test_resuming_in_another_env(here, trained):
    shutil.copytree(trained, here / "r")
    words = ("--env", "Acrobot-v1", "--total-steps", "576")
    message = refusal(proximo("resume", "r", *words))
    assert "(4,)" in message
    assert "(6,)" in message
    assert (here / "r/config.toml").read_bytes() == (trained / "config.toml").read_bytes()


# Configuration files


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[algoritm]\ngamma = 0.9\n", ["'algoritm'", "Did you mean algorithm"]),
        ("[algorithm]\ngama = 0.9\n", ["algorithm.gama", "Did you mean gamma"]),
        ("[run]\nstep = 3\n", ["run.step"]),
        ('[algorithm]\nname = "ppq"\n', ["'ppq'", "ppo"]),
        ("[algorithm]\ngamma = 1.5\n", ["algorithm.gamma is 1.5", "[0, 1]"]),
        ("[algorithm]\ngamma = nan\n", ["algorithm.gamma is nan", "finite"]),
        ('[algorithm]\ngamma = "high"\n', ["algorithm.gamma is 'high'", "a number"]),
        ("[algorithm]\nepochs = 2.5\n", ["algorithm.epochs is 2.5", "whole number"]),
        ("[algorithm]\nepochs = true\n", ["algorithm.epochs is True", "whole number"]),
        ('[algorithm]\nlearning_rate = "fast"\n', ["algorithm.learning_rate is 'fast'", "linear:"]),
        ('[algorithm]\noptimizer = "adagrad"\n', ["algorithm.optimizer is 'adagrad'", "adam"]),
        ('[algorithm]\ngamma = "none"\n', ["algorithm.gamma is 'none'"]),
        ("[algorithm]\nname = 3\n", ["3", "ppo"]),
        ("[algorithm]\nname = []\n", ["[]", "ppo"]),
        ("[net]\nhidden = [0]\n", ["net.hidden"]),
        ('[net]\nhidden = "64"\n', ["net.hidden is '64'"]),
        ('[net]\nhidden = [64, "x"]\n', ["net.hidden", "'x'"]),
        ("[env]\nkwargs = 3\n", ["env.kwargs is 3"]),
        ("[env]\nkwargs = {a = [1]}\n", ["env.kwargs", "[1]"]),
        ("algorithm = 3\n", ["algorithm is 3", "section"]),
        ("rollout = 3\n", ["rollout is 3", "section"]),
        ("gamma = 0.9\n", ["'gamma'"]),
        ("[algorithm\ngamma = 0.9\n", ["not TOML", "line 1"]),
        ("[run]\nseed = 1\nseed = 2\n", ["not TOML", "line 3"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_configuration_file_that_is_wrong(here, text, parts):
    (here / "wrong.toml").write_text(text)
    message = refusal(proximo("train", "--config", "wrong.toml", "--run-dir", "r"))
    assert message.startswith("proximo: ")
    assert "wrong.toml" in message
    for part in parts:
        assert part in message
    assert nothing_left(here)


def test_a_configuration_file_without_an_env(here):
    (here / "half.toml").write_text("[run]\nseed = 3\n")
    assert "name an env" in refusal(proximo("train", "--config", "half.toml"))
    assert nothing_left(here)


def test_a_configuration_file_that_is_missing(here):
    message = refusal(proximo("train", "--config", "nowhere.toml"))
    assert "nowhere.toml cannot be read" in message


def test_a_configuration_file_that_is_a_picture(here):
    (here / "cat.toml").write_bytes(bytes(range(128, 256)))
    assert "cat.toml is not TOML" in refusal(proximo("train", "--config", "cat.toml"))


def test_a_configuration_file_and_a_preset_at_once(here, trained):
    words = ("--config", trained / "config.toml", "--preset", "cartpole")
    message = refusal(proximo("train", *words))
    assert "--config" in message
    assert "--preset" in message


def test_settings_in_range_are_not_refused(here):
    edges = (
        "--algorithm.gamma 1 --algorithm.lam 0 --algorithm.learning-rate 0 "
        "--algorithm.minibatch-size 64 --run.smoothing 1 --net.hidden 1"
    )
    succeeded(train("--run-dir", "r", *edges.split(), steps=64))
