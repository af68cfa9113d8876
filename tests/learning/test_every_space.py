"""Every kind of observation and action, masked, remembered: right values, right actions."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from proximo import PPO, NetConfig, RolloutConfig, train
from proximo.envs.testing.probes import Match
from proximo.run.config import ALGORITHMS
from proximo.types import Segments

QUICK = PPO(gamma=0.9, learning_rate="linear:5e-3:0", epochs=4, minibatch_size=64)


def learn(
    seen="vector",
    done="discrete",
    *,
    masks=False,
    later=0,
    algorithm=QUICK,
    steps=8_000,
    rows=64,
    **net,
):
    gaussian = done in ("box", "hybrid") and net.get("action") != "beta"
    net = {"hidden": (32, 32), "log_std": -0.5 * gaussian} | net
    return train(
        lambda: Match(seen, done, masks, later),
        algorithm,
        total_steps=steps,
        num_envs=4,
        rollout=RolloutConfig(steps=rows),
        net=NetConfig(**net),
        seed=1,
    )


def check(agent, seen, done, masks=False, later=0, apart=0.25):
    """The right action and value for every symbol, less what the deviation costs."""
    env, met, policy = Match(seen, done, masks, later), set(), agent.policy
    for seed in itertools.count():
        obs, _ = env.reset(seed=seed)
        agent.reset()
        rows, ended = [], False
        while not ended:
            rows.append(torch.as_tensor(policy.observations.row(obs)))
            action = agent.act(obs)
            assert env.action_space.contains(action)
            obs, _, ended, _, _ = env.step(action)
        for found, best in zip(*map(parts, (action, env.right(env._symbol))), strict=True):
            np.testing.assert_allclose(found, best, atol=apart)
        nothing = torch.zeros(len(rows), policy.state_size)
        segments = Segments(torch.zeros(len(rows), dtype=torch.int64), nothing) if later else None
        with torch.no_grad():
            values = policy.value(torch.stack(rows), segments)
        worth = env.worth(env._symbol) * 0.9 ** np.arange(later, -1, -1)
        np.testing.assert_allclose(values, worth, atol=apart)
        met.add(env._symbol)
        if len(met) == 3:
            return


def enough(seen):
    """Steps; convolutions need fewer, and take longer over each."""
    return 3_000 if seen in ("image", "stack", "grey") else 8_000


def parts(action):
    return list(action.values()) if isinstance(action, dict) else [action]


@pytest.mark.parametrize("seen", Match.SEEN)
def test_every_kind_of_observation(seen):
    check(learn(seen, steps=enough(seen)), seen, "discrete")


def but_long(values, *long):
    """These, of which some are left to the long runs."""
    several = ((v if isinstance(v, tuple) else (v,), v in long) for v in values)
    return [pytest.param(*v, marks=pytest.mark.long if is_long else ()) for v, is_long in several]


@pytest.mark.parametrize("seen", but_long(Match.SEEN, "stack", "grey"))
def test_every_kind_of_observation_is_remembered(seen):
    net = {"hidden": (32,), "recurrent": "gru", "recurrent_size": 16}
    agent = learn(seen, later=1, steps=enough(seen), **net)
    check(agent, seen, "discrete", later=1)


@pytest.mark.parametrize("done", Match.DONE)
def test_every_kind_of_action(done):
    check(learn(done=done, steps=16_000), "vector", done)


DISTRIBUTIONS = [
    *({"action": "squash"}, {"action": "beta"}),
    *({"std": "softplus"}, {"std": "gsde"}),
]


@pytest.mark.parametrize(
    ("done", "net"),
    [
        *(("box", net) for net in DISTRIBUTIONS),
        *(pytest.param("hybrid", net, marks=pytest.mark.long) for net in DISTRIBUTIONS),
    ],
)
def test_every_distribution_of_a_box(done, net):
    # At 5e-3 one run in ten narrows its deviation before its mean has arrived.
    gentle = dataclasses.replace(QUICK, learning_rate="linear:3e-3:0")
    check(learn(done=done, steps=16_000, algorithm=gentle, **net), "vector", done)


@pytest.mark.parametrize(
    ("seen", "done"),
    but_long(
        itertools.product(["vector", "image", "dict"], ["discrete", "multi-discrete", "hybrid"]),
        *itertools.product(["vector", "image"], ["discrete", "multi-discrete"]),
        ("dict", "multi-discrete"),
    ),
)
def test_every_kind_of_mask(seen, done):
    steps = 2 * enough(seen)
    check(learn(seen, done, masks=True, steps=steps), seen, done, masks=True)


@pytest.mark.parametrize(
    "name", but_long(ALGORITHMS, *(name for name in ALGORITHMS if name != "ppo"))
)
def test_every_algorithm_on_a_hybrid_env_with_masks(name):
    kind = ALGORITHMS[name]
    settings = {
        "reinforce": {"learning_rate": "linear:1e-2:0", "critic_learning_rate": 3e-2},
        "qac": {
            "normalize_advantage": "batch",
            "learning_rate": "linear:3e-3:0",
            "critic_learning_rate": "linear:1e-2:0",
        },
        "a2c": {"optimizer": "adam", "learning_rate": "linear:1e-2:0"},
        "trpo": {"critic_learning_rate": 1e-2},
    }.get(name, {"learning_rate": "linear:1e-2:0", "epochs": 4})
    algorithm = kind(gamma=0.9, **settings)
    rows = 8 if name == "qac" else 64  # one gradient step for each
    agent = learn(
        *("dict", "hybrid"), masks=True, algorithm=algorithm, steps=24_000, rows=rows, log_std=-1.5
    )
    check(agent, "dict", "hybrid", masks=True, apart=0.4)
