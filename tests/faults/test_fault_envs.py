"""Envs that fail: refused before the first update, survived by the run after it."""

import re
import sys

import numpy as np
import pytest
import torch

from commands.command_line import proximo, refusal, rows, run_folders, succeeded, train_in
from proximo import PPO, EnvConfig, RolloutConfig, TrainingError, load, train

ENVS = '''
import gymnasium as gym
import numpy as np

VECTOR = gym.spaces.Box(-1, 1, (2,), np.float32)


class Failing(gym.Env):
    """Does what `how` says at step `at`, counted over its whole life; episodes last ten steps."""

    observation_space = VECTOR
    action_space = gym.spaces.Discrete(2)

    def __init__(self, how="", at=0):
        if how == "constructor":
            raise RuntimeError("no such port")
        self.how, self.at, self.steps = how, at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        if self.how == "reset" and self.steps >= self.at:
            raise RuntimeError("the motor is stuck")
        obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        if self.how == "nan at reset" and self.steps >= self.at:
            obs[1] = np.nan
        return obs, {}

    def step(self, action):
        obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        reward = 1.0
        if self.steps == self.at:
            if self.how == "raise":
                raise RuntimeError("the motor is stuck")
            if self.how == "nan observation":
                obs[0] = np.nan
            if self.how == "infinite observation":
                obs[0] = np.inf
            if self.how == "nan reward":
                reward = float("nan")
            if self.how == "wrong shape":
                obs = np.zeros(3, np.float32)
        self.steps += 1
        self.time += 1
        return obs, reward, self.time == 10, False, {}


class Words(Failing):
    observation_space = gym.spaces.Dict(position=VECTOR, order=gym.spaces.Text(9))


class Lists(Failing):
    observation_space = gym.spaces.Sequence(VECTOR)


class Spoken(Failing):
    action_space = gym.spaces.Text(9)


class WholeNumbers(Failing):
    action_space = gym.spaces.Box(0, 9, (2,), np.int64)


number = 3
'''


@pytest.fixture(autouse=True)
def _envs(here):
    (here / "failing.py").write_text(ENVS)


def fail(how, at, *words, run="r"):
    """Train for eight updates of 32 steps in each of two envs that fail at their step `at`."""
    settings = ("--env.kwargs", "how", how, "at", str(at), *words)
    return train_in("failing:Failing", "--run-dir", run, *settings)


# Before the first update


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("Words", "at order is Text(1, 9"),
        ("Lists", "Sequence(Box(-1.0, 1.0, (2,), float32)"),
        ("Spoken", "Text(1, 9"),
        ("WholeNumbers", "Box(0, 9, (2,), int64)"),
    ],
)
def test_a_space_that_is_not_supported_is_refused_by_name(here, name, space):
    message = refusal(train_in(f"failing:{name}", "--run-dir", "r"))
    assert message.startswith("proximo: ")
    assert space in message
    assert "supported" in message
    assert "Box" in message
    assert run_folders(here) == []


@pytest.mark.parametrize(
    ("how", "parts"),
    [
        ("constructor", ["failing:Failing", "cannot be made", "no such port"]),
        ("reset", ["RuntimeError", "the motor is stuck"]),
        ("raise", ["RuntimeError", "step 0 of episode 0", "the motor is stuck"]),
        ("nan observation", ["the observation[0] = nan", "step 0 of episode 0", "finite"]),
        ("infinite observation", ["the observation[0] = inf", "step 0 of episode 0", "finite"]),
        ("nan reward", ["reward nan", "step 0 of episode 0", "finite"]),
        ("nan at reset", ["the observation[1] = nan", "finite"]),
        ("wrong shape", ["(3,)", "(2,)", "Failing"]),
    ],
)
def test_an_env_that_fails_at_once_is_refused(here, how, parts):
    message = refusal(fail(how, 0))
    assert message.startswith("proximo: ")
    for part in parts:
        assert part in message
    assert run_folders(here) == []


def test_an_env_whose_first_observation_is_not_finite_is_not_said_to_fail_in_a_step(here):
    assert "reset" in refusal(fail("nan at reset", 0))


