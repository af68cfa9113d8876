"""Short versions of benchmarks/puzzles.py: masks, memory, hybrid actions and images learn."""

from functools import partial

import pytest

from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, train
from proximo.envs.make import make_env
from proximo.envs.testing.puzzles import (
    Cards,
    Catch,
    Copy,
    Identity,
    Maze,
    Workshop,
    still_cartpole,
    still_pendulum,
)
from proximo.evaluation import evaluate_policy


def score(env, algorithm, steps, *, num_envs=8, rollout=128, episodes=20, **net):
    """The mean return of the deterministic policy after so many steps."""
    agent = train(
        env,
        algorithm,
        total_steps=steps,
        num_envs=num_envs,
        rollout=RolloutConfig(steps=rollout),
        net=NetConfig(**net),
        seed=1,
    )
    tried = make_env(EnvConfig(), env)
    return evaluate_policy(agent.policy, tried, episodes=episodes, seed=0).returns.mean()


SOON = {"learning_rate": "linear:5e-3:0", "epochs": 20, "gamma": 0.0}
CART = PPO(gamma=0.98, learning_rate="linear:1e-3:0", minibatch_size=256)


@pytest.mark.parametrize("kind", ["discrete", "multi-discrete", "binary"])
def test_choices_do_what_is_shown_after_2000_steps(kind):
    found = score(partial(Identity, kind), PPO(**SOON), 2_000, num_envs=1, rollout=250)
    assert found >= 95


def test_numbers_do_what_is_shown_after_2000_steps():
    algorithm = PPO(**SOON, minibatch_size=32)
    found = score(partial(Identity, "box"), algorithm, 2_000, num_envs=1, rollout=125, log_std=-0.7)
    assert found >= 95


def test_the_tool_and_how_hard_to_press():
    assert score(Workshop, PPO(gamma=0.5, learning_rate=1e-3), 50_000) >= 9.5


def test_the_way_out_of_a_masked_maze():
    algorithm = PPO(gamma=0.95, learning_rate="linear:2e-3:0", entropy_coef=0.03)
    assert score(Maze, algorithm, 80_000, episodes=100) >= 0.9 * Maze().best()


def test_the_right_card_of_a_changing_hand():
    assert score(Cards, PPO(gamma=0.2, learning_rate=1e-3), 20_000) >= 9.0


def test_a_symbol_is_repeated_four_steps_later():
    algorithm = PPO(gamma=0.5, learning_rate=2e-3, epochs=4, minibatch_size=288)
    found = score(Copy, algorithm, 120_000, num_envs=16, rollout=72, recurrent="lstm")
    assert found >= 0.95


def test_a_pole_is_balanced_without_seeing_velocities():
    assert score(partial(still_cartpole, 200), CART, 80_000, recurrent="lstm") >= 150


@pytest.mark.long
def test_without_a_memory_it_falls():
    assert score(still_cartpole, CART, 200_000) < 120


@pytest.mark.long
def test_a_pole_is_balanced_for_500_steps():
    assert score(still_cartpole, CART, 200_000, recurrent="lstm", episodes=100) >= 475


@pytest.mark.long
def test_a_pendulum_is_swung_up_without_its_velocity():
    algorithm = PPO(
        gamma=0.9, learning_rate="linear:1e-3:0", minibatch_size=256, normalize_reward=True
    )
    found = score(still_pendulum, algorithm, 300_000, rollout=256, episodes=100, recurrent="lstm")
    assert found >= -250


@pytest.mark.long
def test_a_ball_is_caught_from_pixels():
    algorithm = PPO(
        epochs=4,
        minibatch_size=256,
        learning_rate="linear:5e-4:0",
        entropy_coef="linear:0.05:0",
    )
    size = {"num_envs": 16, "rollout": 64, "trunk": "shared"}
    assert score(Catch, algorithm, 200_000, episodes=100, **size) >= 0.95
