"""Twenty updates in float64 on a fixed synthetic rollout equal a stored text to 1e-9.

A change that is meant to leave the numbers alone must leave these alone. Where they are meant to
change, write them anew by `python tests/golden/test_golden.py` and say why in the commit.
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from proximo import PPO, NetConfig
from proximo.engines.torch import TorchEngine
from proximo.nets.actor_critic import ActorCritic
from proximo.state import TrainState
from proximo.types import Rollout

STEPS, ENVS, UPDATES = 16, 4, 20
OBS = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
CASES = {
    "discrete": (
        gym.spaces.Discrete(3),
        PPO(
            learning_rate="linear:3e-3:0",
            clip="linear:0.2:0.1",
            entropy_coef="linear:0.02:0:0.001",
            value_loss="clipped",
            epochs=3,
            minibatch_size=24,
        ),
        NetConfig(hidden=(16, 16), trunk="shared", activation="relu"),
    ),
    "continuous": (
        gym.spaces.Box(-1, 1, (2,), np.float64),
        PPO(
            learning_rate=1e-3,
            critic_learning_rate=2e-3,
            value_loss="huber",
            normalize_advantage="batch",
            normalize_reward=True,
            target_kl=0.01,
            epochs=4,
            minibatch_size=16,
        ),
        NetConfig(hidden=(16,), normalize_obs=True, normalize_returns=True),
    ),
}


def synthetic(random, policy):
    """Numbers from NumPy's generator, whose streams are the same everywhere."""

    def normal(*shape):
        return torch.tensor(random.normal(size=shape))

    obs = normal(STEPS, ENVS, 3)
    ended = torch.tensor(random.random((STEPS, ENVS)) < 0.15)
    terminated = ended & torch.tensor(random.random((STEPS, ENVS)) < 0.5)
    index = ended.reshape(-1).nonzero().squeeze(-1)
    discrete = policy.head.action_shape == ()
    action = (
        torch.tensor(random.integers(0, 3, (STEPS, ENVS))) if discrete else normal(STEPS, ENVS, 2)
    )
    with torch.no_grad():
        acted = policy.distribution(obs).parameters[[0, -1]]
    return Rollout(
        obs=obs,
        action=action,
        reward=normal(STEPS, ENVS),
        terminated=terminated,
        boundary=ended,
        mask=torch.ones(STEPS, ENVS, dtype=torch.bool),
        last_obs=normal(ENVS, 3),
        final_obs=normal(len(index), 3),
        final_index=index,
        acted=acted,
        initial_state=torch.zeros(ENVS, 0),
        episodes=(),
    )


def numbers(name):
    space, algorithm, net = CASES[name]
    random = np.random.default_rng(7)
    policy = ActorCritic(OBS, space, net).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.tensor(random.normal(size=parameter.shape) * 0.3))
    optimizer = algorithm.make_optimizer(policy)
    state = TrainState(
        policy=policy,
        optimizer=optimizer,
        engine=TorchEngine(policy, optimizer),
        envs=None,
        collecting=None,
        shuffling=torch.Generator().manual_seed(11),
        horizon=UPDATES * STEPS * ENVS,
    )
    rows = []
    for _ in range(UPDATES):
        rollout = synthetic(random, policy)
        metrics = algorithm.update(state, algorithm.prepare(state, rollout))
        state.advance(rollout, {})
        weights = torch.cat([p.reshape(-1) for p in policy.parameters()])
        metrics["weights_sum"] = weights.sum().item()
        metrics["weights_norm"] = weights.norm().item()
        rows.append(metrics)
    return rows


def stored(name):
    return Path(__file__).with_name(f"{name}.txt")


@pytest.mark.parametrize("name", CASES)
def test_twenty_updates_equal_the_stored_numbers(name):
    lines = stored(name).read_text().splitlines()
    header, rows = lines[0].split(), [list(map(float, line.split())) for line in lines[1:]]
    found = numbers(name)
    assert set(header) == set(found[0])
    np.testing.assert_allclose(
        [[row[key] for key in header] for row in found],
        rows,
        rtol=1e-9,
        atol=1e-9,
        err_msg=" ".join(header),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        found = numbers(case)
        lines = [" ".join(found[0])] + [" ".join(repr(float(v)) for v in r.values()) for r in found]
        stored(case).write_text("\n".join(lines) + "\n")
