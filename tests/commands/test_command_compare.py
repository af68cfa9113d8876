"""`proximo compare`: several algorithms with several seeds, side by side."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from commands.command_line import ENV, proximo, refusal, run_folders, succeeded
from proximo.commands.comparing import Run, steps_to, summarize, table
from proximo.insight.statistics import (
    bootstrap_interval,
    half_width,
    interquartile_mean,
    student,
)

pytest.importorskip("matplotlib", reason="pictures are an extra")

PNG = b"\x89PNG\r\n\x1a\n"


def run_of(seed, score, steps_to_threshold=None, seconds=1.0):
    return Run(
        algorithm="ppo",
        seed=seed,
        folder=f"runs/ppo-seed{seed}",
        score=score,
        evaluation={},
        total_steps=1000,
        steps=1000,
        steps_to_threshold=steps_to_threshold,
        seconds=seconds,
    )


def scores(*values):
    return np.array(values, float)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (4, 2.7764), (9, 2.2622), (11, 2.2010), (19, 2.0930), (29, 2.0452)],
)
def test_the_quantile_is_that_of_the_tables(freedom, quantile):
    assert student(freedom) == pytest.approx(quantile, rel=1e-3)


def test_the_interval_of_the_mean_is_that_of_student():
    # Mean 3, deviation sqrt(2.5), t 2.776 with 4 degrees of freedom.
    assert half_width(scores(1, 2, 3, 4, 5)) == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert half_width(scores(7, 7, 7)) == 0
    assert math.isnan(half_width(scores(7)))


@pytest.mark.parametrize(
    ("values", "mean"),
    [([5], 5), ([1, 2, 6], 3), ([100, 1, 2, 3], 2.5), ([4, 100, 2, -50, 3], 3), (range(8), 3.5)],
)
def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(values, mean):
    assert interquartile_mean(scores(*values)) == mean


def test_the_bootstrap_interval_is_the_same_every_time_and_holds_the_mean():
    values = scores(100, 200, 300, 400, 500)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert 100 <= low < 300 < high <= 500
    # It turns with the scores, and shrinks to nothing with their spread.
    assert bootstrap_interval(values / 100 + 7) == pytest.approx((low / 100 + 7, high / 100 + 7))
    assert bootstrap_interval(scores(7, 7, 7)) == (7, 7)
    assert all(map(math.isnan, bootstrap_interval(scores(7))))


def test_the_bootstrap_interval_of_two_scores_is_their_range():
    # A quarter of the resamples is twice the one, a quarter twice the other.
    assert bootstrap_interval(scores(1, 3)) == (1, 3)


def test_steps_to_the_threshold_are_those_of_the_first_row_that_reaches_it():
    means = [None, -5.0, 0.0, 8.0, 7.0, 9.0]
    rows = [{"steps": 64 * (i + 1), "evaluation": mean} for i, mean in enumerate(means)]
    rows[2:2] = [{"steps": 150}]
    assert steps_to(rows, 8) == 256
    assert steps_to(rows, 0) == 192
    assert steps_to(rows, 9.5) is None
    assert steps_to(rows, None) is None
    assert steps_to([], 8) is None


def test_the_table_of_hand_made_runs():
    reached = [None, 300, 100, None, 200]
    runs = [run_of(i, float(i), reached[i - 1], float(i)) for i in range(1, 6)]
    low, high = bootstrap_interval(scores(1, 2, 3, 4, 5))
    row = ["ppo", "3.00 ± 1.96", f"3.00 [{low:.2f}, {high:.2f}]", "200 (3 of 5)", "3.0"]
    assert table([summarize("ppo", runs)], 5, 8.0)[1] == row
    assert table([summarize("ppo", runs)], 5, None)[1] == [*row[:3], row[4]]


def test_the_table_of_one_run_and_of_none():
    one, none = summarize("ppo", [run_of(1, 7.0)]), summarize("a2c", [])
    head, *rows = table([one, none], 1, 475.0)
    assert head == ["algorithm", "mean score", "IQM", "steps to 475", "seconds a run"]
    assert rows == [
        ["ppo", "7.00", "7.00", "- (0 of 1)", "1.0"],
        ["a2c (0 of 1 runs)", "-", "-", "- (0 of 0)", "-"],
    ]


def compare(*words):
    return proximo("compare", *words, "--algorithms", "ppo", "--episodes", "2")


def test_two_seeds_in_two_processes(here):
    words = ("CartPole-v1", "--seeds", "2", "--processes", "2", "--total-steps", "1000")
    said = succeeded(compare(*words, "--threshold", "5", "--dir", "both")).out
    numbers = json.loads((here / "both/compare.json").read_text())
    for seed in (1, 2):
        config = (here / f"both/ppo-seed{seed}/config.toml").read_text()
        assert f"seed = {seed}\n" in config
        assert "minibatch_size = 250\n" in config, "not the preset"
        (run,) = (run for run in numbers["runs"] if run["seed"] == seed)
        assert f"ppo seed {seed}: score {run['score']:.2f} in {run['seconds']:.1f} s" in said
        assert run["steps"] == run["total_steps"] == 1000
        evaluation = proximo("eval", f"both/ppo-seed{seed}", "--episodes", "2", "--json")
        assert run["evaluation"] == json.loads(evaluation.out)
        assert run["steps_to_threshold"] in range(250, 1001, 250)
    assert numbers["failures"] == []
    (row,) = numbers["table"]
    assert row["mean"] == np.mean([run["score"] for run in numbers["runs"]])
    page = (here / "both/compare.md").read_text()
    cells = table([summarize("ppo", [Run(**run) for run in numbers["runs"]])], 2, 5.0)
    for line in cells:
        assert f"| {' | '.join(line)} |" in page
        assert all(cell in said for cell in line)
    assert "2 deterministic episodes" in page
    assert "seeds 1 to 2" in page
    assert (here / "both/compare.png").read_bytes()[:8] == PNG


def test_without_a_place_one_is_found_and_an_env_without_a_threshold_has_no_steps_to_it(
    here, own_env
):
    (here / "runs/compare-own_env-Env").mkdir(parents=True)
    said = succeeded(compare(own_env, "--seeds", "1", "--total-steps", "1024")).out
    assert (here / "runs/compare-own_env-Env-2/compare.png").is_file()
    assert "steps to" not in said
    assert " 10.00 " in said


STUCK = (
    ENV
    + '''

class Stuck(Env):
    """Stuck at the first step of the first run; well from then on."""

    def step(self, action):
        try:
            Path("stuck").touch(exist_ok=False)
        except FileExistsError:
            return super().step(action)
        raise RuntimeError("the motor is stuck")
'''
)


def test_a_run_that_fails_is_named_and_the_others_go_on(here):
    (here / "stuck_envs.py").write_text(STUCK)
    ended = compare("stuck_envs:Stuck", "--seeds", "2", "--total-steps", "1024", "--dir", "d")
    assert ended.code == 1
    assert "ppo seed 1 failed (train, exit code 2)" in ended.err
    assert "the motor is stuck" in ended.err
    assert "ppo seed 2: score 10.00" in ended.out
    assert "ppo (1 of 2 runs)" in ended.out
    page = (here / "d/compare.md").read_text()
    assert "| ppo (1 of 2 runs) | 10.00 | 10.00 |" in page
    assert "the motor is stuck" in page
    (failure,) = json.loads((here / "d/compare.json").read_text())["failures"]
    assert (failure["algorithm"], failure["seed"]) == ("ppo", 1)
    assert (here / "d/compare.png").is_file()


def test_where_every_run_fails_there_is_a_table_and_no_picture(here):
    (here / "stuck_envs.py").write_text(STUCK)
    ended = compare("stuck_envs:Stuck", "--seeds", "1", "--dir", "d")
    assert ended.code == 1
    assert "ppo (0 of 1 runs)" in ended.out
    assert "compare.png" not in (here / "d/compare.md").read_text()
    assert not (here / "d/compare.png").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals to a group of processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_the_runs_too(here, number):
    words = ["compare", "CartPole-v1", "--algorithms", "ppo", "--dir", "d", "--total-steps", "1e8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "proximo", *words],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not (here / "d/ppo-seed1/metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.1)
        process.send_signal(number)  # to it alone
        error = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number
        assert error == "stopped; the runs so far are in d\n"
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
        assert len(run_folders(here)) == 1
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["CartPole-v1", "--algorithms", "ppo,pppo"], "there is no algorithm 'pppo'"),
        (["CartPole-v1", "--algorithms", "ppo,ppo"], "name ppo only once"),
        (["CartPole-v1", "--algorithms", "ppo2,ppo"], "name ppo only once"),
        (["CartPole-v1", "--algorithms", "ppo,"], "there is no algorithm ''"),
        (["CartPole-v1"], "name the algorithms"),
        (["--algorithms", "ppo"], "name an env"),
        (["CartPole-v2", "--algorithms", "ppo"], "there is no env 'CartPole-v2'"),
        (["CartPole-v1", "--algorithms", "ppo", "--seeds", "0"], "--seeds is 0"),
        (["CartPole-v1", "--algorithms", "ppo", "--processes", "0"], "--processes is 0"),
        (["CartPole-v1", "--algorithms", "ppo", "--episodes", "-1"], "--episodes is -1"),
        (["CartPole-v1", "--algorithms", "ppo", "--total-steps", "0"], "--total-steps is 0"),
        (["CartPole-v1", "--algorithms", "ppo", "--threshold", "nan"], "--threshold is nan"),
        (["CartPole-v1", "--algorithms", "ppo", "--dir", "full"], "--dir is full"),
        (["CartPole-v1", "--algorithms", "ppo", "--dir", "full/file"], "--dir is full/file"),
        (["CartPole-v1", "--algorithms", "ppo", "--dir", "full/file/d"], "cannot be made"),
    ],
    ids=lambda part: " ".join(part[-2:]) if isinstance(part, list) else "",
)
def test_what_cannot_be_worked_with_is_refused_before_any_work(here, words, said):
    (here / "full").mkdir()
    (here / "full/file").touch()
    assert said in refusal(proximo("compare", *words))
    assert [path.name for path in here.rglob("*")] == ["full", "file"]


def test_without_matplotlib_it_is_refused_before_any_work(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "proximo[pictures]"' in refusal(compare("CartPole-v1"))
    assert list(here.iterdir()) == []
