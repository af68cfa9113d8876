"""Envs in processes of their own: to the bit those in the trainer, and faults are mended."""

import contextlib
import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from commands.command_line import SMALL, proximo, refusal, result, rows, succeeded, timeless
from proximo import (
    PPO,
    EnvConfig,
    NetConfig,
    Reinforce,
    RolloutConfig,
    RunConfig,
    TrainingError,
    UsageError,
    resume,
    train,
)
from proximo.collect import collect
from proximo.envs import supervisor, workers
from proximo.envs.base import episode_seed
from proximo.envs.make import make_envs
from proximo.imports import find, import_module
from proximo.loop import run_control
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import Config
from proximo.run.control import make_session
from proximo.run.folder import RunFolder
from proximo.run.monitors import TRAINING_EVALUATION_SEED

ENV = '''
import ctypes
import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np


class Troubled(gym.Env):
    """Shows its seed and the time, and pays (seed + time) for a step: episodes of 10 to 19 steps.

    In the episode that begins with the seed `target` it does what `how` says: at its reset if `at`
    is 0, else at that step. `kept`: a file into which it writes its process.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, how="", target=-1, at=0, kept=""):
        self.how, self.target, self.at = how, target, at
        if how == "constructor":
            raise RuntimeError("no such port")
        if how == "long constructor":
            time.sleep(1000)
        if kept:
            with open(kept, "a") as file:
                print(os.getpid(), file=file)
            if how == "starts another":
                started = subprocess.Popen(["sleep", "1000"])
                with open(kept, "a") as file:
                    print(started.pid, file=file)

    def trouble(self):
        if self.target not in (self.seed, -2) or self.time != self.at:
            return
        if self.how == "raise":
            raise RuntimeError("the motor is stuck")
        if self.how == "hang":
            time.sleep(1000)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exit":
            os._exit(7)
        if self.how == "leave":
            sys.exit("I have had enough")
        if self.how == "crash":
            ctypes.string_at(0)

    def see(self):
        seen = np.array([self.seed % 1009, self.time], np.float64)
        if self.target in (self.seed, -2) and self.time == self.at:
            if self.how == "nan":
                seen[0] = np.nan
            if self.how == "shape":
                seen = np.zeros(3)
        return seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.time = seed, 0
        self.last = 10 + seed % 10
        print("an env may print")
        self.trouble()
        return self.see(), {}

    def step(self, action):
        reward = float(self.seed % 1009 + self.time)
        self.time += 1
        self.trouble()
        if self.target == self.seed and self.time == self.at:
            if self.how == "four":
                return self.see(), reward, False, {}
            if self.how == "nan reward":
                reward = float("nan")
        return self.see(), reward, self.time == self.last, False, {}


class Slow(Troubled):
    def step(self, action):
        time.sleep(1000 if os.path.exists("freeze") else 0.002)
        return super().step(action)


class Light(Troubled):
    def __init__(self, **kwargs):
        assert "torch" not in sys.modules
        super().__init__(**kwargs)


class Drawn(Troubled):
    """Cannot be brought back: it also draws from elsewhere."""

    def see(self):
        seen = super().see()
        return seen + np.array([0, 1e-3 * os.urandom(1)[0]])
'''
SEED = 5


@pytest.fixture(autouse=True)
def _envs(here):
    (here / "troubled.py").write_text(ENV)


@pytest.fixture(autouse=True)
def _halves(monkeypatch):
    """Two processes step by turns, as only many do."""
    monkeypatch.setattr(workers, "SPLIT", 2)


def seed_of(env, episode):
    return episode_seed(SEED, env, episode)


def env_config(how="", env=1, episode=2, at=4, *, backend="workers", id="troubled:Troubled", **own):
    kwargs = {"how": how, "target": seed_of(env, episode), "at": at} | own.pop("kwargs", {})
    supervised = {"processes": 2, "timeout": 1.0} if backend == "workers" else {}
    settings = {"num_envs": 3} | supervised | own
    return EnvConfig(id=id, kwargs=kwargs, backend=backend, check=False, **settings)


@contextlib.contextmanager
def session(env, *, net=None, algorithm=None, rollout=None):
    """A session that is about to begin, and the faults that it will be told of."""
    config = Config(
        env=env,
        algorithm=algorithm or PPO(minibatch_size=16, epochs=1),
        rollout=rollout or RolloutConfig(steps=64),
        net=net or NetConfig(),
        run=RunConfig(total_steps=64 * 3 * 3, seed=SEED),
    )
    with make_session(config) as begun:
        yield begun


