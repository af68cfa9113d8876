"""The envs by which masks, memory and images are measured: their best scores are reached."""

import numpy as np
import pytest

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


def episodes(env, act, count=20):
    """The mean return of the policy act(env, obs)."""
    returns = []
    for seed in range(count):
        obs, _ = env.reset(seed=seed)
        assert env.observation_space.contains(obs)
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(act(env, obs))
            assert env.observation_space.contains(obs)
            total, over = total + reward, terminated or truncated
        returns.append(total)
    return np.mean(returns)


def homewards(maze, _):
    """The move that leads nearer to the exit."""
    distance = maze.distances()
    moves = [m for m in range(4) if maze.open[maze._cell, m]]
    return min(moves, key=lambda m: distance[maze._neighbour(maze._cell, m)])


def lowest_that_beats(_, obs):
    held = np.flatnonzero(obs["hand"])
    higher = [card for card in held if card > obs["table"]]
    return min(higher or held)


def right_tool(env, obs):
    material = obs["material"]
    return {
        "strength": obs["work"] * (0.9, -0.5, 0.2)[material],
        "tool": (material + 1) % 3,
    }


def remembered(env, _):
    t = env.steps - env.DELAY
    return env._shown[t] if t >= 0 else 0


def under_the_ball(env, obs):
    return 1 + np.sign(env._column - env._paddle)


@pytest.mark.parametrize(
    ("env", "act", "best"),
    [
        *[(Identity(kind), lambda w, obs: obs, 100.0) for kind in Identity.SPACES],
        (Copy(), remembered, 1.0),
        (Cards(), lowest_that_beats, 10.0),
        (Cards(masks=False), lowest_that_beats, 10.0),
        (Workshop(), right_tool, 10.0),
        (Catch(), under_the_ball, 1.0),
    ],
    ids=lambda x: type(x).__name__ if hasattr(x, "step") else "",
)
def test_the_best_policy_reaches_what_is_said_to_be_best(env, act, best):
    assert episodes(env, act) == pytest.approx(best, abs=1e-5)


def test_the_way_out_of_the_maze_is_as_long_as_it_says():
    maze = Maze()
    assert 0.45 < maze.open.mean() < 0.5  # half of all moves run into a wall
    assert (maze.distances() >= 0).all()  # every cell has a way out
    found = []
    for seed in range(300):
        maze.reset(seed=seed)
        cell, steps, over = maze._cell, 0, False
        while not over:
            _, _, over, _, _ = maze.step(homewards(maze, None))
            steps += 1
        assert steps == maze.distances()[cell]
        found.append(1 - 0.01 * steps)
    assert np.mean(found) == pytest.approx(maze.best(), abs=0.02)


@pytest.mark.parametrize("env", [Maze(), Cards()], ids=["maze", "cards"])
def test_what_is_illegal_is_refused(env):
    obs, _ = env.reset(seed=1)
    wrong = int(np.flatnonzero(obs["action_mask"] == 0)[0])
    with pytest.raises(ValueError, match=r"illegal|not in the hand"):
        env.step(wrong)


@pytest.mark.parametrize("env", [Maze(masks=False), Cards(masks=False)], ids=["maze", "cards"])
def test_without_masks_it_costs(env):
    env.reset(seed=1)
    wrong = [a for a in range(env.action_space.n) if illegal(env, a)]
    assert env.step(wrong[0])[1] == pytest.approx({Maze: -0.11, Cards: -1.0}[type(env)])


def illegal(env, action):
    return not (env.open[env._cell, action] if isinstance(env, Maze) else env._hand[action])


@pytest.mark.parametrize("env", [still_cartpole(200), still_pendulum()])
def test_velocities_are_not_seen(env):
    whole = env.unwrapped
    seen, _ = env.reset(seed=3)
    assert seen.shape == (2,)
    if len(whole.state) == 4:
        np.testing.assert_allclose(seen, np.float32(whole.state)[[0, 2]])
        assert env.spec.max_episode_steps == 200
    else:
        np.testing.assert_allclose(seen, [np.cos(whole.state[0]), np.sin(whole.state[0])], 1e-5)
