"""Each suite in JAX that is installed: its own ends, tensors without a copy, resume, evaluation.

`make suites` runs it in an environment that has them all.
"""

import importlib.util
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from proximo import EnvConfig, RolloutConfig, RunConfig, UsageError, load, resume, train
from proximo.envs.make import in_step, make_env
from proximo.evaluation import EpisodePlayer, evaluate_policy

pytestmark = pytest.mark.filterwarnings("ignore")  # the suites warn of themselves
SUITES = {
    "brax": ("brax", EnvConfig(id="brax:inverted_pendulum")),
    "craftax": ("craftax", EnvConfig(id="craftax:Craftax-Classic-Symbolic-v1")),
    "gymnax": ("gymnax", EnvConfig(id="gymnax:Pendulum-v1")),
    "jumanji": ("jumanji", EnvConfig(id="jumanji:Snake-v1", kwargs={"num_rows": 4, "num_cols": 4})),
    "navix": ("navix", EnvConfig(id="navix:Navix-Empty-5x5-v0")),
    "playground": ("mujoco_playground", EnvConfig(id="playground:CartpoleBalance")),
    "xminigrid": ("xminigrid", EnvConfig(id="xminigrid:MiniGrid-EmptyRandom-5x5")),
}
LIMIT = 6
ENVS = 4


@pytest.fixture(scope="module", params=SUITES)
def config(request):
    """4 envs of a suite, with a time limit of 6 steps."""
    package, env = SUITES[request.param]
    if importlib.util.find_spec("jax") is None or importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    kwargs = env.kwargs
    return EnvConfig(id=env.id, kwargs=kwargs, num_envs=ENVS, max_episode_steps=LIMIT)


@pytest.fixture
def vector(config):
    from proximo.envs.simulators import SimulatorVectorEnv

    return SimulatorVectorEnv(config)


def actions(vector, steps):
    space = vector.single_action_space
    space.seed(0)
    for _ in range(steps):
        yield torch.from_numpy(np.stack([space.sample() for _ in range(ENVS)]))


def leaves(nested):
    if isinstance(nested, dict):
        return [leaf for part in nested.values() for leaf in leaves(part)]
    return [nested]


def row(nested, index):
    return [np.asarray(leaf[index]) for leaf in leaves(nested)]


