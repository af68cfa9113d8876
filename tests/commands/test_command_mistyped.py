"""A flag or an algorithm by another library's name is answered with the line to type."""

import dataclasses

import pytest

from commands.command_line import SMALL, proximo, refusal, succeeded, train
from proximo.commands.arguments import SHORT, flags
from proximo.commands.lm import Ppo
from proximo.commands.mistyped import FORMER, USUAL, message
from proximo.commands.training import Train, _any_algorithm, _command
from proximo.run.config import ALGORITHMS

PPO_FLAGS = flags(_command(Train, ALGORITHMS["ppo"]))
KNOWN = flags(_command(Train, _any_algorithm()))


def test_the_usual_names_lead_to_flags_and_are_none():
    assert set(USUAL) <= {*KNOWN.values(), *flags(Ppo).values()}
    others = [other for words in USUAL.values() for other in words]
    assert not set(KNOWN) & set(others)
    assert len(others) == len(set(others))


def test_every_setting_is_a_flag():
    for algorithm in ALGORITHMS.values():
        for setting in dataclasses.fields(algorithm):
            assert f"algorithm.{setting.name.replace('_', '-')}" in KNOWN
    assert {"run-dir", "env", "net", "from", "quiet", "no-quiet", "seed"} <= set(KNOWN)
    assert not {"method", "env-id", "start"} & set(KNOWN)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--policy-lr 3e-4", "--lr 3e-4"),
        ("--policy-lr=3e-4", "--lr=3e-4"),
        ("--learning_rate 3e-4", "--lr 3e-4"),
        ("--envs 8", "--num-envs 8"),
        ("--n_envs 8", "--num-envs 8"),
        ("--n-steps 128", "--rollout.steps 128"),
        ("--gama 0.9", "--gamma 0.9"),
        ("--ent-coef 0.01", "--algorithm.entropy-coef 0.01"),
        ("--vf-coef 0.5", "--algorithm.value-coef 0.5"),
        ("--clip-range 0.1", "--algorithm.clip 0.1"),
        ("--n-epochs 4", "--epochs 4"),
        ("--batch-size 64", "--minibatch-size 64"),
        ("--gae-lambda 0.9", "--algorithm.lam 0.9"),
        ("--max-grad-norm 1", "--algorithm.max-grad-norm 1"),
        ("--total-timesteps 1e6", "--total-steps 1e6"),
        ("--hidden 8 8", "--net.hidden 8 8"),
        ("--algorithm.gama 0.9", "--gamma 0.9"),
        ("--sede 3", "--seed 3"),
        ("--pi-lr 1e-3 --quiet --n-envs 2", "--lr 1e-3 --quiet --num-envs 2"),
    ],
)
def test_the_line_to_type_is_given(here, words, line):
    said = refusal(proximo("train", "ppo", "CartPole-v1", *words.split()))
    assert said.endswith(f"Type: proximo train ppo CartPole-v1 {line}")
    assert list(here.iterdir()) == []


def test_the_line_that_is_given_is_taken(here):
    words = [*SMALL, "--pi-lr", "1e-3", "--run_dir", "r", "--timesteps", "128"]
    said = refusal(proximo("train", "ppo", "CartPole-v1", *words))
    succeeded(proximo(*said.split("Type: proximo ")[1].split()))
    assert "learning_rate = 0.001\n" in (here / "r/config.toml").read_text()