def gather(env, **settings):
    """One rollout, and the faults on the way."""
    with session(env, **settings) as begun:
        rollout = begun.task.config.rollout
        found = collect(
            begun.task.envs, begun.state, env, steps=rollout.steps, episodes=rollout.episodes
        )
        return found, begun.log.warnings


def checked(rollout):
    """No real step leads into another episode, and rewards are those of the episode shown."""
    last = dict(zip(rollout.final_index.tolist(), rollout.final_obs, strict=True))
    follows = torch.cat([rollout.obs[1:], rollout.last_obs[None]])
    steps, count = rollout.mask.shape
    for t, i in rollout.mask.nonzero().tolist():
        tag, moment = rollout.obs[t, i].tolist()
        assert rollout.reward[t, i] == tag + moment
        after = last.get(t * count + i, follows[t, i])
        assert after.tolist() == [tag, moment + 1]
        if not rollout.boundary[t, i] and t + 1 < steps:
            assert rollout.obs[t + 1, i].tolist() == [tag, moment + 1]
            assert rollout.mask[t + 1, i]
    return rollout


FIELDS = ("obs", "action", "reward", "terminated", "boundary", "mask", "last_obs")

# The same as in the trainer


def last(folder):
    return (Path(folder) / "checkpoints/last.safetensors").read_bytes()


def go(env, folder, callbacks=(), episodes=0, **settings):
    return train(
        env,
        PPO(minibatch_size=32, epochs=1),
        rollout=RolloutConfig(steps=32, episodes=episodes),
        total_steps=12 * 96,
        seed=3,
        run_dir=folder,
        callbacks=callbacks,
        **settings,
    )


@pytest.mark.parametrize(
    ("episodes", "name"),
    [
        *((episodes, "CartPole-v1") for episodes in (0, 4)),
        *((episodes, "envs.parallel_envs:Sides") for episodes in (0, 4)),
        (0, "HalfCheetah-v5"),
        pytest.param(4, "HalfCheetah-v5", marks=pytest.mark.long),
    ],
)
def test_any_number_of_processes_gives_the_bits_of_envs_in_the_trainer(name, episodes, here):
    if "parallel" in name:
        pytest.importorskip("pettingzoo")
    env = EnvConfig(id=name, num_envs=4, max_episode_steps=37, backend="sync")
    go(env, "sync", episodes=episodes)
    for count in (1, 2, 4):
        split = dataclasses.replace(env, backend="workers", processes=count)
        go(split, f"w{count}", episodes=episodes)
        assert last(f"w{count}") == last("sync")


@pytest.mark.parametrize("name", ["CartPole-v1", "envs.parallel_envs:Sides"])
def test_a_run_goes_on_to_the_bit_whatever_the_number_of_processes(name, here):
    if "parallel" in name:
        pytest.importorskip("pettingzoo")
    env = EnvConfig(id=name, num_envs=4, max_episode_steps=37, backend="sync")
    net = NetConfig(recurrent="gru", recurrent_size=8)
    go(env, "sync", net=net)
    split = dataclasses.replace(env, backend="workers", processes=2)
    go(split, "w", [lambda state, rollout, metrics: state.updates == 5], net=net)
    folder = RunFolder.open(here / "w")
    config = folder.read_config()
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, processes=3))
    begun = make_session(config, folder=folder, resume=Checkpoint(folder.checkpoint("last")))
    assert not any("cannot be brought back" in note for note in begun.log.setup_notes)
    run_control(begun)
    assert last("w") == last("sync")


def test_envs_that_do_not_come_back_begin_new_episodes():
    envs = make_envs(env_config(), SEED)
    try:
        state = envs.start()
        assert envs.restore(state)
        state.obs = state.obs + 1
        assert not envs.restore(state)
        assert state.episode.tolist() == [1, 1, 1]
        assert state.obs[:, 0].tolist() == [seed_of(i, 1) % 1009 for i in range(3)]
    finally:
        envs.close()


