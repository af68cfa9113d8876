"""Signals to a real process: what it saves, how soon it is gone, and that nothing is lost."""

import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands.command_line import (
    ENV,
    SMALL,
    proximo,
    result,
    rows,
    succeeded,
    timeless,
    wait_for,
)
from proximo import PPO, RolloutConfig, train
from proximo.cli import main
from proximo.commands.signals import AT_ONCE
from proximo.run.checkpoint import Checkpoint

NAMED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
OWN = (
    ENV
    + '''

import hashlib
import multiprocessing
import os
import time


class Slow(Env):
    """Does what the file `how` says, if there is one: go slowly, or hang in one of two ways."""

    def step(self, action):
        try:
            how = Path("how").read_text()
        except FileNotFoundError:  # which may be removed at any moment
            how = ""
        if how == "slowly":
            time.sleep(0.002)
        elif how:
            with open("hanging", "a") as file:
                file.write(f"{os.getpid()}\\n")
            if how == "asleep":
                time.sleep(60)
            else:  # in C, where no handler of Python runs
                hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
        return super().step(action)


def wait():
    Path("forked").touch()
    time.sleep(60)


class Forking(Env):
    """Ends a process that it has forked, as vector envs of processes do."""

    def step(self, action):
        if self.steps == 5:
            child = multiprocessing.get_context("fork").Process(target=wait)
            child.start()
            while not Path("forked").exists():
                time.sleep(0.01)
            child.terminate()
            child.join(30)
            assert child.exitcode == -15
            Path("forked").unlink()
        return super().step(action)
'''
)
SCRIPT = """
import os, sys, time

sys.path.insert(0, ".")
fsync = os.fsync

def slow(file):
    fsync(file)
    if os.path.exists("slow saves"):
        open("saving", "w").close()
        time.sleep(20)

os.fsync = slow
if os.isatty(0):
    import fcntl, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from proximo.cli import main
sys.exit(main(sys.argv[1:]))
"""
STEPS = 1280
SETTINGS = [*SMALL, "--total-steps", str(STEPS), "--run.no-health"]


@pytest.fixture
def own(here, monkeypatch):
    """The envs above, and what a run of the slow one comes to if nothing disturbs it."""
    (here / "own.py").write_text(OWN)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return here


