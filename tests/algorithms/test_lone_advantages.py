"""Advantages that would be standardised alone, and be 0, move the policy or are refused."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from proximo import (
    A2C,
    PPO,
    TRPO,
    EnvConfig,
    NetConfig,
    PPOPenalty,
    Reinforce,
    RolloutConfig,
    RunConfig,
    UsageError,
    train,
)
from proximo.types import Batch

ENGINES = pytest.mark.parametrize("engine", ["torch", "native"])


class Bandit(gym.Env):
    """Episodes of one step, in which arm 1 pays."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), float(action), True, False, {}


def learn(algorithm, engine="auto", **more):
    """The agent, and by how much its policy moved from its first update on."""
    weights = []

    def watch(state, rollout, metrics):
        weights.append(torch.cat([p.detach().flatten() for p in state.policy.actor_parameters()]))

    settings = {"num_envs": 1, "total_steps": 320, "rollout": RolloutConfig(steps=64), **more}
    run = RunConfig(engine=engine)
    agent = train(Bandit, algorithm, callbacks=[watch], run_config=run, **settings)
    return agent, (weights[-1] - weights[0]).abs().max().item()


@ENGINES
@pytest.mark.parametrize(
    ("algorithm", "rollout"),
    [
        (PPO(normalize_advantage="episode"), RolloutConfig(steps=64)),
        (PPOPenalty(normalize_advantage="episode"), RolloutConfig(steps=64)),
        (TRPO(normalize_advantage="episode"), RolloutConfig(steps=64)),
        (A2C(normalize_advantage="episode"), RolloutConfig(steps=64)),
        (Reinforce(normalize_advantage="episode"), RolloutConfig(episodes=16)),
        (Reinforce(minibatches="episodes"), RolloutConfig(episodes=16)),
        (Reinforce(normalize_advantage="batch"), RolloutConfig(episodes=1)),
        (Reinforce(), RolloutConfig(episodes=1)),
    ],
    ids=lambda x: x.name if hasattr(x, "name") else "",
)
def test_what_the_data_alone_shows_is_learned_from_and_said_once(algorithm, rollout, engine):
    agent, moved = learn(algorithm, engine, rollout=rollout)
    assert moved > 1e-4
    (said,) = [x for x in agent.result["warnings"] if "normalize_advantage" in x]
    assert "in update 1" in said


@pytest.mark.parametrize(
    ("algorithm", "more", "what"),
    [
        (PPO(minibatch_size=1), {}, "minibatch_size is 1"),
        (PPOPenalty(minibatch_size=1), {}, "minibatch_size is 1"),
        (PPO(minibatch_size=1), {"net": NetConfig(recurrent="gru", bptt_steps=1)}, "size is 1"),
        (A2C(normalize_advantage="batch"), {"rollout": RolloutConfig(steps=1)}, "one sample"),
        (A2C(normalize_advantage="minibatch"), {"rollout": RolloutConfig(steps=1)}, "one sample"),
        (TRPO(minibatch_size=1), {"rollout": RolloutConfig(steps=1)}, "one sample"),
        (Reinforce(), {"rollout": RolloutConfig(steps=1)}, "one sample"),
        (
            A2C(normalize_advantage="episode"),
            {"rollout": RolloutConfig(steps=1), "num_envs": 8},
            "an episode has one step.*Use batch",
        ),
    ],
)
def test_what_is_known_before_training_is_refused(algorithm, more, what, tmp_path):
    with pytest.raises(UsageError, match=rf"normalize_advantage is \w+, but .*{what}"):
        learn(algorithm, run_dir=tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("minibatches", ["episodes", "whole"])
def test_a_time_limit_of_one_step_is_known_too(minibatches):
    algorithm = Reinforce(normalize_advantage="episode", minibatches=minibatches)
    env = EnvConfig(id="CartPole-v1", max_episode_steps=1)
    with pytest.raises(UsageError, match="an episode has one step"):
        train(env, algorithm, rollout=RolloutConfig(episodes=4), total_steps=8)


@pytest.mark.parametrize(
    "algorithm",
    [
        PPO(minibatch_size=1, normalize_advantage="none"),
        PPO(minibatch_size=1, normalize_advantage="batch"),
        TRPO(minibatch_size=1),  # its policy learns from the whole batch
    ],
)
def test_minibatches_of_one_sample_are_fine_where_nothing_is_standardised_in_them(algorithm):
    assert learn(algorithm, total_steps=128)[1] > 1e-5


def batch(count, episode=None):
    zeros = torch.zeros(count)
    lengths = torch.arange(count)
    return Batch(
        **dict.fromkeys(("action", "log_prob", "value", "advantage", "target"), zeros),
        obs=zeros[:, None],
        parameters=zeros[:, None],
        episode=lengths if episode is None else torch.tensor(episode),
        segment_id=lengths,
        initial_state=torch.zeros(count, 0),
    )


@pytest.mark.parametrize(
    ("algorithm", "data", "bounds"),
    [
        (PPO(minibatch_size=4), batch(9), [0, 4, 9]),
        (PPO(minibatch_size=4), batch(10), [0, 4, 8, 10]),
        (PPO(minibatch_size=4), batch(1), [0, 1]),
        (PPO(minibatch_size=4, normalize_advantage="batch"), batch(9), [0, 4, 8, 9]),
        (TRPO(minibatch_size=4), batch(9), [0, 4, 8, 9]),
        (Reinforce(minibatches="episodes"), batch(6, [0, 0, 1, 2, 2, 3]), [0, 2, 6]),
        (Reinforce(minibatches="episodes"), batch(4, [0, 1, 2, 3]), [0, 2, 4]),
        (Reinforce(minibatches="episodes"), batch(3, [0, 1, 1]), [0, 3]),
    ],
)
def test_no_minibatch_is_of_one_sample_where_it_is_standardised(algorithm, data, bounds):
    layout = algorithm.layout(data, torch.Generator())
    assert layout.bounds == [bounds] * algorithm.epochs
    assert all(sorted(order.tolist()) == list(range(len(data))) for order in layout.orders)


@ENGINES
def test_a_last_minibatch_of_one_sample_joins_the_one_before(engine):
    agent, moved = learn(PPO(minibatch_size=63, epochs=2), engine)
    assert moved > 1e-5
    assert any("one sample" in said for said in agent.result["warnings"])


def test_nothing_is_said_where_none_stands_alone():
    agent, _ = learn(PPO(minibatch_size=32, epochs=2))
    assert "warnings" not in agent.result