@pytest.mark.parametrize(("how", "restarts"), [("raise", 1), ("hang", 1), ("kill", 1), ("kill", 0)])
def test_an_env_that_fails_while_it_is_brought_back_begins_a_new_episode(how, restarts, here):
    go(env_config(), "r", [lambda state, rollout, metrics: state.updates == 5])
    folder = RunFolder.open(here / "r")
    saved = Checkpoint(folder.checkpoint("last"))
    episodes, lengths = (saved.tensors[f"envs.{name}"] for name in ("episode", "length"))
    one_env = int(lengths.argmax())
    target = episode_seed(3, one_env, int(episodes[one_env]))
    kwargs = {"how": how, "target": target, "at": int(lengths[one_env]), "kept": "pids"}
    env = env_config(kwargs=kwargs, restarts=restarts)
    config = dataclasses.replace(folder.read_config(), env=env)
    fault = f"env {one_env} failed while its episode was replayed: "
    if not restarts:
        with pytest.raises(UsageError, match=f"^{fault}.*Killed.* may fail 0 times"):
            make_session(config, folder=folder, resume=saved)
    else:
        begun = make_session(config, folder=folder, resume=saved)
        assert any("new episodes begin in them" in note for note in begun.log.setup_notes)
        (doubt,) = begun.log.warnings
        assert doubt.startswith(fault)
        assert FAULTS[how] in doubt
        assert doubt.endswith("Restart 1 of 1 in 10,000 steps")
        tags = [episode_seed(3, i, e + 1) % 1009 for i, e in enumerate(episodes.tolist())]
        assert begun.state.envs.obs[:, 0].tolist() == tags
        run_control(begun)
        assert rows("r")[-1]["update"] == 12
    assert gone([int(line) for line in (here / "pids").read_text().split()])


# Two halves


def test_many_processes_step_in_two_halves(monkeypatch):
    monkeypatch.undo()
    assert workers.halves(list(range(0, 16, 2))) == [0, 14]
    assert workers.halves(list(range(0, 18, 2))) == [0, 8, 16]
    assert workers.halves(list(range(10))) == [0, 4, 9]


def test_one_half_steps_while_the_policy_acts_in_the_other(monkeypatch):
    order = []

    def noted(name, method, *given):
        order.append((name, given[-1]))
        method(*given)

    with session(env_config(num_envs=5)) as begun:
        envs = begun.task.envs
        for name in ("send", "receive"):
            monkeypatch.setattr(envs, name, partial(noted, name, getattr(envs, name)))
        collect(envs, begun.state, env_config(), steps=3)
        assert envs.groups == (slice(0, 2), slice(2, 5))
    sent, back = ([(name, group) for group in range(2)] for name in ("send", "receive"))
    turns = [part for pair in zip(back, sent, strict=True) for part in pair]
    assert order == sent + 2 * turns + back


def test_two_halves_give_the_bits_of_one_although_envs_of_both_are_killed(monkeypatch, here):
    targets = {episode_seed(3, env, 2) for env in (1, 3)}
    (here / "falling.py").write_text(FALLING.format(targets=targets))
    env = EnvConfig(id="falling:Falling", num_envs=4, backend="workers", processes=2, check=False)
    net = NetConfig(normalize_obs=True, recurrent="gru", recurrent_size=4, bptt_steps=4)
    go(env, "two", net=net)
    monkeypatch.setattr(workers, "SPLIT", 99)
    go(env, "one", [lambda state, rollout, metrics: state.updates == 7], net=net)
    monkeypatch.setattr(workers, "SPLIT", 2)
    resume("one", total_steps=12 * 96, env=env.id)
    assert last("one") == last("two")
    assert timeless("one") == timeless("two")
    for name in ("one", "two"):
        assert Path(name, "log").read_text().count("killed by signal 9") == len(targets)


FALLING = """
from troubled import Troubled


class Falling(Troubled):
    def __init__(self):
        super().__init__("kill", at=7)

    def reset(self, *, seed=None, options=None):
        self.target = seed if seed in {targets} else -1
        return super().reset(seed=seed)
"""


def test_the_step_at_which_the_run_ends_is_that_of_the_half_that_failed(monkeypatch):
    env = env_config("raise", env=2, restarts=0)
    texts = []
    for split in (99, 2):
        monkeypatch.setattr(workers, "SPLIT", split)
        with pytest.raises(UsageError, match="env failed at step") as error:
            gather(env)
        texts.append(str(error.value))
    assert texts[0] == texts[1]


# An env that fails


