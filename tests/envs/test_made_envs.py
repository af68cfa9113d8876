"""What is made is looked at: one line for what is no env, and nothing that an env lacks hurts."""

import sys
import types

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from commands.command_line import SMALL, here, proximo, refusal, succeeded
from envs.made_envs import Duck, Own, Raises
from proximo import PPO, EnvConfig, RolloutConfig, RunConfig, UsageError, train
from proximo.envs.check import check_env
from proximo.envs.layers import close_all
from proximo.envs.make import make_env

__all__ = ["here"]

QUICK = {"rollout": RolloutConfig(steps=32), "total_steps": 64, "num_envs": 2}


def learn(env, **settings):
    return train(env, PPO(epochs=1, minibatch_size=16), **{**QUICK, **settings})


class NoSpace(gym.Env):
    action_space = gym.spaces.Discrete(2)
    reset, step = Own.reset, Own.step


class OfAnotherPackage(Own):
    observation_space = types.SimpleNamespace(shape=(2,))


class NotYet(Own):
    @property
    def observation_space(self):
        raise RuntimeError("not connected yet")


class WrapsNothing(gym.Wrapper):
    def __init__(self, env):
        self.inside = env


class NoStep:
    reset = Own.reset


WRONG = {
    "nothing": (lambda: None, "<lambda> returned None: let it end with return, and the env"),
    "a class": (lambda: Own, r"<lambda> returned Own, a class: let it return an env, Own\(...\)"),
    "a number": (lambda: 3, "returned 3, of type int, which has no method reset and no method st"),
    "half": (NoStep, "of type NoStep, which has no method step: an env has both"),
    "a vector env": (lambda: SyncVectorEnv([Own]), "returned SyncVectorEnv, a vector env"),
    "no space": (NoSpace, "NoSpace has no observation_space: set it in its __init__"),
    "another space": (OfAnotherPackage, "is of type types.SimpleNamespace: give it one of gymnas"),
    "a space that fails": (NotYet, "NotYet failed at its observation_space: RuntimeError: not con"),
    "an empty wrapper": (lambda: WrapsNothing(Own()), "WrapsNothing wraps nothing: .*super"),
    "an instance": (Duck(), "cannot be made: it is .*of type Duck: name a class, or a function"),
}


