"""A disk that fails stops no run: what it does not take waits, is said once, and comes later.

The disk fails by the system's own limit on the size of files, so that writing ends midway, as on a
full disk; other writers of this process are not touched as long as they write little.
"""

import errno
import io
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from commands.command_line import (
    SMALL,
    proximo,
    refusal,
    result,
    rows,
    succeeded,
    timeless,
    train,
    train_in,
)
from proximo import TrainingError, disk
from proximo import train as train_policy
from proximo.algorithms.ppo import PPO
from proximo.run import checkpoint
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import RolloutConfig, RunConfig
from proximo.run.folder import RunFolder
from proximo.run.keeping import newest

LAST = "checkpoints/last.safetensors"


@pytest.fixture
def limit():
    """Sets how large files can get; None: as large as ever."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def set_limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))

    yield set_limit
    set_limit(None)
    signal.signal(signal.SIGXFSZ, before)


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Save after every update."""
    monkeypatch.setattr(checkpoint, "SAVE_INTERVAL", 0)
    monkeypatch.setattr(checkpoint, "SAVE_SHARE", float("inf"))


def go(run_dir, *calls, updates=8, **settings):
    """A run of small updates; calls: (update, function), each called after that update."""

    def call(state, rollout, metrics):
        for update, function in calls:
            if state.updates == update:
                function()

    return train_policy(
        "CartPole-v1",
        PPO(epochs=1, minibatch_size=32),
        rollout=RolloutConfig(steps=32),
        run_config=RunConfig(total_steps=64 * updates, **settings),
        num_envs=2,
        run_dir=run_dir,
        callbacks=[call],
    )


def no_leftovers(run):
    return not list(run.rglob("*.partial"))


def test_a_disk_that_was_full_for_a_while_costs_nothing(here, limit, capsys):
    go("whole")
    agent = go("r", (3, lambda: limit(1500)), (6, lambda: limit(None)), save_every=4)
    assert timeless("r") == timeless("whole")
    assert (here / "r" / LAST).read_bytes() == (here / "whole" / LAST).read_bytes()
    assert no_leftovers(here / "r")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4  # of the numbered, the best, the last and the metrics: each once
    assert all("File too large" in line and "training goes on" in line for line in said)
    assert sum("metrics.jsonl" in line for line in said) == 1
    good = f"the last good checkpoint is {here}/r/checkpoints/last.safetensors, after update 2"
    assert sum(good in line for line in said) == 3
    assert [f"proximo: {doubt}" for doubt in agent.result["warnings"]] == said
    assert result("r")["warnings"] == agent.result["warnings"]


def test_while_the_disk_is_full_the_last_good_checkpoint_stays_whole(here, limit):
    seen = []

    def look():
        seen.append(newest(RunFolder("r"), strict=True).updates)
        assert no_leftovers(here / "r")

    go("r", (3, lambda: limit(1500)), (5, look), (6, lambda: limit(None)))
    assert seen == [2]


def test_an_end_that_cannot_be_saved_ends_badly_and_names_the_last_good_checkpoint(here, limit):
    with pytest.raises(TrainingError) as found:
        go("r", (5, lambda: limit(1500)))
    limit(None)
    message = str(found.value)
    assert "r/checkpoints/last.safetensors could not be written (File too large)" in message
    assert (
        f"the last good checkpoint is {here}/r/checkpoints/last.safetensors, after update 4"
        in message
    )
    assert Checkpoint(RunFolder("r").checkpoint("last")).updates == 4
    assert no_leftovers(here / "r")
    go("whole")
    succeeded(proximo("resume", "r", "--quiet"))
    assert timeless("r") == timeless("whole")


def test_a_best_that_cannot_be_written_does_not_hold_the_last_back(here, capsys):
    """And the last does not know of it, so that a run that goes on from there finds it again."""
    best, seen = here / "r/checkpoints/best.safetensors", []

    def block():
        best.unlink()
        (best / "in the way").mkdir(parents=True)

    def look():
        seen.append(Checkpoint(RunFolder("r").checkpoint("last")))

    def free():
        shutil.rmtree(best)

    calls = (2, block), (6, look), (6, free)
    agent = go("r", *calls, smoothing=1e-3, smoothed_from=0.0)  # so that every update is the best
    assert seen[0].updates == 5
    go("whole", smoothing=1e-3, smoothed_from=0.0)
    scores = [row["best"] for row in rows("whole")]
    assert scores == sorted(set(scores))
    assert seen[0].record["best"] == scores[0]  # block comes before the second is saved
    (said,) = capsys.readouterr().err.splitlines()
    assert "r/checkpoints/best.safetensors could not be written (Is a directory)" in said
    assert agent.result["warnings"] == [said.removeprefix("proximo: ")]
    for name in ("best", "last"):
        file = f"checkpoints/{name}.safetensors"
        assert (here / "r" / file).read_bytes() == (here / "whole" / file).read_bytes()


def test_an_end_whose_best_cannot_be_saved_ends_badly_and_has_its_last(here):
    (here / "r/checkpoints/best.safetensors/in the way").mkdir(parents=True)
    shutil.move(here / "r", here / "blocked")
    with pytest.raises(TrainingError, match=r"best\.safetensors could not be .* after update 8"):
        go("r", (1, lambda: shutil.copytree("blocked", "r", dirs_exist_ok=True)))
    assert Checkpoint(RunFolder("r").checkpoint("last")).updates == 8


