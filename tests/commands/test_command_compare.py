"""`proximo compare`: several algorithms in one env or several, side by side."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from commands.command_line import ENV, SMALL, proximo, refusal, run_folders, succeeded, timeless
from proximo.commands import trials
from proximo.insight.statistics import improvement, interval, iqm, normalized
from proximo.run.children import Children, Ended

pytest.importorskip("matplotlib", reason="pictures are an extra")

PNG = b"\x89PNG\r\n\x1a\n"
FIGURES = ("compare", "aggregates", "profiles", "improvement")


@pytest.fixture
def inline(monkeypatch):
    """Runs are made in this process, one after the other; returns their lines."""
    lines = []

    def run(self, *words):
        lines.append(words)
        ended = proximo(*words)
        return Ended(words, ended.code, ended.out, ended.err)

    def run_all(children, tasks, processes, finished):
        for task in tasks:
            finished(task())

    monkeypatch.setattr(Children, "run", run)
    monkeypatch.setattr(trials, "run_all", run_all)
    return lines


def numbers(place):
    return json.loads((place / "compare.json").read_text("utf-8"))


def without_times(record):
    """A record without what depends on how fast the machine is."""
    runs = [{k: v for k, v in run.items() if k != "seconds"} for run in record["runs"]]
    table = [{k: v for k, v in row.items() if k != "seconds"} for row in record["table"]]
    return record | {"runs": runs, "table": table, "processes": None}


def compare(*words):
    return proximo("compare", *words, "--algorithms", "ppo", "--episodes", "2")


LINE = ("CartPole-v1", "--seeds", "2", "--total-steps", "1000", "--threshold", "5")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A comparison of two seeds in two processes at a time, and what it printed."""
    place = tmp_path_factory.mktemp("both") / "d"
    return place, succeeded(compare(*LINE, "--processes", "2", "--dir", place)).out


def test_two_seeds_in_two_processes(both):
    place, said = both
    record = numbers(place)
    for seed in (1, 2):
        config = (place / f"ppo-seed{seed}/config.toml").read_text()
        assert f"seed = {seed}\n" in config
        assert "threads = 1\n" in config
        assert "minibatch_size = 250\n" in config, "not the preset"
        (run,) = (run for run in record["runs"] if run["seed"] == seed)
        assert f"ppo seed {seed}: score {run['score']:.2f} in {run['seconds']:.1f} s" in said
        assert run["steps"] == run["total_steps"] == 1000
        assert run["folder"] == f"ppo-seed{seed}"
        evaluation = proximo("eval", place / f"ppo-seed{seed}", "--episodes", "2", "--json")
        assert run["evaluation"] == json.loads(evaluation.out)
        assert run["steps_to_threshold"] in range(250, 1001, 250)
    assert record["failures"] == []
    (row,) = record["table"]
    assert row["mean"] == np.mean([run["score"] for run in record["runs"]])
    page = (place / "compare.md").read_text()
    mean = f"{row['mean']:.2f} ± {row['half_width']:.2f}"
    assert f"| ppo | {mean} |" in page
    assert mean in said
    assert "2 deterministic episodes" in page
    assert "seeds 1 to 2" in page
    assert "2 runs at a time" in page
    assert (place / "compare.png").read_bytes()[:8] == PNG
    # A single env needs no common scale.
    assert not (place / "aggregates.png").exists()


def test_any_number_of_processes_gives_the_same_bits(here, both, inline):
    place, _ = both
    succeeded(compare(*LINE, "--processes", "1", "--dir", "d"))
    assert without_times(numbers(here / "d")) == without_times(numbers(place))
    for seed in (1, 2):
        run = f"ppo-seed{seed}"
        assert timeless(here / "d" / run) == timeless(place / run)
        files = [p / run / "checkpoints/last.safetensors" for p in (here / "d", place)]
        tensors = [load_file(file) for file in files]
        assert tensors[0].keys() == tensors[1].keys()
        assert all((tensors[0][name] == tensors[1][name]).all() for name in tensors[0])
    # The figure has no date in it, and no order that depends on which run ended first.
    for kind in ("png", "svg", "pdf"):
        assert (here / f"d/compare.{kind}").read_bytes() == (place / f"compare.{kind}").read_bytes()


