"""An algorithm, a schedule and a callback of the user's own on the command line."""

import sys

import pytest

from commands.command_line import SMALL, proximo, refusal, result, rows, succeeded

CODE = """
from dataclasses import dataclass
from pathlib import Path

import torch

from proximo import PPO, Callback

Path("imported").touch()


@dataclass(frozen=True, kw_only=True)
class Mine(PPO):
    weight: float = 2.0

    def objective(self, policy, new, batch, advantage, coefficients):
        ratio = (new.log_prob - batch.log_prob).exp()
        return ratio * advantage - self.weight * (ratio - 1) ** 2


def falling(progress):
    return 1e-3 * (1 - progress)


@dataclass
class Counting(Callback):
    begin: int = 0

    def start(self, state):
        self.count = self.begin

    def __call__(self, state, rollout, row):
        self.count += 1
        row["count"] = torch.tensor(self.count)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, saved):
        self.count = saved["count"]
"""
WORDS = ["--algorithm", "own_code_here:Mine"]
ALL = [*WORDS, "--schedule", "own_code_here:falling", "--callback", "own_code_here:Counting"]


@pytest.fixture
def run(here):
    """A finished run of them, which have not been imported since."""
    (here / "own_code_here.py").write_text(CODE)
    line = ["train", "own_code_here:Mine", "CartPole-v1", *SMALL[2:], "--total-steps", "128"]
    line += ["--algorithm.weight", "3", "--algorithm.learning-rate", "own_code_here:falling"]
    line += ["--run.callbacks", "own_code_here:Counting{begin = 7}"]
    assert "Mine on CartPole-v1" in succeeded(proximo(*line, "--run-dir", "run")).out
    (here / "imported").unlink()
    del sys.modules["own_code_here"]
    return here / "run"


@pytest.mark.parametrize(
    ("words", "asks"),
    [
        (["eval", "run", "--episodes", "1"], WORDS),
        (["play", "run", "--video", "v.gif"], WORDS),
        (["export", "run"], WORDS),
        (["resume", "run", "--total-steps", "192"], ALL),
    ],
    ids=lambda words: words[0],
)
def test_a_run_asks_for_its_code_before_importing_it(run, here, words, asks):
    message = refusal(proximo(*words))
    assert message.endswith(f"type: proximo {' '.join([*words, *asks])}")
    assert not (here / "imported").exists()
    succeeded(proximo(*words, *asks))


def test_a_resumed_run_is_that_of_the_settings_that_are_recorded(run):
    succeeded(proximo("resume", "run", "--total-steps", "192", "--quiet", *ALL))
    assert result("run")["steps"] == 192
    assert [row["count"] for row in rows("run")] == [8, 9, 10]
    text = (run / "config.toml").read_text()
    assert 'name = "own_code_here:Mine"' in text
    assert "weight = 3.0" in text


def test_a_file_of_an_own_algorithm_is_trained_when_it_is_named(run, here):
    succeeded(
        proximo(
            "train",
            "own_code_here:Mine",
            "CartPole-v1",
            *SMALL[2:],
            "--run-dir",
            "b",
            "--total-steps",
            "64",
            "--quiet",
        )
    )
    del sys.modules["own_code_here"]
    message = refusal(proximo("train", "--config", "b/config.toml", "--run-dir", "c"))
    assert "b/config.toml names code, own_code_here:Mine" in message
    line = ["train", "own_code_here:Mine", "--config", "b/config.toml", "--run-dir", "c"]
    succeeded(proximo(*line, "--quiet"))
    assert (here / "c/config.toml").read_text() == (here / "b/config.toml").read_text()


def test_what_is_no_algorithm_and_what_is_not_there_is_refused(run):
    assert "is no algorithm" in refusal(proximo("train", "own_code_here:Counting", "CartPole-v1"))
    assert "Did you mean Mine" in refusal(proximo("train", "own_code_here:Mina", "CartPole-v1"))
    message = refusal(proximo("eval", "run", "--algorithm", "own_code_here:falling"))
    assert "is no algorithm" in message


def test_plots_and_names_of_folders_need_no_code(run, here):
    succeeded(proximo("plot", "run"))
    assert not (here / "imported").exists()
