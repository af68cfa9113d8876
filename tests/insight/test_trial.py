"""The trial of a proposed line: a few updates, measured and thrown away."""

import pytest
import torch

from proximo.envs.config import EnvConfig
from proximo.insight.trial import other_backends, try_training
from proximo.run.config import Config, RolloutConfig

SMALL = Config(env=EnvConfig(id="CartPole-v1", num_envs=2), rollout=RolloutConfig(steps=64))


def test_training_is_measured_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.random.get_rng_state()
    speed = try_training(SMALL, 50_000.0, 1, 0.2)
    assert speed.steps_per_second > 0
    assert 0 < speed.env_share < 1
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not list(tmp_path.iterdir())


def test_an_env_that_is_too_slow_for_an_update_is_not_tried():
    assert try_training(SMALL, 3.0, 1, 2.0) is None


@pytest.mark.parametrize(
    ("settings", "step", "backends"),
    [
        ({}, 1e-5, {"vector"}),
        ({"wrappers": ("gymnasium.wrappers:ClipReward",)}, 1e-5, set()),
        ({"backend": "vector"}, 1e-5, set()),
        ({"id": "MountainCar-v0"}, 1e-5, set()),
    ],
)
def test_backends_that_may_be_faster_are_measured(settings, step, backends):
    env = EnvConfig(**{"id": "CartPole-v1", "num_envs": 2} | settings)
    found = other_backends(env, step, 0.05)
    assert found.keys() == backends
    assert all(speed > 0 for speed in found.values())
