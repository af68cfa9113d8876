"""What a run folder cannot name is refused one before training, and trains without."""

import numpy as np
import pytest
import torch

from proximo import (
    PPO,
    EnvConfig,
    NetConfig,
    RolloutConfig,
    RunConfig,
    Schedule,
    UsageError,
    load,
    train,
)
from proximo.algorithms.base import OnPolicy
from proximo.run.config import Config, from_tables, read_config, to_tables, to_toml
from proximo.run.folder import RunFolder

SMALL = {"minibatch_size": 16, "epochs": 1}


class Net(NetConfig):
    pass


class Env(EnvConfig):
    def shape_reward(self, reward):
        return 0 * reward


class Run(RunConfig):
    pass


class Rollout(RolloutConfig):
    pass


OWN = {
    "net": {"net": Net(hidden=(8,))},
    "env": {"env": Env(id="CartPole-v1", num_envs=2)},
    "run": {"run_config": Run(total_steps=32)},
    "rollout": {"rollout": Rollout(steps=16)},
}


def quick(env="CartPole-v1", algorithm=None, **more):
    settings = {"rollout": RolloutConfig(steps=16), "total_steps": 32, "num_envs": 2, **more}
    return train(env, algorithm or PPO(**SMALL), **settings)


@pytest.mark.parametrize("case", OWN)
def test_a_class_of_ones_own_is_refused_a_run_folder_and_trains_without(case, tmp_path):
    with pytest.raises(UsageError, match=r"class of your own.*cannot name.*leave run_dir out"):
        quick(**OWN[case], run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert quick(**OWN[case]).result["updates"] == 1


def test_an_algorithm_needs_a_name():
    with pytest.raises(UsageError, match="the algorithm Bare has no name: give its class one"):
        type("Bare", (OnPolicy,), {})()


@pytest.mark.parametrize("rate", [torch.tensor(1e-3), True, [1e-3]], ids=["t", "b", "l"])
def test_what_is_neither_a_number_nor_a_schedule_is_refused(rate):
    with pytest.raises(UsageError, match=r"learning_rate is .*must be a number or a schedule"):
        PPO(learning_rate=rate)


def test_a_schedule_of_no_known_kind_is_refused():
    with pytest.raises(ValueError, match="there is no schedule 'exponential'"):
        Schedule("exponential", 1.0, 0.1)


# NumPy's numbers


def test_numbers_of_numpy_are_settings_and_are_stored_as_pythons(tmp_path):
    agent = quick(
        EnvConfig(id="CartPole-v1", reward_scale=np.float32(0.5)),
        PPO(
            minibatch_size=np.int32(16),
            epochs=np.int8(1),
            learning_rate=np.float64(1e-3),
            clip=Schedule("linear", np.float64(0.25), np.float32(0.125)),
            adam_betas=[np.float64(0.75), 0.5],
            normalize_reward=np.bool_(True),
        ),
        num_envs=np.int64(2),
        total_steps=np.int64(32),
        seed=np.arange(5)[3],
        rollout=RolloutConfig(steps=np.int64(16)),
        net=NetConfig(hidden=np.array([8, 4]), log_std=np.float32(0), activation=np.str_("relu")),
        run_dir=tmp_path / "run",
    )
    config = RunFolder.open(tmp_path / "run").read_config()
    assert config == agent.config
    assert (config.run.seed, config.env.num_envs, config.env.reward_scale) == (3, 2, 0.5)
    assert (config.net.hidden, config.algorithm.adam_betas) == ((8, 4), (0.75, 0.5))
    assert str(config.algorithm.clip) == "linear:0.25:0.125"
    assert "np." not in (tmp_path / "run/config.toml").read_text()
    load(tmp_path / "run")


def test_a_configuration_is_what_its_file_says(tmp_path):
    config = Config(
        algorithm=PPO(learning_rate=np.float64(0.1), target_kl=None),
        env=EnvConfig(id="x", kwargs={"size": np.int64(3), "rate": np.float64(0.1)}),
    )
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert read_config(tmp_path / "config.toml") == config == from_tables(to_tables(config))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: quick(seed=True), "run.seed is True: it must be a whole number"),
        (lambda: quick(seed=-1), "run.seed is -1: it must be in"),
        (lambda: quick(seed=np.int64(-1)), "run.seed is -1: it must be in"),
        (lambda: quick(seed=2**70), "run.seed is 1180591620717411303424: it must be in"),
        (lambda: quick(seed=1.0), r"run.seed is 1\.0: it must be a whole number"),
        (lambda: quick(seed="1"), "run.seed is '1': it must be a whole number"),
        (lambda: quick(seed=torch.tensor(1)), r"run.seed is tensor\(1\): it must be a whole"),
        (lambda: quick(num_envs=True), "env.num_envs is True"),
        (lambda: quick(num_envs=0), "env.num_envs is 0"),
        (lambda: quick(total_steps=0), "run.total_steps is 0: it must be at least 1"),
        (lambda: quick(total_steps=np.float64(100)), "run.total_steps is 100.0: .*whole number"),
        (lambda: PPO(gamma=None), "gamma is None: it must be a number"),
        (lambda: PPO(gamma="0.9"), "gamma is '0.9': it must be a number"),
        (lambda: PPO(critic=1), "critic is 1: it must be true or false"),
        (lambda: PPO(epochs=True), "epochs is True: it must be a whole number"),
        (lambda: PPO(clip=np.nan), "clip is nan: it must be a finite number"),
        (lambda: NetConfig(hidden=64), "net.hidden is 64: it must be a list"),
        (lambda: NetConfig(hidden="64"), "net.hidden is '64': it must be a list"),
        (lambda: NetConfig(hidden=(6.5,)), r"net.hidden is \(6.5,\): .*a whole number"),
        (lambda: NetConfig(hidden=(8, 0)), r"net.hidden is \(8, 0\): .* a list, each at least 1"),
        (lambda: NetConfig(critic_hidden=(0,)), r"net.critic_hidden is \(0,\): .* each at least 1"),
        (lambda: NetConfig(module=5), "net.module is 5: it must be text"),
        (lambda: EnvConfig(id=None), "env.id is None: it must be text"),
        (lambda: quick(callbacks=[None]), r"callbacks\[0\] is None: give a function"),
        (lambda: quick(callbacks=None), "callbacks is None: give a list"),
        (lambda: quick(rollout=16), "rollout is 16: give a RolloutConfig"),
        (lambda: quick(run_config={}), "run_config is {}: give a RunConfig"),
        (lambda: quick(net="Net"), "net is 'Net': give a class"),
    ],
)
def test_what_is_no_such_setting_is_refused_by_name(make, said):
    with pytest.raises(UsageError, match=said):
        make()


