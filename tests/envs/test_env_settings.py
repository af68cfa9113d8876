"""Every setting of `env` acts on every kind of env, or is refused by its name."""

import dataclasses

import gymnasium as gym
import pytest
from gymnasium.vector import SyncVectorEnv

from envs import made_envs
from proximo import PPO, EnvConfig, UsageError, train
from proximo.envs.make import make_env
from proximo.loop import run_control
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import Config, RolloutConfig, RunConfig
from proximo.run.control import make_session
from proximo.run.folder import RunFolder

HERE = "envs.made_envs"


def many():
    return SyncVectorEnv([made_envs.Own, made_envs.Own])


KINDS = {
    "an id": ("Made-v0", None),
    "module:ID": (f"{HERE}:Made-v0", None),
    "module:Class": (f"{HERE}:Own", None),
    "module:Class without Gymnasium's": (f"{HERE}:Duck", None),
    "module:function": (f"{HERE}:function", None),
    "module:function with limits of its own": (f"{HERE}:wrapped", None),
    "module:function without Gymnasium's": (f"{HERE}:duck", None),
    "module:Class of PettingZoo": ("envs.parallel_envs:Leaving", None),
    "a class": ("", made_envs.Own),
    "a function": ("", made_envs.wrapped),
    "a function without Gymnasium's": ("", made_envs.duck),
    "a vector env": ("", many),
    "an id, in one vector env": ("CartPole-v1", "vector"),
}
"""Name, and what is given for it."""


def lived_through(kind, **settings):
    """A short training: the rollout, what it was evaluated with, and the session's envs."""
    name, source = KINDS[kind]
    if "PettingZoo" in kind:
        pytest.importorskip("pettingzoo")
    if isinstance(source, str):
        settings, source = {"backend": source, **settings}, None
    elif source is many:
        source = many()
    env = EnvConfig(**{"id": name, "num_envs": 2, "check": False, **settings})
    config = Config(
        algorithm=PPO(epochs=1, minibatch_size=32),
        rollout=RolloutConfig(steps=64),
        env=env,
        run=RunConfig(total_steps=128, eval_every=0 if kind in VECTOR else 1, eval_episodes=1),
    )
    seen = []

    def look(state, rollout, metrics):
        seen[:] = [rollout, dict(metrics)]

    config.check()
    session = make_session(config, source=source, callbacks=[look])
    run_control(session)
    return *seen, session.task


VECTOR = ("a vector env",)


def longest(rollout):
    return max(episode.length for episode in rollout.episodes)


def paid(rollout):
    return float(rollout.reward.reshape(-1)[0])