FAULTS = {
    "raise": "RuntimeError: the motor is stuck",
    "hang": "no answer in 1 s",
    "kill": "killed by signal 9 (Killed)",
    "exit": "ended with exit code 7",
    "leave": "SystemExit: I have had enough",
    "crash": "killed by signal 11 (Segmentation fault)",
    "nan": "the observation[0] = nan",
    "shape": "an observation of shape (3,)|the observation of shape (3,)",
    "four": "but returned 4 things",
    "nan reward": "it gave the reward nan",
}


@pytest.mark.parametrize("at", [0, 4])
@pytest.mark.parametrize("how", FAULTS)
def test_it_is_named_and_begins_anew_and_the_others_notice_nothing(how, at):
    if how in ("four", "nan reward") and not at:
        pytest.skip("a reset returns two things, and none is a reward")
    rollout, faults = gather(env_config(how, at=at))
    assert len(faults) == 1
    assert any(part in faults[0] for part in FAULTS[how].split("|")), faults
    where = f"after {at - 1} steps of" if at else "at the beginning of"
    assert f"env 1 failed {where} its episode 2 (seed {seed_of(1, 2)})" in faults[0]
    assert "Restart 1 of 3" in faults[0]
    checked(rollout)
    clean, none = gather(env_config(backend="sync"))
    assert none == []
    for name in FIELDS:
        mine, theirs = getattr(rollout, name), getattr(clean, name)
        others = ([0, 2],) if name == "last_obs" else (slice(None), [0, 2])
        assert torch.equal(mine[others], theirs[others]), name
    # Nothing of the episode that was cut counts, nor of one that ended in a reset that failed.
    tags = list(dict.fromkeys(rollout.obs[rollout.mask[:, 1], 1, 0].tolist()))
    episodes = [0, 1, 3, 4, 5] if at else [0, 3, 4, 5]
    assert tags == [seed_of(1, e) % 1009 for e in episodes][: len(tags)]
    assert len(tags) > 2
    assert (~rollout.mask[:, 1]).sum() == (at if at else 10 + seed_of(1, 1) % 10)


@pytest.mark.parametrize("how", ["hang", "raise", "crash"])
def test_the_log_says_where_in_its_code_it_was(how, here):
    env = env_config(how, episode=1)
    train(
        env,
        PPO(minibatch_size=32, epochs=1),
        rollout=RolloutConfig(steps=32),
        total_steps=192,
        seed=SEED,
        run_dir="r",
    )
    log = (here / "r/log").read_text()
    assert "env 1 failed after 3 steps of its episode 1" in log
    line = next(i for i, text in enumerate(ENV.splitlines(), 1) if f'== "{how}"' in text) + 1
    assert re.search(rf'troubled.py", line {line},? in trouble', log), log
    assert len(result("r")["warnings"]) == 1


def test_episodes_are_counted_whole_although_one_was_cut():
    algorithm = Reinforce()
    rollout, faults = gather(
        env_config("raise", episode=1), algorithm=algorithm, rollout=RolloutConfig(episodes=9)
    )
    assert len(faults) == 1
    assert len(checked(rollout).episodes) == 9
    for episode in rollout.episodes:
        assert 10 <= episode.length <= 19
    lengths = sum(episode.length for episode in rollout.episodes)
    assert rollout.mask.sum() == lengths


