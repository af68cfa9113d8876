"""`proximo resume`: exactly where it stopped, whatever stopped it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from commands.command_line import (
    ENV,
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

LAST = "checkpoints/last.safetensors"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
SIGNALS = pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)

SIGNALLING = (
    ENV
    + '''

import os
import signal


class Signalling(Env):
    """Sends the signals that the file `signals` names, as soon as it has taken so many steps."""

    def step(self, action):
        plan = Path("signals")
        if plan.exists() and self.steps >= int(plan.read_text().split()[0]):
            numbers = plan.read_text().split()[1:]
            plan.unlink()
            for number in numbers:
                os.kill(os.getpid(), int(number))
        return super().step(action)
'''
)


@pytest.fixture
def run(here, trained):
    """A finished run of 512 steps, to be changed at will."""
    shutil.copytree(trained, here / "r")
    return here / "r"


@pytest.fixture
def signalling(here):
    """An env that sends signals: write their time and numbers into the file `signals`."""
    (here / "signalling.py").write_text(SIGNALLING)
    return "signalling:Signalling"


# Finished runs


def test_a_finished_run_says_so(run):
    before = (run / LAST).read_bytes()
    said = succeeded(proximo("resume", run)).out
    assert "is finished: 512 of 512 steps" in said
    assert "--total-steps" in said
    assert (run / LAST).read_bytes() == before


def test_a_finished_run_says_nothing_when_quiet(run):
    assert succeeded(proximo("resume", run, "--quiet")).out == ""


def test_fewer_steps_than_were_done_are_finished_too(run):
    assert "is finished" in succeeded(proximo("resume", run, "--total-steps", "256")).out


def test_a_run_that_reached_its_goal_is_finished_until_it_is_given_more_steps(here):
    succeeded(train("--run-dir", "r", "--stop-at", "5", "--quiet", steps=6400))
    steps = result("r")["steps"]
    assert "--stop-at" in succeeded(proximo("resume", "r")).out
    assert result("r")["steps"] == steps


# Going on


def test_a_run_can_be_extended(run):
    said = succeeded(proximo("resume", run, "--total-steps", "768")).out
    assert "after update 8" in said
    assert [row["update"] for row in rows(run)] == list(range(1, 13))
    assert (result(run)["steps"], result(run)["updates"]) == (768, 12)
    assert "total_steps = 768" in (run / "config.toml").read_text()


def test_extending_keeps_the_metrics_that_were_there(run, trained):
    succeeded(proximo("resume", run, "--total-steps", "576"))
    assert rows(run)[:8] == rows(trained)


def test_schedules_keep_the_horizon_that_they_began_with(run):
    succeeded(proximo("resume", run, "--total-steps", "640"))
    rates = [row["learning_rate"] for row in rows(run)]
    assert rates[7] == pytest.approx(1e-3 / 8)
    assert rates[8:] == [0, 0]  # linear to 0 at 512 steps, and not at 640


def test_an_extended_run_is_what_a_longer_run_would_have_been(here):
    succeeded(train("--run-dir", "long", "--quiet", steps=512))
    succeeded(train("--run-dir", "short", "--quiet", steps=192))
    succeeded(proximo("resume", "short", "--total-steps", "512", "--quiet"))
    assert timeless("short") == timeless("long")


def test_the_clock_goes_on_too(run):
    before = rows(run)[-1]["seconds"]
    succeeded(proximo("resume", run, "--total-steps", "576"))
    assert rows(run)[-1]["seconds"] > before


def test_metrics_past_the_checkpoint_are_cut(run, trained):
    late = {**rows(run)[-1], "update": 9, "steps": 576, "return_mean": -1000.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(late) + "\n" + json.dumps({**late, "update": 10}) + "\n")
    succeeded(proximo("resume", run, "--total-steps", "640"))
    assert [row["update"] for row in rows(run)] == list(range(1, 11))
    assert rows(run)[:8] == rows(trained)
    assert all(row["return_mean"] > 0 for row in rows(run))


@pytest.mark.parametrize("torn", ['{"update": 9, "ste', "{", '{"update": 9, "steps": 576}'])
def test_a_torn_last_line_of_metrics_is_cut(run, torn):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(torn)  # without the end of the line
    succeeded(proximo("resume", run, "--total-steps", "640"))
    assert [row["update"] for row in rows(run)] == list(range(1, 11))
    assert all("return_mean" in row for row in rows(run))


def test_a_run_whose_result_was_not_written_whole_goes_on(run):
    (run / "result.json").write_text('{"stopped_')
    assert "is finished" in succeeded(proximo("resume", run)).out
    succeeded(proximo("resume", run, "--total-steps", "576"))
    assert result(run)["steps"] == 576


def test_quiet_prints_nothing(run):
    assert succeeded(proximo("resume", run, "--total-steps", "576", "--quiet")).out == ""


def test_an_env_of_ones_own_needs_its_name_again(here, own_env):
    succeeded(train_in(own_env, "--run-dir", "r", "--quiet", steps=128))
    (here / "imported").unlink()
    del sys.modules["own_env"]

    message = refusal(proximo("resume", "r", "--total-steps", "256"))
    assert "proximo resume r" in message
    assert message.endswith(f"--env {own_env}")
    assert not (here / "imported").exists()
    assert result("r")["steps"] == 128

    succeeded(proximo("resume", "r", "--total-steps", "256", "--env", own_env))
    assert (here / "imported").exists()
    assert result("r")["steps"] == 256


# Signals


@SIGNALS
def test_a_signal_ends_training_after_the_update_and_the_run_can_go_on(here, signalling, number):
    (here / "signals").write_text(f"70 {int(number)}")  # in the third update
    stopped = train_in(signalling, "--run-dir", "r")
    assert stopped.code == CODES[number]
    assert stopped.err == "stopped after update 3; go on by: proximo resume r\n"
    assert [row["update"] for row in rows("r")] == [1, 2, 3]
    assert result("r")["updates"] == 3

    succeeded(proximo("resume", "r", "--env", signalling))
    assert result("r")["stopped_by"] == "total_steps"
    succeeded(train_in(signalling, "--run-dir", "whole"))
    assert timeless("r") == timeless("whole")
    assert (here / "r" / LAST).read_bytes() == (here / "whole" / LAST).read_bytes()


def test_the_result_of_a_run_that_was_interrupted_says_so(here, signalling):
    (here / "signals").write_text(f"70 {int(signal.SIGINT)}")
    train_in(signalling, "--run-dir", "r")
    assert result("r")["stopped_by"] not in ("total_steps", "stop_at", "callback")


def test_resuming_can_be_interrupted_as_well(here, signalling):
    plan = f"70 {int(signal.SIGINT)}"
    (here / "signals").write_text(plan)
    assert train_in(signalling, "--run-dir", "r").code == 130
    (here / "signals").write_text(plan)
    assert proximo("resume", "r", "--env", signalling).code == 130
    reached = result("r")["updates"]
    assert 3 < reached < 8
    assert [row["update"] for row in rows("r")] == list(range(1, reached + 1))


def test_a_second_signal_ends_training_at_once(here, signalling):
    (here / "signals").write_text(f"70 {int(signal.SIGINT)} {int(signal.SIGINT)}")
    stopped = train_in(signalling, "--run-dir", "r")
    assert stopped.code == 130
    assert "proximo resume r" in stopped.err
    assert "Traceback" not in stopped.err
    succeeded(proximo("resume", "r", "--env", signalling))
    assert [row["update"] for row in rows("r")] == list(range(1, 9))


def test_sigterm_may_come_twice_as_timeout_sends_it(here, signalling):
    (here / "signals").write_text(f"70 {int(signal.SIGTERM)} {int(signal.SIGTERM)}")
    stopped = train_in(signalling, "--run-dir", "r")
    assert stopped.code == 143
    assert stopped.err == "stopped after update 3; go on by: proximo resume r\n"


def test_sigterm_after_ctrl_c_ends_as_sigterm_does(here, signalling):
    (here / "signals").write_text(f"70 {int(signal.SIGINT)} {int(signal.SIGTERM)}")
    stopped = train_in(signalling, "--run-dir", "r")
    assert stopped.code == 143
    assert "stopped after update 3" in stopped.err


def test_two_signals_before_the_first_update_leave_no_run_and_no_advice_to_resume_it(
    here, signalling
):
    (here / "signals").write_text(f"10 {int(signal.SIGINT)} {int(signal.SIGINT)}")
    stopped = train_in(signalling, "--run-dir", "r")
    assert stopped.code == 130
    assert "Traceback" not in stopped.err
    assert not (here / "r").exists()
    assert "resume" not in stopped.err


@SIGNALS
def test_a_signal_from_outside_ends_a_real_process(here, number):
    command = [sys.executable, "-m", "proximo", "train", "ppo", "CartPole-v1", *SMALL]
    words = ["--total-steps", "1000000000", "--run-dir", "r"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    )
    try:
        metrics = here / "r/metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == CODES[number]
    assert b"Traceback" not in error
    done = result("r")["steps"]
    assert rows("r")[-1]["steps"] == done
    succeeded(proximo("resume", "r", "--total-steps", str(done + 64), "--quiet"))
    assert result("r")["steps"] == done + 64