def test_an_env_that_fails_late_in_the_first_rollout_is_refused_as_well(here):
    assert "step 31 of update 1" in refusal(fail("nan reward", 31))
    assert run_folders(here) == []


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("failing:Fialing", "Failing"),
        ("failing:number", "cannot be made"),
        ("failing:", "failing"),
        (":Failing", "Failing"),
        ("broken:Env", "broken"),
        ("unfinished:Env", "unfinished"),
        ("crashing:Env", "no licence"),
    ],
)
def test_a_module_without_such_an_env_is_refused(here, name, part):
    (here / "broken.py").write_text("import a_package_that_nobody_has\n")
    (here / "unfinished.py").write_text("class Env(\n")
    (here / "crashing.py").write_text("raise RuntimeError('no licence')\n")
    message = refusal(train_in(name, "--run-dir", "r"))
    assert message.startswith("proximo: ")
    assert part in message
    assert "__builtins__" not in message
    assert run_folders(here) == []


# After the first update

LATE = pytest.mark.parametrize(
    ("how", "part"),
    [
        ("raise", "RuntimeError"),
        ("nan observation", "gave the observation["),
        ("nan reward", "gave the reward nan"),
        ("reset", "RuntimeError"),
    ],
)


@LATE
def test_an_env_that_fails_later_ends_the_run_with_code_1_and_a_short_message(how, part):
    failed = fail(how, 75)
    assert failed.code == 1
    assert failed.err.startswith("proximo: ")
    assert failed.err.count("\n") == 2
    assert "Traceback" not in failed.err + failed.out
    assert part in failed.err
    assert "of update 3" in failed.err


@LATE
def test_what_was_learned_until_then_is_kept(here, how, part):
    fail(how, 75)
    assert [row["update"] for row in rows("r")] == [1, 2]
    agent = load("r")
    assert agent.act(np.zeros(2, np.float32)) in (0, 1)
    assert not (here / "r/result.json").exists()


@LATE
def test_nothing_of_it_reaches_the_weights(here, how, part):
    seen = []

    def look(state, rollout, metrics):
        then = [p.detach().clone() for p in state.policy.parameters()]
        seen[:] = state.policy, then, state.updates

    env = EnvConfig(id="failing:Failing", kwargs={"how": how, "at": 75}, num_envs=2)
    with pytest.raises(TrainingError, match=re.escape(part)):
        train(env, PPO(epochs=1), rollout=RolloutConfig(steps=32), callbacks=[look])
    policy, before, updates = seen
    assert updates == 2
    for now, then in zip(policy.parameters(), before, strict=True):
        assert torch.equal(now, then)


@LATE
def test_the_traceback_stands_in_the_log(here, how, part):
    fail(how, 75)
    log = (here / "r/log").read_text()
    assert "Traceback (most recent call last)" in log
    assert "TrainingError" in log
    assert part in log


def test_quiet_is_not_quiet_about_faults():
    failed = fail("nan reward", 75, "--quiet")
    assert failed.out == ""
    assert "reward nan" in failed.err


def test_a_run_that_failed_goes_on_once_the_env_is_mended(here):
    fail("raise", 75)
    mended = (here / "failing.py").read_text().replace('if self.how == "raise":', "if False:")
    (here / "failing.py").write_text(mended + "\n# mended\n")
    del sys.modules["failing"]
    succeeded(proximo("resume", "r", "--env", "failing:Failing"))
    assert [row["update"] for row in rows("r")] == list(range(1, 9))


def test_a_fault_while_resuming_keeps_the_run(here):
    succeeded(fail("raise", 300))  # 256 steps in each env: too late to be reached
    words = ("--env", "failing:Failing", "--total-steps", "2048")
    failed = proximo("resume", "r", *words)
    assert failed.code == 1
    assert "the motor is stuck" in failed.err
    assert len(rows("r")) > 8
    assert "Traceback" in (here / "r/log").read_text()
    load("r")


def test_an_env_that_cannot_be_made_again_leaves_the_run_as_it_was(here):
    succeeded(fail("raise", 300))
    before = {path: path.read_bytes() for path in (here / "r").rglob("*") if path.is_file()}
    words = ("--env", "failing:number", "--total-steps", "1024")
    assert "failing:number" in refusal(proximo("resume", "r", *words))
    assert {p: p.read_bytes() for p in (here / "r").rglob("*") if p.is_file()} == before
