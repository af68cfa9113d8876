"""Wrong envs are found before training, with value and remedy; right ones are left alone."""

import sys
import time
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from commands.command_line import here, own_env, proximo, refusal, result, succeeded, train_in
from proximo import PPO, EnvConfig, UsageError, train
from proximo.envs.base import SyncEnvs
from proximo.envs.check import check_env
from proximo.envs.make import make_env, make_envs
from proximo.envs.tensors import TensorEnvs
from proximo.envs.testing import probes
from proximo.envs.testing.puzzles import Cards
from proximo.envs.vector import VectorEnvs, check_vector
from proximo.envs.watch import Bounds
from proximo.loop import run_control
from proximo.run.config import Config, RolloutConfig, RunConfig
from proximo.run.control import make_session
from proximo.spaces import Observations

__all__ = ["here", "own_env"]

LONG = 20.0
"""Seconds, where the test is not to depend on the machine."""


class Right(gym.Env):
    """Episodes of ten steps; those below do one thing wrong."""

    observation_space = gym.spaces.Dict(
        place=gym.spaces.Box(-1, 1, (2,), np.float32),
        kind=gym.spaces.Discrete(3, start=1),
        bits=gym.spaces.MultiBinary(2),
        picture=gym.spaces.Box(0, 255, (6, 6, 1), np.uint8),
    )
    action_space = gym.spaces.Discrete(3, start=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.see(), {}

    def see(self):
        drawn = self.np_random
        return {
            "place": drawn.uniform(-1, 1, 2).astype(np.float32),
            "kind": drawn.integers(1, 4),
            "bits": drawn.integers(0, 2, 2).astype(np.int8),
            "picture": drawn.integers(0, 256, (6, 6, 1)).astype(np.uint8),
        }

    def step(self, action):
        assert self.action_space.contains(action)
        self.time += 1
        return self.see(), 1.0, self.time == 10, False, {}


def seeing(**parts):
    """An env that shows this where it should show something else, from the third step on."""

    class Wrong(Right):
        def see(self):
            return super().see() | (parts if self.time > 2 else {})

    return Wrong


def answering(change):
    """An env whose step returns something else, from the third step on."""

    class Wrong(Right):
        def step(self, action):
            answer = super().step(action)
            return change(*answer) if self.time > 2 else answer

    return Wrong


class OldReset(Right):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class NoSeed(Right):
    def reset(self):
        return super().reset()


class Refuses(Right):
    def step(self, action):
        if action == -1:
            raise ValueError("no such motor")
        return super().step(action)


class Once(Right):
    """Cannot be reset a second time."""

    time = None

    def reset(self, *, seed=None, options=None):
        if self.time is not None:
            raise RuntimeError("the socket is closed")
        return super().reset(seed=seed)


class Broken(Right):
    """Fails with all that is a property of the masks."""

    masks = None
    observation_space = gym.spaces.Dict(
        action_mask=gym.spaces.MultiBinary(3), place=gym.spaces.Box(-1, 1, (2,), np.float32)
    )

    def see(self):
        return {"action_mask": np.array(self.masks, np.int8), "place": np.zeros(2, np.float32)}


class NoneLegal(Broken):
    masks = (0, 0, 0)


class TooMany(Broken):
    observation_space = gym.spaces.Dict(
        action_mask=gym.spaces.MultiBinary(4), place=gym.spaces.Box(-1, 1, (2,), np.float32)
    )
    masks = (1, 1, 0, 1)


class TooFew(Broken):
    masks = (1, 1)


WRONG = {
    "shape": (seeing(place=np.zeros(3)), ["place", "(3,)", "(2,)"]),
    "lost key": (
        answering(lambda o, *rest: ({"place": o["place"]}, *rest)),
        ["without 'kind'", "step 2 of episode 0"],
    ),
    "words": (seeing(place=np.array(["a", "b"])), ["place", "a", "numbers"]),
    "none": (seeing(kind=None), ["kind", "None", "numbers"]),
    "nan": (seeing(place=np.array([0, np.nan])), ["nan", "step 2 of episode 0", "finite"]),
    "float64 beyond float32": (seeing(place=np.array([0, 1e39])), ["place", "1e+39", "3.4e38"]),
    "not a choice": (seeing(kind=0), ["kind", "0", "Discrete(3, start=1)"]),
    "half a choice": (seeing(kind=1.5), ["kind", "1.5", "fractions"]),
    "picture of fractions": (seeing(picture=np.full((6, 6, 1), 0.5)), ["picture", "float32"]),
    "picture beyond bytes": (seeing(picture=np.full((6, 6, 1), 256)), ["256", "0...255"]),
    "reward none": (answering(lambda o, r, *rest: (o, None, *rest)), ["reward", "None", "number"]),
    "reward array": (answering(lambda o, r, *rest: (o, np.ones(1), *rest)), ["array([1.])"]),
    "reward infinite": (answering(lambda o, r, *rest: (o, np.inf, *rest)), ["reward inf"]),
    "reward huge": (answering(lambda o, r, *rest: (o, 1e39, *rest)), ["reward 1e+39", "finite"]),
    "truncated none": (answering(lambda o, r, a, b, i: (o, r, a, None, i)), ["truncated", "None"]),
    "terminated array": (
        answering(lambda o, r, a, b, i: (o, r, np.array([a]), b, i)),
        ["terminated", "array([False])", "True or False"],
    ),
    "old step": (answering(lambda o, r, a, b, i: (o, r, a, i)), ["4 things", "0.26", "truncated"]),
    "a tuple": (
        answering(lambda o, *rest: ((o, {}), *rest)),
        ["a tuple (dict, dict)", "give the observation alone", "step 2 of episode 0"],
    ),
    "step of three": (answering(lambda *answer: answer[:3]), ["3 things", "terminated, truncated"]),
    "old reset": (OldReset, ["reset", "(observation, info)", "return observation, {}"]),
    "no seed": (NoSeed, ["reset takes no seed", "super().reset(seed=seed)"]),
    "refuses an action": (Refuses, ["the action -1", "Discrete(3, start=-1)", "no such motor"]),
    "reset fails": (Once, ["failed at its reset", "the socket is closed"]),
    "nothing legal": (NoneLegal, ["action_mask, [0 0 0], allows no action for step 0 of episode"]),
    "mask too long": (TooMany, ["action_mask", "4 entries", "3 things"]),
    "mask too short": (TooFew, ["action_mask", "(2,)", "(3,)"]),
}


@pytest.mark.parametrize(("env", "parts"), WRONG.values(), ids=WRONG)
def test_an_env_that_cannot_be_trained_in_is_refused_by_name_value_and_remedy(env, parts):
    with pytest.raises(UsageError) as caught:
        check_env(env(), seconds=LONG)
    message = str(caught.value)
    assert message.startswith(f"{env.__name__} cannot be trained in: ")
    for part in parts:
        assert part in message


class Unseeded(Right):
    def see(self):
        return super().see() | {"place": np.random.default_rng().uniform(-1, 1, 2)}


class Outlives(Right):
    """Its second step depends on how often it was reset."""

    resets = 0

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        return super().reset(seed=seed)

    def see(self):
        late = np.full(2, 1 / self.resets, np.float32)
        return super().see() | ({"place": late} if self.time == 1 else {})


class Roomless(Right):
    action_space = gym.spaces.Box(1, 1, (2,), np.float32)


class Endless(Right):
    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, False, False, {}


DOUBTFUL = {
    "out of bounds": (seeing(place=np.array([0, -3.0])), ["place[1] was -3", "-1 and 1"]),
    "time in seconds": (seeing(place=np.array([0, 1.7e9 + 0.2])), ["1700000000", "steps of 128"]),
    "bits": (seeing(bits=np.array([0, 2])), ["bits", "0 and 1"]),
    "flag as a number": (answering(lambda o, r, a, b, i: (o, r, a, 0, i)), ["truncated is 0"]),
    "info none": (answering(lambda o, r, a, b, i: (o, r, a, b, None)), ["info is None", "dict"]),
    "a key that the space lacks": (
        answering(lambda o, *rest: (o | {"speed": 3.0}, *rest)),
        ["the observation holds speed at step 2", "observation_space lacks"],
    ),
    "without room": (Roomless, ["the action space", "allows only one value"]),
    "unseeded": (Unseeded, ["reset with the same seed", "self.np_random"]),
    "not reset": (Outlives, ["another step 0 of the episode", "outlive"]),
    "endless": (Endless, ["no episode ended in the first 300 steps", "env.max_episode_steps"]),
}


@pytest.mark.parametrize(("env", "parts"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_is_doubtful_is_noted(env, parts):
    found = check_env(env(), seconds=LONG)
    text = "\n".join(found.notes)
    for part in parts:
        assert part in text
    assert found.replayable == (env not in (Unseeded, Outlives))
    assert found.within == ("bounds" not in text)


def test_an_endless_env_with_a_time_limit_is_in_order():
    limited = make_env(EnvConfig(max_episode_steps=400), Endless)
    assert check_env(limited, seconds=LONG).notes == []


RIGHT = [
    *("CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"),
    *("FrozenLake-v1", "Blackjack-v1", "Taxi-v4", "LunarLander-v3", "LunarLanderContinuous-v3"),
    *("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "InvertedPendulum-v5", "Reacher-v5"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_right_envs_get_no_note(name):
    env = make_env(EnvConfig(id=name))
    found = check_env(env, seconds=LONG)
    env.close()
    assert found.notes == []
    assert found.replayable
    assert found.steps > 3


PROBES = [
    *(
        lambda kind=kind, continuous=continuous: kind(continuous)
        for kind in (
            *(probes.ConstantValue, probes.ValueFromObservation, probes.DiscountedValue),
            *(probes.BestAction, probes.BestActionGivenObservation, probes.Remember),
        )
        for continuous in (False, True)
    ),
    *(
        lambda seen=seen, done=done, masks=masks: probes.Match(seen, done, masks)
        for seen in probes.Match.SEEN
        for done in probes.Match.DONE
        for masks in ((False, True) if done in ("discrete", "hybrid") else (False,))
    ),
    Right,
]


def test_probes_get_no_note():
    for maker in PROBES:
        assert check_env(maker(), seconds=LONG).notes == []


def test_a_slow_env_is_left_alone_after_its_first_step():
    class Slow(Right):
        def step(self, action):
            time.sleep(0.15)
            return super().step(action)

    assert check_env(Slow()).steps == 1


# Vector envs


class Vector(VectorEnv):
    """Three envs of five steps, in any mode; `how` says what is wrong with them."""

    num_envs = 3
    single_observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    single_action_space = gym.spaces.Discrete(2)

    def __init__(self, declared, does=None, how="", lib=np):
        self.metadata = {"autoreset_mode": declared}
        self.does, self.how, self.lib = does or declared, how, lib

    def _out(self, x):
        return x.copy() if self.lib is np else torch.from_numpy(x.copy())

    def reset(self, *, seed=None, options=None):
        if seed is not None and self.how != "unseeded":
            self.drawn = np.random.default_rng(seed)
        elif seed is not None:
            self.drawn = np.random.default_rng()
        which = np.ones(3, bool)
        if options and self.how != "all":
            which = np.asarray(options["reset_mask"])
        if not options:
            self.time, self.state = np.zeros(3, np.int64), np.zeros((3, 2), np.float32)
        if not (options and self.how == "deaf"):
            self._begin(which)
        self.done = np.zeros(3, bool)
        return self._out(self.state), {}

    def _begin(self, which):
        self.time[which] = 0
        self.state[which] = self.drawn.uniform(-1, 1, (int(which.sum()), 2))

    def step(self, action):
        before = self.done
        self.time += 1
        self.state[:] = self.drawn.uniform(-1, 1, (3, 2))
        reward, info = np.ones(3), {}
        over = self.time >= np.array([5, 6, 5])
        if self.does is AutoresetMode.NEXT_STEP:
            self._begin(before)
            reward[before], over = 0, over & ~before
        self.done = over
        if self.does is AutoresetMode.SAME_STEP and over.any():
            info["final_obs"] = self._out(self.state)
            self._begin(over if self.how != "kept" else np.zeros(3, bool))
            self.time[over] = 0
            if self.how == "lost":
                info = {}
        flags = [self._out(over), self._out(np.zeros(3, bool))]
        if self.how == "flags":
            flags[0] = self._out(over.astype(np.int64))
        if self.how == "reward":
            reward = reward[:, None]
        if self.how == "shape":
            self.state = np.zeros((3, 4), np.float32)
        if self.how == "bounds":
            self.state[1, 0] = 7
        return self._out(self.state), self._out(reward), *flags, info


def checked(envs):
    device = torch.device("cpu")
    envs = VectorEnvs(envs, 0) if envs.lib is np else TensorEnvs(envs, 0, device)
    return check_vector(envs, seconds=LONG)


LIBS = pytest.mark.parametrize("lib", [np, torch], ids=["numpy", "torch"])
NEXT, SAME, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


@LIBS
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_env_that_does_what_it_declares_is_in_order(mode, lib):
    found = checked(Vector(mode, lib=lib))
    assert found.notes == []
    assert found.episodes >= 2


@LIBS
@pytest.mark.parametrize(
    ("declared", "does", "how", "words"),
    [
        (NEXT, SAME, "", "declare autoreset_mode NextStep, but info has a final_obs"),
        (NEXT, SAME, "lost", "NextStep, but in the step after an end it gives a reward"),
        (NEXT, DISABLED, "", "NextStep, but in the step after an end .* ends again"),
        (SAME, NEXT, "", "SameStep, but info has no final_obs at step 4, where an episode ended"),
        (SAME, DISABLED, "", "SameStep, but info has no final_obs"),
        (SAME, SAME, "kept", "SameStep, but where an episode ends its observation is final_obs"),
        (DISABLED, SAME, "", "Disabled, but info has a final_obs"),
        (DISABLED, DISABLED, "all", "Disabled, but reset with a reset_mask moves envs that"),
        (DISABLED, DISABLED, "deaf", "Disabled, but reset with a reset_mask leaves the envs"),
        (NEXT, NEXT, "flags", r"terminated is int64 of shape \(3,\).*bools of shape \(3,\)"),
        (NEXT, NEXT, "reward", r"reward must be numbers of shape \(3,\)"),
        (NEXT, NEXT, "shape", r"shape \(4,\), but its observation_space says \(2,\)"),
    ],
)
def test_a_vector_env_that_does_something_else_is_refused(declared, does, how, words, lib):
    with pytest.raises(UsageError, match=f"Vector cannot be trained in: .*{words}"):
        checked(Vector(declared, does, how, lib))


def test_a_vector_env_that_cannot_be_reset_is_named():
    class Stuck(Vector):
        def reset(self, *, seed=None, options=None):
            raise RuntimeError("no such scene")

    with pytest.raises(UsageError, match=r"Stuck cannot be trained in: .*no such scene"):
        train(Stuck(NEXT), PPO(), total_steps=1024)


@LIBS
def test_notes_of_a_vector_env(lib):
    (note,) = checked(Vector(NEXT, how="unseeded", lib=lib)).notes
    assert "same seed gives other observations" in note
    (note,) = checked(Vector(NEXT, how="bounds", lib=lib)).notes
    assert "[0] was 7, outside" in note


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("masks", [False, True])
def test_gymnasiums_own_vector_envs_are_in_order(mode, masks):
    for maker in (lambda: gym.make("CartPole-v1"), lambda: probes.Match("dict", "hybrid", masks)):
        envs = VectorEnvs(SyncVectorEnv([maker] * 3, autoreset_mode=mode), 0)
        assert check_vector(envs, seconds=LONG).notes == []
        envs.close()
    envs = make_envs(EnvConfig(id="CartPole-v1", num_envs=4, backend="vector"), 0)
    assert check_vector(envs, seconds=LONG).notes == []


class Over(Right):
    """Where an episode has ended nothing is legal."""

    observation_space = Broken.observation_space

    def see(self):
        mask = np.full(3, self.time < 10, np.int8)
        return {"action_mask": mask, "place": np.zeros(2, np.float32)}


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name.lower())
def test_nothing_need_be_legal_where_an_episode_has_ended(mode):
    envs = SyncVectorEnv([Over] * 2, autoreset_mode=mode)
    rollout = RolloutConfig(steps=32)
    assert train(envs, PPO(minibatch_size=16), total_steps=64, rollout=rollout).result["episodes"]


@pytest.mark.parametrize("many", [SyncVectorEnv, partial(AsyncVectorEnv, context="spawn")])
@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name.lower())
def test_only_legal_actions_are_played_behind_the_end_of_an_episode(mode, many):
    """An illegal card is an error, and the mask behind an end is that of a new hand."""
    envs = many([Cards] * 2, autoreset_mode=mode)
    try:
        found = check_vector(VectorEnvs(envs, 0), seconds=LONG)
        assert found.notes == []
        assert found.episodes == (2 if mode is DISABLED else 4)
    finally:
        envs.close()


def test_a_mask_that_allows_nothing_is_named_with_its_env_and_step():
    class Late(Over):
        def see(self):
            return super().see() | ({"action_mask": np.zeros(3, np.int8)} if self.time == 4 else {})

    envs = SyncVectorEnv([Over, Late])
    words = r"action_mask, \[0 0 0\], allows no action for step 4 in env 1: one must be legal"
    with pytest.raises(UsageError, match=words):
        check_vector(VectorEnvs(envs, 0), seconds=LONG)


# Within a run


def same_weights(one, other):
    pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EnvConfig(id="CartPole-v1"),
        lambda: EnvConfig(id="CartPole-v1", backend="vector"),
        lambda: SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 4),
    ],
    ids=["sync", "vector", "given"],
)
def test_a_run_is_the_same_with_and_without_the_check(make, monkeypatch):
    def run():
        steps = RolloutConfig(steps=32)
        return train(make(), PPO(minibatch_size=32), total_steps=512, rollout=steps)

    checked = run()
    for kind in (SyncEnvs, VectorEnvs):
        monkeypatch.setattr(kind, "check", lambda self: None)
    assert same_weights(checked, run())


