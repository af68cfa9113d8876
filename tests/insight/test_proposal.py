"""Proposals: each setting for its reason, none without; the line means what it says."""

import math
import shlex

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from proximo.commands import running
from proximo.commands.arguments import flag_words
from proximo.commands.training import main as train_command
from proximo.envs.config import EnvConfig
from proximo.envs.make import in_step, make_env
from proximo.envs.survey import Column, Played, Survey
from proximo.envs.testing import probes, puzzles
from proximo.insight.proposal import BUDGET, duration, propose, with_speed
from proximo.run.presets import find_preset
from proximo.types import Episode

PLAIN = {"env.num_envs": 8, "algorithm.learning_rate": "linear:3e-4:0"}
CHOICES = {"algorithm.entropy_coef": 0.01}


class Shows(gym.Env):
    """An env of these spaces: nothing is played in it here."""

    def __init__(self, seen=None, acts=None):
        self.observation_space = seen or spaces.Box(-1, 1, (2,))
        self.action_space = acts or spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, True, False, {}


def column(name="x[0]", low=-1.0, high=1.0, mean=0.0, std=0.5, bounds=(-1, 1), bit=False):
    return Column(name, low, high, mean, std, bounds, bit)


def measured(**changes):
    """A survey in which nothing asks for a change."""
    episodes = tuple(Episode(5.0, n) for n in (9, 11, 12, 8, 10))
    parts = {
        "random": Played("random", episodes, 0, 2_000, 0.5, 0.1),
        "constants": (),
        "tried": 0,
        "rewards": np.tile([1.0, 0.5], 1_000),
        "end_rewards": np.ones(5),
        "returns": np.full(2_000, 3.0),
        "columns": (column(),),
        "hidden": "",
        "repeats": None,
        "agents": 1,
    }
    return Survey(**{**parts, **changes})


def proposal(survey=None, made=None, limit=200, env=None, **kwargs):
    envs = in_step([made or Shows()])
    config = env or EnvConfig(id="module:Env")
    return propose(config, envs, survey or measured(), None, limit=limit, **kwargs)


def settings(*args, **kwargs):
    return {s.name: s.value for s in proposal(*args, **kwargs).settings}


def test_what_nothing_speaks_for_stays_as_it_is():
    assert settings() == PLAIN | CHOICES


IMAGE = spaces.Box(0, 255, (64, 64, 3), np.uint8)
RULES = {
    "observations of small scale": (
        {"columns": (column(std=0.007), column(std=0.5))},
        {"net.normalize_obs": True},
    ),
    "observations of large scale": ({"columns": (column(std=40.0),)}, {"net.normalize_obs": True}),
    "observations far from 0": (
        {"columns": (column(mean=1e5, std=0.5),)},
        {"net.normalize_obs": True},
    ),
    "a bit that is rare, a number that stays": (
        {"columns": (column(std=0.05, bit=True), column(low=3, high=3, std=0.0, mean=3))},
        {},
    ),
    "large returns": ({"returns": np.full(9, -86.0)}, {"algorithm.normalize_reward": True}),
    "tiny returns": ({"returns": np.full(9, 0.01)}, {"algorithm.normalize_reward": True}),
    "no reward at all": (
        {"rewards": np.zeros(9), "end_rewards": np.zeros(5), "returns": np.zeros(9)},
        {},
    ),
    "the end is what pays": (
        {
            "rewards": np.array([*np.ones(95), *np.full(5, -100.0)]),
            "end_rewards": np.full(5, -100.0),
        },
        {"algorithm.gamma": 0.999},
    ),
    "hidden state": ({"hidden": "shown before"}, {"net.recurrent": "lstm"}),
}


@pytest.mark.parametrize(("changes", "expected"), RULES.values(), ids=RULES)
def test_a_measurement_speaks_for_a_setting(changes, expected):
    assert settings(measured(**changes), limit=1_000) == PLAIN | CHOICES | expected


@pytest.mark.parametrize(
    ("limit", "gamma"), [(100, None), (200, 0.995), (400, 0.9975), (1_000, 0.999), (9_000, 0.999)]
)
def test_a_discount_reaches_to_the_end_and_no_further(limit, gamma):
    ends = {"rewards": np.array([*np.zeros(95), *np.ones(5)]), "end_rewards": np.ones(5)}
    assert settings(measured(**ends), limit=limit).get("algorithm.gamma") == gamma


def test_actions_decide_on_exploration():
    def box(width):
        return settings(made=Shows(acts=spaces.Box(-width, width, (2,))))

    assert box(1) == PLAIN | {"net.log_std": -0.5}
    assert box(2) == PLAIN | {"net.log_std": round(math.log(2) - 0.5, 2)}
    assert box(400) == box(0.01) == PLAIN | {"net.action": "squash"}
    endless = Shows(acts=spaces.Box(-np.inf, np.inf, (2,)))
    assert settings(made=endless) == PLAIN
    assert "have no bounds" in proposal(made=endless).advice[0]
    hybrid = Shows(acts=spaces.Dict(a=spaces.Box(-1, 1, (1,)), b=spaces.Discrete(2)))
    assert settings(made=hybrid) == PLAIN | CHOICES | {"net.log_std": -0.5}


