"""A flag or an algorithm by another library's name is answered with the line to type."""

import dataclasses

import pytest

from commands.command_line import SMALL, proximo, refusal, succeeded
from proximo.commands.arguments import _flags
from proximo.commands.mistyped import USUAL, message
from proximo.commands.training import _any_algorithm, _command
from proximo.run.config import ALGORITHMS

KNOWN = _flags(_command(_any_algorithm()))


def test_the_usual_names_lead_to_flags_and_are_none():
    assert set(USUAL) <= KNOWN
    others = [other for words in USUAL.values() for other in words]
    assert not KNOWN & set(others)
    assert len(others) == len(set(others))


def test_every_setting_is_a_flag():
    for algorithm in ALGORITHMS.values():
        for setting in dataclasses.fields(algorithm):
            assert f"algorithm.{setting.name.replace('_', '-')}" in KNOWN
    assert {"run-dir", "env", "net", "from", "quiet", "no-quiet", "seed"} <= KNOWN
    assert not {"method", "env", "env-name", "start"} & KNOWN


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--lr 3e-4", "--algorithm.learning-rate 3e-4"),
        ("--lr=3e-4", "--algorithm.learning-rate=3e-4"),
        ("--learning_rate 3e-4", "--algorithm.learning-rate 3e-4"),
        ("--num-envs 8", "--env.num-envs 8"),
        ("--n_envs 8", "--env.num-envs 8"),
        ("--n-steps 128", "--rollout.steps 128"),
        ("--gamma 0.9", "--algorithm.gamma 0.9"),
        ("--ent-coef 0.01", "--algorithm.entropy-coef 0.01"),
        ("--vf-coef 0.5", "--algorithm.value-coef 0.5"),
        ("--clip-range 0.1", "--algorithm.clip 0.1"),
        ("--n-epochs 4", "--algorithm.epochs 4"),
        ("--batch-size 64", "--algorithm.minibatch-size 64"),
        ("--gae-lambda 0.9", "--algorithm.lam 0.9"),
        ("--max-grad-norm 1", "--algorithm.max-grad-norm 1"),
        ("--total-timesteps 1e6", "--total-steps 1e6"),
        ("--hidden 8 8", "--net.hidden 8 8"),
        ("--algorithm.gama 0.9", "--algorithm.gamma 0.9"),
        ("--sede 3", "--seed 3"),
        (
            "--lr 1e-3 --quiet --num-envs 2",
            "--algorithm.learning-rate 1e-3 --quiet --env.num-envs 2",
        ),
    ],
)
def test_the_line_to_type_is_given(here, words, line):
    said = refusal(proximo("train", "ppo", "CartPole-v1", *words.split()))
    assert said.endswith(f"Type: proximo train ppo CartPole-v1 {line}")
    assert list(here.iterdir()) == []


def test_the_line_that_is_given_is_taken(here):
    words = [*SMALL, "--lr", "1e-3", "--run_dir", "r", "--timesteps", "128"]
    said = refusal(proximo("train", "ppo", "CartPole-v1", *words))
    succeeded(proximo(*said.split("Type: proximo ")[1].split()))
    assert "learning_rate = 0.001\n" in (here / "r/config.toml").read_text()


def test_before_the_algorithm_too():
    said = refusal(proximo("train", "--lr", "3e-4", "ppo", "CartPole-v1"))
    assert "Type: proximo train --algorithm.learning-rate 3e-4 ppo CartPole-v1" in said


def test_where_nothing_is_near_help_is_named():
    said = refusal(proximo("train", "ppo", "CartPole-v1", "--xyzzy", "1"))
    assert said == "proximo: proximo train has no flag --xyzzy. See proximo train --help"


def test_a_word_too_many_is_named():
    said = refusal(proximo("train", "ppo", "CartPole-v1", "extra"))
    assert "no place for extra" in said


def test_where_several_are_near_all_are_named():
    said = message("train", ["--max-episode", "3"], ["--max-episode", "3"], KNOWN)
    assert "Did you mean" in said or "Type:" in said


@pytest.mark.parametrize(
    ("verb", "words", "meant"),
    [
        ("eval", ["r", "--epsiodes", "3"], "--episodes 3"),
        ("plot", ["r", "--ot", "x.png"], "--out x.png"),
        ("compare", ["CartPole-v1", "--seed", "3"], "--seeds 3"),
        ("lm", ["ppo", "--lr", "1e-5"], "lm ppo --algorithm.learning-rate 1e-5"),
    ],
)
def test_other_verbs_answer_likewise(verb, words, meant):
    assert meant in refusal(proximo(verb, *words))


def test_a_value_that_does_not_fit_is_shown_no_default_of_another_algorithm(here):
    said = refusal(proximo("train", "ppo", "CartPole-v1", "--algorithm.epochs", "many"))
    assert "--algorithm.epochs" in said
    assert "default" not in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sac", "sac learns off-policy"),
        ("DQN", "DQN learns off-policy"),
        ("td3", "on-policy algorithms only: reinforce, qac, a2c, trpo, ppo-penalty, ppo"),
        ("grpo", "proximo lm ppo --algorithm.advantage grpo"),
        ("rloo", "proximo lm ppo --algorithm.advantage rloo --algorithm.no-critic"),
        ("pppo", "Did you mean ppo"),
    ],
)
def test_an_algorithm_that_is_not_here_gets_a_clear_answer(here, name, said):
    assert said in refusal(proximo("train", name, "CartPole-v1"))
    assert said in refusal(proximo("compare", "CartPole-v1", "--algorithms", name))
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["PPO", "Ppo-Clip", "ppo_penalty"])
def test_capitals_and_underscores_are_no_other_name(here, name):
    words = ["--total-steps", "64", "--run-dir", "r", *SMALL]
    succeeded(proximo("train", name, "CartPole-v1", *words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ppo", "CartPole-v1"], "those of the preset cartpole ("),
        (["ppo", "CartPole-v1", "--preset", "none"], "those without a preset."),
        (["ppo", "Unknown-v0"], "those without a preset."),
        (["trpo", "Pendulum-v1"], "those of the preset pendulum-trpo ("),
    ],
)
def test_help_says_whose_defaults_it_shows(words, said):
    text = " ".join(succeeded(proximo("train", *words, "--help")).out.split())
    assert f"The defaults below are {said}" in text


def test_widths_are_read(here):
    for number, (words, stored) in enumerate(
        [
            (["--net.hidden"], ["hidden = []", 'critic_hidden = "none"']),
            (["--net.critic-hidden", "32", "8"], ["hidden = [64, 64]", "critic_hidden = [32, 8]"]),
            (["--net.critic-hidden"], ["critic_hidden = []"]),
            (["--net.critic-hidden", "none"], ['critic_hidden = "none"']),
        ]
    ):
        run = ["--run-dir", f"r{number}", "--total-steps", "64", "--quiet"]
        succeeded(proximo("train", "ppo", "CartPole-v1", *run, *SMALL, *words))
        text = (here / f"r{number}/config.toml").read_text()
        assert all(f"\n{line}\n" in text for line in stored)
