"""Compiled envs of one's own: crashes, hangs, NaN, a file that changed or does not compile."""

import shutil
import signal
import subprocess
import sys
import time
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
    wait_for,
)
from proximo.envs import compiled
from proximo.envs.base import episode_seed
from proximo.run import keeping

EXAMPLE = Path(__file__).parents[2] / "examples" / "catch.c"
NAME = "native:my_env.c"
pytestmark = pytest.mark.skipif(
    compiled.stepper()[0] is None or shutil.which("g++") is None,
    reason="there is no C++ compiler",
)
SETTINGS = [*SMALL, "--total-steps", "640", "--seed", "3", "--quiet"]
TARGET = episode_seed(3, 1, 20)
"""Seed of episode 20 of env 1. Each has nine steps, and an update 32: its fifth is in update 6."""
DEEP = """
static int deep(int n) {
  volatile char room[4096];
  room[0] = (char)n;
  return deep(n + 1) + room[0];
}
"""
TROUBLE = {
    "nothing": ";",
    "reward": "reward[i] = 0.0 / 0.0;",
    "observation": "obs[4 * i + 1] = (float)(1 / 0.0);",
    "crash": "*(volatile int*)0 = 1;",
    "recursion": "deep(0);",
    "abort": "abort();",
    "division": "raise(SIGFPE);",  # not every processor traps it
    "hang": 'if (access("hang", 0) == 0) { fclose(fopen("hanging", "w")); for (;;) usleep(1000); }',
}