def test_without_a_place_one_is_found_and_an_env_without_a_threshold_has_no_steps_to_it(
    here, own_env, inline
):
    (here / "runs/compare-own_env-Env").mkdir(parents=True)
    said = succeeded(compare(own_env, "--seeds", "1", "--total-steps", "1024")).out
    assert (here / "runs/compare-own_env-Env-2/compare.png").is_file()
    assert "steps to" not in said
    assert " 10.00 " in said


def test_several_envs_have_a_common_scale(here, own_env, inline):
    (here / "scale.toml").write_text('"own_env:Env" = [5.0, 15.0]\n')
    words = [f"CartPole-v1,{own_env}", "--algorithms", "a2c,ppo", "--seeds", "2"]
    words += ["--total-steps", "256", "--episodes", "2", "--references", "scale.toml"]
    said = succeeded(proximo("compare", *words, "--dir", "d")).out
    record = numbers(here / "d")
    assert len(record["runs"]) == 8
    assert {run["folder"] for run in record["runs"]} >= {
        "CartPole-v1/a2c-seed1",
        "own_env-Env/ppo-seed2",
    }
    pole, own = record["references"]["CartPole-v1"], record["references"][own_env]
    assert (pole["high"], pole["source"]) == (475, "random policy, threshold")
    assert 15 < pole["low"] < 30  # steps that a random policy balances
    assert (own["low"], own["high"], own["source"]) == (5, 15, "given")
    scores = {
        name: [
            np.array(
                [r["score"] for r in record["runs"] if (r["env"], r["algorithm"]) == (e, name)]
            )
            for e in ("CartPole-v1", own_env)
        ]
        for name in ("a2c", "ppo")
    }
    for row in record["aggregates"]:
        pole_scores, own_scores = scores[row["algorithm"]]
        scaled = [normalized(pole_scores, pole["low"], 475), normalized(own_scores, 5, 15)]
        assert row["iqm"] == pytest.approx(float(iqm(scaled)))
        assert (row["iqm_low"], row["iqm_high"]) == pytest.approx(interval(iqm, scaled))
        assert f"{row['iqm']:.2f} [{row['iqm_low']:.2f}, {row['iqm_high']:.2f}]" in said
    (better,) = record["improvements"]
    assert better["p"] == improvement(scores[better["x"]], scores[better["y"]]) >= 0.5
    for name in FIGURES:
        assert (here / f"d/{name}.png").read_bytes()[:8] == PNG
        assert (here / f"d/{name}.pdf").read_bytes()[:5] == b"%PDF-"
        assert "<text" in (here / f"d/{name}.svg").read_text()
    rows = list(csv.DictReader((here / "d/runs.csv").read_text().splitlines()))
    assert [float(row["score"]) for row in rows] == [run["score"] for run in record["runs"]]
    assert {float(row["normalized_score"]) for row in rows if row["env"] == own_env} == {0.5}
    assert r"\toprule" in (here / "d/compare.tex").read_text()


def stop_after(monkeypatch, count):
    """Ctrl-C once so many runs have ended."""

    def run_all(children, tasks, processes, finished):
        for task in tasks[:count]:
            finished(task())
        raise KeyboardInterrupt(signal.SIGINT)

    monkeypatch.setattr(trials, "run_all", run_all)


def test_a_comparison_goes_on_where_it_was_stopped_and_grows(here, own_env, inline, monkeypatch):
    words = [own_env, "--total-steps", "256", "--dir", "d"]
    with monkeypatch.context() as stopped:
        stop_after(stopped, 1)
        ended = compare(*words, "--seeds", "2")
    assert ended.code == 128 + signal.SIGINT
    assert "the same line with --dir d goes on" in ended.err
    # What it left, and a run that has ended without a score.
    assert len(numbers(here / "d")["runs"]) == 1
    begun = ["--seed", "2", "--run-dir", "d/ppo-seed2", "--run.threads", "1", "--quiet"]
    begun += ["--run.eval-every", "1", "--run.eval-episodes", "10", "--total-steps", "256"]
    succeeded(proximo("train", "ppo", own_env, *begun, "--run.stop-at", "1"))
    inline.clear()
    succeeded(compare(*words, "--seeds", "2"))
    assert [line[:2] for line in inline] == [("resume", "d/ppo-seed2"), ("eval", "d/ppo-seed2")]
    inline.clear()
    said = succeeded(
        proximo("compare", *words, "--algorithms", "a2c", "--seeds", "1", "--episodes", "2")
    )
    assert {line[1] for line in inline} == {"a2c", "d/a2c-seed1", "d/a2c-seed2"}
    assert "ppo, a2c on own_env:Env, seeds 1 to 2" in said.out
    assert len(numbers(here / "d")["runs"]) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["CartPole-v1", "--total-steps", "2000"], "--total-steps is 2000, but 1000 in"),
        (["CartPole-v1"], "--total-steps is None, but 1000 in"),
        (["CartPole-v1", "--total-steps", "1000", "--threads", "2"], "--threads is 2, but 1 in"),
        (["Acrobot-v1", "--total-steps", "1000"], "ENV is Acrobot-v1, but CartPole-v1 in"),
    ],
)
def test_other_runs_do_not_mix_with_those_of_a_comparison(here, both, words, said):
    shutil.copytree(both[0], "d")
    before = (here / "d/compare.json").read_bytes()
    assert said in refusal(compare(*words, "--dir", "d"))
    assert (here / "d/compare.json").read_bytes() == before