def run_of(one_env, **env):
    """One update of eight steps."""
    config = Config(
        algorithm=PPO(minibatch_size=8, epochs=1),
        rollout=RolloutConfig(steps=8),
        env=EnvConfig(num_envs=1, **env),
        run=RunConfig(total_steps=8),
    )
    return run_control(make_session(config, source=one_env))


def test_notes_stand_in_the_result():
    (doubt,) = run_of(seeing(place=np.array([0, -3.0]))).result["warnings"]
    assert doubt.startswith("the envs: at step 2 of episode 0, place[1] was -3")
    assert "warnings" not in run_of(Right).result


def test_the_check_can_be_left_out():
    made = []

    def maker():
        made.append(1)
        return Right()

    run_of(maker)
    assert len(made) == 2
    run_of(maker, check=False)
    assert len(made) == 3


def test_an_env_of_which_there_can_be_only_one_is_trained_in_unchecked():
    made = []

    def maker():
        if made:
            raise RuntimeError("the port is taken")
        made.append(1)
        return Right()

    assert run_of(maker).result["updates"] == 1


LATER = """
import gymnasium as gym
import numpy as np


class Later(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.time += 1
        seen = np.array([0, 5 if self.steps > 500 else 0], np.float32)
        return seen, 1.0, self.time == 10, False, {}
"""


