"""Warnings of other libraries are shown once, in one line, in every verb and process."""

import subprocess
import sys

import pytest

from commands.command_line import ENV, SMALL

WARNING = """self.steps += 1
        import warnings
        warnings.warn(f"at {self.steps}\\nit is {self.steps / 7}", stacklevel=1)"""
NOISY = ENV.replace("self.steps += 1", WARNING)


def errors(*words):
    """What a command writes to stderr, by itself and in its processes."""
    command = [sys.executable, "-m", "proximo", *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr.splitlines()


def test_what_differs_in_numbers_alone_is_shown_once(here):
    (here / "noisy.py").write_text(NOISY)
    line = "proximo: warning: at 1 it is 0.14285714285714285 (noisy.py:"
    words = ["train", "ppo", "noisy:Env", *SMALL, "--total-steps", 128, "--run-dir", "r"]
    for verb in (
        words,
        ["eval", "r", "--env", "noisy:Env", "--episodes", 3],
        ["check", "noisy:Env"],
    ):
        (shown,) = errors(*verb)
        assert shown.startswith(line)


def test_a_deprecated_id_and_a_note_of_the_compiler(here):
    pytest.importorskip("mujoco")
    words = ["train", "ppo", "HalfCheetah-v4", *SMALL, "--total-steps", 64, "--net.hidden", 8]
    workers = ["--env.backend", "workers", "--env.processes", 2, "--run-dir", "w"]
    shown = errors(*words, "--run-dir", "r")
    assert sorted(errors(*words, *workers)) == sorted(shown)
    assert len(shown) == len(set(shown)) <= 2
    assert shown[0] == (
        "proximo: warning: The environment HalfCheetah-v4 is out of date. You should consider "
        "upgrading to version `v5`. (gymnasium)"
    )
    assert not (here / "MUJOCO_LOG.TXT").exists()
