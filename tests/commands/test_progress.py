"""What is shown while an update is still being worked on."""

import io
import itertools
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from commands.command_line import ENV, succeeded, train, train_in
from proximo import collect
from proximo.commands import waiting
from proximo.commands.waiting import Patience
from proximo.run.display import CONTROL, Display, Lines, Panel


@pytest.mark.parametrize(
    "words",
    [
        ("--env.backend", "sync"),
        ("--env.backend", "workers", "--env.processes", "1"),
        ("--env.backend", "vector"),
        ("--rollout.episodes", "6"),
    ],
)
def test_it_moves_while_a_rollout_is_collected_and_changes_no_bit(here, monkeypatch, words):
    succeeded(train("--run-dir", "quiet", "--quiet", *words, steps=128))
    monkeypatch.setattr(Lines, "INTERVAL", 0)
    monkeypatch.setattr(collect, "REPORT_INTERVAL", 0)
    said = succeeded(train("--run-dir", "r", *words, steps=128)).out.splitlines()
    moves = [line for line in said if "  collecting" in line]
    steps = [int(line.split(" of ")[0].replace(",", "")) for line in moves]
    assert steps == sorted(steps)
    assert steps[0] == 0
    assert len(moves) >= 40
    assert re.search(r"  collecting  [\d,.]+ steps/s  [\d:]+ left$", moves[2])
    before = said.index(next(line for line in said if "  return " in line))
    assert said.index(moves[0]) < before
    last = "checkpoints/last.safetensors"
    assert (here / "r" / last).read_bytes() == (here / "quiet" / last).read_bytes()


def test_it_moves_while_episodes_are_evaluated(here, monkeypatch):
    monkeypatch.setattr(Lines, "INTERVAL", 0)
    evaluating = ("--run.eval-every", "1", "--run.eval-episodes", "3")
    for backend in ("sync", "workers"):
        words = ("--run-dir", backend, "--env.backend", backend, *evaluating)
        said = succeeded(train(*words, steps=64))
        for number in (1, 2, 3):
            assert f"64 of 64 steps  evaluating: episode {number} of 3" in said.out


def glances(monkeypatch, seconds):
    """When somebody is told, of envs that take so long for each step."""
    now, told, times = [0.0], [], []
    monkeypatch.setattr(collect.time, "perf_counter", lambda: now[0])
    real = np.ones((len(seconds), 8), bool)
    real[1] = False
    steps = SimpleNamespace(valid=real)
    glance = collect._ProgressClock(lambda steps, doing: told.append(steps), 1000, steps, None)
    following = 0
    for t, duration in enumerate(seconds):
        if t == following:
            following = glance(t)
            times.append(now[0])
        now[0] += duration
    return told, times


def test_envs_that_are_fast_are_seldom_interrupted(monkeypatch):
    told, _ = glances(monkeypatch, [1e-6] * 10_000)
    assert len(told) < 20
    assert told[:3] == [1000, 1008, 1040]


def test_envs_that_become_slow_are_looked_at_more_often(monkeypatch):
    _, times = glances(monkeypatch, [1e-4] * 2000 + [0.2] * 3000)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert max(gaps[-2000:]) < 1


def panel(width, **more):
    """A display in a terminal of this width, and what it writes there."""
    written = io.StringIO()
    console = Console(file=written, width=width, height=24, force_terminal=True, **more)
    return Display(CONTROL, 100_000, lambda text: None, Panel(console)), written


def lines_of(written):
    plain = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "\n", written.getvalue())
    return [line.rstrip() for line in plain.splitlines()]


@pytest.mark.parametrize("width", [60, 100])
def test_a_panel_fits_before_the_first_update_has_ended(width):
    live, written = panel(width, color_system=None)
    with live:
        live.move(2, "")
        live._due = 0
        time.sleep(0.02)
        live.move(1234, "")
    lines = lines_of(written)
    head = re.compile(r"1,234 of 100,000 steps  [\d,]+ steps/s  \d+:\d\d left$")
    assert any(map(head.search, lines)), lines
    assert "collecting what the first update learns from" in lines
    assert max(map(len, lines)) <= width


def test_long_evaluations_say_how_long(capsys, monkeypatch):
    patience = Patience()
    patience(0, 100)
    monkeypatch.setattr(Patience, "INTERVAL", 0)
    patience(0, 100)
    patience(50, 100)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "episode 1 of 100, 0:00 so far"
    assert second == "episode 51 of 100, 0:00 so far, 0:00 left"


def test_what_takes_long_before_training_is_said(here, monkeypatch):
    slow = "self.steps = 0\n        import time; time.sleep(0.3)\n"
    source = ENV.replace("self.steps = 0\n", slow)
    (here / "own_env.py").write_text(source)
    assert "takes long" not in succeeded(train("--run-dir", "s")).out
    monkeypatch.setattr(waiting, "SLOW", 0.1)
    said = succeeded(train_in("own_env:Env", "--run-dir", "r")).out
    assert said.startswith("making 2 envs and trying one takes long")
