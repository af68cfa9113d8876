"""A network of the user's own on the command line: imported when it is named, and only then."""

import shlex
import sys

import pytest

from commands.command_line import proximo, refusal, result, succeeded, train, train_in

NET = '''
from pathlib import Path

import torch

Path("imported").touch()


class Net(torch.nn.Module):
    """One layer."""

    def __init__(self, space, width=8):
        super().__init__()
        self.layer = torch.nn.Linear(*space.shape, width)

    def forward(self, seen):
        return torch.tanh(self.layer(seen))
'''


@pytest.fixture
def run(here):
    """A finished run with such a network, which has not been imported since."""
    (here / "own_net.py").write_text(NET)
    words = ("--net", "own_net:Net", "--net.kwargs", "width", "5", "--run-dir", "run")
    outcome = succeeded(train(*words, steps=128))
    assert "not native: net.module is code of your own" in outcome.out
    config = (here / "run" / "config.toml").read_text()
    assert 'module = "own_net:Net"\nkwargs = {"width" = 5}' in config
    (here / "imported").unlink()
    del sys.modules["own_net"]
    return here / "run"


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["eval", "run", "--episodes", "1"], "--net"),
        (["play", "run", "--video", "v.gif"], "--net"),
        (["resume", "run", "--total-steps", "192", "--quiet"], "--net"),
        (["train", "--config", "run/config.toml", "--run-dir", "r"], "--net"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_run_asks_for_its_network_before_importing_it(run, here, words, flag):
    message = refusal(proximo(*words))
    line = shlex.join(["proximo", *words, flag, "own_net:Net"])
    assert message == (
        "proximo: this run's network, own_net:Net, is code: importing it needs your word. If you "
        f"trust it, type: {line}"
    )
    assert not (here / "imported").exists()
    outcome = proximo(*shlex.split(line)[1:])
    assert outcome.code == 0, outcome.err
    assert (here / "imported").exists()


def test_resumed_it_ends_as_it_would_have(run, here):
    succeeded(proximo("resume", run, "--net", "own_net:Net", "--total-steps", "192", "--quiet"))
    assert result(run)["steps"] == 192


def test_a_new_run_takes_it_over_once_it_is_named(run, here):
    words = ("--from", run, "--run-dir", "more")
    message = refusal(train(*words, steps=64))
    assert "add: --net.module own_net:Net" in message
    assert not (here / "more").exists()
    succeeded(train(*words, "--net.module", "own_net:Net", steps=64))


def test_env_and_network_are_asked_for_together(here, own_env):
    (here / "own_net.py").write_text(NET)
    succeeded(train_in(own_env, "--net.module", "own_net:Net", "--run-dir", "run", steps=64))
    message = refusal(proximo("eval", "run"))
    assert message == (
        "proximo: this run's env, own_env:Env, and its network, own_net:Net, are code: "
        "importing them needs your word. If you trust them, type: proximo eval run --env "
        "own_env:Env --net own_net:Net"
    )


def test_a_network_that_does_not_fit_or_is_not_asked_for(run, here, trained):
    other = here / "other.py"
    other.write_text(NET.replace("width)", "width + 1)"))
    assert "belongs: its network" in refusal(proximo("eval", run, "--net", "other:Net"))
    assert "own_net has no 'Nat'. Did you mean Net" in refusal(
        proximo("eval", run, "--net", "own_net:Nat")
    )
    for verb in ("eval", "resume"):
        message = refusal(proximo(verb, trained, "--net", "own_net:Net"))
        assert "this run's network is Proximo's: leave it out" in message
