"""benchmarks/variants.py: every run can be made, none is made twice, and the table is of them."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import variants


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "LINES", tmp_path / "variants.jsonl")
    monkeypatch.setattr(variants, "PAGE", tmp_path / "variants.md")
    return tmp_path


def line(variant, task, seed, score):
    about = {"train_seconds": 2.0, "seconds": 3.0, "commit": "abc", "cpu": "one"}
    return {"variant": variant, "task": task, "seed": seed, "score": score, **about}


def test_every_variant_is_a_setting_that_can_be():
    jobs = variants.jobs_of(list(variants.VARIANTS), list(variants.TASKS), range(2))
    assert len(set(jobs)) == len(jobs) == 2 * (14 * 10 + 2)
    configs = {job: variants.configuration(*job) for job in jobs[: len(jobs) // 2]}
    for (variant, task, seed), config in configs.items():
        assert (config == configs["default", task, seed]) == (variant == "default")


def test_what_stands_there_is_left_out_and_what_is_torn_is_run_again(results, monkeypatch):
    task = "CartPole-v1"
    first = [json.dumps(line("default", task, seed, 100.0 * seed)) for seed in (1, 2)]
    variants.LINES.write_text("\n".join([*first, '{"variant": "SPO", "ta']))
    assert sorted(variants.stored()) == [("default", task, 1), ("default", task, 2)]

    class Pool:
        """Runs at once, here."""

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, run, job):
            return job

    ran = []

    def finished(jobs):
        for job in jobs:
            ran.append(job)
            yield type("Done", (), {"result": lambda job=job: line(*job, 300.0)})

    monkeypatch.setattr(variants, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(variants, "as_completed", finished)
    jobs = variants.jobs_of(["default", "SPO"], [task], range(1, 3))
    variants.train_all(jobs, 1)
    assert ran == [("SPO", task, 1), ("SPO", task, 2)]
    assert len(variants.stored()) == 4
    variants.train_all(jobs, 1)
    assert len(ran) == 2


def test_the_table_says_what_was_gained(results):
    runs = [
        line(variant, task, seed, low + (high - low) * share + seed)
        for variant, share in (("default", 0.4), ("SPO", 0.7))
        for task, (low, high) in (("CartPole-v1", (22, 500)), ("Acrobot-v1", (-500, -80)))
        for seed in range(4)
    ]
    variants.LINES.write_text("".join(json.dumps(x) + "\n" for x in runs))
    text = variants.page(variants.stored(), 10)
    (row,) = [x for x in text.splitlines() if x.startswith("| SPO | Xie")]
    cells = row.split(" | ")
    assert cells[2] == "2, 8"
    assert cells[4].startswith("+0.300 [+0.29")
    assert cells[5].startswith("1.000 [1.000")
    assert "x 1.00" in cells[6]
    assert "without 138 cells that have no run yet" in text
