"""Real tasks with their presets: the whole budgets under the `long` marker, short ones always.

The long bars are those of the results table; `benchmarks/scores.py` records the figures.
"""

import statistics

import pytest

from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, train
from proximo.envs.make import make_env, not_compiled
from proximo.evaluation import evaluate_policy
from proximo.loop import run_control
from proximo.run.config import from_tables
from proximo.run.control import make_session
from proximo.run.presets import find_preset

# task: (training seeds, bar for their mean, bar for the worst)
BARS = {
    "CartPole-v1": (range(1, 6), 475, 475),
    "Pendulum-v1": (range(1, 6), -180, -220),
    "LunarLander-v3": (range(1, 6), 230, 200),
    "LunarLanderContinuous-v3": (range(1, 6), 240, None),
    "MountainCar-v0": (range(1, 6), -120, -120),
    "HalfCheetah-v5": (range(1, 6), 2000, None),
}


def score(task, seed, episodes=100, name="ppo", **sections):
    """Mean of deterministic episodes of the last policy, on seeds that training never sees.

    In Gymnasium's own env, although a compiled one was learned in where there is one.
    """
    preset = find_preset(name, task)
    tables = {key: dict(table) for key, table in preset.tables.items()}
    tables["env"]["id"] = task
    tables["run"]["seed"] = seed
    for section, changes in sections.items():
        tables[section].update(changes)
    config = from_tables(tables)
    return mean_of(run_control(make_session(config)), episodes)


def mean_of(agent, episodes):
    trained_in, compiled = agent.config.env, not not_compiled(agent.config.env)
    assert compiled == (trained_in.backend == "native"), trained_in
    env = make_env(trained_in)
    scores = evaluate_policy(agent.policy, env, episodes=episodes, seed=1_000_000)
    env.close()
    return float(scores.returns.mean())


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "total_steps", "algorithm", "bar"),
    [
        ("Acrobot-v1", 100_000, {"minibatch_size": 64, "lam": 0.94}, -100),
        (
            "MountainCarContinuous-v0",
            50_000,
            {"minibatch_size": 256, "gamma": 0.999, "normalize_reward": True},
            80,
        ),
    ],
)
def test_a_compiled_env_that_has_no_preset_is_learned(task, total_steps, algorithm, bar):
    if text := not_compiled(EnvConfig(id=task)):
        pytest.skip(text)
    agent = train(
        EnvConfig(id=task, num_envs=16),
        PPO(learning_rate="linear:1e-3:0", epochs=4, **algorithm),
        rollout=RolloutConfig(steps=128 if task == "Acrobot-v1" else 64),
        net=NetConfig(normalize_obs=True),
        total_steps=total_steps,
        seed=1,
    )
    assert mean_of(agent, 20) >= bar


@pytest.mark.long
@pytest.mark.parametrize("task", BARS)
def test_a_task_is_learned_by_every_seed(task):
    seeds, mean_bar, worst_bar = BARS[task]
    found = [score(task, seed) for seed in seeds]
    assert statistics.fmean(found) >= mean_bar, found
    if worst_bar is not None:
        assert min(found) >= worst_bar, found


QUICKER = {"rollout": {"steps": 250}, "algorithm": {"learning_rate": "linear:1e-3:0"}}
"""For LunarLander: more and larger updates, since there are fewer steps."""


@pytest.mark.parametrize(
    ("task", "total_steps", "changes", "bar"),
    [
        ("CartPole-v1", 50_000, {}, 450),
        ("Pendulum-v1", 60_000, {}, -300),
        ("LunarLander-v3", 160_000, QUICKER, 50),
        pytest.param("LunarLanderContinuous-v3", 160_000, QUICKER, 50, marks=pytest.mark.long),
        pytest.param("MountainCar-v0", 200_000, {}, -180, marks=pytest.mark.long),
        ("HalfCheetah-v5", 100_000, {}, 200),
    ],
)
def test_a_short_run_is_on_its_way(task, total_steps, changes, bar):
    changes = {"run": {"total_steps": total_steps}} | changes
    assert score(task, seed=1, episodes=20, **changes) >= bar


@pytest.mark.parametrize(
    ("algorithm", "task", "total_steps", "bar"),
    [
        ("reinforce", "CartPole-v1", 200_000, 450),
        pytest.param("qac", "CartPole-v1", 100_000, 200, marks=pytest.mark.long),
        ("a2c", "CartPole-v1", 100_000, 400),
        ("trpo", "CartPole-v1", 100_000, 450),
        ("ppo-penalty", "CartPole-v1", 100_000, 450),
        pytest.param("trpo", "Pendulum-v1", 150_000, -300, marks=pytest.mark.long),
        ("ppo-penalty", "Pendulum-v1", 100_000, -300),
    ],
)
def test_every_algorithm_learns(algorithm, task, total_steps, bar):
    """Short runs with its preset; `benchmarks/lineage.py` records the whole table."""
    run = {"total_steps": total_steps}
    assert score(task, seed=1, episodes=20, name=algorithm, run=run) >= bar
