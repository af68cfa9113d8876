"""Streams that are closed, broken, full or ASCII: a verb does the same, with the same exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands.command_line import SMALL, proximo, refusal, result, succeeded, train
from proximo.commands.streams import standard_streams


def run(words, **streams):
    """A command of its own, to its end."""
    command = [sys.executable, "-m", "proximo", *map(str, words)]
    return subprocess.run(command, timeout=120, **streams)


def closed():
    for number in range(3):
        os.close(number)


def test_with_all_streams_closed_a_run_with_workers_is_the_same(here):
    words = ["train", "ppo", "CartPole-v1", *SMALL, "--total-steps", 512, "--run-dir", "r"]
    workers = ["--env.backend", "workers", "--env.processes", 2]
    assert run([*words, *workers], preexec_fn=closed).returncode == 0
    succeeded(train("--run-dir", "s", "--env.backend", "sync"))
    last = "checkpoints/last.safetensors"
    assert Path("r", last).read_bytes() == Path("s", last).read_bytes()
    assert result("r")["steps"] == 512


def test_a_reader_that_has_gone_changes_no_exit_code(here):
    """As `| head -1` leaves it, for a signal and for a refusal."""
    words = ["train", "ppo", "CartPole-v1", *SMALL, "--total-steps", 10**7, "--run-dir", "r"]
    popen = subprocess.Popen(
        [sys.executable, "-m", "proximo", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    popen.stdout.readline()
    popen.stdout.close()
    time.sleep(1)
    popen.send_signal(signal.SIGTERM)
    assert popen.wait(30) == 143
    assert result("r")["stopped_by"] == "interrupted"
    reader, writer = os.pipe()
    os.close(reader)
    assert run(["eval", "nothing"], stdout=writer, stderr=writer).returncode == 2
    os.close(writer)


@pytest.mark.parametrize("mode", ["pipe", "full", "ascii"])
def test_whatever_is_printed_to_never_fails(mode, tmp_path, monkeypatch):
    """In every way in which a verb, its packages and an env may print."""
    reader, writer = os.pipe()
    if mode == "pipe":
        os.close(reader)
    if mode == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    encoding = "ascii" if mode == "ascii" else "utf-8"
    stream = open(writer, "w", encoding=encoding)  # noqa: SIM115 closed below
    monkeypatch.setattr(sys, "stdout", stream)
    with standard_streams():
        print("5 ± 1, \udcff", flush=True)
        sys.stdout.write("again\n" * 20_000 if mode != "ascii" else "again\n")
        sys.stdout.flush()
        print("the last")
    assert sys.stdout is stream
    stream.close()
    if mode == "ascii":
        said = os.read(reader, 1000)
        assert said == b"5 \\xb1 1, \\udcff\nagain\nthe last\n"


def test_what_is_not_utf_8_is_refused(here):
    assert r"'r\udcff' is not UTF-8" in refusal(train("--run-dir", "r\udcff"))
    assert r"'r\udcff' is not UTF-8" in refusal(proximo("eval", "r\udcff"))
    place = here / "d\udcff"
    place.mkdir()
    os.chdir(place)
    assert "is not UTF-8" in refusal(train("--run-dir", "r"))


def test_a_folder_that_is_gone_is_refused(here):
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()
    try:
        assert "the current folder has been removed" in refusal(train())
    finally:
        os.chdir(here)


def test_an_empty_configuration_is_called_empty(here):
    Path("r").mkdir()
    for text in ("", "\n# nothing\n"):
        Path("r/config.toml").write_text(text)
        for words in (["resume", "r"], ["eval", "r"], ["play", "r"], ["lm", "resume", "r"]):
            assert "config.toml is empty" in refusal(proximo(*words))


def test_figures_need_no_backend(trained, tmp_path):
    """A notebook names its own, which need not be installed here."""
    out = tmp_path / "curves.png"
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = run(["plot", trained, "--out", out], env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert out.read_bytes().startswith(b"\x89PNG")