@pytest.mark.parametrize(("maker", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_env_is_refused_where_it_is_made(maker, words):
    with pytest.raises(UsageError, match=words):
        learn(maker)
    with pytest.raises(UsageError, match=words):
        make_env(EnvConfig(check=False), maker)


def test_a_wrapper_that_returns_nothing_is_named(here):
    (here / "odd.py").write_text("def forgets(env):\n    pass\n")
    message = refusal(proximo("check", "CartPole-v1", "--env.wrappers", "odd:forgets"))
    assert "the wrapper odd:forgets returned None" in message


def test_envs_of_pettingzoo_that_act_in_turns_are_refused():
    pettingzoo = pytest.importorskip("pettingzoo")
    with pytest.raises(
        UsageError, match=r"a turn-based \(AEC\) env .* Return its parallel_env\(\)"
    ):
        learn(lambda: pettingzoo.make("aec", "classic/rps-v2"))
    assert "turn-based (AEC)" in refusal(proximo("check", "classic/tictactoe-v3"))


def test_an_id_that_a_module_does_not_register_by_itself(here):
    (here / "late").mkdir()
    (here / "late/__init__.py").write_text("from .gym import register_envs\n")
    (here / "late/gym.py").write_text(
        "import gymnasium\n\n\ndef register_envs():\n"
        "    gymnasium.register('Late/Env-v0', 'envs.made_envs:Own')\n"
    )
    (here / "my_envs.py").write_text("import late\n\nlate.register_envs()\n")
    try:
        message = refusal(proximo("check", "late:Late/Env-v0"))
        assert "importing late registers no env 'Late/Env-v0'" in message
        assert "calls late.gym.register_envs()" in message
        assert "name the env my_envs:Late/Env-v0" in message
        assert "as in module:Late/Env-v0" in refusal(proximo("check", "Late/Env-v0"))
        succeeded(proximo("check", "my_envs:Late/Env-v0", "--seconds", "1"))
    finally:
        gym.registry.pop("Late/Env-v0", None)


@pytest.mark.parametrize("name", ["envs/own.py:Own", "own.py:Own", "./own:Own"])
def test_the_path_of_a_file_is_no_module(here, name):
    said = refusal(proximo("check", name))
    assert f"{name.partition(':')[0]!r} is the path of a file: name the module" in said


class Odd(Own):
    """Attributes of its own under Gymnasium's names."""

    metadata = unwrapped = None
    np_random, spec, render_mode = "dice", {"joints": 6}, 5

    def __init__(self):
        pass

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(2, np.float32), {}


class OddSpec(Odd):
    metadata, spec = 3, "robot"


class FailingSpec(Odd):
    @property
    def spec(self):
        raise RuntimeError("not connected")


@pytest.mark.parametrize("env", [Odd, OddSpec, FailingSpec, Duck])
def test_attributes_under_other_names_or_none_are_an_envs_own_business(env):
    assert check_env(make_env(EnvConfig(), env)).notes == []
    evaluated = RunConfig(eval_every=1, eval_episodes=1)
    limited = EnvConfig(
        id=f"{__name__}:{env.__name__}", num_envs=2, max_episode_steps=4, wrappers=(WRAP,)
    )
    for given in (env, limited):
        settings = {"num_envs": None} if given is limited else {}
        assert learn(given, run_config=evaluated, **settings).result["episodes"] > 0


WRAP = "gymnasium.wrappers:RecordEpisodeStatistics"


def test_the_same_env_given_twice_is_seen_through_wrappers():
    one = Duck()
    for same in (lambda: one, lambda: gym.wrappers.TimeLimit(SAME, 5)):
        with pytest.raises(UsageError, match="the same env twice"):
            learn(same)


SAME = Own()


# Closing


@pytest.mark.parametrize("name", ["Duck", "Raises"])
def test_a_close_that_is_missing_or_fails_spoils_nothing(here, name):
    env = f"envs.made_envs:{name}"
    run = ("train", "ppo", env, *SMALL, "--total-steps", "128", "--quiet")
    for outcome in (
        proximo("check", env, "--seconds", "1"),
        proximo(*run, "--run-dir", "r", "--run.eval-every", "1", "--run.eval-episodes", "1"),
        proximo(*run, "--run-dir", "unchecked", "--env.no-check"),
        proximo("eval", "r", "--env", env, "--episodes", "2"),
        proximo("resume", "r", "--env", env, "--total-steps", "256", "--quiet"),
    ):
        assert outcome.code == 0, outcome.err
        words = f"{name} could not be closed: AttributeError: 'NoneType' object has no attribute"
        assert outcome.err.count("\n") == (name == "Raises")
        assert (words in outcome.err) == (name == "Raises")
    assert (here / "r/result.json").is_file()
    assert ("could not be closed" in (here / "r/log").read_text()) == (name == "Raises")


def test_others_are_closed_though_one_fails_or_leaves():
    closed = []

    class Leaves(Own):
        def close(self):
            closed.append(self)
            sys.exit(3)

    assert len(close_all([Leaves(), Raises(), Leaves()])) == 3
    assert len(closed) == 2


def test_a_refusal_is_one_line_though_closing_fails(here):
    (here / "odd.py").write_text(
        "from envs.made_envs import Raises\n\n\nclass Wrong(Raises):\n"
        "    def step(self, action):\n        return super().step(action)[:4]\n"
    )
    assert "4 things" in refusal(proximo("train", "ppo", "odd:Wrong", *SMALL, "--run-dir", "r"))
    assert "4 things" in refusal(proximo("check", "odd:Wrong"))


class Connected(Own):
    """One connection for all envs of a process, made by whoever is first."""

    connected = False

    def __init__(self):
        Connected.connected = True

    def step(self, action):
        assert Connected.connected, "not connected to the server"
        return super().step(action)

    def close(self):
        Connected.connected = False


class OnImport(Connected):
    """The same, made when its module is imported, and never again."""

    def __init__(self):
        pass


@pytest.mark.parametrize("env", [Connected, OnImport])
@pytest.mark.parametrize("envs", [1, 2])
def test_the_env_that_is_checked_is_closed_with_the_others(env, envs):
    Connected.connected = True
    run = RunConfig(eval_every=1, eval_episodes=1)
    assert learn(env, num_envs=envs, run_config=run).result["episodes"] > 0
    assert not Connected.connected


class Licensed(Own):
    """There can be two of them at a time."""

    left = 2

    def __init__(self):
        assert Licensed.left, "no licence is left"
        Licensed.left -= 1

    def close(self):
        Licensed.left += 1


def test_the_env_that_is_checked_is_the_one_of_evaluations():
    run = RunConfig(eval_every=1, eval_episodes=1)
    assert "evaluation" in learn(Licensed, num_envs=1, run_config=run).result
    assert Licensed.left == 2


class Counted(Own):
    made = 0

    def __init__(self):
        self.number = Counted.made
        Counted.made += 1

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return np.full_like(obs, self.number / 10), info


def test_checking_changes_no_env_that_is_learned_in():
    seen = []
    for check in (True, False):
        Counted.made = 0
        env = EnvConfig(id=f"{__name__}:Counted", num_envs=2, check=check)
        look = lambda state, rollout, metrics: seen.append(rollout.obs.numpy().copy())  # noqa: E731
        learn(env, num_envs=None, callbacks=[look])
    assert len(seen) == 2
    assert np.array_equal(*seen)


# Old interfaces, wherever they are met


class OldStep(Own):
    def step(self, action):
        return super().step(action)[:4]


class OldReset(Own):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [("OldStep", "truncated, info), but returned 4 things"), ("OldReset", "(observation, info)")],
)
def test_an_old_interface_is_named_in_training_unchecked_and_in_an_evaluation(here, name, words):
    env = f"{__name__}:{name}"
    assert words in refusal(
        proximo("train", "ppo", env, *SMALL, "--env.no-check", "--run-dir", "r")
    )
    succeeded(
        proximo(
            "train", "ppo", "envs.made_envs:Own", *SMALL, "--total-steps", "64", "--run-dir", "r"
        )
    )
    for verb in (("eval", "r"), ("play", "r", "--video", "r.gif")):
        assert words in refusal(proximo(*verb, "--env", env))
    assert not (here / "r.gif").exists()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_infos_as_a_list_are_refused(mode):
    def envs():
        return gym.wrappers.vector.DictInfoToList(SyncVectorEnv([Own, Own], autoreset_mode=mode))

    with pytest.raises(UsageError, match="info is a list, as the wrapper DictInfoToList makes it"):
        learn(envs(), num_envs=None)
