"""A search: the same for any number of processes and after a kill, on seeds that it keeps apart."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="Optuna is an extra")

import proximo
from proximo import UsageError
from proximo.errors import TrainingError
from proximo.run.config import EVALUATION_SEED, from_tables, read_config
from proximo.run.monitors import TRAINING_EVALUATION_SEED
from proximo.run.presets import named_preset
from proximo.tuning.result import run_search
from proximo.tuning.search import Progress
from proximo.tuning.worker import Job, Outcome, work
from tuning.searches import begun, hasten, pretend, search_in


@pytest.fixture
def pretending(monkeypatch):
    """Jobs that are pretended, in the order in which they were given out."""
    jobs = []
    hasten(monkeypatch.setattr)

    def pretended(progress, job):
        jobs.append(job)
        time.sleep(random.random() / 100)
        return pretend(job)

    monkeypatch.setattr(Progress, "_work", pretended)
    return jobs


def run(search, processes=1):
    said = []
    return run_search(search, processes, said.append), said


def test_any_number_of_processes_makes_the_same_trials(tmp_path, pretending):
    for processes in (1, 4):
        run(search_in(tmp_path / str(processes), processes=processes), processes)
    one, four = (begun(tmp_path / str(processes)) for processes in (1, 4))
    assert one == four
    assert len(one) == 9
    assert "pruned" in [trial["state"] for trial in one]


def test_a_search_that_is_killed_goes_on_with_the_trials_that_it_would_have_made(
    tmp_path, pretending
):
    command = [sys.executable, Path(__file__).with_name("searches.py"), tmp_path / "killed", "5"]
    killed = subprocess.run(command, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    file = tmp_path / "killed" / "trials.jsonl"
    ended = begun(tmp_path / "killed")
    assert 0 < len(ended) <= 5
    with file.open("ab") as lines:
        lines.write(b'{"number":5,"origin":"sea')  # as if it was killed within a line
    run(search_in(tmp_path / "killed"))
    run(search_in(tmp_path / "whole"))
    assert begun(tmp_path / "killed") == begun(tmp_path / "whole")
    assert begun(tmp_path / "killed")[: len(ended)] == ended or len(ended) < 5


def test_more_trials_are_added(tmp_path, pretending):
    first, _ = run(search_in(tmp_path / "a", trials=4))
    more, said = run(search_in(tmp_path / "a", trials=7))
    whole, _ = run(search_in(tmp_path / "b", trials=7))
    assert begun(tmp_path / "a") == begun(tmp_path / "b")
    assert more.trials[:4] == first.trials
    assert not any(line.startswith("trial 3") for line in said)
    assert [t.settings for t in more.trials] == [t.settings for t in whole.trials]


def test_seeds_are_kept_apart(tmp_path, pretending):
    result, _ = run(search_in(tmp_path, trials=4, seeds=3, check_seeds=4))
    trials = [job for job in pretending if not job.folder]
    check = [job for job in pretending if job.folder]
    assert {job.evaluation_seed for job in check} == {EVALUATION_SEED}
    first = {job.evaluation_seed for job in trials}.pop()
    longest = max(job.episodes for job in pretending)
    for other in (EVALUATION_SEED, TRAINING_EVALUATION_SEED):
        assert abs(first - other) > 100 * longest
    assert {seed for job in trials for seed in job.seeds} == {1, 2, 3}
    assert not {seed for job in check for seed in job.seeds} & {1, 2, 3}
    best = max((t for t in result.trials[1:] if t.score is not None), key=lambda t: t.score)
    assert set(result.fresh) == {f"trial {best.number}", "defaults"}
    assert all(len(scores) == 4 for scores in result.fresh.values())


def test_what_was_given_is_not_searched(tmp_path, pretending):
    tables = {"algorithm": {"gamma": 0.9, "clip": [0.1, 0.3]}}
    search = search_in(tmp_path, settings=["algorithm.lam"], tables=tables, trials=3)
    names = {dimension.name for dimension in search.space}
    assert "algorithm.clip" in names
    assert not {"algorithm.lam", "algorithm.gamma"} & names
    result, _ = run(search)
    assert result.best.algorithm.gamma == 0.9
    assert {t.settings["algorithm.clip"] for t in result.trials} <= {0.1, 0.2, 0.3}


def test_the_best_settings_are_a_preset_that_trains(tmp_path, pretending):
    result, _ = run(search_in(tmp_path / "s", trials=13))
    best = max((t for t in result.trials if t.score is not None), key=lambda t: t.score)
    preset = named_preset(str(result.preset))
    config = from_tables(preset.tables)
    assert config.algorithm == result.best.algorithm
    assert config.net == result.best.net
    assert config.rollout == result.best.rollout
    assert preset.envs == ("CartPole-v1",)
    assert f"trial {best.number} of 13" in preset.source
    page = str(result)
    assert "## Checked on fresh seeds" in page
    assert "## Importance of the settings" in page
    assert (tmp_path / "s" / "trials.csv").read_text().count("\n") == 14


def test_a_search_with_another_plan_is_refused(tmp_path, pretending):
    run(search_in(tmp_path, trials=2))
    with pytest.raises(UsageError, match="another seeds"):
        run(search_in(tmp_path, trials=2, seeds=3))
    with pytest.raises(UsageError, match="another settings"):
        run(search_in(tmp_path, trials=2, seed=4))
    run(search_in(tmp_path, trials=2, processes=9))  # that is no part of the plan


def test_two_searches_in_one_folder_are_refused(tmp_path, pretending):
    first = search_in(tmp_path, trials=2)
    first.folder.open(first.plan)
    with pytest.raises(UsageError, match="another process"):
        run(search_in(tmp_path, trials=2))
    first.folder.close()


@pytest.mark.parametrize("line", [b"{}", b"[1]", b'{"number": 0, "origin": "x"}', b"\xff"])
def test_a_damaged_record_is_refused(tmp_path, pretending, line):
    run(search_in(tmp_path, trials=2))
    file = tmp_path / "trials.jsonl"
    file.write_bytes(line + b"\n" + file.read_bytes())
    with pytest.raises(UsageError, match=r"trials\.jsonl is damaged"):
        run(search_in(tmp_path, trials=2))


def test_trials_that_fail_are_recorded_and_the_search_goes_on(tmp_path, monkeypatch):
    def failing(progress, job):
        if job.folder or len(progress.trials) % 2:
            return pretend(job)
        return Outcome(curves=(), pruned=False, seconds=0.0, error="a number was not finite")

    monkeypatch.setattr(Progress, "_work", failing)
    result, said = run(search_in(tmp_path / "half", trials=6))
    assert [t.state for t in result.trials].count("failed") == 3
    assert any("failed: a number was not finite" in line for line in said)
    monkeypatch.setattr(
        Progress, "_work", lambda self, job: Outcome(curves=(), pruned=False, seconds=0, error="no")
    )
    with pytest.raises(TrainingError, match="no trial came to its end: no"):
        run(search_in(tmp_path / "none", trials=3))


def test_a_worker_trains_prunes_and_scores():
    base = search_in("nowhere").base
    config = proximo.run.config.to_toml(base)
    job = Job(config=config, seeds=(1, 2), episodes=2, evaluation_seed=5, evaluations=3)
    outcome = work(job)
    assert [len(curve) for curve in outcome.curves] == [3, 3]
    assert not outcome.pruned
    again = Job(**{**vars(job), "earlier": tuple(((900.0,) * 3,) * 2 for _ in range(5))})
    pruned = work(again)
    assert pruned.pruned
    assert pruned.curves == (outcome.curves[0][:2],)


def test_a_run_on_a_fresh_seed_goes_on_where_it_was_killed(tmp_path):
    config = proximo.run.config.to_toml(search_in("nowhere").base)
    job = Job(config=config, seeds=(9,), episodes=2, evaluation_seed=5, folder=str(tmp_path / "r"))
    first = work(job)
    assert read_config(tmp_path / "r" / "config.toml").run.seed == 9
    assert work(job).curves == first.curves


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"env": lambda: None}, "name it, as in 'CartPole-v1'"),
        ({"algorithm": "poo"}, "Did you mean ppo"),
        ({"trials": 0}, "tune.trials is 0: it must be at least 1"),
        ({"processes": 0}, "processes is 0: give at least 1"),
        ({"space": {"algorithm": {"gama": [1, 2]}}}, "Did you mean algorithm.gamma"),
        ({"settings": {"algorithm.gamma": 2}}, "algorithm.gamma is 2.0: it must be in [0, 1]"),
        ({"settings": {"run.log": ("tensorboard",)}}, "run.log is of a single run"),
        ({"env": "CartPoole-v1"}, "CartPole"),
        ({"preset": "lunarlander-trpo"}, "is for trpo, not ppo"),
    ],
)
def test_bad_arguments_are_refused_before_any_trial(tmp_path, pretending, arguments, said):
    with pytest.raises(UsageError) as refused:
        proximo.tune(**{"env": "CartPole-v1", "run_dir": tmp_path / "s", **arguments})
    assert said in str(refused.value)
    assert not pretending
    assert not (tmp_path / "s").exists()


def test_python_returns_what_the_search_found(tmp_path, pretending):
    lines = []
    result = proximo.tune(
        "CartPole-v1",
        "a2c",
        settings={"algorithm.gamma": 0.97},
        trials=4,
        total_steps=3000,
        run_dir=tmp_path / "s",
        say=lines.append,
    )
    assert result.best.algorithm.name == "a2c"
    assert result.best.algorithm.gamma == 0.97
    assert result.best.run.total_steps == 3000
    assert len(result.trials) == 4
    assert [t.origin for t in result.trials[:2]] == ["preset cartpole-a2c", "defaults"]
    assert sum(line.startswith("trial ") for line in lines) == 4
    assert json.loads((tmp_path / "s" / "tune.json").read_text())["plan"]["trials"] == 4
