"""VMAS: worlds of several robots as tensors, in streams of random numbers of their own."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from proximo import PPO, EnvConfig, RolloutConfig, RunConfig, UsageError, load, resume, train
from proximo.envs.make import in_step, make_env, make_envs
from proximo.envs.tensors import TensorEnvs
from proximo.evaluation import EpisodePlayer, evaluate_policy

pytest.importorskip("vmas")
from proximo.envs.vmas import VmasVectorEnv


def envs(seed=5, count=3, **settings):
    made = make_envs(EnvConfig(id="vmas:balance", backend="vector", num_envs=count), seed)
    assert isinstance(made, TensorEnvs)
    return made.envs


def still(vector, count=3):
    return {key: torch.zeros(count, 2) for key in vector.single_action_space.spaces}


def test_the_random_numbers_are_the_envs_own():
    one, other = envs(), envs()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 as VMAS has it
    for number in range(110):  # over the end of an episode
        if not number:
            seen = [vector.reset(seed=5)[0] for vector in (one, other)]
        else:
            answers = [vector.step(still(vector)) for vector in (one, other)]
            seen = [answer[0] for answer in answers]
            assert torch.equal(answers[0][1], answers[1][1])
        for key in seen[0]:
            torch.testing.assert_close(seen[0][key], seen[1][key], rtol=0, atol=0)
        if number % 20 == 0:  # another env of the process, as an evaluation is
            make_env(EnvConfig(id="vmas:balance")).reset(seed=number)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_the_time_limit_truncates_and_final_obs_is_the_true_successor():
    config = EnvConfig(id="vmas:simple", backend="vector", num_envs=2, max_episode_steps=4)
    vector, alone = make_envs(config, 0).envs, make_envs(config, 0).envs
    alone._worlds.max_steps = None  # goes on where the other one is cut off
    vector.reset(seed=1), alone.reset(seed=1)
    action = {key: torch.ones(2, 2) for key in vector.single_action_space.spaces}
    for step in range(4):
        obs, _, terminated, truncated, info = vector.step(action)
        expected = alone.step(action)[0]
        assert truncated.tolist() == [step == 3] * 2
        assert not terminated.any()
        for key, part in expected.items():
            assert torch.equal(info["final_obs"][key], part)
            assert torch.equal(obs[key], part) == (step < 3)


def test_an_end_is_no_truncation():
    vector = envs(count=1)
    vector._worlds.scenario.done = lambda: torch.tensor([True])
    vector.reset(seed=0)
    _, _, terminated, truncated, _ = vector.step(still(vector, 1))
    assert terminated.item()
    assert not truncated.item()


def test_an_episode_depends_on_its_seed_alone():
    env = make_env(EnvConfig(id="vmas:simple", max_episode_steps=5))
    firsts = [env.reset(seed=seed)[0] for seed in (1, 2, 1)]
    key = next(iter(firsts[0]))
    assert np.array_equal(firsts[0][key], firsts[2][key])
    assert not np.array_equal(firsts[0][key], firsts[1][key])


def test_unknown_names_and_pictures_are_refused():
    with pytest.raises(UsageError, match=r"no env 'balence' in vmas. Did you mean balance\?"):
        make_env(EnvConfig(id="vmas:balence"))
    with pytest.raises(UsageError, match="vmas:balance cannot be shown: VMAS draws with OpenGL"):
        make_env(EnvConfig(id="vmas:balance"), render_mode="rgb_array")


def test_choices_where_they_are_wanted():
    config = EnvConfig(id="vmas:simple", num_envs=2, kwargs={"continuous_actions": False})
    result = train(config, PPO(), total_steps=128, rollout=RolloutConfig(steps=64))
    assert result is not None


def test_evaluations_leave_the_training_as_it_was():
    def weights(**settings):
        config = EnvConfig(id="vmas:simple", num_envs=4, max_episode_steps=8)
        run = RunConfig(total_steps=256, seed=3, eval_episodes=1, **settings)
        agent = train(config, PPO(), rollout=RolloutConfig(steps=32), run_config=run)
        return torch.cat([p.flatten() for p in agent.policy.parameters()])

    assert torch.equal(weights(), weights(eval_every=1))


@pytest.mark.parametrize("scenario", ["balance", "navigation", "football", "sampling"])
def test_worlds_are_brought_back_to_the_bit(scenario):
    config = EnvConfig(id=f"vmas:{scenario}", num_envs=3, max_episode_steps=9)
    drawn = torch.Generator().manual_seed(1)

    def step(vector, shapes):
        action = {key: torch.rand(shape, generator=drawn) * 2 - 1 for key, shape in shapes.items()}
        obs, reward, terminated, truncated, info = vector.step(action)
        return [*obs.values(), reward, terminated, truncated, *info["final_obs"].values()]

    one, other = VmasVectorEnv(config), VmasVectorEnv(config)
    shapes = {k: (3, *(space.shape or (1,))) for k, space in one.single_action_space.items()}
    one.reset(seed=4), other.reset(seed=5)
    for _ in range(13):  # one episode and a half
        step(one, shapes)
    saved, before = one.snapshot(), drawn.get_state()
    expected = [step(one, shapes) for _ in range(13)]
    drawn.set_state(before)
    assert other.restore(saved)
    for answers in expected:
        for x, y in zip(answers, step(other, shapes), strict=True):
            assert torch.equal(x, y)


def test_worlds_whose_objects_point_elsewhere_are_not_brought_back():
    config = EnvConfig(id="vmas:simple_push", num_envs=2)  # the goal is one of two landmarks
    one, other = VmasVectorEnv(config), VmasVectorEnv(config)
    goals = set()
    for seed in range(12):
        one.reset(seed=seed), other.reset(seed=seed + 1)
        first, second = (env._worlds.agents[0].goal.name for env in (one, other))
        goals.add(first)
        assert not (first != second and other.restore(one.snapshot()))
    assert len(goals) == 2


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path, how):
    config = EnvConfig(id="vmas:balance", num_envs=4, max_episode_steps=10)
    run = {"seed": 1, "rollout": RolloutConfig(steps=16), "progress": False}
    train(config, total_steps=512, run_dir=tmp_path / "whole", **run)
    if how == "stopped":
        train(config, total_steps=256, run_dir=tmp_path / "half", **run)
    else:
        code = (
            "import os, sys; from proximo import *\n"
            "def kill(state, rollout, row):\n"
            "    if state.updates == 4: os.kill(os.getpid(), 9)\n"
            "config = EnvConfig(id='vmas:balance', num_envs=4, max_episode_steps=10)\n"
            "train(config, seed=1, rollout=RolloutConfig(steps=16), callbacks=[kill],\n"
            "      progress=False, run_dir=sys.argv[1],\n"
            "      run_config=RunConfig(total_steps=512, save_every=1, seed=1))\n"
        )
        words = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "half")]
        assert subprocess.run(words).returncode == -9
    resume(tmp_path / "half", total_steps=512)
    whole, half = (load(tmp_path / name).policy.state_dict() for name in ("whole", "half"))
    assert all(torch.equal(whole[name], half[name]) for name in whole)


@pytest.mark.parametrize("scenario", ["simple", "balance", "navigation"])
def test_many_episodes_at_once_are_those_of_one_world(scenario):
    config = EnvConfig(id=f"vmas:{scenario}", num_envs=4, max_episode_steps=12)
    agent = train(config, total_steps=64, seed=2, rollout=RolloutConfig(steps=16))
    env = make_env(config)
    for deterministic in (True, False):
        how = {"episodes": 3, "seed": 50, "deterministic": deterministic}
        many = evaluate_policy(agent.policy, env, **how)
        alone = EpisodePlayer(in_step([env])).play(agent.policy, **how)
        assert [e.length for e in many.episodes] == [e.length for e in alone.episodes]
        np.testing.assert_allclose(many.returns, alone.returns, rtol=1e-3, atol=1e-3)


def test_nothing_is_copied_between_vmas_and_the_tensors():
    vector = envs()
    vector.reset(seed=0)
    worlds, given = vector._worlds, {}
    real = worlds.step

    def step(actions):
        given["final"] = real(actions)
        given["actions"] = actions
        return given["final"]

    worlds.step = step
    action = still(vector)
    obs, _, _, _, info = vector.step(action)
    for key, part in action.items():
        assert given["actions"][key].data_ptr() == part.data_ptr()
        assert info["final_obs"][key].data_ptr() == given["final"][0][key].data_ptr()
        assert obs[key].data_ptr() == given["final"][0][key].data_ptr()  # nothing has ended


def test_first_episodes_can_begin_within_the_time_limit():
    from test_stagger import FIRST, LIMIT, ends, gather

    config = EnvConfig(id="vmas:balance", backend="vector", num_envs=4, stagger=True)
    rollout, _ = gather(EnvConfig(**{**vars(config), "max_episode_steps": LIMIT}))
    assert [ends(rollout, i) for i in range(4)] == [[first, first + LIMIT] for first in FIRST]
    assert [e.length for e in rollout.episodes] == [LIMIT] * 4
