"""VMAS: worlds of several robots as tensors, in streams of random numbers of their own."""

import numpy as np
import pytest
import torch

from proximo import PPO, EnvConfig, RolloutConfig, RunConfig, UsageError, train
from proximo.envs.make import make_env, make_envs
from proximo.envs.tensors import TensorEnvs

vmas = pytest.importorskip("vmas")


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