@pytest.fixture
def start(own):
    """A training in a process of its own, some updates old; `how` its env goes from then on."""
    started = []

    def begin(*words, how="slowly", **streams):
        Path("how").write_text("slowly")
        command = [sys.executable, "-c", SCRIPT, "train", "ppo", "own:Slow", "--run-dir", "r"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        popen = subprocess.Popen(
            [*command, *SETTINGS, *map(str, words)], start_new_session=True, **streams
        )
        started.append(popen)
        wait_for(
            lambda: popen.poll() is not None or (Path("r/metrics.jsonl").exists() and rows("r"))
        )
        assert popen.poll() is None, popen.stderr.read()
        Path("how").write_text(how)
        if how != "slowly":
            wait_for(lambda: Path("hanging").exists())
        return popen

    yield begin
    for popen in started:
        popen.kill()
        popen.communicate()


def ended(popen, seconds=60):
    """Its exit code, and what it said."""
    _, said = popen.communicate(timeout=seconds)
    assert b"Traceback" not in said
    return popen.returncode, said.decode()


def last(run="r"):
    return (Path(run) / "checkpoints/last.safetensors").read_bytes()


def goes_on_as_if_nothing_had_been():
    """The run r, which was stopped, to its end: the same as another that was not."""
    Path("how").unlink(missing_ok=True)
    succeeded(proximo("resume", "r", "--env", "own:Slow", "--quiet"))
    succeeded(proximo("train", "ppo", "own:Slow", "--run-dir", "whole", *SETTINGS, "--quiet"))
    assert timeless("r") == timeless("whole")
    assert last("r") == last("whole")


def test_ctrl_c_in_a_terminal(start):
    mine, its = pty.openpty()
    popen = start(stdin=its, stdout=its, stderr=its)
    os.close(its)
    os.write(mine, b"\x03")
    shown = b""
    while select.select([mine], [], [], 30)[0]:
        try:
            shown += os.read(mine, 1 << 16)
        except OSError:  # it has ended
            break
    assert popen.wait(30) == 130
    assert b"go on by: proximo resume r" in shown
    assert result("r")["stopped_by"] == "interrupted"
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")  # the cursor is back
    goes_on_as_if_nothing_had_been()


def test_sigterm_at_any_time(start):
    popen = start()
    time.sleep(random.Random(5).random())
    popen.terminate()
    code, said = ended(popen, 20)
    assert code == 143
    assert "stopped after update" in said
    goes_on_as_if_nothing_had_been()


@pytest.mark.parametrize("how", [pytest.param("asleep", marks=pytest.mark.long), "in C"])
def test_sigterm_while_an_env_hangs(start, how):
    popen = start("--run.grace", 2, how=how)
    begun = time.monotonic()
    popen.terminate()
    code, said = ended(popen, 40)
    assert code == 143
    assert 0.5 < time.monotonic() - begun < 2 + 20  # and not the 60 s that the env takes
    assert "stopped at once; go on from its last checkpoint by: proximo resume r" in said
    goes_on_as_if_nothing_had_been()


@pytest.mark.parametrize("how", [pytest.param("asleep", marks=pytest.mark.long), "in C"])
def test_a_second_ctrl_c_while_an_env_hangs(start, how):
    popen = start("--run.grace", 60, how=how)
    popen.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert popen.poll() is None
    begun = time.monotonic()
    popen.send_signal(signal.SIGINT)
    code, said = ended(popen, 40)
    assert code == 130
    assert time.monotonic() - begun < AT_ONCE + 20  # and not the 60 s that the env takes
    assert "stopped at once" in said
    goes_on_as_if_nothing_had_been()


def test_a_second_ctrl_c_while_it_saves(start):
    popen = start()
    Path("slow saves").touch()
    popen.send_signal(signal.SIGINT)
    wait_for(lambda: Path("saving").exists())
    before = last()
    popen.send_signal(signal.SIGINT)
    assert ended(popen, 10)[0] == 130
    assert last() == before  # the one before, whole
    Path("slow saves").unlink()
    goes_on_as_if_nothing_had_been()


def test_sigterm_while_the_processes_of_envs_hang(start):
    words = ("--env.backend", "workers", "--env.processes", 2, "--run.grace", 4)
    popen = start(*words, how="asleep")
    wait_for(lambda: len(set(Path("hanging").read_text().split())) == 2)
    pids = {int(pid) for pid in Path("hanging").read_text().split()}
    assert popen.pid not in pids
    popen.terminate()
    assert ended(popen, 20)[0] == 143
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 5)
    goes_on_as_if_nothing_had_been()


def test_sigusr1_saves_and_changes_nothing(start):
    popen = start()
    reached = []
    for _ in range(3):
        popen.send_signal(signal.SIGUSR1)
        said = len(reached)
        wait_for(lambda said=said: Path("r/log").read_text().count("SIGUSR1: saved") > said)
        reached.append(Checkpoint(Path("r/checkpoints/last.safetensors")).updates)
    assert len(set(reached)) == 3  # the clock alone would have saved twice a second less often
    Path("how").unlink()
    out, said = popen.communicate(timeout=60)
    assert (popen.returncode, said) == (0, b"")
    assert out.count(b"SIGUSR1: saved after update") == 3
    goes_on_as_if_nothing_had_been()


def test_what_an_env_forks_is_ended_by_its_own_signals(own):
    """And they are not taken for ours."""
    command = [sys.executable, "-c", SCRIPT, "train", "ppo", "own:Forking", "--run-dir", "r"]
    done = subprocess.run([*command, *SETTINGS, "--quiet"], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_handlers_are_put_back(own):
    before = [signal.getsignal(number) for number in NAMED]
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        words = ["train", "ppo", "own:Env", "--run-dir", "r", *SETTINGS, "--quiet"]
        assert main(words) == 0
        assert [signal.getsignal(number) for number in NAMED] == [*before[:2], signal.SIG_IGN]
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGUSR1, before[2])


def test_a_training_from_python_installs_none(own):
    seen = []

    def look(state, rollout, metrics):
        seen.append([signal.getsignal(number) for number in NAMED])
        return True

    before = [signal.getsignal(number) for number in NAMED]
    algorithm = PPO(epochs=1, minibatch_size=8)
    train("CartPole-v1", algorithm, rollout=RolloutConfig(steps=8), callbacks=[look])
    assert seen == [before]
