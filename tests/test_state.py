"""TrainState alone says what a checkpoint holds: no field of it is forgotten."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from proximo import PPO, EnvConfig, NetConfig
from proximo.collect import collect
from proximo.envs.make import make_envs
from proximo.nets.actor_critic import ActorCritic
from proximo.state import NOT_SAVED, TrainState
from proximo.types import Episode
from states import new_state


@pytest.fixture
def state():
    """A state in which every field has been set."""
    env = EnvConfig(id="Pendulum-v1", num_envs=2)
    envs = make_envs(env, 0)
    algorithm = PPO(normalize_reward=True, epochs=1, minibatch_size=8, outer_momentum=0.5)
    net = NetConfig(
        hidden=(4,), recurrent="gru", recurrent_size=3, normalize_obs=True, normalize_returns=True
    )
    policy = ActorCritic(envs.obs_space, envs.action_space, net)
    state = new_state(
        policy,
        algorithm,
        envs,
        smoothed=1.0,
        best=2.0,
        last_trial_steps=3,
        last_trial_return=4.0,
        beta=5.0,
    )
    rollout = collect(envs, state, env, steps=8)
    algorithm.update(state, algorithm.prepare(state, rollout))
    state.recent.append(Episode(6.0, 7))
    state.ahead = policy.head.noise(torch.Generator(), (1, 2))
    yield state
    envs.close()


def test_every_field_is_saved_or_declared_as_not_saved(state):
    saved = {name.split(".")[0] for name in state.tensors()} | state.record().keys()
    names = {field.name for field in fields(TrainState)}
    assert names - saved == set(NOT_SAVED)
    assert saved - names == {"policy_only"}


def test_every_field_of_the_envs_is_saved(state):
    state.envs.actions[0] = [state.envs.actions[0][0][:1]] if state.envs.actions[0] else []
    state.envs.simulation = (np.ones(2),)
    parts = {name.split(".")[1] for name in state.tensors() if name.startswith("envs.")}
    assert parts == {field.name for field in fields(state.envs)}


def test_a_policy_alone_is_saved_with_its_moments(state):
    kept = {name.split(".")[0] for name in state.tensors(policy_only=True)}
    assert kept == {"policy", "obs_moments", "return_moments", "reward_moments"}
    assert state.record(policy_only=True)["recent"] == []
