"""Memory over packed stretches equals memory step by step, and learns what needs remembering."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proximo import PPO, NetConfig, RolloutConfig, train
from proximo.envs.testing import probes
from proximo.nets.recurrent import Recurrent
from proximo.run.config import ALGORITHMS
from proximo.types import Segments

KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])


@KINDS
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_packed_stretches_are_what_single_steps_are(kind, lengths, seed):
    torch.manual_seed(seed)
    recurrent, rows = Recurrent(kind, 3, 5, True), sum(lengths)
    x, first = torch.randn(rows, 3), torch.randn(len(lengths), recurrent.state_size)
    episode = torch.arange(len(lengths)).flip(0).repeat_interleave(torch.tensor(lengths))
    recurrent_state = torch.zeros(rows, recurrent.state_size)
    begins = np.cumsum([0, *lengths[:-1]])
    recurrent_state[begins] = first
    found, after = recurrent(x, Segments(episode, recurrent_state))
    for s, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
        state = first[s : s + 1]
        for t in range(begin, begin + length):
            y, state = recurrent.step(x[t : t + 1], state)
            torch.testing.assert_close(found[t : t + 1], y, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(after[s : s + 1], state, rtol=1e-5, atol=1e-6)


@KINDS
def test_its_gradient_is_that_of_single_steps(kind):
    torch.manual_seed(0)
    recurrent = Recurrent(kind, 2, 4, True).double()
    x = torch.randn(9, 2, dtype=torch.float64)
    episode = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2])
    recurrent_state = torch.zeros(9, recurrent.state_size, dtype=torch.float64)
    weight = torch.randn(9, 4, dtype=torch.float64)
    packed = (recurrent(x, Segments(episode, recurrent_state))[0] * weight).sum()
    total = torch.zeros((), dtype=torch.float64)
    for t in range(9):
        if t == 0 or episode[t] != episode[t - 1]:
            state = recurrent_state[:1]
        y, state = recurrent.step(x[t : t + 1], state)
        total = total + (y * weight[t]).sum()
    for a, b in zip(
        torch.autograd.grad(packed, list(recurrent.parameters())),
        torch.autograd.grad(total, list(recurrent.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


QUICK = PPO(gamma=0.9, learning_rate="linear:1e-2:0", epochs=4, minibatch_size=64)


def learn(algorithm=QUICK, continuous=False, steps=16_000, **net):
    return train(
        lambda: probes.Remember(continuous),
        algorithm,
        total_steps=steps,
        num_envs=4,
        rollout=RolloutConfig(steps=64),
        net=NetConfig(hidden=(16,), log_std=-0.5 * continuous, **net),
        seed=1,
    )


def last_actions(agent):
    """What it does in the last step, where -1 and where 1 was seen first."""
    found = []
    for first in (-1.0, 1.0):
        agent.reset()
        for seen in (first, 0.0, 0.0):
            action = agent.act(np.array([seen], np.float32))
        found.append(float(np.asarray(action).item()))
    return found


@KINDS
@pytest.mark.parametrize("trunk", ["separate", "shared"])
@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
def test_it_remembers_what_it_saw_two_steps_ago(kind, trunk, continuous):
    agent = learn(continuous=continuous, recurrent=kind, recurrent_size=16, trunk=trunk)
    best = [-0.5, 0.5] if continuous else [0, 1]
    np.testing.assert_allclose(last_actions(agent), best, atol=0.15)
    with torch.no_grad():
        alone = Segments(torch.arange(2), torch.zeros(2, agent.policy.state_size))
        value = agent.policy.value(torch.tensor([[-1.0], [1.0]]), alone)
    np.testing.assert_allclose(value, [0.81, 0.81], atol=0.1)


def test_without_a_memory_it_does_not():
    first, second = last_actions(learn())
    assert first == second


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name == "qac" else ()) for name in ALGORITHMS],
)
def test_every_algorithm_learns_to_remember(name):
    settings = {
        "reinforce": {"learning_rate": "linear:1e-2:0", "critic_learning_rate": 1e-2},
        "a2c": {"optimizer": "adam", "learning_rate": "linear:1e-2:0"},
        "trpo": {"critic_learning_rate": 1e-2},
        "ppo-penalty": {
            "learning_rate": "linear:1e-2:0",
            "epochs": 4,
            "normalize_advantage": "batch",
            "kl_target": 0.03,
            "beta": 0.1,
        },
        "qac": {"learning_rate": "linear:1e-2:0", "normalize_advantage": "batch"},
    }.get(name, {"learning_rate": "linear:1e-2:0", "epochs": 4})
    algorithm = ALGORITHMS[name](gamma=0.9, **settings)
    agent = learn(algorithm, steps=40_000, recurrent="gru", recurrent_size=16)
    assert last_actions(agent) == [0, 1]
