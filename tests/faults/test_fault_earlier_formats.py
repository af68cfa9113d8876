"""Runs in the format of before the one loop load, act, evaluate and continue as they did then.

fixtures/version-0.2-dev holds a run of each kind: `control` (PPO, LSTM, gSDE and every normaliser),
`nested` (PPO with a KL penalty and a schedule, killed after its third update; Dict observations,
one of them privileged, and Dict actions), `qac` (two optimizers), `base` (fine-tuning), `scores` (a
reward model), `tokens` (PPO with LoRA and a critic) and `talk` (PPO with an environment of text, a
separate critic and an EMA reference). made.sh says how they were made; expected.json holds what
that code led to without a break.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from commands.command_line import proximo
from proximo import load

EARLIER = Path(__file__).parent / "fixtures" / "version-0.2-dev"
EXPECTED = json.loads((EARLIER / "expected.json").read_text())
ENV = ["--env", "dictenv:Sensors"]
TALK = ["--env", "textenv:Talk"]
RENAMED = {"gradient_steps_saved": "gradient_steps_skipped_by_kl"}
"""Metrics of then that have another name now."""


@pytest.fixture
def earlier(here, monkeypatch):
    shutil.copytree(EARLIER, here, dirs_exist_ok=True)
    shutil.copy(EARLIER.parent / "version-0.1" / "dictenv.py", here)
    monkeypatch.syspath_prepend(here)
    yield here
    for name in ("dictenv", "textenv"):
        sys.modules.pop(name, None)


def succeeded(outcome):
    """A command that did its work, and said no more than which settings have another name now."""
    assert outcome.code == 0, outcome.err
    assert all(" is now " in line for line in outcome.err.splitlines()), outcome.err
    return outcome


def near(number):
    return None if number is None else pytest.approx(number, rel=1e-4, abs=1e-6)


def check_end(run, name):
    """Last row, weights and the optimizer's moments are those of the run without a break."""
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    expected = EXPECTED[name]
    for metric, number in expected["row"].items():
        assert row[RENAMED.get(metric, metric)] == near(number), metric
    tensors = load_file(run / "checkpoints/last.safetensors")
    places = ("policy.", "reference.", "optimizer.")
    norms = [
        float(tensor.double().norm())
        for tensor_name, tensor in tensors.items()
        if tensor_name.startswith(places) and tensor.is_floating_point()
    ]
    assert sorted(norms) == near(expected["norms"])


@pytest.mark.parametrize(
    ("name", "steps", "more"),
    [("control", 2400, []), ("nested", None, ENV), ("qac", 200, [])],
)
def test_a_run_of_control_continues_as_if_without_a_break(earlier, name, steps, more):
    longer = ["--total-steps", str(steps)] if steps else []
    succeeded(proximo("resume", name, *longer, *more, "--quiet"))
    check_end(earlier / name, name)


@pytest.mark.parametrize(("name", "more"), [("control", []), ("nested", ENV), ("qac", [])])
def test_a_policy_scores_as_it_did(earlier, name, more):
    evaluated = json.loads(succeeded(proximo("eval", name, "--json", "--episodes", "4", *more)).out)
    expected = EXPECTED[name]["eval"]
    assert {key: evaluated[key] for key in expected} == {
        key: near(value) if isinstance(value, float) else value for key, value in expected.items()
    }


def test_policies_act_as_they_did(earlier):
    recurrent = load("control")
    seen = [np.array([np.cos(a), np.sin(a), a], np.float32) for a in (0.3, 1.0, 2.0)]
    acted = [float(recurrent.act(obs)[0]) for obs in seen]
    assert acted == near([action[0] for action in EXPECTED["control"]["acts"]])
    obs = {"kind": 1, "speed": np.array([0.5, -2.0], np.float32), "bits": [1, 0]}
    nested, expected = load("nested").act(obs), EXPECTED["nested"]["acts"]
    assert nested["gear"] == expected["gear"]
    assert nested["steer"] == near(expected["steer"])
    best = load("qac", "best")
    seen = np.array([[0.1, 0, -0.1, 0.2], [-0.1, 0, 0.1, -0.2]], np.float32)
    assert [int(best.act(obs)) for obs in seen] == EXPECTED["qac"]["acts"]


@pytest.mark.parametrize(
    ("name", "more"), [("base", []), ("scores", []), ("tokens", []), ("talk", TALK)]
)
def test_a_run_of_language_continues_as_if_without_a_break(earlier, name, more):
    pytest.importorskip("transformers")
    succeeded(proximo("lm", "resume", name, "--updates", "5", *more, "--quiet"))
    check_end(earlier / name, name)


def test_models_of_language_load(earlier):
    pytest.importorskip("transformers")
    from proximo.language import load_model, load_reward

    assert load_model("base").tokenizer("abc")["input_ids"]
    assert load_reward("scores").std > 0
    assert load_model("tokens").tokenizer("abc")["input_ids"]
