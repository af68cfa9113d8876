"""An evaluation cuts off what does not end: a setting, told, and counted with what it earned."""

import json

import gymnasium as gym
import pytest

from commands.command_line import SMALL, here, proximo, refusal, result, rows, succeeded
from envs.made_envs import Long
from proximo import EnvConfig
from proximo.envs.base import NUMBERED
from proximo.envs.make import make_env, make_envs
from proximo.envs.workers import WorkerEnvs
from proximo.evaluation import EpisodePlayer, evaluate_policy, step_limit

__all__ = ["here"]


LOOPS = "envs.made_envs:Loops"


def first(obs):
    return 0


@pytest.mark.parametrize(("limit", "length", "cut"), [(39, 39, 3), (40, 40, 0), (41, 40, 0)])
def test_what_was_earned_until_then_counts_and_what_was_cut_is_counted(limit, length, cut):
    scores = evaluate_policy(first, Long(), episodes=3, seed=0, limit=limit)
    assert scores.returns.tolist() == [length] * 3
    assert scores.cut == cut
    assert scores.summary().get("episodes_cut", 0) == cut
    assert bool(scores.said("--max")) == bool(cut)


def test_an_env_is_reset_once_for_each_episode_and_watched_in_every_state():
    seeds, states = [], []

    class Noted(Long):
        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed)

    for limit, count in ((3, 4), (60, 41)):
        evaluate_policy(first, Noted(), episodes=2, seed=5, limit=limit, watch=states.append)
        assert (seeds, states) == ([5, 6], [0] * count + [1] * count)
        seeds.clear()
        states.clear()


def test_the_env_apart_is_made_once_and_closed_with_the_others():
    closed = []

    class Noted(Long):
        def close(self):
            closed.append(self)

    envs = make_envs(EnvConfig(num_envs=2), 0, Noted)
    assert envs.check().episodes
    apart = envs.apart()
    assert apart is envs.apart()
    assert not closed
    assert envs.close() == []
    assert len(closed) == 3


def test_every_agent_that_is_there_is_cut():
    pytest.importorskip("pettingzoo")
    env = make_env(EnvConfig(id="envs.parallel_envs:Leaving"))
    scores = evaluate_policy(first, env, episodes=2, seed=0, limit=3)  # early has left after 2
    assert [e.length for e in scores.episodes] == [2, 3, 2, 3]
    assert scores.cut == 2
    assert evaluate_policy(first, env, episodes=2, seed=0, limit=5).cut == 0


@pytest.mark.parametrize("name", ["envs.made_envs:Long", "envs.parallel_envs:Leaving"])
def test_so_it_is_in_processes(name):
    if "parallel" in name:
        pytest.importorskip("pettingzoo")
    env = EnvConfig(id=name, backend="workers", num_envs=1, processes=1)
    envs = WorkerEnvs(env, NUMBERED)
    player = EpisodePlayer(envs)
    try:
        for limit in (3, 5, 40):
            here = evaluate_policy(first, make_env(env), episodes=2, seed=7, limit=limit)
            there = player.play(first, episodes=2, seed=7, limit=limit)
            assert there.episodes == here.episodes
            assert there.cut == here.cut
    finally:
        envs.close()


def test_the_default_is_ours_or_that_of_the_env_if_it_is_longer():
    assert step_limit(EnvConfig(id="CliffWalking-v1"), None) == 10_000
    assert step_limit(EnvConfig(id="CartPole-v1"), None) == 10_000
    assert step_limit(EnvConfig(id="CartPole-v1"), 7) == 7
    assert step_limit(EnvConfig(id="x:Y", max_episode_steps=25_000), None) == 25_000
    assert step_limit(EnvConfig(id="ALE/Pong-v5"), None) == 108_000
    gym.register("Long-v0", Long, max_episode_steps=20_000)
    assert step_limit(EnvConfig(id="Long-v0"), None) == 20_000
    del gym.registry["Long-v0"]


@pytest.mark.parametrize("backend", ["sync", "workers"])
def test_a_greedy_policy_that_loops_ends_no_training(here, backend):
    words = ("--env.backend", backend, "--run.eval-every", "1", "--run.eval-episodes", "2")
    limit = ("--run.eval-max-episode-steps", "50")
    run = ("train", "ppo", LOOPS, *SMALL, "--total-steps", "128", "--run-dir", "r")
    done = succeeded(proximo(*run, *words, *limit))
    said = "2 of 2 episodes did not end within 50 steps and were cut off there"
    assert done.out.count(said) == 1
    assert said in result("r")["warnings"][-1]
    for row in rows("r"):
        assert (row["evaluation"], row["evaluation_episodes_cut"]) == (50, 2)

    scored = json.loads(
        succeeded(proximo("eval", "r", "--env", LOOPS, "--episodes", "3", "--json")).out
    )
    assert (scored["return_mean"], scored["episodes_cut"]) == (50, 3)
    assert scored["max_episode_steps"] == 50  # as the run's own evaluations
    words = ("eval", "r", "--env", LOOPS, "--episodes", "3", "--max-episode-steps", "60")
    assert "3 of 3 episodes did not end within 60 steps" in succeeded(proximo(*words)).out
    refused = refusal(proximo(*words[:-1], "0"))
    assert "--max-episode-steps is 0" in refused
    pytest.importorskip("imageio")
    play = ("play", "r", "--env", LOOPS, "--video", "r.gif", "--max-episode-steps", "9")
    shown = succeeded(proximo(*play)).out
    assert "return 9.00, cut off after 9 steps (--max-episode-steps)" in shown
    assert "10 states in r.gif" in shown
