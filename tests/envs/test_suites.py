"""Suites of envs in JAX: names, errors, ends; with the suites themselves where they are installed.

`make suites` runs it in an environment that has them.
"""

import dataclasses
import sys
import types

import numpy as np
import pytest
import torch

from proximo import PPO, EnvConfig, train
from proximo.envs.adapters import ENDLESS, make_simulator
from proximo.envs.make import make_env, make_envs
from proximo.envs.suites import SUITES, suite_of
from proximo.errors import UsageError
from proximo.run.choices import choose_backend
from proximo.run.config import Config
from proximo.run.consent import Named, unnamed


@dataclasses.dataclass
class Params:
    max_timesteps: int = 10

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)


class StandIn:
    """A game by Craftax's interface, whose `done` mixes time limit and end: it ends at 3."""

    default_params = Params()

    def observation_space(self, params):
        return types.SimpleNamespace(low=0.0, high=1.0, shape=(2,), dtype=np.float32)

    def action_space(self, params):
        return types.SimpleNamespace(n=4)

    def reset_env(self, key, params):
        return np.zeros(2, np.float32), 0

    def step_env(self, key, state, action, params):
        done = state + 1 >= 3 or state + 1 >= params.max_timesteps
        return np.zeros(2, np.float32), state + 1, 1.0, done, {}


@pytest.fixture
def craftax(monkeypatch):
    module = types.ModuleType("craftax.craftax_env")
    module.make_craftax_env_from_name = lambda name, auto_reset: StandIn()
    monkeypatch.setitem(sys.modules, "craftax", types.ModuleType("craftax"))
    monkeypatch.setitem(sys.modules, "craftax.craftax_env", module)


def test_a_suite_is_named_by_its_prefix():
    assert suite_of("gymnax:CartPole-v1") == "gymnax"
    assert not any(map(suite_of, ("CartPole-v1", "gymnax", "my_module:Env", "native:env.c")))


def test_a_suite_is_no_code_of_the_users_own():
    config = Config(algorithm=PPO(), env=EnvConfig(id="gymnax:CartPole-v1"))
    assert unnamed(config, Named())["env"] == []
    own = dataclasses.replace(config, env=EnvConfig(id="mine:Env"))
    assert unnamed(own, Named())["env"] == ["mine:Env"]