def test_an_episode_that_is_cut_behind_a_rollout_leaves_nothing_behind():
    """Its steps in the rollout before were learned from already; no return is counted for it."""
    env = env_config("kill", episode=1, at=9)
    with session(env, rollout=RolloutConfig(steps=16)) as begun:
        found = [
            checked(collect(begun.task.envs, begun.state, env, steps=16, episodes=0))
            for _ in range(4)
        ]
        length = 10 + seed_of(1, 0) % 10
        counted = np.concatenate([r.mask[:, 1].numpy() for r in found])
        cut_at = length + 8
        first = max(length, cut_at // 16 * 16)
        assert np.flatnonzero(~counted).tolist() == list(range(first, cut_at + 1))
        state = begun.state.envs
        played = 64 - (cut_at + 1)
        own = [10 + seed_of(1, e) % 10 for e in (2, 3, 4, 5)]
        while played >= own[0]:
            played -= own.pop(0)
        assert state.length[1] == played


def test_a_reset_that_fails_when_whole_episodes_begin():
    """There is no episode to cut: another one begins in its place."""
    rollout, algorithm = RolloutConfig(episodes=4), Reinforce()
    clean = env_config(backend="sync", processes=0)
    with session(clean, rollout=rollout, algorithm=algorithm) as begun:
        collect(begun.task.envs, begun.state, clean, steps=64, episodes=4)
        one_env = int(np.flatnonzero(begun.state.envs.length)[0])  # it idled into another one
        begins = int(begun.state.envs.episode[one_env]) + 1
    env = env_config("kill", env=one_env, episode=begins, at=0)
    with session(env, rollout=rollout, algorithm=algorithm) as begun:
        for _ in range(2):
            assert not begun.log.warnings
            found = checked(collect(begun.task.envs, begun.state, env, steps=64, episodes=4))
            assert len(found.episodes) == 4
        assert (
            f"env {one_env} failed at the beginning of its episode {begins}"
            in begun.log.warnings[0]
        )
        tags = found.obs[found.mask[:, one_env], one_env, 0].tolist()
        assert tags[0] == seed_of(one_env, begins + 1) % 1009


AGENTS = """
from envs.parallel_envs import Sides


class Failing(Sides):
    def __init__(self, target=-1):
        super().__init__()
        self.target = target

    def reset(self, seed=None, options=None):
        self.seed = seed
        return super().reset(seed)

    def step(self, actions):
        if self.seed == self.target and self.time == 1:
            raise RuntimeError("the motor is stuck")
        return super().step(actions)
"""


def test_an_env_of_several_agents_that_fails_is_cut_for_all_of_them(here):
    pytest.importorskip("pettingzoo")
    (here / "failing_agents.py").write_text(AGENTS)
    found = []
    for target in (-1, seed_of(1, 2)):
        env = env_config(id="failing_agents:Failing", backend="workers")
        rollout, faults = gather(dataclasses.replace(env, kwargs={"target": target}))
        found.append(rollout)
        assert len(faults) == (target >= 0)
    clean, cut = found
    assert clean.mask[:, 2:4].any(1).all()  # while an env goes on, somebody is there
    gone = (~cut.mask[:, 2:4]).all(1)
    assert 1 <= gone.sum() <= 2  # one who had ended before had a whole episode
    assert cut.boundary[gone, 2:4].all()
    others = [0, 1, 4, 5]
    assert torch.equal(clean.obs[:, others], cut.obs[:, others])
    assert torch.equal(clean.reward[:, others], cut.reward[:, others])


def test_a_memory_begins_anew_with_the_episode():
    for how in ("raise", "kill"):
        with session(env_config(how), net=NetConfig(recurrent="gru", recurrent_size=8)) as begun:
            run_control(begun)  # what acted is compared with what is evaluated
            assert len([doubt for doubt in begun.log.warnings if "env 1" in doubt]) == 1


def test_a_process_that_is_killed_while_it_idles_changes_nothing():
    clean, _ = gather(env_config(backend="sync"))
    env = env_config()
    with session(env) as begun:
        send, envs = begun.task.envs.send, begun.task.envs

        def killing(steps, t, group):
            if (t, group) in ((0, 0), (20, 0), (45, 1)):
                os.kill(envs._processes[group].pid, signal.SIGKILL)
            send(steps, t, group)

        envs.send = killing
        rollout = collect(envs, begun.state, env, steps=64)
        assert len(begun.log.warnings) == 3
        assert all("the process of envs" in doubt for doubt in begun.log.warnings)
        assert all("signal 9 (Killed)" in doubt for doubt in begun.log.warnings)
    for name in FIELDS:
        assert torch.equal(getattr(rollout, name), getattr(clean, name)), name


def test_an_episode_that_is_too_long_to_be_replayed_ends_with_its_process(monkeypatch):
    monkeypatch.setattr("proximo.envs.base.REPLAYED", 20)
    env = EnvConfig(id="Pendulum-v1", num_envs=2, backend="workers", processes=1)
    with session(env, rollout=RolloutConfig(steps=16)) as begun:
        envs = begun.task.envs
        for _ in range(2):
            collect(envs, begun.state, env, steps=16)
        assert begun.state.envs.actions == [[], []]
        os.kill(envs._processes[0].pid, signal.SIGKILL)
        rollout = collect(envs, begun.state, env, steps=16)
        killed, *lost = begun.log.warnings
        assert "signal 9 (Killed)" in killed
        assert len(lost) == 2
        assert all("which are not replayed: it begins a new one" in doubt for doubt in lost)
        assert (~rollout.mask[0]).all()
        assert rollout.boundary[0].all()
        assert rollout.mask[1:].all()
        assert begun.state.envs.length.tolist() == [15, 15]
        assert begun.state.envs.episode.tolist() == [1, 1]


def test_envs_that_cannot_be_brought_back_begin_anew_with_the_one_that_failed():
    rollout, faults = gather(
        env_config("kill", id="troubled:Drawn", env=2, at=3, kwargs={"at": 3}), net=NetConfig()
    )
    # It draws the time it shows, so the fault is found by the true time.
    assert any("env 2 failed" in fault for fault in faults)
    assert any("env 1 does not come back" in fault for fault in faults)
    assert (~rollout.mask[:, 1]).any()
    assert rollout.mask[:, 0].all()


def test_an_env_that_always_fails_ends_the_run():
    env = env_config("raise", kwargs={"target": -2})
    with pytest.raises(UsageError, match=r"env 0 failed after 3 steps .* the motor is stuck"):
        gather(env)
    with pytest.raises(UsageError, match="may fail 0 times in 10,000 steps"):
        gather(dataclasses.replace(env, restarts=0))


def test_the_budget_is_for_so_many_steps(monkeypatch):
    monkeypatch.setattr(workers, "RESTART_STEPS", 20)
    env = env_config("raise", kwargs={"target": -2, "at": 12}, num_envs=1)  # of 10 to 19 steps
    lasts = [10 + seed_of(0, episode) % 10 for episode in range(50)]
    ends = np.cumsum([min(length, 12) for length in lasts])
    falls = [int(end) for end, length in zip(ends, lasts, strict=True) if length >= 12]
    spent = next(b for a, b in itertools.pairwise(falls) if b - a < 20)
    with (
        session(dataclasses.replace(env, restarts=1), rollout=RolloutConfig(steps=400)) as begun,
        pytest.raises(UsageError, match=f"failed at step {spent - 1} of update 1"),
    ):
        collect(begun.task.envs, begun.state, env, steps=400)
    assert len(begun.log.warnings) == falls.index(spent) >= 1


# Evaluations while training


@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("CartPole-v1", NetConfig()),
        ("CartPole-v1", NetConfig(recurrent="gru", recurrent_size=8)),
        ("HalfCheetah-v5", NetConfig(normalize_obs=True)),
        ("FrozenLake-v1", NetConfig()),
        ("envs.parallel_envs:Sides", NetConfig()),
    ],
)
def test_evaluations_in_processes_give_the_bits_of_those_in_the_trainer(name, net, here):
    if "parallel" in name:
        pytest.importorskip("pettingzoo")
    run = RunConfig(eval_every=3, eval_episodes=3, keep_best="evaluation")
    for backend in ("sync", "workers"):
        processes = int(backend == "workers")
        env = EnvConfig(
            id=name, num_envs=2, processes=processes, max_episode_steps=37, backend=backend
        )
        go(env, backend, run_config=run, net=net)
    found, expected = (
        [row.get("evaluation") for row in rows(folder)] for folder in ("workers", "sync")
    )
    assert found == expected
    assert len([score for score in found if score is not None]) >= 4
    assert last("workers") == last("sync")