def test_before_the_algorithm_too():
    said = refusal(proximo("train", "--pi-lr", "3e-4", "ppo", "CartPole-v1"))
    assert "Type: proximo train --lr 3e-4 ppo CartPole-v1" in said


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
        ("resume", ["r", "--total-step", "9"], "--steps 9"),
        ("lm", ["ppo", "--policy-lr", "1e-5"], "lm ppo --lr 1e-5"),
        ("lm", ["sft", "--learning-rate", "1e-5"], "lm sft --lr 1e-5"),
        ("lm", ["reward", "--modle", "x"], "lm reward --model x"),
        ("lm", ["generate", "m", "--promt", "x"], "--prompt"),
        ("lm", ["resume", "r", "--update", "9"], "--updates 9"),
        ("lm", ["resume", "r", "--world", "m:C"], "lm resume r --env m:C"),  # names of schema 1
        ("lm", ["ppo", "--world", "m:C"], "lm ppo --env m:C"),  # names of schema 1
        ("lm", ["ppo", "--iterations", "9"], "lm ppo --updates 9"),
        ("check", ["CartPole-v1", "--epsiodes", "3"], "--episodes 3"),
        ("export", ["r", "--ot", "x"], "export r --out x"),
        ("play", ["r", "--vidoe", "x.gif"], "play r --video x.gif"),
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--env.worlds 8", "--env.worlds is now --num-envs. Type: "),  # names of schema 1
        ("--worlds 8", "Type: proximo train ppo CartPole-v1 --num-envs 8"),  # names of schema 1
        ("--net.memory gru", "CartPole-v1 --net.recurrent gru"),  # names of schema 1
        ("--memory-steps 8", "--net.bptt-steps 8"),  # names of schema 1
    ],
)
def test_an_old_name_is_answered_with_the_new_one(here, words, said):
    assert said in refusal(proximo("train", "ppo", "CartPole-v1", *words.split()))


@pytest.mark.parametrize(
    ("words", "stored"),
    [
        ("--lr 1e-3", "learning_rate = 0.001"),
        ("--lr linear:1e-3:0", 'learning_rate = "linear:0.001:0.0"'),
        ("--gamma 0.9", "gamma = 0.9"),
        ("--seed 7", "seed = 7"),
        ("--threads 1", "threads = 1"),
        ("--device cpu", 'device = "cpu"'),
        ("--stop-at 500", "stop_at = 500.0"),
    ],
)
def test_a_short_form_is_the_setting(here, words, stored):
    succeeded(train("--run-dir", "r", "--quiet", *words.split(), steps=64))
    assert f"\n{stored}\n" in (here / "r/config.toml").read_text()


def test_sizes_have_short_forms(here):
    sizes = "--steps 96 --num-envs 3 --minibatch-size 16 --epochs 2 --rollout.steps 32"
    words = ["--preset", "none", "--run-dir", "r", "--quiet", *sizes.split()]
    succeeded(proximo("train", "ppo", "--env", "CartPole-v1", *words))
    text = (here / "r/config.toml").read_text()
    for line in ("total_steps = 96", "num_envs = 3", "minibatch_size = 16", "epochs = 2"):
        assert f"\n{line}\n" in text
    succeeded(proximo("resume", "r", "--steps", "192", "--quiet"))
    assert "\ntotal_steps = 192\n" in (here / "r/config.toml").read_text()


@pytest.mark.parametrize("flag", [flag for flag in SHORT if flag in KNOWN])
def test_help_shows_every_short_form(flag):
    shown = succeeded(proximo("train", "ppo", "CartPole-v1", "--help")).out
    assert all(f"--{form} " in shown for form in SHORT[flag] if flag in PPO_FLAGS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--lr 1e-3 --algorithm.learning-rate 1e-3", "--lr and --algorithm.learning-rate are"),
        ("--steps 9 --total_steps=9", "--steps and --total-steps are forms of one setting"),
        ("--env Acrobot-v1", "two envs, CartPole-v1 and Acrobot-v1"),
    ],
)
def test_two_forms_of_one_setting_are_refused(here, words, said):
    assert said in refusal(proximo("train", "ppo", "CartPole-v1", *words.split()))


@pytest.mark.parametrize(
    ("algorithm", "words", "said"),
    [
        ("qac", "--epochs 4", "it does nothing where the algorithm is qac"),
        ("trpo", "--lr 1e-3", "it does nothing where the algorithm is trpo"),
        ("a2c", "--algorithm.clip 0.2", "a2c has no setting clip: leave --algorithm.clip out"),
        ("trpo", "--algorithm.beta=1", "leave --algorithm.beta out (it is of ppo-penalty)"),
    ],
)
def test_a_setting_of_other_algorithms_is_named(here, algorithm, words, said):
    assert said in refusal(proximo("train", algorithm, "CartPole-v1", *words.split()))


@pytest.mark.parametrize("old", FORMER)
def test_what_was_renamed_is_no_flag_and_leads_to_one(old):
    known = {FORMER[old]: FORMER[old], "quiet": "quiet"}
    said = message("train", [f"--{old}", "3"], [f"--{old}", "3"], known)
    assert f"--{old} is now --{FORMER[old]}. Type: proximo train --{FORMER[old]} 3" in said