def test_final_obs_is_the_true_successor_and_obs_another_beginning(vector):
    import jax

    vector.reset(seed=7)
    ends = 0
    for number, action in enumerate(actions(vector, 2 * LIMIT), 1):
        before = vector.carry
        obs, reward, terminated, truncated, info = vector.step(action)
        if number == LIMIT:
            assert (terminated | truncated).sum() > 0
        for i in (terminated | truncated).nonzero()[:, 0].tolist():
            carry = jax.tree.map(lambda leaf, i=i: leaf[i], before)
            _, answers = vector.programs.step(carry, np.asarray(action[i]))
            _, start = vector.programs.begin(jax.random.split(carry.key, 3)[2])
            for seen, true in zip(row(info["final_obs"], i), leaves(answers[0]), strict=True):
                np.testing.assert_allclose(seen, true, rtol=1e-4, atol=1e-4)
            for seen, true in zip(row(obs, i), leaves(start), strict=True):
                np.testing.assert_allclose(seen, true, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(reward[i], answers[1], rtol=1e-4, atol=1e-4)
            assert (terminated[i], truncated[i]) == (bool(answers[2]), bool(answers[3]))
            assert vector.carry.time[i] == 0
            ends += 1
        going = ~(terminated | truncated)
        for now, final in zip(leaves(obs), leaves(info["final_obs"]), strict=True):
            assert torch.equal(now[going], final[going])
    assert ends >= ENVS


def test_the_time_limit_truncates_what_has_not_ended(vector):
    vector.reset(seed=3)
    age, cut = np.zeros(ENVS, int), 0
    for action in actions(vector, 3 * LIMIT):
        _, _, terminated, truncated, _ = vector.step(action)
        age += 1
        assert (age[truncated.numpy()] == LIMIT).all()
        assert (terminated | truncated)[age == LIMIT].all()
        assert not truncated[age < LIMIT].any()
        cut += int((truncated & ~terminated).sum())
        age[(terminated | truncated).numpy()] = 0
    assert cut


def test_nothing_is_copied_between_the_suite_and_the_tensors(vector):
    from proximo.envs.simulators import to_array, to_tensors

    vector.reset(seed=0)
    (drawn,) = actions(vector, 1)
    action = drawn.clone()  # aligned, as PyTorch allocates and JAX wants it
    given = to_array(action)
    if action.is_floating_point():
        assert given.unsafe_buffer_pointer() == action.data_ptr()
    _, obs, answers = vector.programs.step_all(vector.carry, given)
    arrays = [*leaves(obs), *leaves(answers[0]), *answers[1:]]
    tensors = [*leaves(to_tensors(obs)), *leaves(to_tensors(answers[0]))]
    tensors += map(to_tensors, answers[1:])
    assert len(arrays) == len(tensors) >= 5
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.data_ptr() == array.unsafe_buffer_pointer()
        assert tensor.shape == array.shape


def test_a_step_is_compiled_once(vector, config):
    before = vector.programs.step_all._cache_size()
    for seed in (0, None):
        vector.reset(seed=seed)
        for action in actions(vector, 3):
            vector.step(action)
    assert vector.programs.step_all._cache_size() == max(before, 1) == 1


def test_many_episodes_at_once_are_those_of_one_env(config):
    env = make_env(config)
    agent = train(config, total_steps=ENVS * 16, seed=2, rollout=RolloutConfig(steps=16))
    for deterministic in (True, False):
        how = {"episodes": ENVS, "seed": 50, "deterministic": deterministic}
        many = evaluate_policy(agent.policy, env, **how)
        alone = EpisodePlayer(in_step([env])).play(agent.policy, **how)
        assert [e.length for e in many.episodes] == [e.length for e in alone.episodes]
        np.testing.assert_allclose(many.returns, alone.returns, rtol=1e-3, atol=1e-3)


def weights(folder):
    return load(folder).policy.state_dict()


def test_a_resumed_run_ends_as_one_that_was_never_stopped(config, tmp_path):
    how = {"seed": 1, "rollout": RolloutConfig(steps=16), "progress": False}
    train(config, total_steps=ENVS * 96, run_dir=tmp_path / "whole", **how)
    train(config, total_steps=ENVS * 48, run_dir=tmp_path / "half", **how)
    resume(tmp_path / "half", total_steps=ENVS * 96)
    whole, half = weights(tmp_path / "whole"), weights(tmp_path / "half")
    assert all(torch.equal(whole[name], half[name]) for name in whole)


KILLED = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from proximo import EnvConfig, RolloutConfig, RunConfig, train

def kill(state, rollout, row):
    if state.updates == 4:
        os.kill(os.getpid(), signal.SIGKILL)

config = EnvConfig(id=sys.argv[1], num_envs=4, max_episode_steps=6)
train(config, seed=1, rollout=RolloutConfig(steps=16), callbacks=[kill], progress=False,
      run_dir=sys.argv[2], run_config=RunConfig(total_steps=384, save_every=1, seed=1))
"""


def test_a_run_that_was_killed_resumes_in_another_process(config, tmp_path):
    if config.id.startswith(("craftax", "jumanji", "playground")):
        pytest.skip("one of each kind is enough: it is compiled anew")
    words = [sys.executable, "-c", KILLED, config.id, str(tmp_path / "killed")]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert 0 < load(tmp_path / "killed").result["updates"] < 6
    resume(tmp_path / "killed")
    run = RunConfig(total_steps=384, save_every=1, seed=1)
    how = {"seed": 1, "rollout": RolloutConfig(steps=16), "progress": False, "run_config": run}
    train(config, run_dir=tmp_path / "whole", **how)
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_it_is_shown_where_the_suite_draws(config):
    if config.id.split(":")[0] in ("brax", "playground", "craftax"):
        pytest.skip("drawn by OpenGL, or from textures that are loaded for a minute")
    if config.id.split(":")[0] in ("gymnax", "jumanji"):
        with pytest.raises(
            UsageError, match=r"has no pictures .* of the suites, brax, craftax, na"
        ):
            make_env(config, render_mode="rgb_array")
        return
    env = make_env(config, render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame.dtype == np.uint8
    assert frame.ndim == 3
    assert frame.shape[-1] == 3
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 3
