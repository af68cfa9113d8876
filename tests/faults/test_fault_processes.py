"""Signals that reach every process of a job, and what envs start in sessions of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands.command_line import SMALL, proximo, rows, succeeded, timeless, wait_for
from proximo.envs.config import EnvConfig
from proximo.envs.make import make_envs

ENV = '''
import os
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np

DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
open("kept", "a").write(f"{os.getpid()}\\\\n")
time.sleep(577)
"""


def keep(pid):
    with open("kept", "a") as file:
        file.write(f"{pid}\\n")


class Env(gym.Env):
    """Episodes of ten steps. `starts`: what a killed process might leave behind, in three ways."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, starts=False):
        keep(os.getpid())
        if starts:
            keep(subprocess.Popen(["timeout", "600", "sleep", "577"]).pid)
            keep(subprocess.Popen(["sleep", "577"], start_new_session=True, env={}).pid)
            subprocess.run([sys.executable, "-S", "-c", DAEMON], check=True)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.see(), {}

    def see(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action):
        self.time += 1
        if Path("slowly").exists():
            time.sleep(0.002)
        return self.see(), float(action), self.time == 10, False, {}
'''
SETTINGS = (*SMALL, "--env.backend", "workers", "--env.processes", "2", "--total-steps", "640")


@pytest.fixture(autouse=True)
def _envs(here, monkeypatch):
    (here / "own.py").write_text(ENV)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def start():
    """A training in a process of its own, two updates old, that goes slowly."""
    started = []

    def begin(*words):
        Path("slowly").touch()
        command = [sys.executable, "-m", "proximo", "train", "ppo", "own:Env", "--run-dir", "r"]
        popen = subprocess.Popen(
            [*command, *SETTINGS, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(popen)
        wait_for(
            lambda: (
                popen.poll() is not None
                or (Path("r/metrics.jsonl").exists() and len(rows("r")) >= 2)
            )
        )
        assert popen.poll() is None, popen.stderr.read()
        return popen

    yield begin
    for popen in started:
        popen.kill()
        popen.communicate()


def descendants(pid):
    """All processes below this one."""
    children = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "stat").read_text().rpartition(")")[2].split()
            if words[0] != "Z":
                children.setdefault(int(words[1]), []).append(int(place.name))
    found = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kept():
    return [int(line) for line in Path("kept").read_text().split()]


def to_all(popen, number):
    for pid in [popen.pid, *descendants(popen.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def test_signals_for_the_trainer_may_reach_every_process(start):
    """A checkpoint is asked for five times, then the end: nothing is lost, and no bit changes."""
    popen = start()
    assert len(descendants(popen.pid)) == 4  # two of envs, each with its supervisor
    for _ in range(5):
        to_all(popen, signal.SIGUSR1)
        time.sleep(0.1)
    log = Path("r/log").read_text()
    assert "SIGUSR1: saved after update" in log
    to_all(popen, signal.SIGTERM)
    _, said = popen.communicate(timeout=20)
    assert popen.returncode == 143
    assert b"stopped after update" in said
    assert "failed" not in Path("r/log").read_text()
    assert not any(map(alive, kept()))
    Path("slowly").unlink()
    succeeded(proximo("resume", "r", "--env", "own:Env", "--quiet"))
    succeeded(proximo("train", "ppo", "own:Env", "--run-dir", "whole", *SETTINGS, "--quiet"))
    assert timeless("r") == timeless("whole")
    last = "checkpoints/last.safetensors"
    assert Path("r", last).read_bytes() == Path("whole", last).read_bytes()


def make(**kwargs):
    return make_envs(
        EnvConfig(id="own:Env", backend="workers", num_envs=2, processes=2, kwargs=kwargs), 1
    )


def test_no_process_hangs_because_the_whole_job_was_stopped(start):
    """By a scheduler or a container: that a process did not answer then is no fault of its env."""
    popen = start("--env.timeout", "0.5")
    for _ in range(3):
        to_all(popen, signal.SIGSTOP)
        time.sleep(0.7)
        to_all(popen, signal.SIGCONT)  # the trainer first
        time.sleep(0.05)
    to_all(popen, signal.SIGTERM)
    assert popen.wait(20) == 143
    assert "no answer" not in Path("r/log").read_text()


def test_signals_for_the_trainer_come_before_a_process_can_ignore_them():
    """From its first moment on, when Python has not begun in it."""
    trainer = os.getpid()
    if not (sender := os.fork()):
        while os.getppid() == trainer:
            for child in set(descendants(trainer)) - {os.getpid()}:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, number)
            time.sleep(0.002)
        os._exit(0)
    try:
        envs = make()
        assert envs.start().obs.shape == (2, 2)
        envs.close()
    finally:
        os.kill(sender, signal.SIGKILL)
        os.waitpid(sender, 0)


def started(trainer):
    """All that two envs have started, and themselves."""
    wait_for(lambda: len(kept()) == 8)
    found = {*kept(), *descendants(trainer)}
    assert len(found) == 12  # a supervisor for each, and a sleep under each timeout
    return found


def test_nothing_that_an_env_has_started_is_left_when_it_is_closed():
    envs = make(starts=True)
    found = started(os.getpid())
    envs.close()
    assert not any(map(alive, found))


def test_nothing_that_an_env_has_started_is_left_when_its_process_is_killed():
    envs = make(starts=True)
    try:
        state = envs.start()
        found = started(os.getpid())
        envs.report = lambda text, trace: None
        for process in envs._processes.values():
            os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: not any(map(alive, found)), 2)
        state.length[:] = 1
        envs.fresh(state)  # in new processes
        wait_for(lambda: len(kept()) == 16)  # the last names itself later
    finally:
        envs.close()
    assert not any(map(alive, kept()))


SCRIPT = """
import time
from proximo.envs.config import EnvConfig
from proximo.envs.make import make_envs
kwargs = {"starts": True}
envs = make_envs(
    EnvConfig(id="own:Env", backend="workers", num_envs=2, processes=2, kwargs=kwargs), 1
)
time.sleep(60)
"""


def test_nothing_that_an_env_has_started_is_left_when_the_trainer_is_killed(here):
    popen = subprocess.Popen([sys.executable, "-c", SCRIPT])
    try:
        wait_for(lambda: Path("kept").exists())
        found = started(popen.pid)
    finally:
        popen.kill()
        popen.wait()
    wait_for(lambda: not any(map(alive, found)), 2)
