"""kill -9 at any moment: the run goes on, from the last checkpoint that was complete."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from commands.command_line import SMALL, timeless
from proximo import EnvConfig, disk
from proximo.envs.compiled import obstacle
from proximo.run import checkpoint, keeping
from proximo.run.folder import RunFolder
from proximo.run.keeping import newest

LAST = "checkpoints/last.safetensors"
STEPS = 10**9


class Trainer:
    """Runs commands in a process apart, and kills them."""

    def __init__(self):
        command = [sys.executable, Path(__file__).parent / "training_child.py"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, bufsize=1, **pipes)

    def run(self, *words, kill_after=None, early=False):
        """How the command ended, and the last update of which a checkpoint was complete.

        kill_after: so many seconds after its first checkpoint, or early, after its beginning.
        """
        self.process.stdin.write(" ".join(words) + "\n")
        child = int(self.process.stdout.readline())
        if early:
            threading.Timer(kill_after, os.kill, (child, signal.SIGKILL)).start()
        self.process.stdout.readline()
        if kill_after and not early:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        code, saved = self.process.stdout.readline().split()
        return int(code), int(saved)

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


@pytest.fixture
def trainer():
    trainer = Trainer()
    yield trainer
    trainer.close()


OWN = f"native:{Path(__file__).parents[2] / 'examples' / 'catch.c'}"


@pytest.mark.parametrize(
    ("env", "kills"),
    [
        ("CartPole-v1", 10),
        pytest.param("CartPole-v1", 200, marks=pytest.mark.long),
        pytest.param(OWN, 20, marks=pytest.mark.long),
    ],
)
def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(here, trainer, env, kills):
    if text := obstacle(EnvConfig(id=env)):
        pytest.skip(text)
    chance = random.Random(kills)
    words = ["--preset", "none", "--run.keep-last", "3", "--quiet"]
    folder = RunFolder(here / "r")
    command = ["train", "ppo", env, *SMALL, *words, "--run-dir", "r"]
    command += ["--total-steps", str(STEPS)]
    reached = went_on = 0
    for number in range(kills):
        early = number % 4 == 0
        code, saved = trainer.run(*command, kill_after=chance.uniform(0.001, 0.3), early=early)
        assert code == -signal.SIGKILL
        if not (here / "r" / LAST).is_file():  # killed before there was a run
            assert saved == -1
            shutil.rmtree(here / "r", ignore_errors=True)
            continue
        reached, before = max(reached, saved), reached
        assert newest(folder, strict=True).updates >= reached
        went_on += saved > before
        command = ["resume", "r", "--env", env, "--quiet"]
    assert went_on >= kills / 2  # or it was not the saves that were killed
    assert folder.read_config().env.backend == "native"
    ends_as_if_it_had_never_stopped(trainer, env, words, (reached + 20) * 64)
    assert len(list((here / "r/checkpoints").glob("last*"))) == 3


def without_health(run):
    """Rows. Health judges by how much of a run is over, and r was to be far longer till now."""
    return [{key: x for key, x in row.items() if key != "health"} for row in timeless(run)]


def ends_as_if_it_had_never_stopped(trainer, env, words, steps):
    """The run r, which was killed, goes on to its end; a run of these settings is the same."""
    again = ["resume", "r", "--env", env, "--quiet", "--total-steps", str(steps)]
    assert trainer.run(*again)[0] == 0
    command = ["train", "ppo", env, *SMALL, *words, "--run-dir", "whole"]
    assert trainer.run(*command, "--total-steps", str(steps))[0] == 0
    assert without_health("r") == without_health("whole")
    mine, whole = (newest(RunFolder(name)) for name in ("r", "whole"))
    assert mine.updates == whole.updates
    for name, tensor in whole.tensors.items():
        assert tensor.equal(mine.tensors[name]), name


def test_neither_restarts_nor_processes_of_envs_change_a_bit(here, trainer):
    """Killed with its envs in 4, 2 and 1 processes; with 3 to its end. The other has none."""
    words = ["--preset", "none", "--env.num-envs", "4", "--quiet"]
    command = ["train", "ppo", "CartPole-v1", *SMALL, *words, "--total-steps", str(STEPS)]
    command += ["--env.backend", "workers", "--env.processes", "4", "--run-dir", "r"]
    config, reached = here / "r/config.toml", 0
    for processes in (2, 1, 3):
        code, saved = trainer.run(*command, kill_after=0.3)
        assert code == -signal.SIGKILL
        assert saved > reached
        text, reached = config.read_text(), saved
        config.write_text(re.sub(r"(?m)^processes = \d$", f"processes = {processes}", text))
        assert config.read_text() != text
        command = ["resume", "r", "--quiet"]
    ends_as_if_it_had_never_stopped(trainer, "CartPole-v1", words, (reached + 20) * 128)


class Killed(BaseException):
    """Stands for kill -9: nothing that handles errors handles it."""


CALLS = [
    *((os, name) for name in ("open", "fsync", "link", "replace", "unlink")),
    *((Path, name) for name in ("open", "unlink", "glob")),
    (shutil, "disk_usage"),
]


def killed_at(number, patch):
    """From now on the call of this number to the disk never comes back."""
    left = [number]

    def counting(call):
        def counted(*args, **kwargs):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return call(*args, **kwargs)

        return counted

    for place, name in CALLS:
        patch.setattr(place, name, counting(getattr(place, name)))


def save(folder, update, *, keep=3):
    start = newest(folder, strict=True)
    record = {**start.record, "updates": update}
    keeper = keeping.CheckpointManager(folder, keep, print, start)
    keeper.last(update, lambda path: checkpoint.write(path, start.tensors, record))


def kept(folder):
    names = sorted(path.stem for path in folder.path.glob("checkpoints/last*"))
    return {name: checkpoint.Checkpoint(folder.checkpoint(name)).updates for name in names}


def test_a_save_may_be_killed_before_any_of_its_steps(here, trained):
    steps = 0
    while True:
        shutil.copytree(trained, here / str(steps))
        folder = RunFolder(here / str(steps))
        for update in (9, 10, 11):
            save(folder, update)
        try:
            with pytest.MonkeyPatch.context() as patch:
                killed_at(steps, patch)
                save(folder, 12)
            break
        except Killed:
            pass
        assert newest(folder, strict=True).updates in (11, 12)
        assert sorted(kept(folder).values())[-2:] in ([10, 11], [11, 11], [11, 12])
        save(folder, 13)
        save(folder, 14)
        assert sorted(kept(folder).values())[-2:] == [13, 14]
        steps += 1
    assert kept(folder) == {"last": 12, "last-11": 11, "last-10": 10}
    assert steps > 8


def test_without_links_what_is_kept_is_a_copy(here, trained, monkeypatch):
    def refuse(*paths, **folders):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    shutil.copytree(trained, here / "r")
    save(RunFolder(here / "r"), 9, keep=2)
    assert kept(RunFolder(here / "r")) == {"last": 9, "last-8": 8}


def test_keeping_one_keeps_one(here, trained):
    shutil.copytree(trained, here / "r")
    save(RunFolder(here / "r"), 9, keep=1)
    assert kept(RunFolder(here / "r")) == {"last": 9}


def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_end(here, monkeypatch):
    done = []

    def noted(name, call):
        return lambda *args, **kw: (done.append((name, *map(str, args[-1:]))), call(*args, **kw))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    disk.replace(here / "file", b"content")
    assert [name for name, _ in done] == ["fsync", "replace", "fsync"]
    assert done[1] == ("replace", "file")
    assert (here / "file").read_bytes() == b"content"
    assert [path.name for path in here.iterdir()] == ["file"]