EFFECTS = {
    "max_episode_steps": (3, lambda r, m, s: longest(r) == 3 and m.get("evaluation", 3) in (3, 16)),
    "kwargs": ({"pay": 3.0}, lambda r, m, s: paid(r) == 3.0 and m["evaluation"] >= 60),
    "wrappers": ((f"{HERE}:Doubled",), lambda r, m, s: s.spaces[0].high.max() == 2),
    "action_masks": ("info", lambda r, m, s: "action_mask" in s.spaces[0].spaces),
    "reward_shift": (7.0, lambda r, m, s: paid(r) >= 7.0),
    "reward_scale": (0.5, lambda r, m, s: abs(paid(r)) <= 0.5),
    "reward_clip": (0.25, lambda r, m, s: abs(paid(r)) <= 0.25),
    "threads": (2, None),
    "processes": (2, None),
    "timeout": (5.0, None),
    "restarts": (1, None),
    "backend": ("vector", lambda r, m, s: type(s.envs).__name__ == "VectorEnvs"),
    "num_envs": (1, lambda r, m, s: s.envs.count // s.envs.agents == 1),
}


@pytest.mark.parametrize("setting", EFFECTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_acts_on_every_kind_of_env_or_is_refused_by_name(kind, setting):
    value, effect = EFFECTS[setting]
    if kind in VECTOR and setting == "num_envs":
        value = 2  # what it has: `train` refuses another number, below
        effect = lambda r, m, s: s.envs.count == 2  # noqa: E731
    try:
        rollout, metrics, session = lived_through(kind, **{setting: value})
    except UsageError as refused:
        said = str(refused)
        named = {"kwargs": "'pay'", "wrappers": f"the wrapper {HERE}:Doubled"}
        assert f"env.{setting}" in said or named.get(setting, "?") in said, said
    else:
        assert effect, f"env.{setting} was taken, and does nothing"
        assert effect(rollout, metrics, session)


def test_both_of_the_settings_with_masks_act():
    for how in ("info", "method"):
        for kind in ("module:Class", "a function", "a function without Gymnasium's"):
            rollout, *_ = lived_through(kind, action_masks=how)
            assert (rollout.action == 0).all()  # the only one that is legal


@pytest.mark.parametrize("kind", ["module:function", "module:function with limits of its own"])
def test_a_time_limit_acts_in_processes_too(kind):
    rollout, metrics, _ = lived_through(kind, max_episode_steps=5, backend="workers", processes=1)
    assert longest(rollout) == 5
    assert metrics["evaluation"] == 5


@pytest.mark.parametrize(("steps", "length"), [(5, 5), (25, 25), (99, 30)])
def test_a_time_limit_replaces_those_of_gymnasium_and_lengthens_nothing_else(steps, length):
    env = make_env(EnvConfig(max_episode_steps=steps), made_envs.wrapped)
    env.reset(seed=0)
    env_action = 0
    while env_action < 200:
        *_, terminated, truncated, _ = env.step(0)
        env_action += 1
        if terminated or truncated:
            break
    assert env_action == length


def test_a_time_limit_reaches_what_a_function_makes_by_an_id():
    for steps in (5, 700):
        env = make_env(EnvConfig(max_episode_steps=steps), made_envs.pole)
        limits = [env]
        while isinstance(limits[-1], gym.Wrapper):
            limits.append(limits[-1].env)
        found = [e for e in limits if isinstance(e, gym.wrappers.TimeLimit)]
        assert [e._max_episode_steps for e in found] == [steps]


def test_a_time_limit_among_the_arguments_is_one():
    env = make_env(EnvConfig(id="CartPole-v1", kwargs={"max_episode_steps": 3}))
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("backend", ["vector", "envpool"])
def test_a_backend_that_makes_envs_by_their_id_takes_none_that_is_given(backend):
    with pytest.raises(UsageError, match=f"env.backend is {backend}"):
        lived_through("a function", backend=backend)


def test_the_number_of_a_vector_env_is_its_own():
    with pytest.raises(UsageError, match="envs is 3, but the vector env has 2"):
        train(many(), PPO(minibatch_size=32), num_envs=3)
    train(many(), PPO(minibatch_size=32), num_envs=2, total_steps=64)


def test_settings_of_a_backend_that_is_not_used_are_refused_before_anything_is_made():
    made = []
    config = Config(env=EnvConfig(timeout=5.0))
    with pytest.raises(UsageError, match=r"env\.timeout is 5\.0.*--env\.backend workers.*sync"):
        make_session(config, source=lambda: made.append(1))
    assert not made


def test_a_run_of_before_with_such_a_setting_goes_on(tmp_path):
    train("CartPole-v1", PPO(minibatch_size=32), total_steps=512, run_dir=tmp_path / "r")
    folder = RunFolder(tmp_path / "r")
    config = folder.read_config()
    run = dataclasses.replace(config.run, total_steps=2048)
    old = dataclasses.replace(config, env=dataclasses.replace(config.env, threads=2), run=run)
    last = Checkpoint(folder.checkpoint("last"))
    assert run_control(make_session(old, folder=folder, resume=last)).result["steps"] >= 2048


@pytest.mark.parametrize("name", ["puzzles:Catch", "probes:Match"])
def test_an_env_that_was_moved_is_found_by_its_old_name(name, capsys):
    config = EnvConfig(id=f"proximo.envs.{name}")
    assert config.id == f"proximo.envs.testing.{name}"
    said = f"proximo.envs.{name} is named {config.id} now"
    assert capsys.readouterr().err.splitlines() == [f"proximo: {said}"]
    make_env(config).close()