# Runs that are there already


def test_tables_and_figures_are_made_again_without_training(here, both, inline):
    shutil.copytree(both[0], "moved")
    files = ("compare.md", "compare.tex", "compare.csv", "runs.csv", "compare.svg", "compare.json")
    for name in set(files) - {"compare.json"}:
        (here / "moved" / name).unlink()
    succeeded(proximo("compare", "--from", "moved"))
    assert inline == []
    for name in files:
        assert (here / "moved" / name).read_bytes() == (both[0] / name).read_bytes()


def test_the_record_alone_is_enough_for_the_tables(here, both, inline):
    (here / "d").mkdir()
    shutil.copy(both[0] / "compare.json", here / "d")
    succeeded(proximo("compare", "--from", "d"))
    assert (here / "d/compare.md").read_text().startswith("# ppo on CartPole-v1\n")
    assert (here / "d/compare.csv").read_bytes() == (both[0] / "compare.csv").read_bytes()
    assert not (here / "d/compare.png").exists()


def test_runs_of_train_are_compared_by_their_settings(here, trained, both, inline):
    shutil.copytree(trained, "runs/one")
    words = ["--total-steps", "128", *SMALL, "--algorithm.clip", "0.1", "--quiet"]
    succeeded(proximo("train", "ppo", "CartPole-v1", *words, "--run-dir", "runs/other"))
    succeeded(proximo("train", "ppo", "CartPole-v1", *words, "--run-dir", "runs/open"))
    (here / "runs/open/result.json").unlink()
    words = ["--from", "runs", both[0], "--dir", "d", "--episodes", "2"]
    ended = proximo("compare", *words)
    assert ended.code == 0
    assert "runs/open has not ended: it is left out" in ended.err
    assert [line[0] for line in inline] == ["eval", "eval"]
    record = numbers(here / "d")
    assert len(record["runs"]) == 4
    assert len(record["algorithms"]) == 3
    assert all(name.startswith("ppo, ") for name in record["algorithms"])
    assert record["threads"] is None
    page = (here / "d/compare.md").read_text()
    assert "Runs with the settings in their own folders" in page
    assert "return, last 100 episodes" in (here / "d/compare.svg").read_text()


def test_a_run_folder_imports_no_code_that_the_line_does_not_name(here, own_env, inline):
    words = ["--total-steps", "128", *SMALL, "--quiet"]
    succeeded(proximo("train", "ppo", own_env, *words, "--run-dir", "runs/own"))
    succeeded(proximo("train", "ppo", "CartPole-v1", *words, "--run-dir", "runs/pole"))
    (here / "imported").unlink()
    del sys.modules["own_env"]
    ended = proximo("compare", "--from", "runs", "--dir", "d", "--episodes", "2")
    assert ended.code == 1
    assert "ppo seed 0 on own_env:Env failed (eval, exit code 2)" in ended.err
    assert "--env own_env:Env" in ended.err
    assert not (here / "imported").exists()
    words = [f"CartPole-v1,{own_env}", "--from", "runs", "--dir", "e", "--episodes", "2"]
    succeeded(proximo("compare", *words))
    assert (here / "imported").exists()
    references = numbers(here / "e")["references"]
    # All of its episodes earn 10, random ones too.
    assert references[own_env] == {"low": 10, "high": 10, "source": "lowest run, highest run"}