def test_what_leaves_its_bounds_later_is_said_once(here):
    (here / "later.py").write_text(LATER)
    done = succeeded(train_in("later:Later", "--run-dir", "r", steps=64 * 48))
    assert done.out.count("outside the bounds") == 1
    (doubt,) = result("r")["warnings"]
    assert "after update 16, the observation[1] was 5, outside the bounds -1 and 1" in doubt
    assert doubt in (here / "r/log").read_text()


def test_looking_again_costs_less_than_a_thousandth():
    space = gym.spaces.Box(-1, 1, (17,), np.float32)
    bounds, rows = Bounds(Observations(space)), np.zeros((16, 17), np.float32)
    times = []
    for _ in range(5):
        begin = time.process_time()
        for _ in range(100):
            bounds.outside(rows)
        times.append((time.process_time() - begin) / 100)
    # An update of the fastest setting takes 7 ms, and every 16th is looked at.
    assert min(times) / 16 < 7e-3 / 1000


# The verb


def test_the_verb_says_what_it_saw(own_env):
    shown = succeeded(proximo("check", own_env)).out
    assert "observations  Box(-1.0, 1.0, (2,), float32), 2 numbers to the network" in shown
    assert "200 steps, 20 episodes" not in shown  # and some again
    assert "20 episodes to their end" in shown
    assert "nothing is wrong with it" in shown


def test_the_verb_names_what_is_doubtful_and_refuses_what_is_wrong(here):
    (here / "later.py").write_text(LATER.replace("> 500", "> 3"))
    shown = succeeded(proximo("check", "later:Later")).out
    assert "note          at step 3 of episode 0, the observation[1] was 5" in shown
    (here / "later.py").write_text(LATER.replace("1.0, self", "None, self").replace("Later", "L"))
    del sys.modules["later"]
    assert "its reward must be one number" in refusal(proximo("check", "later:L"))
    assert "--steps is 0" in refusal(proximo("check", "CartPole-v1", "--steps", "0"))
    assert "Did you mean CartPole-v1" in refusal(proximo("check", "CartPoll-v1"))


def test_the_verb_checks_vector_envs():
    shown = succeeded(proximo("check", "CartPole-v1", "--env.backend", "vector")).out
    assert "nothing is wrong with it" in shown
