"""Real tasks with their presets: the whole budgets under the `long` marker, short ones always.

The long bars are those of the results table; `benchmarks/scores.py` records the figures.
"""

import statistics

import pytest

from proximo.envs.make import make_env
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
    """Mean of deterministic episodes of the last policy, on seeds that training never sees."""
    preset = find_preset(name, task)
    tables = {key: dict(table) for key, table in preset.tables.items()}
    tables["env"]["id"] = task
    tables["run"]["seed"] = seed
    for section, changes in sections.items():
        tables[section].update(changes)
    config = from_tables(tables)
    agent = run_control(make_session(config))
    env = make_env(config.env)
    scores = evaluate_policy(agent.policy, env, episodes=episodes, seed=1_000_000)
    env.close()
    return float(scores.returns.mean())


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