@pytest.mark.parametrize(
    "change",
    [
        {"runs": [{}]},
        {"runs": 3},
        {"envs": None},
        {"seeds": "five"},
        {"thresholds": {"CartPole-v1": "high"}},
        {"given": {"CartPole-v1": [1]}},
        {"algorithms": ["a2c"]},
    ],
    ids=str,
)
def test_a_record_that_no_comparison_has_written_is_refused(here, both, change):
    (here / "d").mkdir()
    record = numbers(both[0]) | change
    (here / "d/compare.json").write_text(json.dumps(record))
    assert "compare.json is damaged" in refusal(proximo("compare", "--from", "d"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_torn_record_is_refused(here, text):
    (here / "d").mkdir()
    (here / "d/compare.json").write_text(text)
    assert "compare.json is damaged" in refusal(proximo("compare", "--from", "d"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"CartPole-v1" = [1]', "it needs lines such as"),
        ('"CartPole-v1" = 3', "it needs lines such as"),
        ('"CartPole-v1" = [500, 20]', "the lower one first"),
        ('"CartPole-v1" = [nan, 20]', "two finite numbers"),
        ("CartPole-v1 [", "it needs lines such as"),
    ],
)
def test_reference_scores_that_are_none_are_refused(here, text, said):
    (here / "r.toml").write_text(text)
    assert said in refusal(compare("CartPole-v1", "--references", "r.toml"))
    assert [path.name for path in here.iterdir()] == ["r.toml"]


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


def test_a_run_that_fails_is_named_and_the_others_go_on(here, inline):
    (here / "stuck_envs.py").write_text(STUCK)
    ended = compare("stuck_envs:Stuck", "--seeds", "2", "--total-steps", "1024", "--dir", "d")
    assert ended.code == 1
    assert "ppo seed 1 on stuck_envs:Stuck failed (train, exit code 2)" in ended.err
    assert "the motor is stuck" in ended.err
    assert "ppo seed 2: score 10.00" in ended.out
    assert "ppo (1 of 2 runs)" in ended.out
    page = (here / "d/compare.md").read_text()
    assert "| ppo (1 of 2 runs) | 10.00 | 10.00 |" in page
    assert "the motor is stuck" in page
    (failure,) = json.loads((here / "d/compare.json").read_text())["failures"]
    assert (failure["algorithm"], failure["seed"]) == ("ppo", 1)
    assert (here / "d/compare.png").is_file()


def test_where_every_run_fails_there_is_a_table_and_no_picture(here, inline):
    (here / "stuck_envs.py").write_text(STUCK)
    ended = compare("stuck_envs:Stuck", "--seeds", "1", "--dir", "d")
    assert ended.code == 1
    assert "ppo (0 of 1 runs)" in ended.out
    assert "compare.png" not in (here / "d/compare.md").read_text()
    assert not (here / "d/compare.png").exists()


def is_there(group):
    """Whether any process of this group is."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name != "posix", reason="signals to a group of processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_the_runs_too(here, number):
    words = ["compare", "CartPole-v1", "--algorithms", "ppo", "--dir", "d", "--total-steps", "1e8"]
    words += ["--processes", "2"]
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
        assert error == "stopped; the runs so far are in d: the same line with --dir d goes on\n"
        end = time.monotonic() + 30
        while time.monotonic() < end and is_there(process.pid):  # they are reaped a moment later
            time.sleep(0.1)
        assert not is_there(process.pid)
        assert len(run_folders(here)) in (1, 2)  # of the 5
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
        (["CartPole-v1", "--algorithms", "ppo", "--threads", "0"], "--threads is 0"),
        (["CartPole-v1", "--algorithms", "ppo", "--threshold", "nan"], "--threshold is nan"),
        (["CartPole-v1,CartPole-v1", "--algorithms", "ppo"], "name CartPole-v1 only once"),
        (["CartPole-v1,", "--algorithms", "ppo"], "no env is named"),
        (
            ["CartPole-v1,Acrobot-v1", "--algorithms", "ppo", "--threshold", "9"],
            "for one env, and there are 2",
        ),
        (["CartPole-v1", "--algorithms", "ppo", "--references", "none.toml"], "No such file"),
        (["--from", "nowhere"], "there is no such folder"),
        (["--from", "full"], "it holds no ended run"),
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
