"""`proximo tune`: what it takes, what it leaves behind, how it stops and goes on."""

import importlib.util
import json
import os
import signal
import sys
import tomllib
from pathlib import Path

import pytest

from commands.command_line import proximo, refusal, result, succeeded
from proximo.commands.tuning import _settings, _with_algorithm
from proximo.tuning.search import Progress
from tuning.searches import begun, pretend

needs_optuna = pytest.mark.skipif(
    not importlib.util.find_spec("optuna"), reason="Optuna is an extra"
)
FEW = ("--trials", "3", "--seeds", "1", "--check-seeds", "2", "--total-steps", "600")


@pytest.fixture
def pretending(monkeypatch):
    monkeypatch.setattr(Progress, "_work", lambda progress, job: pretend(job))


@needs_optuna
def test_it_trains_in_processes_and_its_best_settings_train_again(here):
    words = ("--trials", "1", "--seeds", "1", "--check-seeds", "0", "--episodes", "2")
    line = ("tune", "CartPole-v1", *words, "--total-steps", "600", "--run-dir", "t")
    said = succeeded(proximo(*line)).out
    assert "trial 0 (preset cartpole): score" in said
    assert "proximo train ppo CartPole-v1 --preset t/best.toml" in said
    (trial,) = begun("t")
    assert trial["state"] == "complete"
    assert len(trial["curves"][0]) == 5
    again = ("train", "ppo", "CartPole-v1", "--preset", "t/best.toml", "--run-dir", "r", "--quiet")
    succeeded(proximo(*again))
    assert result("r")["steps"] == 750  # whole updates of 250
    written = tomllib.loads(Path("r/config.toml").read_text())
    assert written["algorithm"]["lam"] == 0.8


@needs_optuna
def test_what_is_typed_stays(here, pretending):
    line = ("tune", "a2c", "CartPole-v1", *FEW, "--gamma", "0.9", "--run-dir", "t")
    said = succeeded(proximo(*line, "--net.normalize-obs")).out
    lines = [line.split(": ") for line in said.split("searched:\n")[1].splitlines()[:4]]
    searched = {section.strip(): names.split(", ") for section, names in lines}
    assert "learning_rate" in searched["algorithm"]
    assert not {"gamma", "clip"} & {*searched["algorithm"]}
    assert "normalize_obs" not in searched["net"]
    best = tomllib.loads(Path("t/best.toml").read_text())
    assert best["algorithm"]["gamma"] == 0.9
    assert best["net"]["normalize_obs"] is True
    assert best["run"]["total_steps"] == 600
    assert [t["origin"] for t in begun("t")] == ["preset cartpole-a2c", "defaults", "search"]


@needs_optuna
def test_a_file_says_what_to_search(here, pretending):
    Path("space.toml").write_text("[algorithm]\nclip = [0.1, 0.25]\nlam = 0.9\n")
    line = ("tune", "CartPole-v1", *FEW, "--space", "space.toml", "--run-dir", "t")
    said = succeeded(proximo(*line)).out
    assert "algorithm.lam," not in said
    assert tomllib.loads(Path("t/best.toml").read_text())["algorithm"]["lam"] == 0.9


@needs_optuna
def test_ctrl_c_ends_it_and_the_same_line_goes_on(here, monkeypatch):
    def interrupted(progress, job):
        if len(progress.trials) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return pretend(job)

    line = ("tune", "CartPole-v1", *FEW, "--run-dir", "t", "--processes", "1")
    monkeypatch.setattr(Progress, "_work", interrupted)
    stopped = proximo(*line)
    assert stopped.code == 128 + signal.SIGINT
    assert "the same line with --run-dir t goes on" in stopped.err
    assert [trial["number"] for trial in begun("t")] == [0, 1]
    monkeypatch.setattr(Progress, "_work", lambda progress, job: pretend(job))
    succeeded(proximo(*line))
    assert [trial["number"] for trial in begun("t")] == [0, 1, 2]
    assert len(Path("t/check.jsonl").read_text().splitlines()) in (4, 6)


@needs_optuna
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("CartPole-v1", "--trials", "0"), "trials is 0: it must be at least 1"),
        (("CartPole-v1", "--processes", "0"), "--processes is 0: give at least 1"),
        (("sac", "CartPole-v1"), "off-policy"),
        (("own:Mine", "CartPole-v1"), "a search takes Proximo's own, reinforce"),
        (("trpo", "CartPole-v1", "--lr", "0.1"), "learning_rate"),
        (("CartPole-v1", "--run.log", "tensorboard"), "run.log is of a single run"),
        (("CartPole-v1", "--space", "space.toml"), "Did you mean algorithm.gamma"),
        (("CartPole-v1", "--run-dir", "."), "no search of proximo tune"),
        ((), "name an algorithm and an env, as in: proximo tune ppo CartPole-v1"),
    ],
)
def test_bad_input_is_refused_before_any_trial(here, pretending, words, said):
    Path("space.toml").write_text("[algorithm]\ngama = [0.9, 0.99]\n")
    Path("own.py").write_text("from proximo import PPO\n\n\nclass Mine(PPO): ...\n")
    assert said in refusal(proximo("tune", *words))
    assert not Path("runs").exists()


def test_without_optuna_it_says_what_to_type(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'proximo[tune]'" in refusal(proximo("tune", "CartPole-v1"))
    assert not Path("runs").exists()


def test_an_env_alone_is_trained_with_ppo():
    assert _with_algorithm(["CartPole-v1", "--trials", "3"])[0] == "ppo"
    assert _with_algorithm(["trpo", "CartPole-v1"])[0] == "trpo"
    assert _with_algorithm(["--help"]) == ["--help"]


def test_flags_name_settings():
    flags = ["trials", "algorithm.no-critic", "net.normalize-obs", "env.id", "run.total-steps"]
    assert _settings(flags) == ["algorithm.critic", "net.normalize_obs", "run.total_steps"]


@needs_optuna
def test_code_of_a_folder_is_not_imported(own_env, pretending):
    line = ("tune", own_env, *FEW, "--run-dir", "t")
    succeeded(proximo(*line))
    plan = json.loads(Path("t/tune.json").read_text())["plan"]
    assert f'id = "{own_env}"' in plan["settings"]["defaults"]
    Path("imported").unlink()
    assert "another settings" in refusal(proximo("tune", "CartPole-v1", *FEW, "--run-dir", "t"))
    assert not Path("imported").exists()