@pytest.fixture(autouse=True)
def cache(here, monkeypatch):
    """Libraries of each test's own, and a checkpoint after every update."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(keeping, "SAVE_INTERVAL", 0)
    monkeypatch.setattr(keeping, "SAVE_SHARE", float("inf"))


def write(trouble, when=f"s->seed == {TARGET}u && s->row == 5", change=("", "")):
    """The example, which does this besides in one step."""
    seen = "    observe(s, obs + 4 * i);\n"
    places = {
        "#include <string.h>\n": "#include <signal.h>\n#include <stdio.h>\n#include <stdlib.h>\n"
        f"#include <string.h>\n#include <unistd.h>\n{DEEP}",
        "  int column,": "  uint64_t seed;\n  int column,",
        "  s->random = ": "  s->seed = seed;\n  s->random = ",
        seen: f"{seen}    if ({when}) {{ {TROUBLE[trouble]} }}\n",
    }
    text = EXAMPLE.read_text()
    for old, new in places.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    assert change[0] in text
    Path("my_env.c").write_text(text.replace(*change))


def go(run, *words):
    return proximo("train", "ppo", NAME, *SETTINGS, "--run-dir", run, *words)


def start(*words):
    """The run r, in a process of its own."""
    command = [sys.executable, "-m", "proximo", "train", "ppo", NAME, *SETTINGS, "--run-dir", "r"]
    return subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)


def resumed():
    return proximo("resume", "r", "--env", NAME, "--quiet")


def goes_on_once_it_is_mended():
    """To the same metrics and bytes as a run without the fault."""
    write("nothing")
    succeeded(resumed())
    succeeded(go("whole"))
    assert timeless("r") == timeless("whole")
    last = [Path(run, "checkpoints/last.safetensors").read_bytes() for run in ("r", "whole")]
    assert last[0] == last[1]


@pytest.mark.parametrize(
    ("trouble", "named"),
    [
        ("reward", "env 1 gave the reward nan at step 24 of update 6"),
        pytest.param(
            "observation",
            "env 1 gave the observation[1] = inf at step 24 of update 6",
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_is_not_finite_ends_the_run_before_it_is_learned_from(trouble, named):
    write(trouble)
    ended = go("r")
    assert ended.code == 1
    assert named in ended.err
    assert "Traceback" not in ended.err
    assert rows("r")[-1]["update"] == 5
    goes_on_once_it_is_mended()


@pytest.mark.parametrize(
    ("trouble", "number"),
    [
        ("crash", signal.SIGSEGV),
        pytest.param("recursion", signal.SIGSEGV, marks=pytest.mark.long),
        pytest.param("abort", signal.SIGABRT, marks=pytest.mark.long),
        pytest.param("division", signal.SIGFPE, marks=pytest.mark.long),
    ],
)
def test_a_crash_says_what_to_type_and_leaves_the_run_whole(trouble, number):
    write(trouble)
    crashed = start()
    said = crashed.communicate(timeout=60)[1]
    assert crashed.returncode == -number
    assert said == f"proximo: {compiled.CRASH.format(name=NAME)}\n"
    goes_on_once_it_is_mended()


@pytest.mark.long
def test_in_processes_of_its_own_a_crash_costs_one_episode():
    write("crash")
    assert go("r", "--env.backend", "workers", "--env.processes", "2").code == 0
    (doubt,) = result("r")["warnings"]
    assert f"env 1 failed after 4 steps of its episode 20 (seed {TARGET}): its process" in doubt
    assert "signal 11 (Segmentation fault)" in doubt
    write("nothing")
    succeeded(go("native"))
    assert timeless("r")[:5] == timeless("native")[:5]
    assert rows("r")[-1]["steps"] >= 640


@pytest.mark.long
def test_a_crash_before_training_is_refused_where_it_has_processes_of_its_own():
    write("crash", when="s->row == 3")
    said = refusal(go("r", "--env.backend", "workers"))
    assert "killed by signal 11 (Segmentation fault)" in said
    assert not Path("r").exists()


@pytest.mark.long
@pytest.mark.parametrize("how", ["sigterm", "ctrl-c twice"])
def test_an_env_that_hangs_is_left_and_the_run_goes_on_to_the_bit(how):
    write("hang")
    Path("hang").touch()
    hanging = start("--run.grace", "2" if how == "sigterm" else "60")
    wait_for(lambda: Path("hanging").exists())
    begun = time.monotonic()
    hanging.send_signal(signal.SIGTERM if how == "sigterm" else signal.SIGINT)
    if how != "sigterm":
        time.sleep(0.5)
        assert hanging.poll() is None
        hanging.send_signal(signal.SIGINT)
    said = hanging.communicate(timeout=40)[1]
    assert hanging.returncode == (143 if how == "sigterm" else 130)
    assert time.monotonic() - begun < 30
    assert "stopped at once; go on from its last checkpoint by: proximo resume r" in said
    goes_on_once_it_is_mended()


REFUSED = {
    "does not compile: my_env.c:": ("s->row++;", "s->row++"),
    "the action space is Discrete(2), but the policy was trained with Discrete(3)": (
        ".num_actions = 3",
        ".num_actions = 2",
    ),
    "the observation space is Box(0.0, 1.0, (2,)": (".obs_size = 4", ".obs_size = 2"),
}
FULL = 'trap "" XFSZ\nulimit -f 0\nexec g++ "$@"\n'
"""A compiler that finds no room on its disk."""


def test_a_run_stays_as_it_is_where_its_file_does_not_fit_or_cannot_be_compiled(here, monkeypatch):
    write("reward")
    assert go("r").code == 1  # within an episode
    before = contents()

    def refused(text):
        assert text in refusal(resumed())
        assert contents() == before

    for text, change in REFUSED.items():
        write("nothing", change=change)
        refused(text)
    Path("my_env.c").unlink()
    refused("native:my_env.c: there is no file my_env.c")
    write("nothing")
    Path("full.sh").write_text(FULL)
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler -O1")
        refused("no-such-compiler cannot be run (No such file or directory): name another one in")
        patch.setenv("CXX", f"sh {here / 'full.sh'}")
        refused("File too large")
        patch.delenv("CXX")
        patch.setenv("PATH", "")
        refused("my_env.c needs a C++ compiler: install g++")
    write("nothing", change=("s->column += s->drift;", "s->column = within(s->column + 1);"))
    assert resumed().code == 0
    said = "these envs cannot be brought back: new episodes begin in them"
    assert said in Path("r/log").read_text()
    assert rows("r")[-1]["update"] == 10


def contents():
    return {path: path.read_bytes() for path in Path("r").rglob("*") if path.is_file()}