ENV = """
import resource

import gymnasium as gym
import numpy as np


class Filling(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        Filling.steps += 1
        if Filling.steps == 150:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
        return np.zeros(2, np.float32), 1.0, False, Filling.steps % 10 == 0, {}
"""


def test_the_command_ends_with_1_and_says_how_to_go_on(here, limit):
    (here / "filling.py").write_text(ENV)
    ended = train_in("filling:Filling", "--run-dir", "r", "--env.no-check")
    limit(None)
    assert ended.code == 1
    assert "Traceback" not in ended.err
    first, *_, last, advice = ended.err.splitlines()
    assert "training goes on" in first
    assert last.startswith(
        f"proximo: training has ended, but {here}/r/checkpoints/last.safetensors"
    )
    assert "proximo resume r" in advice


def test_a_disk_that_is_full_before_training_is_refused_and_nothing_is_left(here, limit):
    limit(100)
    message = refusal(train("--run-dir", "r"))
    assert "r/config.toml cannot be written: File too large" in message
    assert not (here / "r").exists()
    limit(4000)  # enough for all but a checkpoint
    (here / "here").mkdir()
    message = refusal(train("--run-dir", "here/all/r"))
    assert "all/r/checkpoints/update-0.safetensors cannot be written: File too large" in message
    assert list((here / "here").iterdir()) == []


def test_to_resume_on_a_full_disk_is_refused_and_changes_nothing(here, trained, limit):
    shutil.copytree(trained, here / "r")
    before = {path: path.read_bytes() for path in (here / "r").rglob("*") if path.is_file()}
    limit(100)
    message = refusal(proximo("resume", "r", "--total-steps", "640"))
    limit(None)
    assert "cannot be written: File too large" in message
    assert before == {path: path.read_bytes() for path in (here / "r").rglob("*") if path.is_file()}


def test_space_is_looked_at_before_anything_is_written(here, monkeypatch):
    (here / "file").write_bytes(b"old")
    usage = shutil.disk_usage(here)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="it takes 11 bytes, of which 10 are free") as found:
        disk.replace(here / "file", b"hello world")
    assert found.value.errno == errno.ENOSPC
    assert found.value.filename == str(here / "file")
    assert (here / "file").read_bytes() == b"old"
    assert [path.name for path in here.iterdir()] == ["file"]


def test_a_line_of_which_half_was_written_is_completed(here, limit):
    said = []
    lines = disk.Lines(here / "lines", said.append)
    lines.write(b"first\n")
    limit(8)
    lines.write(b"second\n")
    lines.write(b"third\n")
    assert (here / "lines").read_bytes() == b"first\nse"
    assert len(said) == 1
    limit(None)
    lines.write(b"fourth\n")
    assert (here / "lines").read_bytes() == b"first\nsecond\nthird\nfourth\n"
    limit(30)
    lines.write(b"fifth\n")
    with pytest.raises(OSError, match="File too large"):
        lines.close()
    assert len(said) == 2


def test_lines_that_wait_are_bounded(here, limit, monkeypatch):
    monkeypatch.setattr(disk, "LONGEST_WAIT", 10)
    lines = disk.Lines(here / "lines", lambda text: None)
    limit(2)
    for number in range(9):
        lines.write(b"row %d\n" % number)
    limit(None)
    lines.close()
    assert (here / "lines").read_bytes() == b"row 0\nrow 1\n"


def test_a_log_that_cannot_be_written_is_said_once(here, capsys):
    folder = RunFolder(here)
    (here / "log").mkdir()
    folder.note("one")
    folder.note("two")
    assert capsys.readouterr().err.count("log cannot be written (Is a directory)") == 1


def test_a_last_checkpoint_that_was_taken_away_is_written_again(here, capsys):
    go("r", (3, (RunFolder("r").checkpoint("last")).unlink))
    assert Checkpoint(RunFolder("r").checkpoint("last")).updates == 8
    assert capsys.readouterr().err == ""


class Full(io.StringIO):
    """A stream whose disk is full."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_goes_wrong_cannot_be_said_either(here, limit, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Full())
        agent = go("r", (3, lambda: limit(1500)), (6, lambda: limit(None)))
    assert len(agent.result["warnings"]) == 3  # of the best, the last and the metrics


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_nobody_takes_stops_no_run(here):
    words = ["train", "ppo", "CartPole-v1", "--total-steps", "512", *SMALL, "--run-dir", "r"]
    with open("/dev/full", "w") as full:
        subprocess.run([sys.executable, "-m", "proximo", *words], stdout=full, check=True)
    assert result("r")["steps"] == 512


class Gone:
    """A display whose reader has gone."""

    shown = 0

    def show(self, row):
        self.shown += 1
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_display_that_fails_stops_no_run(here, capsys):
    from proximo.loop import run_control
    from proximo.run.config import from_tables
    from proximo.run.control import make_session

    display = Gone()
    config = from_tables({"env": {"id": "CartPole-v1"}, "run": {"total_steps": 4096}})
    agent = run_control(make_session(config, display=display))
    assert agent.result["steps"] == 4096
    assert display.shown == 1
    assert capsys.readouterr().err.count("progress cannot be shown") == 1
