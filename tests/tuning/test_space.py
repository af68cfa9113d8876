"""The space of a search: what it holds for each algorithm, and that every point of it can train."""

import dataclasses
import re

import gymnasium as gym
import numpy as np
import pytest

from proximo.errors import UsageError
from proximo.run.config import ALGORITHMS, from_tables, to_tables
from proximo.run.presets import presets
from proximo.tuning.search import defaults
from proximo.tuning.space import Dimension, changed, configure, default_space, get, read_space

NUMBERS = gym.spaces.Box(-1, 1, (3,), np.float32)
IMAGE = gym.spaces.Box(0, 255, (48, 48, 3), np.uint8)
TASKS = {
    "discrete": (NUMBERS, gym.spaces.Discrete(2)),
    "continuous": (NUMBERS, gym.spaces.Box(-1, 1, (2,), np.float32)),
    "images": (IMAGE, gym.spaces.Discrete(2)),
}


def base_of(name, **tables):
    return from_tables({"algorithm": {"name": name}, "env": {"id": "CartPole-v1"}, **tables})


def space_of(base, task="discrete"):
    space, single = read_space(base, default_space(base, TASKS[task]), strict=False)
    assert single == {}
    return space


def drawn(space, generator):
    """A point, as a sampler could draw it."""
    point = {}
    for coordinate in (c for dimension in space for c in dimension.coordinates):
        low, high = coordinate.low, coordinate.high
        if coordinate.kind == "real":
            point[coordinate.name] = float(generator.uniform(low, high))
        else:
            point[coordinate.name] = int(generator.integers(low, high + 1))
    return point


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_point_can_train(name, task):
    base, generator = base_of(name), np.random.default_rng(0)
    space = space_of(base, task)
    for _ in range(4):
        point = drawn(space, generator)
        config = configure(base, {d.name: d.value(point) for d in space})
        config.check_samples(1)
        config.check_net(TASKS[task])
        config.check_lone(1)
        config.algorithm.check_used()
        updates = base.run.total_steps / (config.env.num_envs * config.rollout.steps)
        assert updates >= 10


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_value_and_its_place_are_inverse(name):
    space, generator = space_of(base_of(name), "continuous"), np.random.default_rng(1)
    for _ in range(4):
        point = drawn(space, generator)
        values = {d.name: d.value(point) for d in space}
        placed = {key: x for d in space for key, x in d.place(values[d.name]).items()}
        assert {d.name: d.value(placed) for d in space} == values


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_the_spaces_reach_every_preset(preset):
    base = from_tables({**preset.tables, "env": {**preset.tables["env"], "id": preset.envs[0]}})
    for dimension in space_of(base, "continuous"):
        for config in (base, defaults(base, ())):
            value = get(config, dimension.name)
            reached = dimension.reaching(value)
            point = reached.place(value)
            again = reached.value(point)
            text = str(value)
            if not text.startswith(("cosine", "linear")):
                assert again == value, dimension.name
            else:  # of a schedule its start, and that it falls
                assert text.startswith(str(again).rpartition(":")[0])


def test_what_has_no_effect_is_left_out():
    def names(name, task="discrete", **tables):
        return {dimension.name for dimension in space_of(base_of(name, **tables), task)}

    assert "net.log_std" in names("ppo", "continuous") - names("ppo")
    assert "algorithm.clip" in names("ppo") - names("trpo")
    assert "algorithm.max_kl" in names("trpo") - names("ppo")
    assert not {"algorithm.minibatch_size", "algorithm.epochs"} & names("a2c")
    assert not {"algorithm.lam", "algorithm.gamma"} <= names("reinforce")
    assert "net.trunk" in names("ppo", "images") - names("trpo", "images")
    episodes = names("reinforce", rollout={"episodes": 4})
    assert "rollout.episodes" in episodes
    assert "rollout.steps" not in episodes


def test_a_space_of_the_users_own():
    base = base_of("ppo")
    space, single = read_space(
        base,
        {
            "algorithm": {
                "gamma": [0.9, 0.99],
                "lam": 0.9,
                "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
                "epochs": {"low": 2, "high": 12},
                "target_kl": ["none", 0.05],
            },
            "net": {"hidden": [[16], [64, 64]]},
        },
        strict=True,
    )
    gamma, rate, epochs, kl, hidden = space
    assert single == {"algorithm.lam": 0.9}
    assert gamma.values == (0.9, 0.99)
    assert (rate.low, rate.high, rate.log) == (1e-4, 1e-2, True)
    assert epochs.value({"algorithm.epochs": 3.4}) == 3
    assert kl.values == (None, 0.05)
    assert hidden.values == ((16,), (64, 64))
    config = configure(base, {"algorithm.target_kl": None, "net.hidden": (16,)})
    assert config.net.hidden == (16,)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"algorithm": {"gama": [0.9]}}, "Did you mean algorithm.gamma"),
        ({"algorithm": {"max_kl": [0.1, 0.2]}}, "ppo has no setting algorithm.max_kl"),
        ({"algoritm": {"gamma": [0.9]}}, "Did you mean algorithm?"),
        ({"run": {"total_steps": [1, 2]}}, "no section 'run'"),
        ({"algorithm": {"gamma": [0.9, 1.5]}}, "algorithm.gamma is 1.5: it must be in [0, 1]"),
        ({"algorithm": {"gamma": {"low": 0.99, "high": 0.9}}}, "low below high"),
        ({"algorithm": {"gamma": {"lo": 0.9, "high": 0.99}}}, "Did you mean low"),
        ({"algorithm": {"entropy_coef": {"low": 0, "high": 1, "log": True}}}, "above 0"),
        (
            {"algorithm": {"clip": {"values": [0.1], "schedules": ["cosine"]}}},
            "constant and linear",
        ),
        ({"algorithm": {"gamma": []}}, "has no values"),
        ({"algorithm": 3}, "no section 'algorithm'"),
    ],
)
def test_a_space_that_does_not_fit_is_refused(tables, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        read_space(base_of("ppo"), tables, strict=True)


def test_schedules():
    rate = Dimension(name="x", low=1e-5, high=1.0, log=True, schedules=("constant", "linear"))
    falling = {"x": 0.01, "x.schedule": 1}
    assert rate.value(falling) == "linear:0.01:0.0"
    assert rate.place("linear:0.01:0.0") == falling
    assert rate.place(0.01) == {"x": 0.01, "x.schedule": 0}
    assert rate.place("cosine:0.01:0.0") == falling  # as near as the space comes
    assert rate.place(None) is None
    assert rate.place(0.0) is None


def test_changed_keeps_all_else():
    base = base_of("trpo", net={"normalize_obs": True})
    config = changed(base, {"algorithm.max_kl": 0.05})
    assert config.algorithm.max_kl == 0.05
    again = dataclasses.replace(config, algorithm=base.algorithm)
    assert to_tables(again) == to_tables(base)
