"""Runs of earlier versions load, act and continue as they did in the version that wrote them.

fixtures/version-0.1 holds a run of each kind as version 0.1.0 left it: `control` (PPO with a
recurrent policy and every normaliser), `nested` (TRPO with Dict observations and Dict actions),
`sft`, `judge` (a reward model) and `tokens` (PPO with LoRA and a critic). The numbers below are
what that version did next.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from commands.command_line import continued, proximo
from proximo import load

OLD = Path(__file__).parent / "fixtures" / "version-0.1"


@pytest.fixture
def old(here, monkeypatch):
    shutil.copytree(OLD, here, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(here)
    yield here
    sys.modules.pop("dictenv", None)


def last(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_recurrent_run_with_every_normaliser_goes_on(old):
    continued(proximo("resume", "control", "--total-steps", "512", "--quiet"))
    row = last(old / "control")
    assert row["update"] == 4
    assert row["return_mean"] == pytest.approx(-1386.896293546784, rel=1e-5)
    assert row["value_loss"] == pytest.approx(0.7424812912940979, rel=1e-4)
    assert row["grad_norm"] == pytest.approx(3.6846742630004883, rel=1e-4)


def test_a_run_with_nested_spaces_goes_on(old):
    continued(
        proximo("resume", "nested", "--env", "dictenv:Sensors", "--total-steps", "512", "--quiet")
    )
    row = last(old / "nested")
    assert row["update"] == 4
    assert row["return_mean"] == pytest.approx(8.528666253984234, rel=1e-5)
    assert row["kl"] == pytest.approx(0.007951225154101849, rel=1e-3)


def test_a_policy_of_nested_spaces_acts_as_it_did(old):
    agent = load("nested")
    action = agent.act({"kind": 1, "speed": np.array([0.5, -2.0], np.float32), "bits": [1, 0]})
    assert action["gear"] == 2
    assert action["steer"] == pytest.approx([0.11679846], rel=1e-5)


def test_language_runs_go_on_and_score_as_they_did(old):
    pytest.importorskip("transformers")
    import dataclasses

    from proximo.language import TOKEN_PPO, Sampling, TrainingConfig, load_reward, ppo

    tuned = ppo(
        "sft",
        ["ab", "ba"] * 4,
        load_reward("judge"),
        updates=4,
        seed=5,
        sampling=Sampling(max_tokens=4),
        algorithm=dataclasses.replace(TOKEN_PPO, minibatch_size=4, epochs=2, learning_rate=1e-3),
        run=TrainingConfig(sequences=8, micro_batch=3),
        run_dir="tokens",
        lora_rank=2,
        critic="shared",
        resume=True,
    )
    assert [row["update"] for row in tuned.rows] == [1, 2, 3, 4]
    assert tuned.rows[-1]["score"] == pytest.approx(8.969421956688166, rel=1e-4)
    assert tuned.rows[-1]["value_loss"] == pytest.approx(208.5935516357422, rel=1e-3)