# What callbacks add


def test_readings_of_callbacks_are_numbers_or_are_left_out(tmp_path, capsys):
    def add(state, rollout, row):
        row["tensor"] = rollout.reward.mean()
        row["learned"] = torch.tensor(2.0, requires_grad=True)
        row["array"] = np.array([3.5])
        row["numpy"] = np.float32(0.5)
        row["huge"] = 2**80
        row["missing"] = float("nan")
        row["words"] = "warming up"
        row["several"] = torch.zeros(3)
        row["object"] = object()
        row[7] = 1.0

    agent = quick(run_dir=tmp_path / "run", callbacks=[add], total_steps=96)
    rows = RunFolder.open(tmp_path / "run").read_metrics()
    assert len(rows) == 3
    for row in rows:
        assert (row["tensor"], row["learned"], row["array"]) == (1.0, 2.0, 3.5)
        assert (row["numpy"], row["huge"], row["missing"]) == (0.5, 2.0**80, None)
        assert row["words"] == "warming up"
        assert not row.keys() & {"several", "object", 7, "7"}
    said = [text for text in agent.result["warnings"] if "not one number" in text]
    assert len(said) == 3
    assert "row['several'] is tensor([0., 0., 0.])" in said[0]
    capsys.readouterr()


# Hints


@pytest.mark.parametrize(
    ("algorithm", "net", "said"),
    [
        (PPO(**SMALL), None, True),
        (PPO(normalize_reward=True, **SMALL), None, False),
        (PPO(**SMALL), NetConfig(normalize_returns=True), False),
    ],
)
def test_large_rewards_get_a_hint(algorithm, net, said):
    env = EnvConfig(id="CartPole-v1", reward_scale=1e6)
    agent = quick(env, algorithm, net=net)
    hints = [x for x in agent.result.get("health", ()) if x["rule"] == "reward-scale"]
    assert len(hints) == said
    assert all("--algorithm.normalize-reward" in x["remedy"] for x in hints)


def test_rewards_of_usual_size_get_none():
    assert "health" not in quick().result


@pytest.mark.parametrize("clip", [0.99, 1.0, 3.0, "linear:1.5:0.1", None])
def test_a_clip_that_holds_nothing_back_is_noted(clip):
    noted = PPO(clip=clip).notes
    assert bool(noted) == (clip not in (0.99, None))
    assert all("lower end" in text for text in noted)