def evaluated(how, at, restarts=3):
    """A run of two updates that evaluates four episodes after each, of which the second fails."""
    target = TRAINING_EVALUATION_SEED + 1
    kwargs = {"how": how, "target": target, "at": at, "kept": "pids"}
    env = dataclasses.replace(env_config(restarts=restarts), kwargs=kwargs)
    run = RunConfig(total_steps=2 * 96, seed=SEED, eval_every=1, eval_episodes=4)
    algorithm, rollout = PPO(minibatch_size=32, epochs=1), RolloutConfig(steps=32)
    return train(env, algorithm, rollout=rollout, run_config=run, run_dir="r")


@pytest.mark.parametrize(("how", "at"), [("raise", 4), ("hang", 4), ("kill", 4), ("kill", 0)])
def test_an_env_that_fails_in_an_evaluation_is_named_and_its_episode_is_left_out(how, at, here):
    faults = evaluated(how, at).result["warnings"]
    where = f"after {at - 1} steps of" if at else "at the beginning of"
    for restart, fault in enumerate(faults, 1):
        assert f"evaluating: env 0 failed {where} its episode 2000001 (seed 2000001)" in fault
        assert FAULTS[how] in fault
        assert f"Restart {restart} of 3" in fault
    assert len(faults) == 2  # in each of the evaluations
    # The env pays (seed % 1009 + time) for a step; the episode before a reset that fails is lost.
    seeds = [TRAINING_EVALUATION_SEED + i for i in ((0, 2, 3, 4) if at else (2, 3, 4, 5))]
    returns = [sum(seed % 1009 + t for t in range(10 + seed % 10)) for seed in seeds]
    assert [row["evaluation"] for row in rows("r")] == [np.mean(returns)] * 2
    assert gone([int(line) for line in Path("pids").read_text().split()])


