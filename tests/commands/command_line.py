"""What the tests of the command line and of its faults share: run a verb, look at what it left."""

import contextlib
import io
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from proximo.cli import main

SMALL = [
    "--preset",
    "none",
    "--rollout.steps",
    "32",
    "--env.num-envs",
    "2",
    "--algorithm.minibatch-size",
    "32",
    "--algorithm.epochs",
    "1",
]
"""Settings under which an update is 64 steps and takes a few milliseconds."""

ENV = '''
from pathlib import Path

import gymnasium as gym
import numpy as np

Path("imported").touch()


class Env(gym.Env):
    """Episodes of ten steps that earn 1 each: the simplest env there is."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.see(), {}

    def see(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action):
        self.steps += 1
        self.time += 1
        return self.see(), 1.0, self.time == 10, False, {}

    def render(self):
        return np.full((32, 32, 3), 20 * self.time, np.uint8)
'''
"""Source of a user's own env. Importing it leaves a file named `imported`."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def proximo(*words: str | Path) -> Outcome:
    """Run the command line in this process, as if in a shell that is no terminal."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(word) for word in words])
            except SystemExit as left:  # arguments that do not parse
                code = left.code if isinstance(left.code, int) else 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Outcome(code, out.getvalue(), err.getvalue())


def train(*words: str | Path, steps: int = 512) -> Outcome:
    """`proximo train ppo CartPole-v1` with small settings."""
    return train_in("CartPole-v1", *words, steps=steps)


def train_in(env: str, *words: str | Path, steps: int = 512) -> Outcome:
    """`proximo train ppo ENV` with small settings; those that are given go before them."""
    return proximo("train", "ppo", env, "--total-steps", str(steps), *SMALL, *words)


def succeeded(outcome: Outcome) -> Outcome:
    """The outcome of a command that should have done its work."""
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    return outcome


def continued(outcome: Outcome) -> Outcome:
    """The outcome of a command on a run of schema 1: it names renamed settings, in one line."""
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("\n") == 1
    assert (
        "config.toml has names of an earlier version: env.worlds is now env.num_envs" in outcome.err
    )
    return outcome


def refusal(outcome: Outcome) -> str:
    """The message of a command that must refuse its input: exit code 2, short, no traceback.

    Arguments that do not parse are reported in a box whose lines may break anywhere, so white
    space is evened out; all other messages are one line.
    """
    assert outcome.code == 2, (outcome.code, outcome.err)
    assert "Traceback" not in outcome.err
    if outcome.err.startswith("proximo: "):
        assert outcome.err.count("\n") == 1, outcome.err
    else:
        assert "--help" in outcome.err, outcome.err
    return " ".join(outcome.err.split())


def rows(run: str | Path) -> list[dict]:
    """Every line of a run's metrics.jsonl."""
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def timeless(run: str | Path) -> list[dict]:
    """The metrics that must not depend on how fast the machine is."""
    clock = ("seconds", "steps_per_second", "env_time_fraction", "env_step_seconds")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows(run)]


def result(run: str | Path) -> dict:
    """How a run ended."""
    return json.loads((Path(run) / "result.json").read_text())


def run_folders(place: Path) -> list[Path]:
    """Whatever looks like a run, or like what is left of one, below a folder."""
    marks = ("config.toml", "checkpoints", "metrics.jsonl", "versions.json", "log")
    return sorted({found.parent for mark in marks for found in place.rglob(mark)})


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and Path(origin).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def own_env(here):
    """The name of an env in a module of the current folder, written there."""
    (here / "own_env.py").write_text(ENV)
    return "own_env:Env"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run of 8 updates, with a best policy. Copy it before changing it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    succeeded(train("--run-dir", run, "--algorithm.learning-rate", "linear:1e-3:0", "--quiet"))
    return run


def wait_for(what, seconds=60):
    """Until this holds."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)