def test_images_get_the_settings_of_the_preset_for_them():
    found = settings(measured(columns=()), made=Shows(seen=IMAGE))
    tables = find_preset("ppo", "ALE/Pong-v5").tables
    preset = {f"{section}.{n}": x for section, table in tables.items() for n, x in table.items()}
    same = {"net.hidden", "net.trunk", "net.activation", "rollout.steps", "env.num_envs"}
    same |= {f"algorithm.{n}" for n in ("clip", "epochs", "minibatch_size", "learning_rate")}
    plain = {name: list(x) if isinstance(x, tuple) else x for name, x in found.items()}
    assert {name: plain[name] for name in same} == {name: preset[name] for name in same}


def test_no_end_in_sight_gets_a_limit_only_after_enough_steps():
    never = Played("random", (), 0, 2_000, 0.0, 0.1)
    found = settings(measured(random=never, end_rewards=np.empty(0)), limit=None)
    assert found["env.max_episode_steps"] == 10_000
    short = never._replace(steps=3)
    few = measured(random=short, end_rewards=np.empty(0))
    assert "env.max_episode_steps" not in settings(few, limit=None)


def test_what_the_user_gave_stays():
    env = EnvConfig(id="module:Env", num_envs=3, kwargs={"size": 5}, max_episode_steps=70)
    found = proposal(env=env)
    assert "env.num_envs" not in {s.name for s in found.settings}
    given = {"env.num_envs": 3, "env.kwargs": {"size": 5}, "env.max_episode_steps": 70}
    assert given.items() <= found.changes.items()


def test_masks_beside_the_observation_are_found():
    class Method(Shows):
        def action_masks(self):
            return np.array([1, 0])

    class Info(Shows):
        def reset(self, *, seed=None, options=None):
            return super().reset()[0], {"action_mask": np.array([1, 0], np.int8)}

    assert settings(made=Method())["env.action_masks"] == "method"
    assert settings(made=Info())["env.action_masks"] == "info"


def test_a_preset_is_the_proposal():
    envs, env = in_step([make_env(EnvConfig(id="CartPole-v1"))]), EnvConfig(id="CartPole-v1")
    preset = find_preset("ppo", "CartPole-v1")
    found = propose(env, envs, measured(), preset, limit=500)
    assert found.settings == ()
    assert found.config().algorithm.epochs == 20
    assert with_speed(found, 1.0, 1.0, {}).settings == ()
    envs.close()


def test_speed_decides_on_budget_and_backend():
    fast = with_speed(proposal(), 10_000.0, 50_000.0, {})
    assert fast.settings[-1].value == BUDGET
    slow = with_speed(proposal(), None, 3.0, {"workers": 6.0, "vector": 9.0})
    assert slow.settings[-1].value == "workers"
    assert "46 hours here" in slow.advice[-1]
    assert (
        with_speed(proposal(), 10_000.0, 50_000.0, {"workers": 51_000.0}).settings == fast.settings
    )


def test_advice():
    def advice(**changes):
        return " ".join(proposal(measured(**changes), limit=None).advice)

    assert advice() == ""
    nothing = {"rewards": np.zeros(2_000), "returns": np.zeros(9)}
    assert "earned nothing in 2,000 steps" in advice(**nothing)
    rare = np.zeros(2_000)
    rare[:5] = 1
    assert "only 0.25%" in advice(rewards=rare)
    better = Played("always 1", (Episode(9.0, 10),) * 5, 0, 50, 0.9, 0.1)
    assert "always 1 earns 9, more than random" in advice(constants=(better,))
    same = Played("random", (Episode(5.0, 50),) * 5, 0, 2_000, 0.1, 0.1)
    assert "after exactly 50 steps" in advice(random=same)
    cut = {"random": same._replace(truncated=5), "rewards": np.full(2_000, -1.0)}
    assert "random play does not reach it" in advice(**cut)
    assert "never changed in random play: x[0]" in advice(columns=(column(low=1, high=1, std=0),))


ENVS = {
    "CartPole-v1": lambda: gym.make("CartPole-v1"),
    "module:Image": lambda: Shows(seen=IMAGE),
    "module:Wide": lambda: Shows(acts=spaces.Box(-9, 9, (2,))),
    "module:Hidden": puzzles.still_pendulum,
    "module:Hybrid": lambda: probes.Match("dict", "hybrid"),
}


@pytest.mark.parametrize("name", ENVS)
def test_the_line_trains_with_what_was_proposed(name, monkeypatch):
    """`proximo train`, given the words, has the very configuration that was tried."""
    seen = []
    monkeypatch.setattr(running, "begin", lambda config, *_, **__: seen.append(config) or 0)
    env = EnvConfig(id=name, kwargs={"a": 1, "deep": True})
    survey = measured(hidden="shown before", returns=np.full(9, 99.0), columns=(column(std=50.0),))
    if name == "module:Image":
        survey = measured(columns=())
    found = proposal(survey, made=ENVS[name](), env=env, refused=True)
    found = with_speed(found, 10_000.0, 50_000.0, {"workers": 90_000.0})
    words = [word for key, value in found.changes.items() for word in flag_words(key, value)]
    train_command(shlex.split(shlex.join(["ppo", name, *words])))
    assert seen == [found.config()]
    assert seen[0].env.backend == "workers"


def test_durations_are_words():
    assert [duration(x) for x in (0.25, 42, 130, 7_300)] == [
        *("0.25 seconds", "42 seconds", "2 minutes", "2 hours")
    ]