def test_an_env_that_always_fails_in_evaluations_ends_the_run_which_is_kept(here):
    with pytest.raises(TrainingError, match=r"evaluation after update 1 failed: env 0 failed .*"):
        evaluated("hang", 4, restarts=0)
    assert Checkpoint(RunFolder("r").checkpoint("last")).updates == 0
    assert gone([int(line) for line in Path("pids").read_text().split()])


# A process that does not start


def test_an_env_that_cannot_be_made_is_refused(here):
    words = ("--env.backend", "workers", "--env.kwargs", "how", "constructor", "--run-dir", "r")
    said = refusal(proximo("train", "ppo", "troubled:Troubled", *SMALL, *words))
    assert "no such port" in said
    assert not (here / "r").exists()


def test_a_first_reset_that_fails_is_refused(here):
    words = ("--env.kwargs", "how", "raise", "target", "-2", "--run-dir", "r")
    backend = ("--env.backend", "workers", "--env.no-check")
    said = refusal(proximo("train", "ppo", "troubled:Troubled", *SMALL, *backend, *words))
    assert "failed at its first reset: RuntimeError: the motor is stuck" in said
    assert not (here / "r").exists()


def test_a_wrong_env_is_found_before_training(here):
    """In a process of its own, so that neither a crash nor a long wait is the trainer's."""
    for how, said in (
        ("shape", "the observation of shape (3,)"),
        ("crash", "an env that was played apart: its process was killed by signal 11"),
    ):
        kwargs = ("--env.kwargs", "how", how, "target", "-2", "at", "3")
        words = ("--env.backend", "workers", "--run-dir", "r", *kwargs)
        assert said in refusal(proximo("train", "ppo", "troubled:Troubled", *SMALL, *words))
        assert not (here / "r").exists()


def test_what_is_doubtful_about_an_env_is_said():
    env = dataclasses.replace(env_config(id="troubled:Drawn"), check=True)
    with session(env) as begun:
        assert any("the same seed" in doubt for doubt in begun.log.warnings)


def test_a_constructor_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr(workers, "START_SECONDS", 2.0)
    begun = time.monotonic()
    with pytest.raises(UsageError, match="no env was made: no answer in 2 s"):
        make_envs(env_config("long constructor"), SEED)
    assert time.monotonic() - begun < 30  # and not the two minutes of START_SECONDS


def test_what_has_no_name_cannot_be_made_elsewhere():
    troubled = import_module("troubled:")

    class Inner(troubled.Troubled):
        pass

    for source in (Inner, lambda: None):
        with pytest.raises(UsageError, match="define it in a module"):
            make_envs(env_config(), SEED, source)


def test_a_script_that_trains_when_it_is_imported_starts_no_processes_without_end(here):
    (here / "script.py").write_text(
        "from proximo import EnvConfig, train\n"
        "from troubled import Troubled\n"
        "train(EnvConfig(id='script:Troubled', backend='workers', num_envs=1))\n"
    )
    with pytest.raises(
        UsageError, match=r'it trains .*when it is imported.*__name__ == "__main__"'
    ):
        make_envs(dataclasses.replace(env_config(), id="script:Troubled"), SEED)


def test_what_has_a_name_can():
    troubled = import_module("troubled:")
    named, given = env_config(), dataclasses.replace(env_config(), id="")
    envs = make_envs(given, SEED, troubled.Slow)
    envs.close()
    assert envs.count == named.num_envs


def test_an_env_that_a_script_registered_is_named_with_its_module():
    gym.register("Registered-v0", find("troubled:Troubled"))
    try:
        with pytest.raises(UsageError, match="as in module:Registered-v0"):
            make_envs(dataclasses.replace(env_config(), id="Registered-v0"), SEED)
    finally:
        del gym.registry["Registered-v0"]


