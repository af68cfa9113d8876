"""Help is quick, complete and readable."""

import importlib.metadata
import os
import re
import resource
import subprocess
import sys

import pytest

import proximo as package
from commands.command_line import proximo, refusal
from proximo.cli import VERBS

LIMIT = 1.5
"""Seconds of a processor within which help must answer, however busy the machine is."""
WITHOUT_TORCH = """
import sys
from proximo.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as left:
    code = left.code
if "torch" in sys.modules:
    sys.exit("torch was loaded")
sys.exit(code)
"""


def ask(*words):
    """Run in a process of its own; returns what it printed and its least time of at most three."""
    times = []
    while not times or (min(times) >= LIMIT and len(times) < 3):
        begin = _spent()
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "100"},
        )
        times.append(_spent() - begin)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    return done.stdout, min(times)


def _spent():
    """Seconds of the processor that processes of this one have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def help_of():
    """Verb -> (help, seconds); each is asked once."""
    answers = {}

    def find(*words):
        if words not in answers:
            answers[words] = ask(*words)
        return answers[words]

    return find


@pytest.mark.parametrize("words", [(), *((verb,) for verb in VERBS)], ids=" ".join)
def test_help_answers_quickly_and_without_torch(help_of, words):
    text, seconds = help_of(*words, "--help")
    assert f"usage: proximo {' '.join(words)}".strip() in text
    assert seconds < LIMIT


def test_the_version_needs_no_torch(help_of):
    text, seconds = help_of("--version")
    assert text.strip() == package.__version__
    assert seconds < LIMIT


def test_no_verb_at_all_shows_what_there_is():
    shown = proximo()
    assert shown.code == 0
    assert shown.out == proximo("--help").out
    for verb, (_, what) in VERBS.items():
        assert re.search(rf"^ *{verb} +{re.escape(what)}$", shown.out, re.MULTILINE)


def test_the_installed_command_is_this_one():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="proximo")
    assert script.value == "proximo.cli:main"


@pytest.mark.parametrize(
    "shown",
    [
        "ALGORITHM",
        "ENV",
        "--algorithm.gamma",
        "--rollout.steps",
        "--env.num-envs",
        "--net.hidden",
        "--run.log-every",
        "--stop-at",
        "--from",
        "--preset",
        "--config",
        "--device",
        "--run-dir",
    ],
)
def test_help_of_train_names_every_section_and_flag(help_of, shown):
    assert shown in help_of("train", "--help")[0]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--algorithm.gamma", ["Discount per step", "default: 0.99"]),
        ("--algorithm.lam", ["lambda of GAE", "default: 0.95"]),
        ("--algorithm.clip", ["epsilon of eq. 7", "default: 0.2"]),
        ("--algorithm.value-coef", ["c1 of eq. 9", "default: 0.5"]),
        ("--algorithm.entropy-coef", ["c2 of eq. 9", "per nat", "default: 0.0"]),
        ("--algorithm.epochs", ["K, passes", "default: 10"]),
        ("--algorithm.minibatch-size", ["M, samples", "default: 64"]),
        ("--algorithm.target-kl", ["nats", "default: none"]),
        ("--algorithm.learning-rate", ["linear:3e-4:0", "default: 0.0003"]),
        ("--rollout.steps", ["T, steps", "default: 256"]),
        ("--env.num-envs", ["N, the number", "default: 4"]),
        ("--env.max-episode-steps", ["in steps", "default: none"]),
        ("--run.total-steps", ["Environment steps", "default: 100000"]),
        ("--run.log-every", ["Updates between", "default: 1"]),
        ("--net.log-std", ["log sigma", "default: 0.0"]),
    ],
)
def test_help_of_train_gives_symbol_unit_and_default(help_of, flag, said):
    text = " ".join(help_of("train", "--help")[0].replace("│", " ").split())
    entry = re.split(r" --[a-z]", text.split(f"{flag} ", 1)[1])[0]
    for part in said:
        assert part in entry


@pytest.mark.parametrize("verb", VERBS)
def test_help_speaks_of_none_and_not_of_python(help_of, verb):
    text = help_of(verb, "--help")[0]
    assert "None" not in text
    assert "<class" not in text


@pytest.mark.parametrize("verb", VERBS)
def test_the_first_lines_of_help_are_laid_out_evenly(help_of, verb):
    head = help_of(verb, "--help")[0].split("╭")[0]
    assert "\n\n\n" not in head
    assert not re.search(r"^ {4}\S", head, re.MULTILINE)


@pytest.mark.parametrize(
    ("typed", "meant"), [("tran", "train"), ("evaluate", "eval"), ("plots", "plot")]
)
def test_an_unknown_verb_is_answered_with_one_that_is_near(typed, meant):
    message = refusal(proximo(typed))
    assert repr(typed) in message
    assert f"Did you mean {meant}" in message


def test_an_unknown_option_is_answered_with_one_that_is_near():
    message = refusal(proximo("train", "ppo", "CartPole-v1", "--algorithm.gama", "0.9"))
    assert "--algorithm.gama" in message
    assert " --gamma 0.9" in message


@pytest.mark.parametrize(("policy", "spins"), [(None, "10000"), ("ACTIVE", None)])
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(monkeypatch, policy, spins):
    for name, value in (("OMP_WAIT_POLICY", policy), ("GOMP_SPINCOUNT", None)):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    refusal(proximo("eval", "nowhere"))
    assert os.environ.get("GOMP_SPINCOUNT") == spins
