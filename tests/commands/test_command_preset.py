"""Presets of the user's own: files that `train --preset FILE` reads, or refuses with a reason."""

import tomllib
from pathlib import Path

import pytest

from commands.command_line import proximo, refusal, succeeded
from proximo import UsageError
from proximo.run.presets import named_preset

WHOLE = """
[preset]
envs = ["CartPole-v1"]
source = "my own"

[algorithm]
name = "ppo"
gamma = 0.97
minibatch_size = 32
epochs = 1

[rollout]
steps = 32

[env]
num_envs = 2

[run]
total_steps = 128
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(WHOLE)
    return Path("mine.toml")


def test_a_file_is_a_preset(file):
    said = succeeded(
        proximo("train", "--preset", "mine.toml", "--lr", "0.01", "--run-dir", "r")
    ).out
    assert "settings: preset mine.toml (my own; not measured in CartPole-v1)" in said
    written = tomllib.loads(Path("r/config.toml").read_text())
    assert written["algorithm"]["gamma"] == 0.97
    assert written["algorithm"]["learning_rate"] == 0.01
    assert written["run"]["total_steps"] == 128


def test_without_the_section_of_a_preset_an_env_must_be_named(file):
    file.write_text("[algorithm]\ngamma = 0.9\n")
    assert "name an env" in refusal(proximo("train", "ppo", "--preset", "mine.toml"))
    preset = named_preset("mine.toml")
    assert (preset.algorithm, preset.envs) == ("ppo", ())


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("gamma", "gama", "mine.toml: there is no setting algorithm.gama. Did you mean gamma"),
        ("[rollout]", "[rolout]", "mine.toml: there is no section 'rolout'. Did you mean rollout"),
        ("0.97", "1.5", "mine.toml: algorithm.gamma is 1.5: it must be in [0, 1]"),
        ("source", "sauce", "mine.toml: there is no setting preset.sauce. Did you mean source"),
        ('["CartPole-v1"]', '"CartPole-v1"', "preset.envs is 'CartPole-v1': it must be a list"),
        ('["CartPole-v1"]', "[1]", "preset.envs is [1]: it must be a list of names of envs"),
        ('"my own"', "7", "preset.source is 7: it must be text"),
        ('name = "ppo"', 'name = "poo"', "mine.toml: there is no algorithm 'poo'"),
        ('name = "ppo"', 'name = "my_code:Mine"', "names code in its section [algorithm]"),
        ("[preset]", "[preset", "mine.toml is not TOML"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(file, before, after, said):
    file.write_text(WHOLE.replace(before, after, 1))
    with pytest.raises(UsageError) as refused:
        named_preset("mine.toml")
    assert said in str(refused.value)


def test_a_refused_file_trains_nothing(file):
    file.write_text(WHOLE.replace("gamma", "gama"))
    assert "Did you mean gamma" in refusal(proximo("train", "--preset", "mine.toml"))
    assert not Path("runs").exists()


def test_a_file_that_is_not_there():
    with pytest.raises(UsageError, match=r"none\.toml cannot be read"):
        named_preset("none.toml")
    with pytest.raises(UsageError, match=r"Did you mean lunarlander.*ends in \.toml"):
        named_preset("lunarlandr")


def test_it_is_for_one_algorithm(file):
    words = ("train", "trpo", "CartPole-v1", "--preset", "mine.toml")
    assert "is for ppo, not trpo" in refusal(proximo(*words))


def test_code_that_it_names_is_imported_only_where_it_is_named_again(own_env):
    Path("mine.toml").write_text(WHOLE.replace("num_envs = 2", 'num_envs = 2\nwrappers = ["a:B"]'))
    words = ("train", "ppo", own_env, "--preset", "mine.toml")
    assert "a:B" in refusal(proximo(*words))
    assert not Path("imported").exists()