def test_memory_that_is_full_is_refused_and_nothing_lies_about(monkeypatch):
    before = set(os.listdir("/dev/shm"))
    with monkeypatch.context() as full:
        full.setattr(workers, "_memory", lambda: os.open("/dev/full", os.O_RDWR))
        with pytest.raises(UsageError, match=r"no memory .* No space left on device"):
            make_envs(env_config(), SEED)
    envs = make_envs(env_config(), SEED)
    try:
        assert set(os.listdir("/dev/shm")) == before
    finally:
        envs.close()


# Their end


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pids, seconds=2.0):
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_a_process_of_envs_does_without_pytorch():
    """Its import takes 2 seconds, and 200 MB."""
    make_envs(env_config(id="troubled:Light"), SEED).close()


@pytest.mark.parametrize("trouble", ["", "stopped", "killed", "another"])
def test_closing_takes_no_longer_than_its_grace(trouble, here):
    how = "starts another" if trouble == "another" else ""
    envs = make_envs(env_config(how, kwargs={"kept": "pids"}), SEED)
    pids = [int(line) for line in (here / "pids").read_text().split()]
    assert all(map(alive, pids))
    if trouble in ("stopped", "killed"):
        os.kill(pids[0], signal.SIGSTOP if trouble == "stopped" else signal.SIGKILL)
    begun = time.monotonic()
    envs.close()
    assert time.monotonic() - begun < supervisor.GRACE_SECONDS + 10
    assert gone(pids)


SCRIPT = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what nohup ignores, its children ignore
from proximo.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def training(here):
    """A training in a process of its own that goes on for long, and the processes of its envs."""
    started = []

    def start(how="", **kwargs):
        said = [
            str(word) for pair in ({"kept": "pids", "how": how} | kwargs).items() for word in pair
        ]
        words = ["train", "ppo", "troubled:Slow", *SMALL, "--total-steps", "1000000"]
        words += ["--env.backend", "workers", "--env.processes", "2", "--env.no-check"]
        words += ["--run.save-every", "1", "--run-dir", "r", "--env.kwargs", *said]
        popen = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(popen)
        until = time.monotonic() + 60
        while time.monotonic() < until and popen.poll() is None:
            if Path("r/metrics.jsonl").exists() and len(rows("r")) >= 2:
                break
            time.sleep(0.05)
        assert popen.poll() is None, popen.stderr.read()
        return popen, [int(line) for line in Path("pids").read_text().split()]

    yield start
    for popen in started:
        popen.kill()
        popen.communicate()


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("SIGKILL", "idle"),
        ("SIGKILL", "busy"),
        pytest.param("SIGSEGV", "busy", marks=pytest.mark.long),
        ("SIGHUP", "starts another"),
    ],
)
def test_no_process_outlives_a_trainer_however_it_dies(training, how, what):
    popen, pids = training(what)
    assert len(pids) == (4 if what == "starts another" else 2)
    if what == "busy":
        Path("freeze").touch()
        time.sleep(0.5)
    popen.send_signal(getattr(signal, how))
    assert popen.wait() == -getattr(signal, how)
    assert gone(pids)


def test_ctrl_c_ends_the_update_and_saves(training):
    popen, pids = training()
    os.killpg(popen.pid, signal.SIGINT)
    for pid in pids:  # as from a terminal
        os.kill(pid, signal.SIGINT)
    _, said = popen.communicate(timeout=20)
    assert popen.returncode == 130
    assert "stopped after update" in said
    assert gone(pids)
    assert result("r")["updates"] == rows("r")[-1]["update"]


def test_a_second_ctrl_c_does_not_wait_for_an_env_that_hangs(training):
    popen, pids = training()
    os.kill(pids[1], signal.SIGSTOP)  # the trainer waits for it now
    time.sleep(0.3)
    os.killpg(popen.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(popen.pid, signal.SIGINT)
    begun = time.monotonic()
    _, said = popen.communicate(timeout=20)
    assert time.monotonic() - begun < supervisor.GRACE_SECONDS + 10
    assert popen.returncode == 130
    assert "stopped at once" in said
    assert gone(pids)


def test_a_run_of_the_command_line_survives_faults_and_says_so(here):
    target = seed_of(1, 1)
    words = ("--env.backend", "workers", "--env.processes", "2", "--run-dir", "r", "--seed", SEED)
    words += ("--total-steps", "512", "--env.kwargs", "how", "kill", "target", target, "at", "3")
    said = succeeded(proximo("train", "ppo", "troubled:Troubled", *SMALL, *words)).out
    assert "envs: workers" in said
    assert "env 1 failed after 2 steps of its episode 1" in said
    assert result("r")["steps"] >= 512
