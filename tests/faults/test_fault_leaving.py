"""Code of the user's that leaves, or that changes what belongs to the whole process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from commands.command_line import SMALL, proximo, refusal, result, rows, run_folders, succeeded
from proximo import TrainingError, UsageError
from proximo.commands import trials
from proximo.errors import faults
from proximo.language.examples import Examples
from proximo.language.reward import RewardSum, find_reward

ENV = '''
import asyncio
import os
import signal
import sys
import time

import gymnasium as gym
import numpy as np


class Leaving(gym.Env):
    """Episodes of ten steps. Does what `how` says at its step `at`, or where it is made at -1."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, how="", at=0, render_mode=None):
        self.how, self.at, self.steps, self.render_mode = how, at, 0, render_mode
        if at == -1:
            self.leave()

    def leave(self):
        if self.how == "exit":
            sys.exit()
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "generator":
            raise GeneratorExit
        if self.how == "cancelled":
            raise asyncio.CancelledError
        if self.how == "chdir":
            os.chdir("/")
        if self.how == "handlers":
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, lambda number, frame: None)
            signal.set_wakeup_fd(-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.see(), {}

    def see(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action):
        if self.steps == self.at:
            self.leave()
        if self.how == "handlers":
            time.sleep(0.001)
        self.steps += 1
        self.time += 1
        return self.see(), float(action), self.time == 10, False, {}

    def render(self):
        return np.zeros((32, 32, 3), np.uint8)
'''
NAMES = {
    "exit": "SystemExit",
    "interrupt": "KeyboardInterrupt",
    "generator": "GeneratorExit",
    "cancelled": "CancelledError",
}
BACKENDS = pytest.mark.parametrize("backend", ["sync", "workers"])


@pytest.fixture(autouse=True)
def _envs(here):
    (here / "leaving.py").write_text(ENV)


def leave(how, at, *words):
    settings = (*SMALL, "--run-dir", "r", "--env.kwargs", "how", how, "at", str(at), *words)
    return proximo("train", "ppo", "leaving:Leaving", "--total-steps", "512", *settings)


@BACKENDS
@pytest.mark.parametrize("how", NAMES)
def test_an_env_that_leaves_before_training_is_refused_by_name(here, how, backend):
    for at in (-1, 5):
        said = refusal(leave(how, at, "--env.backend", backend))
        assert NAMES[how] in said
        assert "leaving.py:" in said
        if at > 0:
            assert "step 5 of episode 0" in said
        assert run_folders(here) == []


@BACKENDS
@pytest.mark.parametrize("how", NAMES)
def test_an_env_that_leaves_later_ends_the_run_which_is_kept(here, how, backend):
    once = ("--env.restarts", "0") if backend == "workers" else ()
    failed = leave(how, 75, "--env.backend", backend, *once)
    assert failed.code == 1
    assert f"step 11 of update 3: {'env 0' if backend == 'workers' else NAMES[how]}" in failed.err
    assert NAMES[how] in failed.err
    assert "go on by: proximo resume r" in failed.err
    assert not (here / "r/result.json").exists()
    assert [row["update"] for row in rows("r")] == [1, 2]


def test_an_env_that_leaves_in_a_process_begins_anew(here):
    succeeded(leave("exit", 75, "--env.backend", "workers"))
    assert "SystemExit (" in result("r")["warnings"][0]


def test_an_env_that_leaves_is_named_by_every_verb(here):
    words = (*SMALL, "--run-dir", "r", "--total-steps", "512")
    succeeded(proximo("train", "ppo", "leaving:Leaving", *words))
    source = (here / "leaving.py").read_text()
    (here / "leaving.py").write_text(source.replace('how="", at=0', 'how="exit", at=3'))
    del sys.modules["leaving"]
    own = ("--env", "leaving:Leaving")
    for words in (
        ("eval", "r", *own),
        ("play", "r", *own, "--video", "v.gif"),
        ("resume", "r", *own, "--total-steps", "1024"),
        ("check", "leaving:Leaving"),
    ):
        said = proximo(*words)
        assert said.code == 2, said
        assert "SystemExit (" in said.err
        assert "Traceback" not in said.err


def test_a_module_that_leaves_when_it_is_imported_is_refused(here):
    (here / "script.py").write_text("import sys\nsys.exit(0)\n")
    assert "SystemExit: 0" in refusal(proximo("check", "script:Env"))
    with pytest.raises(UsageError, match="importing the module 'script' failed: SystemExit: 0"):
        find_reward("script:reward")


NET = """
import sys
from torch import nn


class Net(nn.Module):
    calls = 0

    def __init__(self, space):
        super().__init__()
        self.layer = nn.Linear(2, 8)

    def forward(self, obs):
        Net.calls += obs.requires_grad or self.layer.weight.requires_grad
        if Net.calls > 200:
            sys.exit(0)
        return self.layer(obs)
"""


def test_a_network_that_leaves_does_not_end_well(here):
    (here / "net.py").write_text(NET)
    failed = leave("", 0, "--net", "net:Net")
    assert failed.code in (1, 2)
    assert "SystemExit: 0" in failed.err
    assert "Traceback" not in failed.err


def test_a_reward_that_leaves_is_named():
    def reward(completions):
        sys.exit()

    judge = RewardSum([reward], [], Examples.read([{"prompt": "a"}], "prompt"))

    class Drawn:
        sequences = type("Sequences", (), {"response": __import__("torch").zeros(1, 1)})
        ids = ((1,),)

    with pytest.raises(TrainingError, match="the reward failed: SystemExit"):
        judge([{"prompt": "a"}], [[1]], Drawn, ["b"], 1)


def caught(act):
    try:
        act()
    except faults() as error:
        return type(error)
    except BaseException:
        return None


def test_a_ctrl_c_is_no_fault_of_the_code_in_which_it_comes():
    def own():
        raise KeyboardInterrupt

    def again():
        try:
            time.sleep(5)
        except KeyboardInterrupt:
            raise

    def busy():
        while True:
            pass

    main = threading.get_ident()
    for act in (lambda: time.sleep(5), again, busy):
        timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        assert caught(act) is None
        timer.join()
    assert caught(own) is KeyboardInterrupt
    assert caught(sys.exit) is SystemExit


# The current folder


@pytest.mark.parametrize(("at", "backend"), [(-1, "sync"), (75, "sync"), (75, "workers")])
def test_an_env_may_change_the_current_folder(here, at, backend):
    try:
        succeeded(leave("chdir", at, "--env.backend", backend, "--run.eval-every", "2"))
        os.chdir(here)
        assert result("r")["steps"] == 512
        assert [path.name for path in run_folders(here)] == ["r"]
        if at == -1:
            own = ("--env", "leaving:Leaving")
            for words in (
                ("resume", "r", *own, "--total-steps", "640"),
                ("eval", "r", *own, "--episodes", "2"),
                ("play", "r", *own, "--video", "v.gif"),
            ):
                succeeded(proximo(*words))
                assert os.getcwd() == "/"
                os.chdir(here)
            assert (here / "v.gif").is_file()
    finally:
        os.chdir(here)


def test_compare_runs_where_it_was_started(here, monkeypatch):
    seen = []
    monkeypatch.setattr(trials, "run_all", lambda *_: seen.append(os.getcwd()))
    source = (here / "leaving.py").read_text()
    (here / "leaving.py").write_text(source.replace('how="", at=0', 'how="chdir", at=-1'))
    succeeded(proximo("compare", "leaving:Leaving", "--algorithms", "ppo", "--dir", "c"))
    assert seen == [str(here)]
    assert (here / "c/compare.json").is_file()


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_env_with_handlers_of_its_own_takes_no_signal_from_the_run(here, number):
    words = (
        "train",
        "ppo",
        "leaving:Leaving",
        *SMALL,
        "--run-dir",
        "r",
        "--total-steps",
        "1000000",
    )
    popen = subprocess.Popen(
        [sys.executable, "-m", "proximo", *words, "--env.kwargs", "how", "handlers", "at", "-1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and not (Path("r/metrics.jsonl").exists() and rows("r")):
        time.sleep(0.05)
    popen.terminate()
    _, said = popen.communicate(timeout=20)
    assert popen.returncode == 143
    assert b"stopped after update" in said
    assert result("r")["stopped_by"] == "interrupted"
