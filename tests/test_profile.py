"""Where the time of a run goes, as `--run.profile` tells it."""

import json
import time

import gymnasium as gym
import pytest

from commands.command_line import succeeded
from commands.command_line import train as command_train
from proximo import PPO, EnvConfig, RolloutConfig, RunConfig, train
from proximo.engines.nonfinite import not_finite
from proximo.run.profile import PHASES


class Slow(gym.wrappers.TimeLimit):
    """CartPole, a millisecond a step."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"), 50)

    def step(self, action):
        time.sleep(0.001)
        return super().step(action)


def go(env=None, callbacks=(), run_dir=None, profile=True):
    return train(
        env or EnvConfig(id="CartPole-v1", num_envs=2),
        PPO(minibatch_size=64, epochs=2),
        rollout=RolloutConfig(steps=64),
        run_config=RunConfig(total_steps=1024, profile=profile, seed=3),
        run_dir=run_dir,
        callbacks=callbacks,
    )


def test_its_phases_add_up(tmp_path):
    report = go(run_dir=tmp_path / "run").result["profile"]
    assert set(report["phases"]) == set(PHASES)
    for share in ("share", "processor_share"):
        assert sum(phase[share] for phase in report["phases"].values()) == pytest.approx(1)
    each = sum(phase["microseconds_per_step"] for phase in report["phases"].values())
    assert each == pytest.approx(1e6 / report["steps_per_second"])
    assert report["reached"] == pytest.approx(report["phases"]["env"]["share"])
    assert report["ceiling"] * report["reached"] == pytest.approx(report["steps_per_second"])
    stored = json.loads((tmp_path / "run" / "result.json").read_text())["profile"]
    assert stored == report


def test_it_names_what_is_slow():
    assert go(Slow).result["profile"]["phases"]["env"]["share"] > 0.8

    def slow(state, rollout, metrics):
        time.sleep(0.1)

    assert go(callbacks=[slow]).result["profile"]["phases"]["callbacks"]["share"] > 0.5


def test_it_changes_no_bit(tmp_path):
    for name in ("with", "without"):
        go(run_dir=tmp_path / name, profile=name == "with")
    saved = [
        (tmp_path / name / "checkpoints" / "last.safetensors").read_bytes()
        for name in ("with", "without")
    ]
    assert saved[0] == saved[1]
    assert "profile" not in json.loads((tmp_path / "without" / "result.json").read_text())


def test_it_is_printed(tmp_path):
    done = succeeded(command_train("--run.profile", "--run-dir", tmp_path / "run"))
    for name in PHASES:
        assert f"  {name} " in done.out
    assert "the envs alone would run at" in done.out


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_all_checks_take_little_of_the_processor(tmp_path, monkeypatch, engine):
    """Under 1% on a quiet machine; here they may take some more."""
    looking = 0.0

    def timed(**numbers):  # in the torch engine, minibatch by minibatch
        nonlocal looking
        begin = time.perf_counter()
        found = not_finite(**numbers)
        looking += time.perf_counter() - begin
        return found

    monkeypatch.setattr("proximo.engines.base.not_finite", timed)
    agent = train(
        EnvConfig(id="CartPole-v1", num_envs=4, backend="sync"),
        PPO(minibatch_size=128, epochs=4),
        rollout=RolloutConfig(steps=128),
        run_config=RunConfig(total_steps=15_360, profile=True, engine=engine, threads=1),
        run_dir=tmp_path / "run",
    )
    report = agent.result["profile"]
    seconds = agent.result["steps"] / report["steps_per_second"]
    assert (looking > 0) == (engine == "torch")
    assert 0 < report["phases"]["checks"]["processor_share"] + looking / seconds < 0.03
