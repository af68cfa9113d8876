"""What `auto` settles on: written rules, stored with the run."""

import tomllib

import gymnasium as gym
import pytest
import torch

from commands.command_line import succeeded
from commands.command_line import train as command_train
from proximo import (
    PPO,
    TRPO,
    EnvConfig,
    NetConfig,
    QActorCritic,
    RolloutConfig,
    RunConfig,
    UsageError,
    train,
)
from proximo.engines import library
from proximo.nets.actor_critic import ActorCritic
from proximo.run import choices
from proximo.run.choices import choose_backend, choose_device, choose_engine, choose_threads

native_only = pytest.mark.skipif(library.load()[0] is None, reason=library.load()[1])


def policy(**net):
    return ActorCritic(gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2), NetConfig(**net))


@pytest.mark.parametrize(
    ("env", "given", "backend"),
    [
        (EnvConfig(id="CartPole-v1", num_envs=4), False, "native"),
        (EnvConfig(id="CartPole-v0", num_envs=31), False, "sync"),
        (EnvConfig(id="CartPole-v0", num_envs=32), False, "vector"),
        (EnvConfig(id="CartPole-v1", kwargs={"sutton_barto_reward": True}), False, "sync"),
        (EnvConfig(id="CartPole-v1", wrappers=("my:Wrapper",)), False, "sync"),
        (EnvConfig(id="native:my_env.c", num_envs=2), False, "native"),
        (EnvConfig(id="CartPole-v1", num_envs=32), True, "sync"),
        (EnvConfig(id="Pendulum-v1", num_envs=64), False, "native"),
        (EnvConfig(id="Taxi-v3", num_envs=64), False, "sync"),  # has no vector version
        (EnvConfig(id="CartPole-v1", num_envs=64, backend="sync"), False, "sync"),
        (EnvConfig(id="CartPole-v1", num_envs=2, backend="vector"), False, "vector"),
        (EnvConfig(id="CartPole-v1", num_envs=2, backend="envpool"), False, "envpool"),
    ],
)
def test_the_backend(env, given, backend):
    assert choose_backend(env, given=given)[0] == backend


MASKED = gym.spaces.Dict(
    {"action_mask": gym.spaces.MultiBinary(2), "place": gym.spaces.Box(-1, 1, (4,))}
)


@native_only
@pytest.mark.parametrize(
    ("shown", "env_action", "net", "engine"),
    [
        (gym.spaces.Discrete(9), gym.spaces.Discrete(2), {}, "native"),
        (gym.spaces.Discrete(9), gym.spaces.MultiDiscrete([2, 2]), {}, "native"),
        (gym.spaces.Discrete(9), gym.spaces.Discrete(2), {"recurrent": "gru"}, "native"),
        (gym.spaces.Box(0, 255, (8, 8, 1), "uint8"), gym.spaces.Discrete(2), {}, "torch"),
        (MASKED, gym.spaces.Discrete(2), {}, "native"),
        (MASKED, gym.spaces.Discrete(2), {"normalize_obs": True}, "native"),
        (gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,)), {"action": "beta"}, "torch"),
        (gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,)), {"action": "squash"}, "native"),
    ],
)
def test_the_engine_for_a_space(shown, env_action, net, engine):
    chosen, why = choose_engine("auto", PPO(), ActorCritic(shown, env_action, NetConfig(**net)))
    assert chosen == engine, why


def test_the_device():
    assert choose_device("auto", policy())[0] == "cpu"
    assert choose_device("cpu", policy(hidden=(2000, 2000)))[0] == "cpu"
    large = choose_device("auto", policy(hidden=(2000, 2000)))[0]
    assert large == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"run\.device is cuda"):
            choose_device("cuda", policy())


@pytest.mark.parametrize(
    ("wish", "engine", "net", "minibatch_size", "threads"),
    [
        (0, "native", {}, 64, 2),
        (0, "native", {}, 32, 1),  # too little work to wait for
        (0, "native", {"trunk": "shared"}, 4096, 1),  # nothing to run side by side
        (0, "torch", {}, 4096, 1),
        (1, "native", {}, 4096, 1),
        (2, "torch", {}, 64, 2),
        (99, "native", {}, 64, 8),
    ],
)
def test_the_threads(monkeypatch, wish, engine, net, minibatch_size, threads):
    monkeypatch.setattr(choices, "cores", lambda: 8)
    assert choose_threads(wish, engine, policy(**net), minibatch_size) == threads
    monkeypatch.setattr(choices, "cores", lambda: 1)
    assert choose_threads(wish, engine, policy(**net), minibatch_size) == 1


def test_a_large_network_has_the_threads_of_pytorch():
    large = policy(hidden=(2000, 2000))
    assert choose_threads(0, "torch", large, PPO()) == torch.get_num_threads()


def test_what_was_settled_is_stored_and_printed(tmp_path):
    folder = tmp_path / "run"
    done = succeeded(command_train("--run-dir", folder))
    stored = tomllib.loads((folder / "config.toml").read_text())
    engine = stored["run"]["engine"]
    assert engine in ("native", "torch")
    assert f"engine: {engine} (" in done.out
    assert stored["run"]["threads"] > 0
    assert stored["run"]["device"] == "cpu"
    assert stored["env"]["backend"] in ("native", "sync")


@native_only
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_number_of_threads_changes_no_bit(tmp_path, env):
    saved = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)  # as another machine, or another library, would have it
        train(
            EnvConfig(id=env, num_envs=4),
            PPO(epochs=3, minibatch_size=64, target_kl=0.05, entropy_coef=0.01),
            rollout=RolloutConfig(steps=128),
            net=NetConfig(normalize_obs=True, normalize_returns=True),
            run_config=RunConfig(total_steps=4096, threads=threads, seed=5),
            run_dir=tmp_path / str(threads),
        )
        saved.append((tmp_path / str(threads) / "checkpoints/last.safetensors").read_bytes())
    torch.set_num_threads(before)
    assert saved[0] == saved[1]


def test_compiling_whole_episodes_is_refused():
    with pytest.raises(UsageError, match="each of a length of its own"):
        train(
            "CartPole-v1",
            PPO(minibatches="episodes"),
            rollout=RolloutConfig(episodes=2),
            run_config=RunConfig(engine="compile", total_steps=100),
        )


def test_a_loss_term_of_a_callback_means_torch():
    engine, why = choose_engine("auto", PPO(), policy(), loss_terms=True)
    assert engine == "torch"
    assert "a callback adds a loss term" in why
    with pytest.raises(UsageError, match="a callback adds a loss term: use torch or auto"):
        choose_engine("native", PPO(), policy(), loss_terms=True)
    for algorithm in (TRPO(), QActorCritic()):
        with pytest.raises(UsageError, match="has no one loss"):
            choose_engine("auto", algorithm, policy(), loss_terms=True)