def test_all_of_a_suite_are_stepped_at_once():
    assert choose_backend(EnvConfig(id="gymnax:CartPole-v1"), given=False)[0] == "vector"


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_that_is_missing_is_named_with_what_installs_it(suite, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setitem(sys.modules, "vmas", None)
    monkeypatch.delitem(sys.modules, "proximo.envs.vmas", raising=False)
    for backend in ("vector", "sync"):
        config = EnvConfig(id=f"{suite}:Env", backend=backend)
        with pytest.raises(UsageError, match=rf"(?s){suite}:Env needs the suite.*pip install"):
            make_envs(config, 0)


def test_an_unknown_name_gets_the_nearest(craftax):
    with pytest.raises(UsageError, match="Did you mean Craftax-Classic-Symbolic-v1"):
        make_simulator("craftax:Craftax-Clasic-Symbolic-v1", None, {})


@pytest.mark.parametrize(("limit", "held"), [(None, 10), (2, 2)])
def test_a_time_limit_is_told_from_an_end(craftax, limit, held):
    simulator = make_simulator("craftax:Craftax-Symbolic-v1", limit, {})
    assert simulator.limit == held
    assert simulator._params.max_timesteps == ENDLESS  # its own `done` is then an end
    state, _ = simulator.reset(None)
    ends = []
    for _ in range(3):
        state, _, _, terminated, truncated = simulator.step(state, 0, None)
        ends.append((terminated, truncated))
    assert ends == [(False, False), (False, False), (True, False)]


def test_an_argument_that_the_suite_does_not_know_is_an_error(craftax):
    with pytest.raises(UsageError, match="cannot be made with the arguments"):
        make_simulator("craftax:Craftax-Symbolic-v1", None, {"no_such": 1})


CARTPOLE = "gymnax:CartPole-v1"


def installed():
    pytest.importorskip("jax")
    pytest.importorskip("gymnax")


def steps_of(envs, actions):
    """Everything that the envs answer to these actions."""
    answers = [envs.reset(seed=3)[0].clone()]
    for action in actions:
        obs, reward, terminated, truncated, info = envs.step(torch.from_numpy(action))
        answers += [obs, reward, terminated, truncated, info["final_obs"]]
    return answers


def test_the_same_seed_gives_the_same_and_another_one_not():
    installed()
    from proximo.envs.simulators import SimulatorVectorEnv

    envs = SimulatorVectorEnv(EnvConfig(id=CARTPOLE, num_envs=3))
    actions = np.random.default_rng(0).integers(2, size=(40, 3))
    for one, other in zip(steps_of(envs, actions), steps_of(envs, actions), strict=True):
        assert torch.equal(one, other)
    first = envs.reset(seed=3)[0].clone()
    assert not torch.equal(first, envs.reset(seed=4)[0])
    assert len(first.unique(dim=0)) == 3


def test_an_end_keeps_its_true_successor_and_is_no_truncation():
    installed()
    from proximo.envs.simulators import SimulatorVectorEnv

    envs = SimulatorVectorEnv(EnvConfig(id=CARTPOLE, num_envs=2))
    envs.reset(seed=0)
    for _ in range(30):
        obs, _, terminated, truncated, info = envs.step(torch.ones(2, dtype=torch.int64))
        final = info["final_obs"]
        fallen = (final[:, 2].abs() > 12 * 2 * np.pi / 360) | (final[:, 0].abs() > 2.4)
        assert torch.equal(fallen, terminated)
        assert not truncated.any()
        assert torch.equal(obs[~terminated], final[~terminated])
        assert (obs[terminated].abs() <= 0.05).all()


def test_a_time_limit_truncates():
    installed()
    from proximo.envs.simulators import SimulatorVectorEnv

    envs = SimulatorVectorEnv(EnvConfig(id=CARTPOLE, num_envs=2, max_episode_steps=5))
    envs.reset(seed=0)
    for number in range(1, 11):
        _, _, terminated, truncated, _ = envs.step(torch.full((2,), number % 2))
        assert not terminated.any()
        assert bool(truncated.all()) == (number % 5 == 0)


def test_tensors_and_arrays_share_their_memory():
    installed()
    from proximo.envs.simulators import SimulatorVectorEnv, to_array, to_tensors

    envs = SimulatorVectorEnv(EnvConfig(id="gymnax:Pendulum-v1", num_envs=64))
    envs.reset(seed=0)
    array = envs.carry.state.theta
    assert to_tensors(array).data_ptr() == array.unsafe_buffer_pointer()
    action = torch.zeros(64, 1)
    assert to_array(action).unsafe_buffer_pointer() == action.data_ptr()


@pytest.mark.filterwarnings("ignore:.*infinity")
def test_a_single_env_is_as_gymnasium_wants_it():
    installed()
    from gymnasium.utils.env_checker import check_env

    check_env(make_env(EnvConfig(id=CARTPOLE)), skip_render_check=True)


def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path):
    installed()
    from proximo import RolloutConfig, load, resume

    how = {"seed": 1, "num_envs": 4, "rollout": RolloutConfig(steps=32), "progress": False}
    train(CARTPOLE, total_steps=1024, run_dir=tmp_path / "whole", **how)
    train(CARTPOLE, total_steps=512, run_dir=tmp_path / "half", **how)
    resume(tmp_path / "half", total_steps=1024)
    whole, half = (load(tmp_path / name).policy.state_dict() for name in ("whole", "half"))
    assert all(torch.equal(whole[name], half[name]) for name in whole)


def test_first_episodes_begin_within_a_time_limit_that_is_ours(craftax, monkeypatch):
    installed()
    from test_stagger import FIRST, LIMIT, ends, gather

    def go_on(self, key, state, action, params):
        return np.zeros(2, np.float32), state + 1, 1.0, state < 0, {}

    monkeypatch.setattr(StandIn, "step_env", go_on)
    env = EnvConfig(id="craftax:Craftax-Symbolic-v1", num_envs=4, backend="vector", stagger=True)
    rollout, _ = gather(dataclasses.replace(env, max_episode_steps=LIMIT), steps=LIMIT + 1)
    assert [ends(rollout, i) for i in range(4)] == [[first] for first in FIRST]
    assert rollout.episodes == ()
    with pytest.raises(UsageError, match=r"env\.stagger is on, but no time limit is known"):
        make_envs(dataclasses.replace(env, id=CARTPOLE), 0)
